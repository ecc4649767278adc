"""depthwise: a convolution of each channel by itself, with what follows it, in one pass."""

import torch
from torch import Tensor

from stream_rpn.kernels.depthwise_reference import depthwise_reference, output_size
from stream_rpn.kernels.dispatch import fused_or_reference, opaque_op
from stream_rpn.kernels.epilogue import check_activation, check_map, check_operand

__all__ = ["MOST_ELEMENTS", "depthwise"]

# Of a map of one image: places within it are numbers of 32 bits.
MOST_ELEMENTS = 2**30


@torch.no_grad()
def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: str = "none",
    *,
    slope: float = 0.01,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    """Returns activation(conv(x) + bias), where each channel has a kernel of its own.

    Computed in float32 and rounded once. For inference: autograd learns nothing of it.

    Args:
        x: [B, C, H, W] float32, float16 or bfloat16, channels-last.
        weight: [K, K, C] of the dtype of `x`: a convolution's [C, 1, K, K] with the channels last.
        bias: [C] of the dtype of `x`.
        activation: as in `add_bias_`.
        slope: of "leaky_relu" below zero.
        stride: of both axes.
        padding: zeros at each side of both axes.

    Returns:
        [B, C, (H + 2·padding − K) // stride + 1, the same of W], channels-last.

    Raises:
        ValueError: a shape, layout, device, name or number does not fit.
        TypeError: an argument is of another type.
    """
    _check(x, weight, bias, activation, slope, stride, padding)
    y: Tensor = _depthwise_op(x, weight, bias, activation, float(slope), stride, padding)
    return y


@opaque_op("depthwise")
def _depthwise_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: str,
    slope: float,
    stride: int,
    padding: int,
) -> Tensor:
    def fused() -> Tensor:
        from stream_rpn.kernels.depthwise_triton import depthwise_triton

        return depthwise_triton(x, weight, bias, activation, slope, stride, padding)

    def reference() -> Tensor:
        return depthwise_reference(x, weight, bias, activation, slope, stride, padding)

    return fused_or_reference("depthwise", x, fused, reference)


@torch.library.register_fake("stream_rpn::depthwise")  # type: ignore[untyped-decorator]
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: str,
    slope: float,
    stride: int,
    padding: int,
) -> Tensor:
    shape = (*x.shape[:2], *output_size(x, weight, stride, padding))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: str,
    slope: float,
    stride: int,
    padding: int,
) -> None:
    check_map(x)
    channels = x.shape[1]
    side = len(weight) if isinstance(weight, Tensor) and weight.dim() else 0
    square = max(side, 1)  # none has no taps
    check_operand("weight", weight, x, (square, square, channels), f"[K, K, {channels}]")
    check_operand("bias", bias, x, (channels,))
    check_activation(activation, slope)
    for name, number, least in (("stride", stride, 1), ("padding", padding, 0)):
        if not isinstance(number, int):
            raise TypeError(f"{name} must be a whole number, got {type(number).__name__}")
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}")
    size = output_size(x, weight, stride, padding)
    if min(size) < 1:
        raise ValueError(
            f"a kernel of {side}x{side} does not fit in a map of {x.shape[2]}x{x.shape[3]} with a "
            f"padding of {padding}"
        )
    if channels * max(x.shape[2] * x.shape[3], size[0] * size[1]) > MOST_ELEMENTS:
        raise ValueError(f"a map of one image must have at most {MOST_ELEMENTS} elements")
