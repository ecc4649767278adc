"""The depthwise kernel in Triton's interpreter equals its reference bit for bit."""

import pytest
import torch

from stream_rpn.kernels.depthwise_reference import depthwise_reference
from stream_rpn.kernels.epilogue_reference import ACTIVATIONS
from tests.epilogue_cases import maps
from tests.test_depthwise import KINDS, weights

pytest.importorskip("triton", reason="needs triton")
pytestmark = [
    pytest.mark.interpreter,
    # NumPy warns of infinity times zero, and of NaN.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
# Every width of loads and stores.
CHANNELS = [1, 12, 58]


def run(x, *arguments):
    from stream_rpn.kernels.depthwise_triton import depthwise_triton

    # Memory around the map, of which nothing may come in.
    memory = torch.full((x.numel() + 4096,), torch.nan, dtype=x.dtype)
    inner = memory.as_strided(x.shape, x.stride(), 2048)
    inner.copy_(x)
    return depthwise_triton(inner, *arguments)


@pytest.mark.parametrize(("side", "stride", "padding"), [KINDS[i] for i in (0, 3, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_bits(dtype, side, stride, padding):
    for channels in CHANNELS:
        x, bias = maps(channels, dtype, (2, 7, 9))
        arguments = (weights(side, channels, dtype)[0], bias, "leaky_relu", 0.1, stride, padding)
        found, expected = run(x, *arguments), depthwise_reference(x, *arguments)
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    x, bias = maps(24, torch.float32)
    arguments = (weights(3, 24, torch.float32)[0], bias, activation, 0.1, 1, 1)
    found, expected = run(x, *arguments), depthwise_reference(x, *arguments)
    assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))


def test_many_programs():
    # Two blocks of channels, three tiles a row.
    x, bias = maps(70, torch.float16, (2, 2, 37), odd=False)
    arguments = (weights(3, 70, torch.float16)[0], bias, "relu", 0.1, 1, 1)
    assert torch.equal(run(x, *arguments), depthwise_reference(x, *arguments))
