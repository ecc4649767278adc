"""Recall against other evaluators and by hand, what evaluation reads, and the command."""

import json
import pickle
import subprocess
import sys
from itertools import islice
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from stream_rpn import results
from stream_rpn.api import open_pipeline
from stream_rpn.cli import main
from stream_rpn.evaluation import recall as evaluation
from stream_rpn.evaluation.coco import CocoDataset
from stream_rpn.evaluation.curves import draw_curves
from stream_rpn.evaluation.files import Annotated, read_mot, read_predictions
from stream_rpn.evaluation.propose import propose_dataset
from stream_rpn.evaluation.recall import LIMITS, Recall, by_image, evaluate, match
from stream_rpn.frame import Proposals, StreamInfo, StreamRPNError
from stream_rpn.sinks import make_header, open_sink
from tests.synthetic_coco import write_dataset


def random_scene(seed, num_images=12, max_objects=6, num_proposals=200):
    """Objects, and proposals that scatter around them, best first."""
    rng = np.random.default_rng(seed)
    truth, predictions = {}, {}
    for image_id in range(1, num_images + 1):
        count = int(rng.integers(0, max_objects + 1))
        corner = rng.uniform(0, 300, (count, 2))
        boxes = np.concatenate((corner, corner + rng.uniform(5, 150, (count, 2))), axis=1)
        truth[image_id] = boxes.round(2)
        source = boxes[rng.integers(0, count, num_proposals)] if count else np.zeros((5, 4)) + 9
        sides = np.tile(source[:, 2:] - source[:, :2], 2)
        noisy = source + rng.normal(0, 0.12, source.shape) * sides
        noisy[:, 2:] = np.maximum(noisy[:, 2:], noisy[:, :2] + 1)
        predictions[image_id] = noisy.round(2)
    return truth, predictions


class TestMatch:
    def test_each_proposal_serves_one_object(self):
        # Both objects are covered best by the first proposal: the second one gets what is left.
        assert match(np.array([[0.9, 0.8], [0.7, 0.6]])).tolist() == [0.9, 0.6]

    def test_the_best_covered_object_goes_first_even_if_the_sum_suffers(self):
        assert match(np.array([[0.9, 0.89], [0.88, 0.0]])).tolist() == [0.9, 0.0]

    @pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 3), (5, 2)], ids=str)
    def test_shapes(self, shape):
        overlaps = np.random.default_rng(0).uniform(0.1, 1, shape)
        found = match(overlaps)
        assert found.shape == (shape[1],)
        assert (found > 0).sum() == min(shape)

    @pytest.mark.parametrize("seed", range(5))
    def test_equals_the_procedure_of_detectron2(self, seed):
        overlaps = np.random.default_rng(seed).uniform(0, 1, (20, 7))
        left, expected = overlaps.copy(), np.zeros(7)
        for _ in range(7):
            best_of_object = left.max(axis=0)
            target = best_of_object.argmax()
            proposal = left[:, target].argmax()
            expected[target] = left[proposal, target]
            left[proposal, :] = left[:, target] = -1
        assert np.array_equal(match(overlaps), expected)


class TestRecall:
    def test_exact_boxes_have_recall_one(self):
        truth, _ = random_scene(0)
        summary = evaluate(truth, truth)
        assert summary["AR@10"] == summary["R70@1000"] == 1.0
        assert summary["objects"] == sum(map(len, truth.values()))

    def test_no_proposals_have_recall_zero(self):
        truth, _ = random_scene(0)
        assert evaluate({}, truth)["AR@1000"] == 0.0

    def test_an_iou_of_exactly_the_threshold_counts(self):
        recall = Recall({1: np.array([[0, 0, 7, 10.0]])}, {1: np.array([[0, 0, 10, 10.0]])})
        assert recall.at(0.7, 10) == 1.0
        assert recall.at(0.75, 10) == 0.0
        assert recall.average(10) == pytest.approx(0.5)

    def test_sizes_are_classes_of_box_area(self):
        boxes = [[0, 0, 31, 32], [0, 0, 32, 32], [0, 0, 96, 95], [0, 0, 96, 96]]
        recall = Recall({}, {1: np.array(boxes, dtype=float)})
        assert [recall.num_objects(a) for a in ("small", "medium", "large")] == [1, 2, 1]

    def test_only_the_first_proposals_count(self):
        good, bad = [0, 0, 10, 10], [50, 50, 60, 60]
        truth = {1: np.array([good], dtype=float)}
        recall = Recall({1: np.array([bad] * 10 + [good], dtype=float)}, truth)
        assert recall.at(0.5, 10) == 0.0
        assert recall.at(0.5, 100) == 1.0

    def test_without_objects_recall_is_not_a_number(self):
        assert np.isnan(evaluate({}, {1: np.zeros((0, 4))})["AR@100"])

    @pytest.mark.parametrize("seed", range(3))
    def test_equals_coco_where_an_image_has_one_object(self, seed):
        # COCO lets proposals choose objects in the order of their scores; with one object per
        # image that is the same.
        truth, predictions = random_scene(seed, max_objects=1)
        ours = evaluate(predictions, truth, (1, 10, 100))
        theirs = coco_recall(truth, predictions)
        for limit in (1, 10, 100):
            assert ours[f"AR@{limit}"] == pytest.approx(theirs[limit], abs=1e-9)

    @pytest.mark.parametrize("seed", range(3))
    def test_is_near_coco_where_images_have_several(self, seed):
        truth, predictions = random_scene(seed, num_images=30)
        ours = evaluate(predictions, truth, (1, 10, 100))
        theirs = coco_recall(truth, predictions)
        for limit in (1, 10, 100):
            assert ours[f"AR@{limit}"] == pytest.approx(theirs[limit], abs=0.03)


def coco_recall(truth, predictions, limits=(1, 10, 100)):
    """Class-agnostic average recall by faster-coco-eval."""
    faster = pytest.importorskip("faster_coco_eval")
    annotations = [
        {
            "image_id": image_id,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "category_id": 1,
            "iscrowd": 0,
        }
        for image_id, boxes in truth.items()
        for x1, y1, x2, y2 in boxes.tolist()
    ]
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    gt = faster.COCO(
        {
            "info": {},
            "images": [{"id": i, "width": 500, "height": 500} for i in truth],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "object"}],
        }
    )
    detections = gt.loadRes(
        [
            {
                "image_id": image_id,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "category_id": 1,
                "score": 1 - rank / 1000,
            }
            for image_id, boxes in predictions.items()
            for rank, (x1, y1, x2, y2) in enumerate(boxes.tolist())
        ]
    )
    evaluator = faster.COCOeval_faster(gt, detections, "bbox", print_function=lambda *_: None)
    evaluator.params.useCats = 0
    evaluator.params.maxDets = list(limits)
    evaluator.evaluate()
    evaluator.accumulate()
    recall = evaluator.eval["recall"]  # [T, K, areas, limits]
    return {limit: recall[:, 0, 0, i].mean() for i, limit in enumerate(limits)}


class TestMot:
    def test_frames_and_pixels_count_from_one_and_confidence_zero_is_ignored(self, tmp_path):
        path = tmp_path / "gt.txt"
        path.write_text(
            "1,1,11,21,30,40,1,-1,-1,-1\n1,2,1,1,9,9,0,-1,-1,-1\n3,1,1,1,5,5,0,-1,-1,-1"
        )
        boxes = read_mot(path, 100, 100)
        assert boxes.keys() == {0, 2}
        assert boxes[0].tolist() == [[10, 20, 40, 60]]
        assert boxes[2].shape == (0, 4)

    def test_boxes_end_at_the_border(self, tmp_path):
        path = tmp_path / "gt.txt"
        path.write_text("\ufeff1,1,-19,1,40,90,1\n", encoding="utf-8")  # as Windows saves it
        assert read_mot(path, 100, 50)[0].tolist() == [[0, 0, 20, 50]]

    def test_a_bad_line_is_named(self, tmp_path):
        path = tmp_path / "gt.txt"
        path.write_text("1,1,1,1,5,5,1\nsomething else\n")
        with pytest.raises(StreamRPNError, match=r"gt\.txt: line 2"):
            read_mot(path, 100, 100)

    def test_the_real_files(self, shared_data):
        pets = read_mot(shared_data / "video" / "pets09-s2l1-part1.gt.txt", 768, 576)
        assert len(pets) == 160
        assert sum(map(len, pets.values())) == 943 - 21
        tud = read_mot(shared_data / "video" / "tud-campus.gt.txt", 640, 480)
        assert (len(tud), sum(map(len, tud.values()))) == (71, 359)


class Harmful:
    def __reduce__(self):
        return (print, ("executed",))


def pickled(ids, boxes, logits):
    return pickle.dumps({"ids": ids, "boxes": boxes, "objectness_logits": logits})


class TestSavedProposals:
    BOXES = np.array([[1, 2, 11, 22], [5, 5, 9, 9]], dtype=np.float32)
    IMAGES = MappingProxyType(
        {i: Annotated(f"{folder}/{i % 10}.jpg", 32, 24) for i, folder in enumerate("abcd" * 5)}
    )

    @staticmethod
    def saved(frame, name=None, image_id=None, size=(32, 24), box=(1, 2, 11, 22)):
        boxes, ones = np.array([box], np.float32), np.ones(1, np.int32)
        more = {"name": name, "image_id": image_id}
        return Proposals(frame, None, None, *size, boxes, ones / 2, ones, ones, boxes, **more)

    def write(self, path, results):
        info = StreamInfo(source="a", stem="a", width=32, height=24)
        with open_sink(str(path)) as sink:
            sink.begin(make_header(info, model="m"), info)
            for proposals in results:
                sink.write(proposals)
            sink.end({"frames": len(results)})
        return path

    @pytest.mark.parametrize("suffix", ["jsonl", "npz", "parquet", "coco.json"])
    def test_results_belong_to_the_image_of_their_name_wherever_they_stand(self, tmp_path, suffix):
        images = {
            5: Annotated("one.jpg", 32, 24),
            0: Annotated("x/two.jpg", 32, 24),
            1: Annotated('100%d "a".jpg', 32, 24),
        }
        names = ['100%d "a".jpg', "one.jpg", "two.jpg"]
        rows = [self.saved(i, name, box=(0, 0, 9, i + 1)) for i, name in enumerate(names)]
        found = read_predictions(self.write(tmp_path / f"r.{suffix}", rows), images)
        assert {i: boxes[0, 3] for i, boxes in found.items()} == {1: 1, 5: 2, 0: 3}

    @pytest.mark.parametrize(
        ("rows", "says"),
        [
            ([{"name": "7.jpg"}], r"'7\.jpg' may be d/7\.jpg or b/7\.jpg"),
            (
                [{"name": "d/7.jpg", "size": (24, 32)}],
                r"image 7 as 24x32 .* annotations have as 32x24",
            ),
            ([{"image_id": 7, "size": (24, 32)}], r"image 7 as 24x32"),
            ([{"name": "d/7.jpg"}, {"image_id": 7}], "image 7 twice"),
            ([{}], "neither ids nor names"),
            ([{"name": "other.jpg"}], "no proposals for any annotated image"),
            (
                [{"image_id": i} for i in range(15, 40)],
                "of 25 images, 20 of which are not annotated",
            ),
            ([{"image_id": 7, "size": (0, 0), "box": (0, 0, 9, 99)}], "beyond the image for 1 of"),
        ],
    )
    def test_results_that_are_not_of_these_images_are_refused(self, tmp_path, rows, says):
        results = [self.saved(frame, **row) for frame, row in enumerate(rows)]
        path = self.write(tmp_path / "r.jsonl", results)
        with pytest.raises(StreamRPNError, match=rf"r\.jsonl.*{says}"):
            read_predictions(path, self.IMAGES)

    def test_a_part_of_the_images_of_a_folder_may_be_annotated(self, tmp_path):
        results = [self.saved(frame, f"{frame}.jpg") for frame in range(100)]
        path = self.write(tmp_path / "r.jsonl", results)
        images = {50 - i: Annotated(f"{i}.jpg", 32, 24) for i in range(20)}
        assert read_predictions(path, images).keys() == images.keys()

    def test_frames_of_a_video_are_found_by_their_index(self, tmp_path):
        path = self.write(tmp_path / "r.jsonl", [self.saved(frame) for frame in range(9)])
        frames = {3: Annotated("", 32, 24), 7: Annotated("", 32, 24)}
        assert read_predictions(path, frames).keys() == {3, 7}

    def test_coco_results_in_any_order(self, tmp_path):
        path = tmp_path / "r.json"
        rows = [
            {"image_id": 7, "bbox": [5, 5, 4, 4], "score": 0.2, "category_id": 1},
            {"image_id": 8, "bbox": [0, 0, 1, 1], "score": 0.5, "category_id": 1},
            {"image_id": 7, "bbox": [1, 2, 10, 20], "score": 0.9, "category_id": 1},
        ]
        path.write_text(json.dumps(rows))
        found = read_predictions(path, self.IMAGES)
        assert found.keys() == {7, 8}
        assert np.array_equal(found[7], self.BOXES)

    @pytest.mark.parametrize("protocol", [2, 4, 5])
    @pytest.mark.parametrize("mode", [0, 1], ids=["xyxy", "xywh"])
    def test_detectron2_proposals(self, tmp_path, protocol, mode):
        boxes = self.BOXES[::-1].copy()
        if mode == 1:
            boxes[:, 2:] -= boxes[:, :2]
        data = {
            "ids": [7],
            "boxes": [boxes],
            "objectness_logits": [np.array([0.1, 3.0], dtype=np.float32)],
            "bbox_mode": mode,
        }
        path = tmp_path / "proposals.pkl"
        path.write_bytes(pickle.dumps(data, protocol=protocol))
        assert np.array_equal(read_predictions(path, self.IMAGES)[7], self.BOXES)

    def test_a_pickle_that_calls_something_is_refused_and_not_run(self, tmp_path, capsys):
        path = tmp_path / "proposals.pkl"
        path.write_bytes(pickle.dumps({"ids": [Harmful()]}))
        with pytest.raises(StreamRPNError, match=r"wants to load builtins\.print"):
            read_predictions(path, self.IMAGES)
        assert "executed" not in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("r.json", b"[1, 2]"),
            ("r.json", b"{"),
            ("r.pkl", b"not a pickle"),
            ("r.pkl", pickle.dumps([1, 2])),
            (
                "r.pkl",
                pickle.dumps({"ids": [], "boxes": [], "objectness_logits": [], "bbox_mode": 4}),
            ),
            ("r.txt", b""),
            ("r.json", b"[" * 100_000),
            ("r.json", b'{"a": 1}'),
            ("r.json", b'[{"image_id": 1e400, "bbox": [1, 2, 3, 4], "score": 1}]'),
            ("r.json", b'[{"image_id": [1], "bbox": [1, 2, 3, 4], "score": 1}]'),
            ("r.json", b'[{"image_id": 7, "bbox": [1, 2, NaN, 4], "score": 1}]'),
            ("r.json", b"\xff\xfe"),
            ("r.pkl", pickled([7], [[1, 2, 3]], [[1]])),
            ("r.pkl", pickled([7], [[[1, 2, 3, 4]]], [[1, 2]])),
            ("r.pkl", pickled([7, 8], [[[1, 2, 3, 4]]], [[1]])),
            ("r.pkl", pickled(["x"], [[[1, 2, 3, 4]]], [[1]])),
            ("r.pkl", pickled([None], [[[1, 2, 3, 4]]], [[1]])),
            ("r.pkl", pickled([7], [None], [None])),
            ("r.pkl", pickled("a", "b", "c")),
            ("r.pkl", pickle.dumps({"ids": [7]})),
            ("r.pkl", b""),
        ],
    )
    def test_files_of_another_kind_are_refused(self, tmp_path, name, content):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(StreamRPNError, match=name):
            read_predictions(path, self.IMAGES)


def test_curves_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    truth, predictions = random_scene(0)
    path = tmp_path / "curves.png"
    draw_curves({"some": Recall(predictions, truth, evaluation.CURVE_LIMITS)}, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_default_model_finds_real_objects(shared_data):
    coco = shared_data / "coco"
    dataset = CocoDataset(coco / "annotations_val.json", [coco / "val.tar"])
    predictions = by_image(islice(propose_dataset(open_pipeline(), dataset), 40))
    truth = dataset.ground_truth()
    recall = Recall(predictions, {image_id: truth[image_id] for image_id in predictions})
    assert recall.average(100) > 0.23
    assert recall.at(0.5, 300) > 0.63


@pytest.fixture
def data(tmp_path):
    annotations, images = write_dataset(tmp_path, count=3, tar=True)
    return ["eval", "--annotations", str(annotations), "--images", str(images), "--quiet"]


class TestCommand:
    def test_a_model_and_its_saved_results_have_the_same_recall(self, data, tmp_path, capsys):
        out = tmp_path / "r.jsonl"
        numbers = tmp_path / "first.json"
        common = ["--dtype", "float32", "--json"]
        assert main([*data, "-o", str(out), *common, str(numbers)]) == 0
        assert "AR@1000" in capsys.readouterr().out
        first = json.loads(numbers.read_text())["nanodet_m"]
        assert set(first) >= {"images", "objects", "AR@10", "R50@300", "R70@1000", "AR@100/small"}
        assert first["images"] == 3
        saved = list(results.read(out))
        assert [p.image_id for p in saved] == [100, 101, 102]
        assert all(len(p) > max(LIMITS) / 2 for p in saved)

        again = tmp_path / "again.json"
        assert main([*data, "--results", str(out), "--json", str(again)]) == 0
        second = json.loads(again.read_text())[str(out)]
        assert second == pytest.approx(first, abs=0.02, nan_ok=True)

    def test_a_cpu_computes_it_by_openvino_without_torch_and_recall_is_that_of_torch(
        self, data, tmp_path
    ):
        pytest.importorskip("openvino")
        found = {}
        for engine in ("auto", "torch"):
            out, numbers = tmp_path / f"{engine}.jsonl", tmp_path / f"{engine}.json"
            command = [*data, "-o", str(out), "--json", str(numbers), "--engine", engine]
            command += ["--device", "cpu", "--dtype", "float32", "--threads", "1"]
            if engine == "torch":
                assert main(command) == 0
            else:
                code = f"from stream_rpn.cli import main\nassert main({command}) == 0\n"
                code += "import sys\nassert 'torch' not in sys.modules"
                subprocess.run([sys.executable, "-c", code], check=True)
            header = json.loads(out.read_text().partition("\n")[0])
            found[header["engine"]] = json.loads(numbers.read_text())["nanodet_m"]
        assert found["openvino"]["R50@100"] > 0.5
        assert found["openvino"] == pytest.approx(found["torch"], abs=0.05, nan_ok=True)

    def test_two_models_stand_side_by_side(self, data, tmp_path, capsys):
        out = tmp_path / "{stem}.coco.json"
        numbers = tmp_path / "both.json"
        rows = [{"image_id": 100, "bbox": [0, 0, 9, 9], "score": 0.5, "category_id": 1}]
        (tmp_path / "other.json").write_text(json.dumps(rows))
        arguments = ["--model", "tiny", "-o", str(out), "--results", str(tmp_path / "other.json")]
        assert main([*data, *arguments, "--json", str(numbers)]) == 0
        assert len(json.loads(numbers.read_text())) == 2
        assert "no proposals for 2 of 3 annotated images" in capsys.readouterr().err
        assert (tmp_path / "tiny.coco.json").is_file()

    def test_a_video_with_mot_ground_truth(self, tmp_path, shared_data):
        video = shared_data / "video" / "odd" / "pets-322x242.mp4"
        gt = tmp_path / "gt.txt"
        gt.write_text("1,1,11,21,30,40,1,-1,-1,-1\n20,1,11,21,30,40,1,-1,-1,-1\n")
        numbers = tmp_path / "numbers.json"
        arguments = ["eval", "--annotations", str(gt), "--images", str(video), "--quiet"]
        assert main([*arguments, "--json", str(numbers)]) == 0
        assert json.loads(numbers.read_text())["nanodet_m"]["images"] == 2

    @pytest.mark.parametrize(
        ("extra", "says"),
        [
            (["--results", "nothing.jsonl"], "--results nothing.jsonl: no such file"),
            (["--model", "nothing"], "'nothing'"),
            (["--annotations", "nothing.json"], "nothing.json"),
            (["--images", "nothing.tar"], "nothing.tar"),
        ],
        ids=["results", "model", "annotations", "images"],
    )
    def test_what_is_not_there_is_one_sentence(self, data, extra, says, capsys):
        assert main([*data, *extra]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert "Traceback" not in error

    def test_results_of_other_images_are_refused(self, data, tmp_path, capsys):
        rows = [{"image_id": 5, "bbox": [0, 0, 9, 9], "score": 0.5}]
        (tmp_path / "other.json").write_text(json.dumps(rows))
        assert main([*data, "--results", str(tmp_path / "other.json")]) == 2
        assert "no proposals for any annotated image" in capsys.readouterr().err

    def test_annotations_without_an_object_are_refused(self, data, capsys):
        path = Path(data[2])
        path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
        assert main(data) == 2
        assert "there is no object in it" in capsys.readouterr().err

    @pytest.mark.parametrize("suffix", ["jsonl", "coco.json"])
    def test_results_of_a_folder_are_worth_what_the_model_is(self, tmp_path, suffix, capsys):
        annotations, images = write_dataset(tmp_path, count=3)
        content = json.loads(annotations.read_text())
        for record in content["images"] + content["annotations"]:
            key = "id" if "file_name" in record else "image_id"
            record[key] = (record[key] - 100 + 2) % 3  # 2, 0, 1: another order than the folder's
        annotations.write_text(json.dumps(content))
        out, numbers = tmp_path / f"r.{suffix}", tmp_path / "numbers.json"
        assert main([str(images), "-o", str(out), "--top", "1000", "--quiet"]) == 0
        command = ["eval", "--annotations", str(annotations), "--images", str(images), "--quiet"]
        both = ["--model", "tiny", "--results", str(out), "--json", str(numbers)]
        assert main([*command, *both]) == 0
        of_model, of_results = json.loads(numbers.read_text()).values()
        # The pictures are tiny: planes of half their chroma give slightly other boxes.
        assert of_results["R50@100"] == of_model["R50@100"] > 0.9
        assert "count as missed" not in capsys.readouterr().err

    def test_what_it_reads_is_never_written_over(self, data, capsys):
        before = Path(data[2]).read_text()
        assert main([*data, "--json", data[2], "--overwrite"]) == 2
        assert "is also a source" in capsys.readouterr().err
        assert Path(data[2]).read_text() == before

    def test_existing_outputs_are_not_replaced_unasked(self, data, tmp_path, capsys):
        numbers = tmp_path / "numbers.json"
        numbers.write_text("mine")
        assert main([*data, "--json", str(numbers)]) == 2
        assert numbers.read_text() == "mine"
