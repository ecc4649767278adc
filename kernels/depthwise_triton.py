"""depthwise as one Triton kernel; the formula is in `depthwise_reference`.

Channels last, the map of an image is one long row. A program owns BLOCK elements of the output of
one image, as groups of VECTOR neighbouring channels, as in `epilogue_triton`: a thread moves a
group in one load and one store. It goes over the taps, and loads of each what its groups see; those
of one row are unrolled, so that their loads are under way at a time.

Bytes: the map once in each direction, if the caches hold the few rows that neighbouring programs
share; a tap's reads of a row are those of the tap beside it, one pixel further.

Races: there are none. Each element is stored by exactly one program, and nobody writes what is
loaded.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from stream_rpn.kernels.depthwise_reference import output_size
from stream_rpn.kernels.epilogue_reference import numbers
from stream_rpn.kernels.epilogue_triton import VECTOR_BYTES, activated
from stream_rpn.kernels.shipped import Shipped

NUM_WARPS = 4

SIZES = ["height", "width", "out_height", "out_width", "channel_groups", "stride", "padding"]


@triton.jit(do_not_specialize=SIZES)
def depthwise_kernel(
    x_ptr,  # [B, height, width, channel_groups · VECTOR]
    weight_ptr,  # [SIDE, SIDE, channel_groups · VECTOR]
    bias_ptr,  # [channel_groups · VECTOR]
    out_ptr,  # [B, out_height, out_width, channel_groups · VECTOR]
    height,
    width,
    out_height,
    out_width,
    channel_groups,
    stride,
    padding,
    low,
    high,
    slope,
    SIDE: tl.constexpr,
    HARDSWISH: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Does BLOCK elements of the map of one image; programs [blocks, B]."""
    image = tl.program_id(1).to(tl.int64)
    group = tl.program_id(0) * (BLOCK // VECTOR) + tl.arange(0, BLOCK // VECTOR)
    pixel = group // channel_groups
    row, column = pixel // out_width, pixel % out_width
    inside = (row < out_height)[:, None]
    within = tl.arange(0, VECTOR)[None, :]
    channels = (group % channel_groups)[:, None] * VECTOR + within
    num_channels = channel_groups * VECTOR
    x_ptr += image * height * width * num_channels
    out_ptr += image * out_height * out_width * num_channels

    value = tl.zeros((BLOCK // VECTOR, VECTOR), tl.float32)
    for down in range(SIDE):
        y = row * stride - padding + down
        y_inside = (y >= 0) & (y < height)
        line_ptr = x_ptr + (y * width)[:, None] * num_channels + channels
        taps_ptr = weight_ptr + down * SIDE * num_channels + channels
        for right in tl.static_range(SIDE):
            x = column * stride - padding + right
            # Beside the map there are zeros.
            there = (y_inside & (x >= 0) & (x < width))[:, None] & inside
            seen = tl.load(line_ptr + x[:, None] * num_channels, there, 0.0)
            weight = tl.load(taps_ptr + right * num_channels)
            value += seen.to(tl.float32) * weight.to(tl.float32)
    value += tl.load(bias_ptr + channels).to(tl.float32)
    value = activated(value, low, high, slope, HARDSWISH)
    pointers = out_ptr + group[:, None] * VECTOR + within
    tl.store(pointers, value.to(out_ptr.dtype.element_ty), inside)


def depthwise_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: str,
    slope: float,
    stride: int,
    padding: int,
) -> Tensor:
    """Returns what `depthwise` describes, in one launch."""
    batch, channels, height, width = x.shape
    out_height, out_width = output_size(x, weight, stride, padding)
    shape = (batch, channels, out_height, out_width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if out.numel() == 0:
        return out
    vector, block = math.gcd(channels, VECTOR_BYTES // x.itemsize), _block(x.itemsize)
    blocks = triton.cdiv(channels * out_height * out_width, block)
    x, weight, bias = (_aligned(tensor) for tensor in (x, weight, bias))
    with torch.cuda.device_of(x):
        depthwise_kernel[blocks, batch](
            x,
            weight,
            bias,
            out,
            height,
            width,
            out_height,
            out_width,
            channels // vector,
            stride,
            padding,
            *numbers(activation, slope),
            SIDE=len(weight),
            HARDSWISH=activation == "hardswish",
            VECTOR=vector,
            BLOCK=block,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,
        )
    return out


def _aligned(tensor: Tensor) -> Tensor:
    """Returns the tensor where a thread can load a vector at once: torch's own memory, no view."""
    return tensor if tensor.data_ptr() % VECTOR_BYTES == 0 else tensor.clone()


def _block(itemsize: int) -> int:
    """Returns how many elements a program does: each of its threads as many as a load takes."""
    return NUM_WARPS * 32 * VECTOR_BYTES // itemsize


def shipped_configs() -> list[Shipped]:
    """Returns what `depthwise_triton` launches for kernels of three and five a side."""
    pointers = ("x_ptr", "weight_ptr", "bias_ptr", "out_ptr")
    constants = ("SIDE", "HARDSWISH", "VECTOR", "BLOCK")
    return [
        Shipped(
            f"depthwise/{dtype}x{vector}_{side}" + ("_hardswish" if hardswish else ""),
            depthwise_kernel,
            {
                **dict.fromkeys(pointers, f"*{dtype}"),
                **dict.fromkeys(SIZES, "i32"),
                **dict.fromkeys(("low", "high", "slope"), "fp32"),
                **dict.fromkeys(constants, "constexpr"),
            },
            {"SIDE": side, "HARDSWISH": hardswish, "VECTOR": vector, "BLOCK": _block(itemsize)},
            NUM_WARPS,
            aligned=pointers,
        )
        for dtype, itemsize in (("bf16", 2), ("fp16", 2), ("fp32", 4))
        for vector in (2, 4, 8)
        for side in (3, 5)
        for hardswish in (False, True)
        # As in `epilogue_triton`: fewer than eight channels a load are NanoDet's.
        if vector * itemsize <= VECTOR_BYTES
        and (vector * itemsize == VECTOR_BYTES or not hardswish)
    ]
