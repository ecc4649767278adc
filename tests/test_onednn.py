"""Packed convolutions against the plain ones they stand for."""

import copy

import pytest
import torch
from torch import nn

from stream_rpn import load
from stream_rpn.network import onednn
from stream_rpn.network.onednn import PackedConv2d, packed
from tests.agreement import assert_within, tolerances


def outputs(rpn, images):
    with torch.inference_mode():
        maps = list(rpn.features(images).values())
        objectness, deltas = rpn.head(maps)
    return [*maps, *objectness, *deltas]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("tiny", marks=pytest.mark.numeric),
        pytest.param("nanodet_m", marks=pytest.mark.numeric),
        "resnet50_fpn_v2",
        pytest.param("mobilenet_v3_large_320_fpn", marks=pytest.mark.numeric),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_packed_network_is_right(name, dtype):
    torch.manual_seed(0)
    layout = torch.channels_last
    rpn = load(name, None if name == "tiny" else "random").to(dtype, memory_format=layout)
    fast, exact = packed(rpn), copy.deepcopy(rpn).float()
    if dtype == torch.bfloat16 and not onednn._works(dtype):
        assert fast is rpn
        pytest.skip("this processor has no bfloat16 convolution that takes packed weights")
    assert fast is not rpn
    # The second shape is not the one that the weights were laid out for.
    for shape in ((1, 3, 64, 96), (2, 3, 32, 64)):
        images = torch.randn(shape).to(dtype, memory_format=layout)
        expected, within = tolerances(lambda images=images: outputs(exact, images.float()), dtype)
        found = outputs(fast, images)
        assert_within(found, expected, within)
        plain = outputs(rpn, images)
        for one, other in zip(found, plain, strict=True):
            assert (one.dtype, one.stride()) == (other.dtype, other.stride())
        # Some heads give float32 whatever they compute in.
        heads = torch.float32 if name == "nanodet_m" else dtype
        assert (plain[0].dtype, plain[-1].dtype) == (dtype, heads)


def test_the_model_stays_as_it_is():
    rpn = load("tiny")
    modules, before = list(rpn.modules()), set(rpn.state_dict())
    fast = packed(rpn)
    assert sum(isinstance(layer, PackedConv2d) for layer in fast.modules()) > 50
    assert list(rpn.modules()) == modules
    assert set(rpn.state_dict()) == before
    assert fast.head.cls_logits.weight is rpn.head.cls_logits.weight


@pytest.mark.numeric
def test_what_is_no_plain_convolution_stays():
    class Doubling(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    relu = nn.ReLU()
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        Doubling(4, 4, 1),
        relu,
        nn.Conv2d(4, 4, 3, bias=False),
        relu,
        nn.Conv2d(4, 2, 1),
    ).eval()
    images = torch.randn(1, 3, 16, 16)
    fast = packed(model)
    assert [isinstance(layer, PackedConv2d) for layer in fast] == [0, 0, 0, 0, 1, 0, 1]
    expected, within = tolerances(lambda: model(images))
    with torch.inference_mode():
        assert_within(fast(images), expected, within)


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.1), nn.LeakyReLU(0.3)]
)
def test_an_activation_is_computed_within_the_convolution(activation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 1), activation).eval()
    images = 10 * torch.randn(1, 8, 5, 7)
    fast = packed(model)
    assert isinstance(fast[0], PackedConv2d)
    assert isinstance(fast[1], nn.Identity)
    with torch.inference_mode():
        torch.testing.assert_close(fast(images), model(images))


def test_a_number_format_that_the_processor_lacks_stays_plain():
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).double()
    assert packed(model) is model
