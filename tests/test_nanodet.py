"""NanoDet-Plus: the network against a plain one, and its head's boxes against their definition."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.shufflenetv2 import InvertedResidual

from stream_rpn import StreamRPNError, load, propose
from stream_rpn.kernels import boxes as box_ops
from stream_rpn.models.checkpoint import load_model, read_checkpoint, save_weights
from stream_rpn.models.gfl_head import BINS, GFLHead
from stream_rpn.models.nanodet_plus import STRIDES, from_published
from stream_rpn.models.shufflenet_v2 import Stage, keep_plain_order
from tests.agreement import assert_within, tolerances

NAMES = ("nanodet_m", "nanodet_m_1.5x")
PUBLISHED = {
    "nanodet_m": "nanodet_plus_m_416.safetensors",
    "nanodet_m_1.5x": "nanodet_plus_m_1.5x_416_from_int8.safetensors",
}


def with_batch_norms(theirs: nn.Module, folded: dict[str, torch.Tensor]) -> nn.Module:
    """Loads folded weights into torchvision's module: each batch norm adds its convolution's bias.

    Activations become NanoDet's.
    """
    state = {}
    for name, tensor in theirs.double().eval().state_dict().items():
        parent, kind = name.rpartition(".")[::2]
        stem, number = parent.rpartition(".")[::2]
        before = f"{stem}.{int(number) - 1}.bias" if number.isdigit() else ""
        if name in folded:
            state[name] = folded[name]
        elif kind == "bias" and before in folded:
            state[name] = folded[before]
        elif kind == "running_var":
            state[name] = torch.full_like(tensor, 1 - 1e-5)
        else:
            state[name] = tensor
    theirs.load_state_dict(state)
    for layer in list(theirs.modules()):
        for name, child in layer.named_children():
            if isinstance(child, nn.ReLU):
                setattr(layer, name, nn.LeakyReLU(0.1))
    return theirs


class Plain:
    """NanoDet-Plus straight from its definition, on torchvision's ShuffleNetV2, in float64.

    Args:
        state: the network's state dict.
        build: torchvision's function for the backbone.
    """

    def __init__(self, state, build):
        self.state = {name: tensor.double() for name, tensor in state.items()}
        prefix = "backbone.body."
        body = {n.removeprefix(prefix): t for n, t in self.state.items() if n.startswith(prefix)}
        self.body = with_batch_norms(build(weights=None), body)

    def conv(self, name, x, stride=1, depthwise=False, active=True):
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        groups = len(weight) if depthwise else 1
        y = F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=groups)
        return F.leaky_relu(y, 0.1) if active else y

    def separable(self, name, x, stride=1):
        x = self.conv(f"{name}.depthwise", x, stride, depthwise=True)
        return self.conv(f"{name}.pointwise", x)

    def ghost(self, name, x, active):
        y = self.conv(f"{name}.primary_conv.0", x, active=active)
        cheap = self.conv(f"{name}.cheap_operation.0", y, depthwise=True, active=active)
        return torch.cat((y, cheap), 1)

    def bottleneck(self, name, *maps):
        x = torch.cat(maps, 1)
        short = self.conv(f"{name}.shortcut.0", x, depthwise=True, active=False)
        short = self.conv(f"{name}.shortcut.2", short, active=False)
        y = self.ghost(f"{name}.ghost2", self.ghost(f"{name}.ghost1", x, True), False)
        return y + short

    def maps(self, images):
        body, fpn = self.body, "backbone.fpn"
        c3 = body.stage2(body.maxpool(body.conv1(images)))
        c4 = body.stage3(c3)
        c5 = body.stage4(c4)
        r3, r4, r5 = (
            self.conv(f"{fpn}.reduce_layers.{i}.0", c) for i, c in enumerate((c3, c4, c5))
        )
        i4 = self.bottleneck(f"{fpn}.top_down_blocks.0", double(r5), r4)
        p3 = self.bottleneck(f"{fpn}.top_down_blocks.1", double(i4), r3)
        down = self.separable(f"{fpn}.downsamples.0", p3, 2)
        p4 = self.bottleneck(f"{fpn}.bottom_up_blocks.0", down, i4)
        down = self.separable(f"{fpn}.downsamples.1", p4, 2)
        p5 = self.bottleneck(f"{fpn}.bottom_up_blocks.1", down, r5)
        p6 = self.separable(f"{fpn}.extra_lvl_in_conv.0", r5, 2)
        return p3, p4, p5, p6 + self.separable(f"{fpn}.extra_lvl_out_conv.0", p5, 2)

    def outputs(self, images):
        """Returns per level [B, 112, H, W]: 80 class logits, 8 bins for each of four sides."""
        result = []
        for level, x in enumerate(self.maps(images)):
            for step in (0, 1):
                x = self.separable(f"head.cls_convs.{level}.{step}", x)
            result.append(self.conv(f"head.gfl_cls.{level}", x, active=False))
        return result


def double(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def plain(rpn) -> Plain:
    build = {
        116: torchvision.models.shufflenet_v2_x1_0,
        176: torchvision.models.shufflenet_v2_x1_5,
    }
    state = rpn.state_dict()
    return Plain(state, build[state["backbone.fpn.reduce_layers.0.0.weight"].shape[1]])


def raw_outputs(rpn, images):
    head, maps = rpn.head, rpn.features(images).values()
    layers = zip(head.cls_convs, head.gfl_cls, maps, strict=True)
    return [last(tower(m)) for tower, last, m in layers]


def boxes_and_logits(outputs, certainty):
    """All boxes [N, 4] and logits [N] of one image, level after level, by their definition."""
    boxes, logits = [], []
    for stride, y in zip(STRIDES, outputs, strict=True):
        rows = y[0].permute(1, 2, 0).double()
        height, width = rows.shape[:2]
        masses = rows[..., 80:].reshape(height, width, 4, 8).softmax(-1)
        left, top, right, bottom = ((masses * torch.arange(8)).sum(-1) * stride).unbind(-1)
        y, x = (torch.arange(n)[:, None].double() * stride for n in (height, width))
        x = x.T
        boxes.append(torch.stack((x - left, y - top, x + right, y + bottom), -1).reshape(-1, 4))
        two_best = masses.sort(-1).values[..., -2:].sum(-1)
        best_class = rows[..., :80].max(-1).values
        logits.append((best_class + certainty * two_best.log().mean(-1)).flatten())
    return torch.cat(boxes), torch.cat(logits)


def given(head: GFLHead) -> GFLHead:
    """A head whose maps are already its outputs."""
    head.cls_convs = nn.ModuleList(nn.Identity() for _ in head.cls_convs)
    head.gfl_cls = nn.ModuleList(nn.Identity() for _ in head.gfl_cls)
    return head


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_the_network_equals_a_plain_one_with_shuffles(name):
    torch.manual_seed(0)
    rpn = load(name)
    single = copy.deepcopy(rpn)
    # 96 is one and a half cells of the last level.
    images = torch.randn(2, 3, 96, 192, dtype=torch.float64)
    expected = plain(rpn).outputs(images)
    assert [tuple(y.shape[-2:]) for y in expected] == [(12, 24), (6, 12), (3, 6), (2, 3)]
    for ours, theirs in zip(raw_outputs(rpn.double(), images), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    for ours, theirs in zip(raw_outputs(single, images.float()), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("units", "half"), [(1, 2), (2, 3), (3, 4), (5, 7), (8, 6)])
@torch.inference_mode()
def test_a_stage_of_any_length_equals_torchvisions_units(units, half):
    torch.manual_seed(0)
    stage = Stage(5, 2 * half, units).double()
    # Alone, a stage gets its channels in order and leaves them sorted.
    network = nn.ModuleDict({"stage": stage})
    orders = []
    first, *rest = stage.routes.outputs
    *of_units, leaving = stage.routes.inputs
    for kind in ("weight", "bias"):
        orders.append((f"stage.0.branch1.2.{kind}", 0, first))
        orders += [(f"stage.{i}.branch2.5.{kind}", 0, order) for i, order in enumerate(rest)]
    orders += [
        (f"stage.{i}.branch2.0.weight", 1, order) for i, order in enumerate(of_units, start=1)
    ]
    keep_plain_order(network, orders)
    theirs = nn.Sequential(
        InvertedResidual(5, 2 * half, 2),
        *(InvertedResidual(2 * half, 2 * half, 1) for _ in range(units - 1)),
    )
    state = network.state_dict()
    folded = {name.removeprefix("stage."): tensor for name, tensor in state.items()}
    x = torch.randn(2, 5, 8, 6, dtype=torch.float64)
    expected = with_batch_norms(theirs, folded)(x)
    torch.testing.assert_close(stage(x), expected[:, leaving], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_saved_in_the_plain_networks_order(name, tmp_path):
    rpn = load_model(name)
    save_weights(rpn, tmp_path / "mine.safetensors", model=name, half=True)
    again = load_model(str(tmp_path / "mine.safetensors"))
    assert again.name == name
    for (key, ours), other in zip(rpn.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, other), key
    # The plain order is not the order in memory, or nothing is tested here.
    state, parameters = rpn.state_dict(), dict(rpn.named_parameters())
    assert state.keys() == parameters.keys()
    moved = [key for key, tensor in state.items() if not torch.equal(tensor, parameters[key])]
    assert len(moved) > 40


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_are_the_published_ones(name, shared_data):
    published = read_checkpoint(shared_data / "weights" / PUBLISHED[name])[0]
    state = load(name).state_dict()
    converted = from_published(published)
    assert converted.keys() == state.keys()
    for key, tensor in converted.items():
        assert torch.equal(state[key], tensor.float()), key


def test_a_checkpoint_of_the_other_width_is_refused(tmp_path):
    save_weights(load_model("nanodet_m"), tmp_path / "m.safetensors", model="nanodet_m")
    with pytest.raises(StreamRPNError, match=r"another architecture.*expected \["):
        load_model("nanodet_m_1.5x", tmp_path / "m.safetensors")


def test_a_checkpoint_without_a_name_is_recognised(tmp_path):
    torch.save(load_model("nanodet_m_1.5x").state_dict(), tmp_path / "weights.pth")
    assert load_model(str(tmp_path / "weights.pth")).name == "nanodet_m_1.5x"


@pytest.mark.parametrize("certainty", [0.0, 4.0])
@pytest.mark.parametrize("shape", [(96, 160), (64, 64)])
@torch.inference_mode()
def test_proposals_are_the_boxes_that_the_distances_mean(certainty, shape):
    torch.manual_seed(0)
    rpn = load("nanodet_m", nms=1.0, top=10_000)
    rpn.head.certainty = certainty
    images, sizes = torch.randn(1, 3, *shape), torch.tensor([[shape[0] - 7, shape[1]]])
    kept = rpn(images, sizes)
    boxes, logits = boxes_and_logits(plain(rpn).outputs(images.double()), certainty)
    boxes = box_ops.clip(boxes, sizes[0])
    counts = [-(-shape[0] // s) * -(-shape[1] // s) for s in STRIDES]
    starts = torch.tensor([0, *np.cumsum(counts)])
    assert starts[-1] == len(boxes)
    count = int(kept.count)
    # Whatever lies in the padding only is left out.
    assert count == int(((boxes[:, 2:] - boxes[:, :2]).amin(1) >= 1e-3).sum())
    cells = starts[kept.levels[0, :count]] + kept.anchors[0, :count]
    assert len(cells.unique()) == count
    torch.testing.assert_close(kept.boxes[0, :count].double(), boxes[cells], atol=1e-3, rtol=0)
    scores = logits[cells].sigmoid()
    torch.testing.assert_close(kept.scores[0, :count].double(), scores, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_certainty_is_between_log_a_quarter_and_nothing():
    head = given(GFLHead(1, 1, classes=2, certainty=1.0))
    y = torch.zeros(1, 2 + 4 * BINS, 1, 4)
    y[0, :2, 0] = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 5.0, 0.0, 0.0]])
    bins = y[0, 2:, 0].view(4, BINS, 4)  # side, bin, cell
    bins[:, 3, 1] = 200.0  # all sides on one bin
    bins[:, 3:5, 2] = 200.0  # between two
    bins[:2, 3, 3] = 200.0  # two sides sure, two not
    objectness, _ = head([y])
    quarter = np.log(0.25)
    expected = torch.tensor([1 + quarter, 5.0, 3.0, 4 + quarter / 2])
    torch.testing.assert_close(objectness[0][0, 0, 0], expected.float())


@torch.inference_mode()
def test_saturated_outputs_give_finite_deltas_and_no_empty_boxes():
    torch.manual_seed(0)
    rpn = load("nanodet_m", nms=1.0)
    rpn.head = given(GFLHead(1, 1, certainty=4.0))
    rpn.set_anchors(rpn.base_anchors[:1])
    y = torch.randn(1, 80 + 4 * BINS, 2, 3)
    bins = y[0, 80:].view(4, BINS, 2, 3)
    bins[:, 0, 0, 0] = 1e4  # all sides at the centre: no box
    bins[0, 0, 0, 1] = bins[2, 0, 0, 1] = 1e4  # no width
    bins[:, 7, 0, 2] = 1e4  # the largest box
    y[0, :, 1, 0] = 3e38
    y[0, 80:, 1, 0] = -3e38
    y[0, :80, 1, 1] = -1e4
    objectness, deltas = rpn.head([y])
    assert objectness[0].isfinite().all()
    assert deltas[0].isfinite().all()
    assert deltas[0][:, 2:].max() < box_ops.MAX_LOG_SCALE
    sizes = torch.tensor([[500, 500]])
    kept = rpn.proposals_of_heads(objectness, deltas, ((8, 8),), sizes)
    found = kept.anchors[0, : int(kept.count)].tolist()
    assert sorted(found) == [2, 3, 4, 5]
    largest = kept.boxes[0, found.index(2)]
    torch.testing.assert_close(largest, torch.tensor([0.0, 0.0, 16 + 56, 56]))
    # The worst logit is still a proposal, the last one.
    assert found[-1] == 4


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@torch.inference_mode()
def test_a_cell_that_is_not_finite_spoils_no_other(bad):
    torch.manual_seed(0)
    head = given(GFLHead(1, 2, certainty=4.0))
    maps = [torch.randn(1, 80 + 4 * BINS, n, n) for n in (4, 2)]
    before = head(maps)
    maps[0][0, :, 1, 2] = bad
    for clean, spoilt in zip(before, head(maps), strict=True):
        spoilt[0][0, :, 1, 2] = clean[0][0, :, 1, 2]
        for a, b in zip(clean, spoilt, strict=True):
            assert torch.equal(a, b)
    rpn = load("nanodet_m", nms=1.0)
    rpn.head = head
    rpn.set_anchors(rpn.base_anchors[:2])
    kept = rpn.proposals_of_heads(*head(maps), ((8, 8), (16, 16)), torch.tensor([[99, 99]]))
    count = int(kept.count)
    assert count == 4 * 4 + 2 * 2 - 1
    assert kept.boxes[0, :count].isfinite().all()


@pytest.mark.numeric
@torch.inference_mode()
def test_bfloat16_is_float32_up_to_rounding():
    def heads(rpn, images):
        return rpn.head(list(rpn.features(images).values()))

    rough = load("nanodet_m").to(torch.bfloat16)
    exact = copy.deepcopy(rough).float()
    images = torch.randn(1, 3, 128, 96).bfloat16()
    expected, within = tolerances(lambda: heads(exact, images.float()), torch.bfloat16)
    found = heads(rough, images)
    assert_within(found, expected, within)
    for a, b in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
        assert a.dtype == torch.float32
        assert not torch.equal(a, b)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (33, 31), (100, 417)])
def test_images_of_any_size(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    proposals = propose(image, model="nanodet_m", size=50)
    assert len(proposals.boxes) > 0
    assert (proposals.boxes >= 0).all()
    assert (proposals.boxes[:, 2] <= shape[1] * (1 + 1e-6)).all()
    assert (proposals.boxes[:, 3] <= shape[0] * (1 + 1e-6)).all()


def test_anchors_are_part_of_what_was_learned():
    with pytest.raises(StreamRPNError, match="anchors of nanodet_m were given box by box"):
        load("nanodet_m", anchor_sizes=[32, 64, 128, 256])


@torch.inference_mode()
def test_the_whole_network_compiles_as_one_graph():
    torch.compiler.reset()
    rpn = load("nanodet_m")
    images, sizes = torch.rand(2, 3, 96, 128), torch.tensor([[96, 128], [90, 100]])
    compiled = torch.compile(rpn, fullgraph=True, backend="aot_eager")
    ours, theirs = compiled(images, sizes), rpn(images, sizes)
    assert torch.equal(ours.count, theirs.count)
    # The compiler's bilinear interpolation rounds in another way than torch's.
    torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-5, rtol=1e-5)
