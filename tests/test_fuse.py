"""A torchvision detector with our proposal stage against the same detector with its own."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import clip_boxes_to_image

import stream_rpn
from stream_rpn.fusion import FusedRegionProposalNetwork
from tests.agreement import (
    Limits,
    Selection,
    assert_same_selection,
    expectations,
    scored,
    tolerances,
)
from tests.test_models import detector, picture

KINDS = [
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "maskrcnn_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
]


def lively(kind: str) -> nn.Module:
    """A small-input detector that finds things: random class scores spread over the classes."""
    model = detector(kind, min_size=96, max_size=160, rpn_post_nms_top_n_test=60)
    model.roi_heads.box_predictor.cls_score.weight.data.mul_(40)
    model.roi_heads.score_thresh = 0.0
    model.roi_heads.detections_per_img = 20
    return model


@pytest.fixture(scope="module")
def mobile():
    return lively("fasterrcnn_mobilenet_v3_large_320_fpn")


@pytest.fixture(scope="module")
def pictures():
    torch.manual_seed(1)
    return [picture(168, 240), picture(240, 192)]


@torch.inference_mode()
def rpn_boxes(model, pictures):
    images, _ = model.transform(pictures)
    boxes, losses = model.rpn(images, model.backbone(images.tensors))
    assert losses == {}
    return boxes


@torch.inference_mode()
def proposal_facts(model, pictures):
    """Per image what `assert_same_selection` must know of the proposals."""
    images, _ = model.transform(pictures)
    rpn, maps = model.rpn, list(model.backbone(images.tensors).values())
    heads = rpn.head(maps)
    height, width = images.tensors.shape[-2:]
    return expectations(
        lambda: heads,
        rpn.anchor_generator.cell_anchors,
        [(height // m.shape[-2], width // m.shape[-1]) for m in maps],
        torch.tensor(images.image_sizes),
        pre_nms_top_n=rpn.pre_nms_top_n(),
        post_nms_top_n=rpn.post_nms_top_n(),
        nms_thresh=rpn.nms_thresh,
        score_thresh=rpn.score_thresh,
        min_size=rpn.min_size,
    )


def assert_same_boxes(ours, theirs, facts):
    for mine, other, (limits, candidates) in zip(ours, theirs, facts, strict=True):
        assert mine.dtype == other.dtype
        sides = [scored(boxes, limits, candidates) for boxes in (mine, other)]
        assert_same_selection(*sides, limits, candidates)


@torch.inference_mode()
def detection_facts(model, pictures):
    """Per image what `assert_same_selection` must know of the boxes of all classes."""
    heads = model.roi_heads
    images, _ = model.transform(pictures)
    features = model.backbone(images.tensors)
    proposals, _ = model.rpn(images, features)

    def all_classes():
        given = proposals
        for _ in range(6):  # as many roundings as it takes to decode them
            given = [boxes * 1.0 for boxes in given]
        pooled = heads.box_roi_pool(features, given, images.image_sizes)
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        lengths = [len(boxes) for boxes in given]
        all_boxes = heads.box_coder.decode(deltas, given).split(lengths)
        all_scores = logits.softmax(1).split(lengths)
        for boxes, scores, size, image in zip(
            all_boxes, all_scores, images.image_sizes, pictures, strict=True
        ):
            clipped = clip_boxes_to_image(boxes[:, 1:], size).flatten(0, 1)
            yield resize_boxes(clipped, size, image.shape[-2:]), scores[:, 1:].flatten()

    found, within = tolerances(lambda: list(all_classes()))
    return [
        (
            Limits(moved, changed, heads.nms_thresh, heads.detections_per_img),
            Selection(boxes, scores),
        )
        for (boxes, scores), moved, changed in zip(found, within[::2], within[1::2], strict=True)
    ]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(KINDS[0], marks=pytest.mark.numeric),
        KINDS[1],
        pytest.param(KINDS[2], marks=pytest.mark.slow),
    ],
)
@torch.inference_mode()
def test_detections_equal(kind, pictures):
    model = lively(kind)
    expected, facts = model(pictures), detection_facts(model, pictures)
    assert stream_rpn.fuse(model) is model
    found = model(pictures)
    assert min(len(detections["boxes"]) for detections in expected) >= 5
    for mine, other, (limits, candidates) in zip(found, expected, facts, strict=True):
        assert mine.keys() == other.keys()
        sides = (Selection(d["boxes"], d["scores"], d["labels"]) for d in (mine, other))
        pairs = assert_same_selection(*sides, limits, candidates)
        for name in mine.keys() - {"boxes", "scores"}:
            torch.testing.assert_close(
                mine[name][list(pairs)], other[name][list(pairs.values())], atol=1e-2, rtol=1e-3
            )


@pytest.mark.numeric
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"nms_thresh": 0.3},
        {"score_thresh": 0.6},
        {"min_size": 24.0},
        {"_pre_nms_top_n": {"training": 2000, "testing": 40}},
        {"_post_nms_top_n": {"training": 2000, "testing": 7}},
    ],
    ids=lambda change: next(iter(change), "defaults"),
)
def test_settings_are_read_when_called(mobile, pictures, change):
    model = stream_rpn.fuse(copy.deepcopy(mobile))
    model.rpn._post_nms_top_n["testing"] = 1000
    before = rpn_boxes(model, pictures)
    for name, value in change.items():
        setattr(model.rpn, name, value)
    ours = rpn_boxes(model, pictures)
    facts = proposal_facts(model, pictures)
    assert_same_boxes(ours, rpn_boxes(stream_rpn.unfuse(model), pictures), facts)
    assert min(map(len, ours)) > 0
    if change:
        assert sum(map(len, ours)) < sum(map(len, before))


@pytest.mark.numeric
def test_other_anchors_are_read_when_called(mobile, pictures):
    model = stream_rpn.fuse(copy.deepcopy(mobile))
    model.rpn.anchor_generator = AnchorGenerator(
        ((20, 40, 80, 160, 200),) * 3, ((0.4, 1.0, 3.0),) * 3
    )
    ours = rpn_boxes(model, pictures)
    facts = proposal_facts(model, pictures)
    assert_same_boxes(ours, rpn_boxes(stream_rpn.unfuse(model), pictures), facts)


def test_undone_and_idempotent(mobile):
    model = copy.deepcopy(mobile)
    names = list(model.state_dict())
    stream_rpn.fuse(stream_rpn.fuse(model))
    assert type(model.rpn) is FusedRegionProposalNetwork
    assert list(model.state_dict()) == names
    assert stream_rpn.unfuse(stream_rpn.unfuse(model)) is model
    assert type(model.rpn) is RegionProposalNetwork


def test_copies_and_files_stay_fused(mobile, pictures):
    model = stream_rpn.fuse(copy.deepcopy(mobile))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    expected = rpn_boxes(model, pictures)
    for other in (copy.deepcopy(model), loaded):
        assert type(other.rpn) is FusedRegionProposalNetwork
        for mine, theirs in zip(rpn_boxes(other, pictures), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_training_stays_torchvisions(mobile, pictures):
    targets = [
        {"boxes": torch.tensor([[20.0, 30.0, 90.0, 120.0]]), "labels": torch.tensor([1])}
        for _ in pictures
    ]
    losses = []
    for prepare in (stream_rpn.fuse, stream_rpn.unfuse):
        model = prepare(copy.deepcopy(mobile)).train()
        torch.manual_seed(0)
        losses.append(model(pictures, targets))
    assert losses[0].keys() == losses[1].keys()
    assert "loss_rpn_box_reg" in losses[0]
    assert losses[0]["loss_objectness"].requires_grad
    for name, value in losses[1].items():
        torch.testing.assert_close(losses[0][name], value)


def test_box_dtype_follows_the_head(mobile, pictures):
    model = copy.deepcopy(mobile).to(torch.bfloat16)
    images, _ = model.transform([p.to(torch.bfloat16) for p in pictures])
    with torch.inference_mode():
        boxes, _ = stream_rpn.fuse(model).rpn(images, model.backbone(images.tensors))
    assert {b.dtype for b in boxes} == {torch.bfloat16}
    assert all(base.dtype == torch.float32 for base in model.rpn.anchor_generator.cell_anchors)


class _OtherRPN(RegionProposalNetwork):
    pass


class _OtherCoder(BoxCoder):
    pass


class _OtherAnchors(AnchorGenerator):
    def grid_anchors(self, grid_sizes, strides):
        return super().grid_anchors(grid_sizes, strides)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda model: nn.Linear(2, 2), "MaskRCNN or KeypointRCNN .*got Linear"),
        (lambda model: nn.DataParallel(model), "unwrapped.*got DataParallel"),
        (lambda model: setattr(model.rpn, "__class__", _OtherRPN) or model, "got _OtherRPN"),
        (
            lambda model: setattr(model.rpn, "anchor_generator", _OtherAnchors()) or model,
            "anchor_generator .*got _OtherAnchors",
        ),
        (
            lambda model: setattr(model.rpn.box_coder, "weights", (10, 10, 5, 5)) or model,
            r"box_coder .*got \(10, 10, 5, 5\)",
        ),
        (
            lambda model: setattr(model.rpn, "filter_proposals", print) or model,
            r"model\.rpn has a filter_proposals of its own, which would not be called",
        ),
        (
            lambda model: setattr(model.rpn.anchor_generator, "grid_anchors", print) or model,
            r"anchor_generator has a grid_anchors of its own",
        ),
        (
            lambda model: setattr(model.rpn.box_coder, "decode", print) or model,
            r"box_coder has a decode of its own",
        ),
        (
            lambda model: setattr(model.rpn, "box_coder", _OtherCoder((1.0,) * 4)) or model,
            "box_coder must be torchvision's BoxCoder, got _OtherCoder",
        ),
    ],
)
def test_what_cannot_be_fused_gets_a_type_error(mobile, spoil, sentence):
    model = spoil(copy.deepcopy(mobile))
    with pytest.raises(TypeError, match=sentence):
        stream_rpn.fuse(model)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda rpn: setattr(rpn, "filter_proposals", print), "does not call filter_proposals"),
        (lambda rpn: setattr(rpn, "anchor_generator", _OtherAnchors()), "got _OtherAnchors"),
        (lambda rpn: setattr(rpn, "box_coder", BoxCoder((10.0, 10.0, 5.0, 5.0))), "got \\(10"),
        (lambda rpn: torch.jit.script(rpn), "cannot be scripted"),
    ],
)
def test_what_a_fused_model_would_ignore_is_refused(mobile, change, sentence):
    model = stream_rpn.fuse(copy.deepcopy(mobile))
    with pytest.raises(TypeError, match=sentence):
        change(model.rpn)
    # Without the fusion all of that is torchvision's business again.
    change(stream_rpn.unfuse(model).rpn)


def test_scripting_a_fused_detector_is_refused_and_leaves_it_fused(mobile):
    model = stream_rpn.fuse(copy.deepcopy(mobile))
    with pytest.raises(TypeError, match=r"cannot be scripted .*unfuse"):
        torch.jit.script(model)
    assert type(model.rpn) is FusedRegionProposalNetwork


@pytest.mark.parametrize(
    "change",
    [
        {"nms_thresh": 0.0},
        {"nms_thresh": 1.0},
        {"nms_thresh": 1.5},
        {"nms_thresh": np.float32(0.5)},
        {"score_thresh": 1.5},
        {"score_thresh": -1.0},
        {"min_size": -1.0},
        {"_post_nms_top_n": {"training": 9, "testing": 0}},
    ],
    ids=str,
)
@torch.inference_mode()
def test_settings_beyond_the_kernels_are_torchvisions(mobile, pictures, change):
    model = copy.deepcopy(mobile)
    for name, value in change.items():
        setattr(model.rpn, name, value)
    expected = rpn_boxes(model, pictures)
    found = rpn_boxes(stream_rpn.fuse(model), pictures)
    assert [len(boxes) for boxes in found] == [len(boxes) for boxes in expected]
    for mine, other in zip(found, expected, strict=True):
        distances = torch.cdist(mine, other, p=math.inf)
        assert mine.numel() == 0 or distances.min(1).values.max() < 0.05


@torch.inference_mode()
def test_a_float64_model_is_torchvisions(mobile, pictures):
    model = copy.deepcopy(mobile).double()
    pictures = [picture.double() for picture in pictures]
    expected = model(pictures)
    for mine, other in zip(stream_rpn.fuse(model)(pictures), expected, strict=True):
        torch.testing.assert_close(mine["boxes"], other["boxes"])


def test_the_name_stays_a_function_once_its_module_is_imported():
    assert callable(stream_rpn.fuse)
    assert callable(stream_rpn.unfuse)
