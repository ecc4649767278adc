"""Targets and losses against torchvision's own, data and augmentation, and the loop."""

import io
import json
import math
import tarfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.rpn import RPNHead as TorchvisionHead

from stream_rpn import models
from stream_rpn.anchors import grid, inside, scale_major
from stream_rpn.cli import main
from stream_rpn.evaluation.coco import CocoDataset, ImageStore
from stream_rpn.frame import StreamRPNError
from stream_rpn.kernels import boxes as box_ops
from stream_rpn.models.checkpoint import load_model, save_weights
from stream_rpn.training import loop
from stream_rpn.training.augment import augment
from stream_rpn.training.config import ASSIGNMENTS, Augmentation, TrainConfig
from stream_rpn.training.initialise import load_init
from stream_rpn.training.loop import train
from stream_rpn.training.losses import classic_losses, flatten_head, quality_losses
from stream_rpn.training.targets import (
    BACKGROUND,
    IGNORED,
    dense_targets,
    ignore_crowd,
    match_atss,
    match_classic,
    sample,
)
from stream_rpn.training.validation import Validation
from tests.agreement import assert_within, tolerances
from tests.synthetic_coco import png, shapes, write_dataset

STRIDES = (8, 16)
SIZE = 128


def level_anchors(ratios=(0.5, 1.0, 2.0)):
    return [grid(scale_major([3.0 * s], ratios), (SIZE // s, SIZE // s), (s, s)) for s in STRIDES]


def random_boxes(count, generator, size=SIZE):
    corners = torch.rand(count, 2, 2, generator=generator) * size
    boxes = torch.cat((corners.min(dim=1).values, corners.max(dim=1).values), dim=1)
    boxes[:, 2:] += 2
    return boxes


def torchvision_rpn(fg=0.7, bg=0.3, batch_size=256, fraction=0.5):
    return RegionProposalNetwork(
        AnchorGenerator(), TorchvisionHead(4, 3), fg, bg, batch_size, fraction,
        {"training": 1, "testing": 1}, {"training": 1, "testing": 1}, 0.7,
    )  # fmt: skip


class TestClassicMatch:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("thresholds", [(0.7, 0.3), (0.5, 0.5), (0.9, 0.1)], ids=str)
    def test_labels_and_objects_equal_torchvision(self, seed, thresholds):
        anchors = torch.cat(level_anchors())
        gt_boxes = random_boxes(1 + 3 * seed, torch.Generator().manual_seed(seed))
        labels, matched = torchvision_rpn(*thresholds).assign_targets_to_anchors(
            [anchors], [{"boxes": gt_boxes}]
        )
        match = match_classic(
            anchors, gt_boxes, fg_iou_thresh=thresholds[0], bg_iou_thresh=thresholds[1]
        )
        assert torch.equal((match >= 0).float() - (match == IGNORED).float(), labels[0])
        assert torch.equal(gt_boxes[match[match >= 0]], matched[0][match >= 0])

    def test_every_anchor_that_ties_for_an_object_is_positive(self):
        anchors = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [50, 50, 60, 60]])
        match = match_classic(anchors, torch.tensor([[5.0, 0, 15, 10]]))
        assert match.tolist() == [0, 0, BACKGROUND]

    def test_without_low_quality_such_anchors_are_ignored_between_the_thresholds(self):
        anchors = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10]])
        match = match_classic(anchors, torch.tensor([[5.0, 0, 15, 10]]), low_quality=False)
        assert match.tolist() == [IGNORED, IGNORED]

    def test_an_image_without_objects_is_all_background(self):
        match = match_classic(torch.cat(level_anchors()), torch.zeros(0, 4))
        assert (match == BACKGROUND).all()

    def test_thresholds_in_the_wrong_order_are_refused(self):
        with pytest.raises(ValueError, match="bg_iou_thresh <= fg_iou_thresh"):
            match_classic(torch.zeros(1, 4), torch.zeros(1, 4), fg_iou_thresh=0.2)


class TestAtss:
    def test_one_level_by_hand(self):
        # Nine cells of stride 10, one 10-pixel anchor each; the object is the anchor of the middle.
        anchors = grid(scale_major([10.0], [1.0]), (3, 3), (10, 10))
        match = match_atss([anchors], torch.tensor([[5.0, 5, 15, 15]]), num_anchors=1)
        assert match.tolist() == [-1, -1, -1, -1, 0, -1, -1, -1, -1]

    @pytest.mark.parametrize("side", [1.5, 6.0, 40.0, 120.0])
    def test_objects_of_every_size_have_a_positive_whose_centre_is_near(self, side):
        levels = level_anchors()
        gt_boxes = torch.tensor([[61.0 - side / 2, 61 - side / 2, 61 + side / 2, 61 + side / 2]])
        match = match_atss(levels, gt_boxes, num_anchors=3)
        positives = torch.cat(levels)[match == 0]
        assert len(positives) > 0
        centres = (positives[:, :2] + positives[:, 2:]) / 2
        assert ((centres - 61).abs() <= max(side / 2, 1.5 * STRIDES[0])).all()

    def test_an_anchor_claimed_twice_takes_the_better_object(self):
        levels = level_anchors()
        gt_boxes = torch.tensor([[40.0, 40, 88, 88], [42.0, 42, 86, 86]])
        match = match_atss(levels, gt_boxes, num_anchors=3)
        anchors = torch.cat(levels)
        overlap = box_ops.iou(anchors, gt_boxes)
        alone = [match_atss(levels, g[None], num_anchors=3) >= 0 for g in gt_boxes]
        both = alone[0] & alone[1]
        assert both.any()
        assert torch.equal(match[both], overlap[both].argmax(dim=1))

    def test_an_image_without_objects_is_all_background(self):
        assert (match_atss(level_anchors(), torch.zeros(0, 4), num_anchors=3) == BACKGROUND).all()


class TestCrowd:
    ANCHORS = torch.tensor([[0.0, 0, 10, 10], [6, 0, 16, 10], [40, 40, 50, 50]])

    def test_background_that_a_region_covers_by_half_is_ignored(self):
        match = torch.full((3,), BACKGROUND)
        result = ignore_crowd(match, self.ANCHORS, torch.tensor([[0.0, 0, 11, 10]]))
        assert result.tolist() == [IGNORED, IGNORED, BACKGROUND]

    def test_positives_stay(self):
        match = torch.tensor([3, BACKGROUND, BACKGROUND])
        result = ignore_crowd(match, self.ANCHORS, torch.tensor([[0.0, 0, 60, 60]]))
        assert result.tolist() == [3, IGNORED, IGNORED]


class TestSample:
    @pytest.mark.parametrize(
        ("positives", "negatives", "expected"),
        [(300, 5000, (128, 128)), (10, 5000, (10, 246)), (0, 5000, (0, 256)), (200, 20, (128, 20))],
        ids=["many", "few", "none", "few negatives"],
    )
    def test_at_most_half_are_positive_and_negatives_fill_up(self, positives, negatives, expected):
        match = torch.cat(
            (torch.zeros(positives).long(), torch.full((negatives,), -1), torch.full((50,), -2))
        )
        match = match[torch.randperm(len(match), generator=torch.Generator().manual_seed(0))]
        chosen, others = sample(match)
        assert (len(chosen), len(others)) == expected
        assert (match[chosen] >= 0).all()
        assert (match[others] == BACKGROUND).all()
        assert len(set(chosen.tolist() + others.tolist())) == sum(expected)

    def test_the_permutation_is_asked_for_positives_then_negatives(self):
        asked = []

        def reverse(count):
            asked.append(count)
            return torch.arange(count).flip(0)

        match = torch.tensor([0, -1, 0, -1, -1, 0])
        chosen, others = sample(match, 4, 0.5, permutation=reverse)
        assert asked == [3, 3]
        assert (chosen.tolist(), others.tolist()) == ([5, 2], [4, 3])


class TestDenseTargets:
    def test_channels_are_background_object_pairs_and_xywh_quadruples(self):
        anchors = grid(scale_major([16.0], [1.0, 2.0]), (3, 4), (8, 8))
        gt_boxes = torch.tensor([[10.0, 3, 27, 20]])
        y, x, a = 1, 2, 1
        match = torch.full((24,), BACKGROUND)
        index = (y * 4 + x) * 2 + a
        match[index] = 0
        match[0] = IGNORED
        labels, offsets = dense_targets(match, anchors, gt_boxes, (3, 4))
        assert labels.shape == (3, 4, 4)
        assert offsets.shape == (3, 4, 8)
        assert labels[y, x].tolist() == [1, 0, 0, 1]
        assert labels[0, 0].tolist() == [0, 0, 1, 0]
        moved = box_ops.decode(offsets[y, x, 4 * a : 4 * a + 4], anchors[index])
        assert torch.allclose(moved, gt_boxes[0], atol=1e-4)
        assert offsets.count_nonzero() <= 4


@pytest.mark.numeric
class TestClassicLoss:
    @pytest.mark.parametrize("seed", range(4))
    def test_equals_torchvision_with_the_same_random_choice(self, seed):
        generator = torch.Generator().manual_seed(seed)
        levels = level_anchors()
        anchors = torch.cat(levels)
        images = 3
        gt_boxes = [random_boxes(n, generator) for n in (1, 4, 9)]
        objectness = [
            torch.randn(images, 3, SIZE // s, SIZE // s, generator=generator) for s in STRIDES
        ]
        deltas = [
            torch.randn(images, 12, SIZE // s, SIZE // s, generator=generator) for s in STRIDES
        ]
        logits, flat = flatten_head(objectness, deltas, 3)

        rpn = torchvision_rpn()
        labels, matched = rpn.assign_targets_to_anchors(
            [anchors] * images, [{"boxes": boxes} for boxes in gt_boxes]
        )
        wanted = list(rpn.box_coder.encode(matched, [anchors] * images))
        torch.manual_seed(seed)
        expected = rpn.compute_loss(logits.reshape(-1, 1), flat.reshape(-1, 4), labels, wanted)

        matches = [match_classic(anchors, boxes) for boxes in gt_boxes]
        torch.manual_seed(seed)
        samples = [sample(match) for match in matches]
        losses, within = tolerances(
            lambda: classic_losses(logits, flat, anchors, matches, gt_boxes, samples), runs=20
        )
        assert_within(losses, expected, within)

    def test_softmax_over_two_logits_is_sigmoid_of_their_difference(self):
        generator = torch.Generator().manual_seed(0)
        anchors = torch.cat(level_anchors())
        gt_boxes = [random_boxes(3, generator)]
        matches = [match_classic(anchors, gt_boxes[0])]
        samples = [sample(matches[0])]
        pair = torch.randn(1, len(anchors), 2, generator=generator)
        deltas = torch.randn(1, len(anchors), 4, generator=generator)
        arguments = (deltas, anchors, matches, gt_boxes, samples)
        two, within = tolerances(lambda: classic_losses(pair, *arguments), runs=20)
        one = classic_losses(pair[..., 1:] - pair[..., :1], *arguments)
        assert_within(one, two, within)

    def test_images_without_objects_have_no_box_loss(self):
        anchors = torch.cat(level_anchors())
        match = match_classic(anchors, torch.zeros(0, 4))
        losses = classic_losses(
            torch.zeros(1, len(anchors), 1), torch.zeros(1, len(anchors), 4), anchors,
            [match], [torch.zeros(0, 4)], [sample(match)],
        )  # fmt: skip
        assert losses.box == 0
        assert losses.objectness.item() == pytest.approx(math.log(2))


class TestQualityLoss:
    def setup_method(self):
        self.levels = level_anchors()
        self.anchors = torch.cat(self.levels)
        self.gt_boxes = random_boxes(4, torch.Generator().manual_seed(1))
        self.match = match_atss(self.levels, self.gt_boxes, num_anchors=3)
        self.positive = self.match >= 0

    def losses(self, logits, deltas):
        return quality_losses(
            logits[None], deltas[None], self.anchors, [self.match], [self.gt_boxes]
        )

    def test_exact_boxes_with_certain_scores_cost_nothing(self):
        deltas = torch.zeros(len(self.anchors), 4)
        deltas[self.positive] = box_ops.encode(
            self.gt_boxes[self.match[self.positive]], self.anchors[self.positive]
        )
        logits = torch.where(self.positive, 20.0, -20.0)[:, None]
        losses = self.losses(logits, deltas)
        assert losses.box.item() == pytest.approx(0, abs=1e-4)
        assert losses.objectness.item() == pytest.approx(0, abs=1e-4)

    def test_the_score_is_pulled_towards_the_iou_of_the_decoded_box(self):
        deltas = torch.zeros(len(self.anchors), 4)
        overlap = box_ops.iou(self.anchors, self.gt_boxes)
        overlap = overlap[self.positive, self.match[self.positive]].clamp(1e-3, 1 - 1e-3)
        logits = torch.full((len(self.anchors),), -20.0)
        logits[self.positive] = overlap.logit()
        logits = logits[:, None].requires_grad_()
        self.losses(logits, deltas).objectness.backward()
        assert logits.grad[self.positive].abs().max() < 1e-6

    def test_ignored_anchors_have_no_gradient(self):
        background = (self.match == BACKGROUND).nonzero()[:5, 0]
        self.match[background] = IGNORED
        logits = torch.zeros(len(self.anchors), 1, requires_grad=True)
        self.losses(logits, torch.zeros(len(self.anchors), 4)).objectness.backward()
        assert (logits.grad[background] == 0).all()
        assert (logits.grad[self.match == BACKGROUND] > 0).all()

    def test_a_batch_without_objects_is_finite(self):
        losses = quality_losses(
            torch.zeros(1, len(self.anchors), 1), torch.zeros(1, len(self.anchors), 4),
            self.anchors, [torch.full((len(self.anchors),), BACKGROUND)], [torch.zeros(0, 4)],
        )  # fmt: skip
        assert losses.box == 0
        assert losses.objectness.isfinite()


class TestDataset:
    @pytest.mark.parametrize("tar", [False, True], ids=["folder", "tar"])
    def test_images_and_boxes_come_as_they_were_written(self, tmp_path, tar):
        annotations, images = write_dataset(tmp_path, tar=tar)
        dataset = CocoDataset(annotations, [images])
        assert len(dataset) == 8
        for index in range(8):
            image, boxes = shapes(index)
            found = dataset[index]
            assert np.array_equal(found.image, image)
            x, y, w, h = np.array(boxes, dtype=np.float32).T
            assert np.array_equal(found.boxes, np.stack((x, y, x + w, y + h), axis=1))
            assert found.image_id == 100 + index

    def change(self, tmp_path, edit):
        annotations, images = write_dataset(tmp_path)
        data = json.loads(annotations.read_text())
        edit(data)
        annotations.write_text(json.dumps(data))
        return CocoDataset(annotations, [images])

    def test_crowds_are_apart_and_images_without_boxes_and_empty_boxes_are_fine(self, tmp_path):
        def edit(data):
            data["annotations"] = [
                {"id": 1, "image_id": 100, "bbox": [1, 2, 30, 40], "iscrowd": 1},
                {"id": 2, "image_id": 101, "bbox": [1, 2, 0, 40]},
            ]

        dataset = self.change(tmp_path, edit)
        assert dataset[0].crowd_boxes.tolist() == [[1, 2, 31, 42]]
        assert all(dataset[i].boxes.shape == (0, 4) for i in range(len(dataset)))

    @pytest.mark.parametrize(
        ("edit", "says"),
        [
            (lambda d: d["annotations"][3].update(bbox=[1, 2, "x", 4]), r"annotations\[3\].*bbox"),
            (lambda d: d["annotations"][3].update(bbox=[1, 2, -3, 4]), r"annotations\[3\].*no box"),
            (lambda d: d["annotations"][3].update(bbox=None), r"annotations\[3\].*None"),
            (lambda d: d["annotations"][2].update(image_id=7), r"annotations\[2\].*image 7"),
            (lambda d: d["images"][1].pop("width"), r"images\[1\].*'width'"),
            (lambda d: d["images"][1].update(id=100), r"images\[1\] repeats the id 100"),
            (lambda d: d.pop("images"), "'images' is expected"),
            (lambda d: d["annotations"][1].update(bbox="1234"), r"annotations\[1\].*bbox '1234'"),
            (lambda d: d["annotations"][1].update(bbox={}), r"annotations\[1\].*bbox {}"),
            (lambda d: d["annotations"][1].update(bbox=[1, True, 2, 3]), r"annotations\[1\].*bbox"),
            (lambda d: d["annotations"][1].update(iscrowd="no"), r"annotations\[1\].*iscrowd 'no'"),
            (lambda d: d["annotations"][1].update(iscrowd=[0]), r"annotations\[1\].*iscrowd \[0\]"),
            (lambda d: d["annotations"][1].update(iscrowd=2), r"annotations\[1\].*must be 0 or 1"),
            (lambda d: d["annotations"][1].update(image_id=[1]), r"annotations\[1\].*image \[1\]"),
            (lambda d: d["annotations"][1].update(image_id=True), r"annotations\[1\].*image True"),
            (lambda d: d["annotations"].append(None), r"annotations\[\d+\] is not an object"),
            (lambda d: d.update(annotations=None), "'annotations' is no list"),
            (lambda d: d.pop("annotations"), "'annotations' is missing"),
            (lambda d: d["images"].append(None), r"images\[\d\] is not an object"),
            (lambda d: d["images"][1].update(width=True), r"images\[1\].*'width'"),
            (lambda d: d["images"][1].update(width=96.5), r"images\[1\].*'width'"),
            (lambda d: d["images"][1].update(height=0), r"images\[1\].*'height'"),
            (lambda d: d["images"][1].update(file_name=""), r"images\[1\].*'file_name'"),
        ],
    )
    def test_what_is_wrong_is_named(self, tmp_path, edit, says):
        with pytest.raises(StreamRPNError, match=rf"annotations\.json.*{says}"):
            self.change(tmp_path, edit)

    def test_numbers_may_be_written_as_exporters_do(self, tmp_path):
        def edit(data):
            for image in data["images"]:
                image.update(id=str(image["id"]), width=float(image["width"]), height="96")
            for annotation in data["annotations"]:
                annotation["image_id"] = float(annotation["image_id"])
                annotation["bbox"] = [str(value) for value in annotation["bbox"]]
                annotation["iscrowd"] = "0"
            data["annotations"][0]["iscrowd"] = "true"

        (tmp_path / "plain").mkdir()
        plain, changed = (
            self.change(tmp_path / "plain", lambda d: None),
            self.change(tmp_path, edit),
        )
        assert changed.images() == plain.images()
        assert len(changed[0].crowd_boxes) == 1
        for index in range(1, len(plain)):
            np.testing.assert_array_equal(changed[index].boxes, plain[index].boxes)

    @pytest.mark.parametrize("depth", [10, 100_000])
    def test_json_that_is_nested_deeply_is_one_sentence(self, tmp_path, depth):
        path = tmp_path / "deep.json"
        path.write_text("[" * depth + "]" * depth)
        with pytest.raises(StreamRPNError, match=r"deep\.json: (not COCO|cannot be read as JSON)"):
            CocoDataset(path, [tmp_path])

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("camA/1.png", 10),
            ("camB/1.png", 20),
            ("frames/camB/1.png", 20),
            ("/data/frames/camB/1.png", 20),
            ("./2.png", 30),
            ("elsewhere/2.png", 30),
        ],
    )
    def test_a_member_of_a_tar_is_found_by_the_folders_that_are_named(self, tmp_path, name, value):
        store = self.tar(tmp_path)
        assert store.read(name)[0, 0, 0] == value

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("1.png", r"'1\.png' may be frames/camA/1\.png or frames/camB/1\.png"),
            ("camC/1.png", "not found"),
        ],
    )
    def test_a_name_that_may_be_either_or_neither_is_refused(self, tmp_path, name, says):
        with pytest.raises(StreamRPNError, match=says):
            self.tar(tmp_path).read(name)

    def tar(self, folder):
        with tarfile.open(folder / "images.tar", "w") as archive:
            for name, value in (("camA/1", 10), ("camB/1", 20)):
                self.add(archive, f"./frames/{name}.png", value)
            self.add(archive, "2.png", 30)
        return ImageStore([folder / "images.tar"])

    def add(self, archive, name, value):
        data = png(np.full((4, 4, 3), value, np.uint8))
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))

    def test_a_file_that_is_no_image_is_named(self, tmp_path):
        annotations, images = write_dataset(tmp_path)
        (images / "002.png").write_bytes(b"not an image")
        with pytest.raises(StreamRPNError, match=r"002\.png is not an image that can be read"):
            CocoDataset(annotations, [images])[2]

    def test_a_missing_image_is_named_with_where_it_was_looked_for(self, tmp_path):
        annotations, images = write_dataset(tmp_path)
        (images / "002.png").unlink()
        with pytest.raises(StreamRPNError, match=r"002\.png.*not found in .*images"):
            CocoDataset(annotations, [images])[2]

    def test_an_image_of_another_size_than_annotated_is_named(self, tmp_path):
        annotations, images = write_dataset(tmp_path)
        (images / "002.png").write_bytes(png(np.zeros((10, 20, 3), dtype=np.uint8)))
        with pytest.raises(StreamRPNError, match=r"002\.png.*20x10.*96x96"):
            CocoDataset(annotations, [images])[2]

    def test_no_such_annotations_folder_or_tar(self, tmp_path):
        annotations, images = write_dataset(tmp_path)
        with pytest.raises(StreamRPNError, match="no such annotation file"):
            CocoDataset(tmp_path / "nothing.json", [images])
        with pytest.raises(StreamRPNError, match="no such folder or tar"):
            CocoDataset(annotations, [tmp_path / "nothing.tar"])
        with pytest.raises(StreamRPNError, match="not a readable tar"):
            CocoDataset(annotations, [annotations])


def found_boxes(image):
    """The bounding boxes of strongly red, green and blue pixels."""
    pixels = image.astype(int)
    boxes = {}
    for channel in range(3):
        others = [c for c in range(3) if c != channel]
        mask = pixels[..., channel] > pixels[..., others].max(axis=-1) + 90
        if mask.any():
            y, x = mask.nonzero()
            boxes[channel] = [x.min(), y.min(), x.max() + 1, y.max() + 1]
    return boxes


class TestAugmentation:
    @pytest.mark.parametrize("seed", range(12))
    def test_boxes_follow_the_picture(self, tmp_path, seed):
        annotations, images = write_dataset(tmp_path, count=1)
        dataset = CocoDataset(annotations, [images])
        settings = Augmentation(size=128, mosaic=0, scale=(0.8, 2.5), photometric=0.2)
        result = augment(dataset, 0, settings, np.random.default_rng(seed))
        assert result.image.shape == (128, 128, 3)
        seen = found_boxes(result.image)
        assert len(result.boxes) <= 1
        if len(result.boxes):
            assert np.abs(result.boxes[0] - seen[0]).max() <= 2.5
        elif seen:
            # Too little of it is left to be an object: it must not be background either.
            assert len(result.crowd_boxes) == 1

    def test_a_mosaic_holds_the_objects_of_four_images(self, tmp_path):
        annotations, images = write_dataset(tmp_path, count=8)
        dataset = CocoDataset(annotations, [images])
        settings = Augmentation(size=192, mosaic=1, mosaic_scale=1.0001)
        counts = [
            len(augment(dataset, 0, settings, np.random.default_rng(seed)).boxes)
            for seed in range(20)
        ]
        assert max(counts) >= 5
        for seed in range(20):
            result = augment(dataset, 0, settings, np.random.default_rng(seed))
            assert (result.boxes[:, :2] >= 0).all()
            assert (result.boxes[:, 2:] <= 192).all()
            assert (result.boxes[:, 2:] - result.boxes[:, :2] >= 2).all()

    def test_the_same_seed_gives_the_same_image(self, tmp_path):
        annotations, images = write_dataset(tmp_path)
        dataset = CocoDataset(annotations, [images])
        first, second = (
            augment(dataset, 3, Augmentation(size=96), np.random.default_rng(5)) for _ in range(2)
        )
        assert np.array_equal(first.image, second.image)
        assert np.array_equal(first.boxes, second.boxes)


@pytest.fixture
def config(tmp_path):
    annotations, images = write_dataset(tmp_path)
    return TrainConfig(
        annotations=str(annotations),
        images=(str(images),),
        output=str(tmp_path / "model.safetensors"),
        model="tiny",
        init="random",
        hold_out=0,
        epochs=6,
        batch_size=4,
        warmup_steps=2,
        augmentation=Augmentation(size=64),
        checkpoint_every=1,
        float32=True,
    )


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def curve(config):
    rows = (config.folder / "metrics.jsonl").read_text().splitlines()
    return [
        (row["step"], row["objectness_loss"], row["box_loss"])
        for row in map(json.loads, rows)
        if "box_loss" in row
    ]


class Killed(Exception):
    pass


class TestLoop:
    def test_tiny_fits_eight_images_to_recall_one(self, tmp_path):
        size = 64
        annotations, images = write_dataset(tmp_path, size=size)
        model = train(
            TrainConfig(
                annotations=str(annotations),
                images=(str(images),),
                output=str(tmp_path / "model.safetensors"),
                model="tiny",
                init="random",
                hold_out=0,
                epochs=80,
                val_every=80,
                batch_size=8,
                learning_rate=3e-3,
                ema_decay=0.9,
                warmup_steps=5,
                augmentation=Augmentation(
                    size=size, scale=(1, 1), mosaic=0, photometric=0, flip=0, aliased=0
                ),
                float32=True,
            ),
        ).model
        model.input_spec = replace(model.input_spec, min_size=size, max_size=size)
        dataset = CocoDataset(annotations, [images])
        recall, _ = Validation(dataset, 1).measure(
            model, everything=True, progress=lambda done, count: None
        )
        assert recall["objects"] == 15
        assert recall["R50@100"] == 1.0
        loaded = load_model(str(tmp_path / "model.safetensors"))
        assert loaded.name == "tiny"

    @pytest.mark.parametrize(
        ("assignment", "optimizer"),
        [("classic", "sgd"), ("quality", "adamw")],
        ids=["sgd", "adamw"],
    )
    def test_resumed_after_a_kill_the_losses_are_the_same_bits(
        self, config, tmp_path, assignment, optimizer
    ):
        config = replace(config, assignment=assignment, optimizer=optimizer, epochs=3)
        train(config)
        whole = curve(config)
        assert len(whole) == 6

        config = replace(config, output=str(tmp_path / "killed.safetensors"), checkpoint_every=2)

        def kill(row):
            if row.get("step") == 5:
                raise Killed

        with pytest.raises(Killed):
            train(config, progress=kill)
        assert len(curve(config)) == 5
        train(config, resume=True)
        assert curve(config) == whole
        first, second = (
            load_model(str(tmp_path / f"{name}.safetensors")).state_dict()
            for name in ("model", "killed")
        )
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_a_loss_that_is_not_finite_stops_and_leaves_the_checkpoint(self, config):
        config = replace(config, learning_rate=1e18, clip_norm=1e30, warmup_steps=0)
        with pytest.raises(StreamRPNError, match=r"at step .* is (nan|inf).*model\.training"):
            train(config)
        state = torch.load(config.folder / "last.pt", weights_only=True)
        assert state["step"] == len(curve(config))
        assert all(torch.isfinite(t).all() for t in state["average"].values())

    def test_resuming_with_other_options_is_refused(self, config):
        config = replace(config, epochs=1)
        train(config)
        with pytest.raises(StreamRPNError, match="had another learning_rate"):
            train(replace(config, learning_rate=0.5), resume=True)
        with pytest.raises(StreamRPNError, match="no checkpoint"):
            train(replace(config, output=config.output + ".other.safetensors"), resume=True)

    @pytest.mark.parametrize("content", [{"config": "[1]"}, {"model": {}}, [1]])
    def test_a_checkpoint_of_something_else_is_refused(self, config, content):
        config.folder.mkdir(parents=True)
        torch.save(content, config.checkpoint)
        with pytest.raises(StreamRPNError, match=r"last\.pt' cannot be read .*--overwrite"):
            train(config, resume=True)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ({}, "'pretrained' is missing"),
            ({"pretrained": 7}, "not iterable"),
            ({"pretrained": []}, "'model' is missing"),
            ({"pretrained": [], "model": {"x": torch.zeros(1)}}, "Missing key"),
        ],
    )
    def test_a_checkpoint_that_lacks_something_is_refused(self, config, content, reason):
        config.folder.mkdir(parents=True)
        torch.save({"config": json.dumps(asdict(config)), **content}, config.checkpoint)
        with pytest.raises(StreamRPNError, match=rf"last\.pt' is not of this run .*{reason}"):
            train(config, resume=True)

    def test_images_without_boxes_train(self, config):
        path = Path(config.annotations)
        data = json.loads(path.read_text())
        of_one = data["annotations"][0]["image_id"]
        data["annotations"] = [a for a in data["annotations"] if a["image_id"] == of_one]
        path.write_text(json.dumps(data))
        for assignment in ASSIGNMENTS:
            train(replace(config, epochs=1, batch_size=1, assignment=assignment))
            assert any(box == 0 for _, _, box in curve(config))

    @pytest.mark.parametrize("crowd", [True, False], ids=["crowds only", "nothing"])
    def test_without_any_object_nothing_is_trained(self, config, crowd):
        path = Path(config.annotations)
        data = json.loads(path.read_text())
        data["annotations"] = [a | {"iscrowd": 1} for a in data["annotations"] if crowd]
        path.write_text(json.dumps(data))
        with pytest.raises(StreamRPNError, match="no object to train on"):
            train(config)
        assert not Path(config.output).exists()

    def test_frozen_parameters_keep_their_values(self, config):
        frozen = ("backbone.stages.0.",)
        torch.manual_seed(config.seed)
        initial = models.MODELS["tiny"].build().state_dict()
        after = train(replace(config, epochs=1, freeze=frozen)).model.state_dict()
        changed = {name for name in initial if not torch.equal(initial[name], after[name])}
        assert not any(name.startswith(frozen) for name in changed)
        assert any(name.startswith("head.") for name in changed)

    def test_vgg16_trains_on_a_few_images(self, config):
        config = replace(
            config,
            model="vgg16",
            assignment="classic",
            optimizer="sgd",
            epochs=1,
            checkpoint_every=100,
        )
        train(config)
        assert len(curve(config)) == 2

    @pytest.mark.parametrize("crossing", [False, True], ids=["all", "inside only"])
    def test_anchors_that_cross_the_border_are_left_out_on_request(self, config, crossing):
        run = loop._Run(
            replace(config, assignment="classic", ignore_crossing=crossing),
            lambda row: None,
            lambda: False,
        )
        images, samples = run.batches.make(0, run._progress)
        maps = list(run.model.features(images).values())
        levels = run.objective.level_anchors(images, maps)
        match = run.objective.match(levels, torch.from_numpy(samples[0].boxes), images)
        outside = ~inside(torch.cat(levels), (64, 64))
        assert outside.any()
        assert (match[outside] == IGNORED).all() == crossing


class TestCommand:
    @pytest.fixture
    def command(self, tmp_path):
        annotations, images = write_dataset(tmp_path, tar=True)
        return [
            *("train", "--annotations", str(annotations), "--images", str(images)),
            *("-o", str(tmp_path / "model.safetensors"), "--epochs", "1", "--size", "64"),
            *("--model", "tiny"),
        ]

    def test_trains_reports_and_writes_a_model_that_loads(self, command, tmp_path, capsys):
        annotations = command[2]
        extra = ["--val-annotations", annotations, "--val-limit", "2", "--batch-size", "4"]
        assert main([*command, *extra, "--freeze", "backbone.stages.0.0.", "--half"]) == 0
        out, err = capsys.readouterr()
        assert out == ""
        assert "AR@100" in err
        assert load_model(str(tmp_path / "model.safetensors")).trained
        with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
            assert file.get_tensor("head.conv.0.0.weight").dtype == torch.float16
        folder = tmp_path / "model.training"
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [0, 0, 1, 2, 2, rows[-1]["step"]]
        assert [row["images"] for row in rows if "images" in row] == [8, 2, 8]
        assert rows[-1]["images"] == 8
        assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
        stored = json.loads(torch.load(folder / "last.pt", weights_only=True)["config"])
        assert stored["augmentation"]["size"] == 64
        assert stored["freeze"] == ["backbone.stages.0.0."]

        assert main(command) == 2
        assert "--overwrite" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("extra", "says"),
        [
            (["--annotations", "nothing.json"], "nothing.json"),
            (["--model", "nothing"], "'nothing'"),
            (["--init", "nothing.npz"], "nothing.npz"),
            (["--epochs", "0"], "epochs must be at least 1"),
            (["-o", "model.pt"], "must end in .safetensors"),
            (["-o", "no/such/folder.safetensors"], "no folder"),
            (["--resume"], "to resume from"),
        ],
        ids=["annotations", "model", "init", "epochs", "suffix", "folder", "resume"],
    )
    def test_what_is_wrong_is_one_sentence(self, command, extra, says, capsys):
        assert main([*command, *extra]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert "Traceback" not in error


class TestInit:
    def test_a_classifier_sets_the_backbone_and_nothing_else(self, tmp_path, shared_data):
        model = models.MODELS["tiny"].build()
        changed = load_init(model, str(shared_data / "weights" / "mobilenet_v2_imagenet.npz"))
        assert changed
        assert all(name.startswith("backbone.stages.") for name in changed)

    def test_a_model_of_ours_sets_everything(self, config):
        trained = train(replace(config, epochs=1)).model
        model = models.MODELS["tiny"].build()
        load_init(model, config.output)
        for name, tensor in trained.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor)

    def test_a_model_starts_from_another_where_names_and_shapes_agree(self, tmp_path):
        path = str(tmp_path / "tiny.safetensors")
        tiny = models.MODELS["tiny"].build()
        save_weights(tiny, path, model="tiny")
        small = models.MODELS["small"].build()
        changed = load_init(small, path)
        assert "backbone.stages.3.15.conv.0.0.weight" in changed
        assert "head.conv.0.0.weight" not in changed
        assert "backbone.lateral.0.weight" not in changed
        for name, parameter in tiny.named_parameters():
            if name in changed:
                assert torch.equal(small.get_parameter(name), parameter)

    def test_a_foreign_file_is_refused(self, tmp_path):
        path = tmp_path / "weights.npz"
        np.savez(path, something=np.zeros(3))
        with pytest.raises(StreamRPNError, match="do not fit"):
            load_init(models.MODELS["tiny"].build(), str(path))
        path.write_bytes(b"nonsense")
        with pytest.raises(StreamRPNError, match="cannot be read"):
            load_init(models.MODELS["tiny"].build(), str(path))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"assignment": "atss"}, "assignment must be one of classic, quality"),
        ({"optimizer": "adam"}, "optimizer must be one of"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
    ],
    ids=["assignment", "optimizer", "epochs"],
)
def test_a_wrong_config_is_refused(config, changes, says):
    with pytest.raises(ValueError, match=says):
        replace(config, **changes)
