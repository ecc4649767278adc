"""add_bias in plain PyTorch: what the Triton form computes, operation by operation.

Additions, multiplications and comparisons of float32 only, each exactly rounded, so that a CPU and
a GPU give the same bits. Comparisons instead of torch.clamp, which leaves the sign of zero open.
"""

import math

import torch
from torch import Tensor

# Lower and upper limit of each activation that is no more than a slope below zero and two limits.
LIMITS = {
    "none": (-math.inf, math.inf),
    "leaky_relu": (-math.inf, math.inf),
    "relu": (0.0, math.inf),
    "relu6": (0.0, 6.0),
}
ACTIVATIONS = (*LIMITS, "hardswish")
ONE_SIXTH = 1 / 6


def add_bias_reference(x: Tensor, bias: Tensor, activation: str, slope: float) -> None:
    """Overwrites `x`; arguments as in `add_bias_`."""
    x.copy_(activated(x.float() + bias.float()[:, None, None], activation, slope))


def activated(y: Tensor, activation: str, slope: float) -> Tensor:
    """Returns the activation of a float32 map."""
    if activation == "hardswish":
        gate = y + 3.0
        gate = torch.where(gate < 0.0, 0.0, gate)
        return y * torch.where(gate > 6.0, 6.0, gate) * ONE_SIXTH
    low, high, slope = numbers(activation, slope)
    y = torch.where(y < 0.0, y * slope, y)
    y = torch.where(y < low, low, y)
    return torch.where(y > high, high, y)


def numbers(activation: str, slope: float) -> tuple[float, float, float]:
    """Returns an activation's limits and its slope below zero; one does for "hardswish"."""
    low, high = LIMITS.get(activation, LIMITS["none"])
    return low, high, slope if activation == "leaky_relu" else 1.0
