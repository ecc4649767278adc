import math

import pytest
import torch
import torchvision

from stream_rpn.kernels import boxes as box_ops

pytestmark = pytest.mark.numeric


def random_boxes(n: int, span: float = 500.0) -> torch.Tensor:
    corner, sides = torch.rand(n, 2) * span, torch.rand(n, 2) * 100 + 5
    return torch.cat((corner, corner + sides), dim=1)


def test_exp_is_within_one_float32_step():
    x = torch.linspace(-87, 87, 1_000_001)
    exact = x.double().exp()
    assert ((box_ops.exp(x).double() - exact).abs() / exact).max() < 2**-23


def test_exp_of_special_values():
    x = torch.tensor([0.0, -0.0, math.inf, -math.inf, 1e30, math.nan])
    largest, smallest = box_ops.exp(torch.tensor([87.0, -87.0])).tolist()
    got = box_ops.exp(x)
    assert got[:5].tolist() == [1.0, 1.0, largest, smallest, largest]
    assert got[5].isnan()
    # Normal numbers, so that a device that flushes subnormal ones to 0 agrees.
    assert smallest > torch.finfo(torch.float32).tiny
    assert largest < math.inf


@pytest.mark.parametrize("function", [box_ops.exp, box_ops.sigmoid])
def test_bits_depend_neither_on_place_nor_on_length(function):
    x = torch.randn(4099) * 5
    whole = function(x)
    for start, stop in ((0, 1), (1, 18), (4082, 4099), (7, 4096)):
        assert torch.equal(function(x[start:stop]), whole[start:stop])
    assert torch.equal(function(x[::3]), whole[::3])


def test_sigmoid_is_a_probability_that_matches_torch():
    x = torch.linspace(-80, 80, 100_001)
    torch.testing.assert_close(box_ops.sigmoid(x), x.sigmoid(), rtol=3e-7, atol=0)
    assert box_ops.sigmoid(torch.tensor([-math.inf, 0.0, math.inf])).tolist()[1:] == [0.5, 1.0]


def test_decode_undoes_encode():
    anchors, boxes = random_boxes(1000), random_boxes(1000)
    decoded = box_ops.decode(box_ops.encode(boxes, anchors), anchors)
    torch.testing.assert_close(decoded, boxes, rtol=0, atol=1e-3)


def test_decode_of_zero_deltas_is_the_anchor():
    anchors = torch.tensor([[-16.0, -8.0, 16.0, 8.0], [10.0, 20.0, 50.0, 80.0]])
    assert torch.equal(box_ops.decode(torch.zeros(2, 4), anchors), anchors)


def test_decode_computes_in_float32_whatever_comes_in():
    anchors = random_boxes(100, span=4000.0)
    deltas = (torch.randn(100, 4) * 0.5).half()
    assert torch.equal(box_ops.decode(deltas, anchors), box_ops.decode(deltas.float(), anchors))


def test_decode_limits_growth_to_62_and_a_half_times():
    anchor = torch.tensor([[0.0, 0.0, 16.0, 8.0]])
    x1, y1, x2, y2 = box_ops.decode(torch.tensor([[0.0, 0.0, 50.0, 50.0]]), anchor)[0].tolist()
    assert (x2 - x1, y2 - y1) == pytest.approx((1000.0, 500.0), rel=1e-6)


def test_decode_against_a_float64_oracle():
    anchors, deltas = random_boxes(10_000), torch.randn(10_000, 4) * 0.7
    sides = (anchors[:, 2:] - anchors[:, :2]).double()
    centres = anchors[:, :2].double() + sides / 2 + deltas[:, :2].double() * sides
    half = deltas[:, 2:].double().clamp(max=math.log(1000 / 16)).exp() * sides / 2
    exact = torch.cat((centres - half, centres + half), dim=1)
    # Six roundings, each of half a step of the largest number met.
    largest = torch.cat((centres.abs(), half), dim=1).amax(dim=1, keepdim=True) + 600
    assert ((box_ops.decode(deltas, anchors) - exact).abs() <= 6 * 2**-24 * largest).all()


def test_decode_has_the_gradient_of_the_exact_formula():
    anchors = random_boxes(50).double().float()
    deltas = torch.randn(50, 4, requires_grad=True)
    box_ops.decode(deltas, anchors).square().sum().backward()
    reference = deltas.detach().clone().requires_grad_()
    sides = anchors[:, 2:] - anchors[:, :2]
    centres = anchors[:, :2] + sides / 2 + reference[:, :2] * sides
    half = reference[:, 2:].exp() * sides / 2
    torch.cat((centres - half, centres + half), dim=1).square().sum().backward()
    torch.testing.assert_close(deltas.grad, reference.grad, rtol=1e-4, atol=1.0)


def test_clip_has_limits_of_its_own_for_every_image():
    boxes = torch.tensor([[-5.0, -6.0, 700.0, 800.0], [3.0, 4.0, 30.0, 40.0]])
    clipped = box_ops.clip(boxes.expand(2, 2, 4), torch.tensor([[480, 640], [20, 10]]))
    assert clipped.tolist() == [
        [[0, 0, 640, 480], [3, 4, 30, 40]],
        [[0, 0, 10, 20], [3, 4, 10, 20]],
    ]


def test_iou_matches_torchvision():
    boxes, others = random_boxes(200), random_boxes(150)
    expected = torchvision.ops.box_iou(boxes, others)
    torch.testing.assert_close(box_ops.iou(boxes, others), expected, rtol=1e-6, atol=0)


def test_iou_of_boxes_without_area_is_zero():
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert box_ops.iou(point, point).item() == 0
