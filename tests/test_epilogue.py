"""add_bias_: the reference against torch's layers, the kernel on a GPU against the reference."""

import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from stream_rpn.kernels.epilogue import ACTIVATIONS, DTYPES, add_bias_
from stream_rpn.kernels.epilogue_reference import add_bias_reference
from tests.epilogue_cases import maps

LAYERS = {
    "none": nn.Identity(),
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "leaky_relu": nn.LeakyReLU(0.1),
    "hardswish": nn.Hardswish(),
}


@pytest.mark.numeric
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias_and_activation_are_rounded_once(activation, dtype):
    x, bias = maps(58, dtype)
    exact = LAYERS[activation](x.double() + bias.double()[:, None, None])
    given = x.clone()
    found = add_bias_(given, bias, activation, slope=0.1)
    assert found is given
    assert found.is_contiguous(memory_format=torch.channels_last)
    # A few roundings of float32 (of a sum, which may have lost its leading digits), one of dtype.
    within = 2.0**-22 * (1 + x.double().abs() + bias.double().abs().max())
    within = within + torch.finfo(dtype).eps / 2 * exact.abs()
    finite = exact.isfinite()
    assert ((found - exact).abs() <= within)[finite].all()
    assert torch.equal(found.double()[~finite].nan_to_num(7), exact[~finite].nan_to_num(7))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_not_a_number_stays_one(activation):
    x = torch.full((1, 4, 2, 2), torch.nan).to(memory_format=torch.channels_last)
    assert add_bias_(x, torch.zeros(4), activation).isnan().all()


def test_a_map_without_elements_stays():
    x = torch.empty(0, 4, 2, 2).to(memory_format=torch.channels_last)
    assert add_bias_(x, torch.zeros(4), "relu").shape == (0, 4, 2, 2)


def test_autograd_learns_nothing():
    x = torch.zeros(1, 4, 2, 2).to(memory_format=torch.channels_last)
    bias = torch.ones(4, requires_grad=True)
    assert not add_bias_(x, bias).requires_grad


def test_a_backward_pass_that_needs_what_was_overwritten_raises():
    x = torch.ones(1, 4, 2, 2).to(memory_format=torch.channels_last)
    weight = torch.ones(1, requires_grad=True)
    product = x * weight
    add_bias_(x, torch.ones(4))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_the_first_call_imports_no_compiler():
    # As that of a `custom_op` does, which takes seconds.
    code = (
        "import sys, torch; from stream_rpn.kernels.epilogue import add_bias_; "
        "x = torch.zeros(1, 4, 2, 2).to(memory_format=torch.channels_last); "
        "add_bias_(x, torch.zeros(4)); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
        ({"x": torch.zeros(1, 4, 2, 2).double()}, TypeError, "x must be torch.float32 or"),
        ({"x": torch.zeros(4, 2, 2)}, ValueError, "x must be [*, *, *, *], got [4, 2, 2]"),
        ({"x": torch.zeros(1, 4, 2, 2)}, ValueError, "x must be channels-last, got strides"),
        ({"bias": torch.zeros(4).half()}, TypeError, "bias must be of the dtype of x"),
        ({"bias": torch.zeros(3)}, ValueError, "bias must be [4], got [3]"),
        ({"bias": torch.zeros(8)[::2]}, ValueError, "bias must be contiguous, got strides [2]"),
        ({"bias": torch.zeros(4, device="meta")}, ValueError, "bias must be on the device of x"),
        ({"activation": "gelu"}, ValueError, "activation must be one of none, leaky_relu, relu"),
        ({"slope": "0.1"}, TypeError, "slope must be a number, got str"),
        ({"slope": torch.inf}, ValueError, "slope must be finite, got inf"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    x = torch.zeros(1, 4, 2, 2).to(memory_format=torch.channels_last)
    arguments = {"x": x, "bias": torch.zeros(4), "activation": "none", "slope": 0.1} | change
    with pytest.raises(error, match=re.escape(message)):
        add_bias_(**arguments)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("channels", [1, 3, 4, 12, 24, 58, 116, 232])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_gpu_gives_the_bits_of_the_reference(activation, dtype, channels):
    x, bias = maps(channels, dtype, (3, 37, 41))
    expected = x.clone()
    add_bias_reference(expected, bias, activation, 0.1)
    # Something before and behind the map, which the kernel must leave alone.
    memory = torch.full((x.numel() + 64,), 7.0, dtype=dtype, device="cuda")
    on_device = memory[32:-32].as_strided(x.shape, x.stride(), 32)
    on_device.copy_(x)
    add_bias_(on_device, bias.cuda(), activation, slope=0.1)
    found = on_device.cpu()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))
    assert (memory[:32] == 7).all()
    assert (memory[-32:] == 7).all()


@pytest.mark.needs_cuda
@pytest.mark.parametrize("channels", [64, 1])
def test_maps_of_more_than_2_to_the_31_elements(channels):
    pixels = 2**31 // channels + 4097
    x = torch.zeros(1, pixels, 1, channels, dtype=torch.bfloat16, device="cuda")
    x = x.permute(0, 3, 1, 2)
    bias = torch.arange(1, channels + 1, device="cuda").to(x.dtype)
    add_bias_(x, bias, "relu6")
    # Each element once; in parts, as a comparison takes memory of its own.
    for part in x.split(2**24, dim=2):
        assert torch.equal(part, bias.clamp(max=6)[:, None, None].expand_as(part))
