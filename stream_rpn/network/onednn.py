"""Convolutions for a CPU: weights laid out for oneDNN once, activations within the convolution.

Called plainly, a convolution lays its weights out anew for every frame, and a ReLU after it goes
through the whole map once more. torch's compiler does away with both, by operators of its own that
are used here without it: compiling takes a minute, and a C++ compiler that users may not have.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stream_rpn.network.convolutions import replaced

M = TypeVar("M", bound=nn.Module)

# oneDNN's name of each activation, with its numbers.
_ACTIVATIONS: dict[type[nn.Module], Callable[[Any], tuple[str, list[float]]]] = {
    nn.ReLU: lambda _: ("relu", []),
    nn.ReLU6: lambda _: ("hardtanh", [0.0, 6.0]),
    nn.LeakyReLU: lambda layer: ("leaky_relu", [layer.negative_slope]),
}


class PackedConv2d(nn.Module):
    """A convolution, and perhaps the activation after it, which is then rounded with it.

    In bfloat16 the bits are those of the two one after the other.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self._geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        name, numbers = _ACTIVATIONS[type(activation)](activation) if activation else ("none", [])
        self._activation = (name, numbers, "")
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Returns the result of the convolution and the activation for x."""
        if self._packed is None:
            # Laid out for the first shape, which is the largest; others are right, if less quick.
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, *self._geometry, x.shape
            )
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._packed, self.bias, *self._geometry, *self._activation
        )
        return y


def packed(model: M) -> M:
    """Returns a model on a CPU with its convolutions packed, for inference; `model` stays as it is.

    Where torch or the processor lacks the operators for its number format, `model` itself.
    """
    if not _works(next(model.parameters()).dtype):
        return model
    # Parameters are shared; each packed convolution makes a copy of its own in due course.
    return replaced(model, _packed)


def _packed(conv: nn.Conv2d, following: nn.Module | None) -> tuple[nn.Module, bool]:
    activation = following if type(following) in _ACTIVATIONS else None
    return PackedConv2d(conv, activation), activation is not None


@cache
def _works(dtype: torch.dtype) -> bool:
    conv = nn.Conv2d(16, 16, 3, dtype=dtype)
    try:
        with torch.inference_mode():
            PackedConv2d(conv, nn.ReLU6())(torch.zeros(1, 16, 8, 8, dtype=dtype))
    except (RuntimeError, AttributeError):
        return False
    return True
