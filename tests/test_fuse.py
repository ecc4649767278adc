"""A torchvision detector with our proposal stage against the same detector with its own."""

import copy
import io

import pytest
import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork

import stream_rpn
from stream_rpn.fusion import FusedRegionProposalNetwork
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


def assert_same_boxes(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert mine.dtype == other.dtype
        # Equal float32 scores may stand in either order: compare as sets of boxes.
        nearest = torch.cdist(mine.float(), other.float(), p=torch.inf).amin(1)
        assert nearest.max() < 1e-3


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_detections_equal(kind, pictures):
    model = lively(kind)
    expected = model(pictures)
    assert stream_rpn.fuse(model) is model
    found = model(pictures)
    assert min(len(detections["boxes"]) for detections in expected) >= 5
    for mine, other in zip(found, expected, strict=True):
        assert mine.keys() == other.keys()
        for name, values in other.items():
            torch.testing.assert_close(mine[name], values, atol=1e-2, rtol=1e-3)


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
    assert_same_boxes(ours, rpn_boxes(stream_rpn.unfuse(model), pictures))
    assert min(map(len, ours)) > 0
    if change:
        assert sum(map(len, ours)) < sum(map(len, before))


def test_other_anchors_are_read_when_called(mobile, pictures):
    model = stream_rpn.fuse(copy.deepcopy(mobile))
    model.rpn.anchor_generator = AnchorGenerator(
        ((20, 40, 80, 160, 200),) * 3, ((0.4, 1.0, 3.0),) * 3
    )
    ours = rpn_boxes(model, pictures)
    assert_same_boxes(ours, rpn_boxes(stream_rpn.unfuse(model), pictures))


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
    ],
    ids=["no-detector", "wrapped", "other-rpn", "other-anchors", "other-box-coder"],
)
def test_what_cannot_be_fused_gets_a_type_error(mobile, spoil, sentence):
    model = spoil(copy.deepcopy(mobile))
    with pytest.raises(TypeError, match=sentence):
        stream_rpn.fuse(model)


def test_the_name_stays_a_function_once_its_module_is_imported():
    assert callable(stream_rpn.fuse)
    assert callable(stream_rpn.unfuse)
