"""depthwise: the reference against torch's convolution, the kernel against the reference."""

import re

import pytest
import torch
from torch import nn

from stream_rpn.kernels.depthwise import _depthwise_op, depthwise
from stream_rpn.kernels.depthwise_reference import depthwise_reference
from stream_rpn.kernels.epilogue import ACTIVATIONS, DTYPES
from tests.epilogue_cases import maps
from tests.test_epilogue import LAYERS

# Side of the kernel, stride, padding.
KINDS = [(3, 1, 1), (3, 2, 1), (5, 1, 2), (5, 2, 2), (3, 1, 0), (1, 1, 0), (7, 3, 1)]


def weights(side, channels, dtype):
    """Returns a weight as `depthwise` takes it, and as a convolution does."""
    weight = torch.randn(side, side, channels, generator=torch.Generator().manual_seed(side))
    weight = weight.to(dtype)
    return weight, weight.permute(2, 0, 1)[:, None]


@pytest.mark.numeric
@pytest.mark.parametrize(("side", "stride", "padding"), KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_a_convolution_rounded_once(dtype, side, stride, padding):
    x, bias = maps(58, dtype, (2, 9, 13), odd=False)
    weight, of_conv = weights(side, 58, dtype)

    def conv(*tensors):
        return nn.functional.conv2d(*tensors, stride, padding, 1, 58)

    for activation in ACTIVATIONS:
        exact = LAYERS[activation](conv(x.double(), of_conv.double(), bias.double()))
        found = depthwise(x, weight, bias, activation, slope=0.1, stride=stride, padding=padding)
        assert (found.dtype, found.shape) == (dtype, exact.shape)
        assert found.is_contiguous(memory_format=torch.channels_last)
        # A rounding of float32 a tap and sum, one of dtype.
        size = conv(x.double().abs(), of_conv.double().abs(), bias.double().abs())
        within = 2.0**-23 * (side**2 + 4) * size + torch.finfo(dtype).eps / 2 * exact.abs()
        assert ((found - exact).abs() <= within).all()


def test_not_a_number_reaches_what_sees_it_and_nothing_else():
    x = torch.zeros(1, 4, 9, 9).to(memory_format=torch.channels_last)
    x[0, 1, 4, 4] = torch.nan
    found = depthwise(x, torch.ones(3, 3, 4), torch.zeros(4), "relu6", padding=1)
    seen = torch.zeros(1, 4, 9, 9, dtype=torch.bool)
    seen[0, 1, 3:6, 3:6] = True
    assert torch.equal(found.isnan(), seen)


def test_no_images():
    x = torch.empty(0, 4, 5, 5).to(memory_format=torch.channels_last)
    assert depthwise(x, torch.zeros(3, 3, 4), torch.zeros(4)).shape == (0, 4, 3, 3)


def test_autograd_learns_nothing():
    x = torch.zeros(1, 4, 3, 3, requires_grad=True).to(memory_format=torch.channels_last)
    assert not depthwise(x, torch.zeros(3, 3, 4), torch.ones(4)).requires_grad


def test_registration():
    x, bias = maps(6, torch.float32, (2, 9, 8), odd=False)
    arguments = (x, weights(3, 6, torch.float32)[0], bias, "relu", 0.1, 2, 1)
    torch.library.opcheck(_depthwise_op, arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
        ({"x": torch.zeros(1, 4, 5, 5).double()}, TypeError, "x must be torch.float32 or"),
        ({"x": torch.zeros(4, 5, 5)}, ValueError, "x must be [*, *, *, *], got [4, 5, 5]"),
        ({"x": torch.zeros(1, 4, 5, 5)}, ValueError, "x must be channels-last, got strides"),
        ({"weight": torch.zeros(3, 3, 4).half()}, TypeError, "weight must be of the dtype of x"),
        ({"weight": torch.zeros(4, 1, 3, 3)}, ValueError, "weight must be [K, K, 4], got [4, 1"),
        ({"weight": torch.zeros(3, 5, 4)}, ValueError, "weight must be [K, K, 4], got [3, 5, 4]"),
        ({"weight": torch.zeros(0, 0, 4)}, ValueError, "weight must be [K, K, 4], got [0, 0, 4]"),
        ({"weight": torch.zeros(3, 3, 8)[..., ::2]}, ValueError, "weight must be contiguous"),
        ({"weight": torch.zeros(7, 7, 4)}, ValueError, "a kernel of 7x7 does not fit in a map of"),
        ({"bias": torch.zeros(3)}, ValueError, "bias must be [4], got [3]"),
        ({"bias": torch.zeros(4, device="meta")}, ValueError, "bias must be on the device of x"),
        ({"activation": "gelu"}, ValueError, "activation must be one of none, leaky_relu, relu"),
        ({"slope": torch.inf}, ValueError, "slope must be finite, got inf"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"stride": 1.5}, TypeError, "stride must be a whole number, got float"),
        ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    x = torch.zeros(1, 4, 5, 5).to(memory_format=torch.channels_last)
    arguments = {"x": x, "weight": torch.zeros(3, 3, 4), "bias": torch.zeros(4)} | change
    with pytest.raises(error, match=re.escape(message)):
        depthwise(**arguments)


def test_a_map_too_large_for_32_bits_is_refused():
    # A view of one element, as nobody has the memory.
    x = torch.zeros(1, device="meta").expand(1, 2, 2**15, 2**15)
    x = torch.empty_like(x, memory_format=torch.channels_last)
    weight, bias = torch.zeros(1, 1, 2, device="meta"), torch.zeros(2, device="meta")
    with pytest.raises(ValueError, match="must have at most 1073741824 elements"):
        depthwise(x, weight, bias)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("channels", [1, 3, 4, 12, 24, 58, 116, 232])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("side", "stride", "padding"), KINDS[:5])
def test_a_gpu_gives_the_bits_of_the_reference(dtype, side, stride, padding, channels):
    x, bias = maps(channels, dtype, (3, 37, 41))
    weight, _ = weights(side, channels, dtype)
    on_device = [tensor.cuda() for tensor in (x, weight, bias)]
    assert on_device[0].is_contiguous(memory_format=torch.channels_last)
    for activation in ACTIVATIONS:
        expected = depthwise_reference(x, weight, bias, activation, 0.1, stride, padding)
        how = {"slope": 0.1, "stride": stride, "padding": padding}
        found = depthwise(*on_device, activation, **how).cpu()
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))


@pytest.mark.needs_cuda
def test_images_beyond_2_to_the_31_elements():
    x = torch.ones(9, 8, 2**12, 2**13, dtype=torch.bfloat16, device="cuda")
    x = x.to(memory_format=torch.channels_last)
    weight = torch.ones(1, 1, 8, dtype=x.dtype, device="cuda")
    bias = torch.arange(8, device="cuda").to(x.dtype)
    y = depthwise(x, weight, bias)
    for part in y:
        assert torch.equal(part, (bias + 1)[:, None, None].expand_as(part))
