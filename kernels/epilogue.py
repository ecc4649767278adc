"""add_bias_: what is left to do with a map after a convolution, in one pass and in place."""

import math

import torch
from torch import Tensor

from stream_rpn.kernels.dispatch import fused_or_reference, has_changed, opaque_op
from stream_rpn.kernels.epilogue_reference import ACTIVATIONS, add_bias_reference

__all__ = ["ACTIVATIONS", "DTYPES", "add_bias_"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@torch.no_grad()
def add_bias_(x: Tensor, bias: Tensor, activation: str = "none", *, slope: float = 0.01) -> Tensor:
    """Returns `x` itself, overwritten with activation(x + bias).

    Computed in float32 and rounded once. For inference: autograd learns nothing of the sum.

    Args:
        x: [B, C, H, W] float32, float16 or bfloat16, channels-last, of memory that nothing else
            uses.
        bias: [C] of the dtype of `x`.
        activation: one of `ACTIVATIONS`: "none", "relu", "relu6", "hardswish", "leaky_relu".
        slope: of "leaky_relu" below zero; nothing else uses it.

    Raises:
        ValueError: a shape, layout, device or name does not fit.
        TypeError: an argument is of another type.
    """
    _check(x, bias, activation, slope)
    _add_bias_op(x, bias, activation, float(slope))
    has_changed(x)
    return x


@opaque_op("add_bias_", writes="x")
def _add_bias_op(x: Tensor, bias: Tensor, activation: str, slope: float) -> None:
    def fused() -> None:
        from stream_rpn.kernels.epilogue_triton import add_bias_triton

        add_bias_triton(x, bias, activation, slope)

    def reference() -> None:
        add_bias_reference(x, bias, activation, slope)

    fused_or_reference("add_bias", x, fused, reference)


@torch.library.register_fake("stream_rpn::add_bias_")  # type: ignore[untyped-decorator]
def _(x: Tensor, bias: Tensor, activation: str, slope: float) -> None:
    return None


def _check(x: Tensor, bias: Tensor, activation: str, slope: float) -> None:
    check_map(x)
    check_operand("bias", bias, x, tuple(x.shape[1:2]))
    check_activation(activation, slope)


def check_map(x: Tensor) -> None:
    """Raises ValueError or TypeError where `x` is no channels-last map of `DTYPES`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.dtype not in DTYPES:
        expected = " or ".join(str(dtype) for dtype in DTYPES)
        raise TypeError(f"x must be {expected}, got {x.dtype}")
    if x.dim() != 4:
        raise ValueError(f"x must be [*, *, *, *], got {list(x.shape)}")
    if not x.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(f"x must be channels-last, got strides {list(x.stride())}")


def check_operand(
    name: str, tensor: Tensor, x: Tensor, shape: tuple[int, ...], shown: str = ""
) -> None:
    """Raises ValueError or TypeError where what goes with a map does not fit it.

    Args:
        name: of the argument.
        tensor: the argument.
        x: the map.
        shape: that it must have.
        shown: how that is told, where not as it is.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype != x.dtype:
        raise TypeError(f"{name} must be of the dtype of x, {x.dtype}, got {tensor.dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name} must be {shown or list(shape)}, got {list(tensor.shape)}")
    if tensor.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {tensor.device}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {list(tensor.stride())}")


def check_activation(activation: str, slope: float) -> None:
    """Raises ValueError or TypeError where these are none that a pass knows."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if not isinstance(slope, int | float):
        raise TypeError(f"slope must be a number, got {type(slope).__name__}")
    if not math.isfinite(slope):
        raise ValueError(f"slope must be finite, got {slope}")
