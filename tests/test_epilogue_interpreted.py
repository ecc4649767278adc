"""The pass after a convolution in Triton's interpreter equals its reference bit for bit."""

import pytest
import torch

from stream_rpn.kernels.epilogue_reference import ACTIVATIONS, add_bias_reference
from tests.epilogue_cases import maps

pytest.importorskip("triton", reason="needs triton")
pytestmark = [
    pytest.mark.interpreter,
    # NumPy warns of infinity times zero, and of NaN.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
# Every width of loads and stores, and maps that end inside a block.
CHANNELS = [1, 2, 3, 4, 12, 24, 58, 96, 116]


def run(x, bias, activation):
    from stream_rpn.kernels.epilogue_triton import add_bias_triton

    # Memory around the map, which the kernel must leave alone.
    memory = torch.full((x.numel() + 64,), 7.0, dtype=x.dtype)
    inner = memory.as_strided(x.shape, x.stride(), 32)
    inner.copy_(x)
    add_bias_triton(inner, bias, activation, 0.1)
    assert (memory[:32] == 7).all()
    assert (memory[-32:] == 7).all()
    return inner


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_bits(activation, dtype):
    for channels in CHANNELS:
        x, bias = maps(channels, dtype)
        found = run(x, bias, activation)
        add_bias_reference(x, bias, activation, 0.1)
        assert torch.equal(found.isnan(), x.isnan())
        # Not a number has bits of its own on each side; zeros are compared with their signs.
        found, x = (t.nan_to_num(7).contiguous() for t in (found, x))
        bits = torch.int32 if dtype == torch.float32 else torch.int16
        assert torch.equal(found.view(bits), x.view(bits))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bits_of_bfloat16(activation):
    for channels in CHANNELS:
        x, bias = maps(channels, torch.bfloat16, odd=False)
        found = run(x, bias, activation)
        exact = x.float()
        add_bias_reference(exact, bias.float(), activation, 0.1)
        # The interpreter cuts digits off where a GPU rounds to the nearest.
        cut = exact.contiguous().view(torch.int32) & -0x10000
        assert torch.equal(found.float().contiguous().view(torch.int32), cut)


def test_many_programs():
    x, bias = maps(58, torch.float32, (3, 40, 31))
    found = run(x, bias, "leaky_relu")
    add_bias_reference(x, bias, "leaky_relu", 0.1)
    assert torch.equal(found.nan_to_num(7), x.nan_to_num(7))
