"""depthwise in plain PyTorch: what the Triton form computes, operation by operation.

Each product and each sum is a float32, rounded by itself, and sums go over the kernel's taps row by
row, so that a CPU and a GPU give the same bits.
"""

import torch
from torch import Tensor
from torch.nn import functional

from stream_rpn.kernels.epilogue_reference import activated


def depthwise_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: str,
    slope: float,
    stride: int,
    padding: int,
) -> Tensor:
    """Returns what `depthwise` describes."""
    height, width = output_size(x, weight, stride, padding)
    padded = functional.pad(x.float(), [padding] * 4)
    y = torch.zeros(*x.shape[:2], height, width, device=x.device)
    for row, taps in enumerate(weight.float()):
        for column, tap in enumerate(taps):
            seen = padded[:, :, row::stride, column::stride][:, :, :height, :width]
            y = y + seen * tap[:, None, None]
    y = activated(y + bias.float()[:, None, None], activation, slope)
    return y.to(x.dtype).contiguous(memory_format=torch.channels_last)


def output_size(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, int]:
    """Returns (height, width) of the map of `x`."""
    height, width = ((side + 2 * padding - len(weight)) // stride + 1 for side in x.shape[2:])
    return height, width
