"""depthwise as one Triton kernel; the formula is in `depthwise_reference`.

A program owns neighbouring pixels of one row of the output, in a block of channels. Channels last,
a thread moves VECTOR of them in one load and one store, as in `epilogue_triton`. It goes over the
taps and loads what each sees; those of a row are unrolled, so that their loads are under way at a
time. Where a pixel is follows from the program's number, without divisions in every lane.

Bytes: the map once in each direction, if the caches hold the few rows that neighbouring programs
share; a tap's reads of a row are those of the tap beside it, one pixel further. Instructions are
what bounds it: about three an element and tap, and as many again around them.

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
# Channels of a program. With more, weights would go through shared memory to the threads.
WIDTHS = (32, 64)

SIZES = ["height", "width", "out_width", "channel_groups", "columns", "stride", "padding"]


@triton.jit(do_not_specialize=SIZES)
def depthwise_kernel(
    x_ptr,  # [B, height, width, channel_groups · VECTOR]
    weight_ptr,  # [SIDE, SIDE, channel_groups · VECTOR]
    bias_ptr,  # [channel_groups · VECTOR]
    out_ptr,  # [B, out_height, out_width, channel_groups · VECTOR]
    height,
    width,
    out_width,
    channel_groups,
    columns,
    stride,
    padding,
    low,
    high,
    slope,
    SIDE: tl.constexpr,
    HARDSWISH: tl.constexpr,
    VECTOR: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Does PIXELS neighbours of a row in CHANNELS channels.

    Programs [blocks of channels · columns, out_height, B]: `columns` tiles are in a row.
    """
    num_channels = channel_groups * VECTOR
    row, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    start = tl.program_id(0) % columns * PIXELS
    pixels = start + tl.arange(0, PIXELS)
    channels = tl.program_id(0) // columns * CHANNELS + tl.arange(0, CHANNELS)
    known = (channels < num_channels)[None, :]
    x_ptr += image * height * width * num_channels
    out_ptr += (image * tl.num_programs(1) + row) * out_width * num_channels

    value = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for down in range(SIDE):
        y = row * stride - padding + down
        there = known & (y >= 0) & (y < height)
        for right in tl.static_range(SIDE):
            x = pixels * stride + (right - padding)
            # Beside the map there are zeros.
            inside = there & ((x >= 0) & (x < width))[:, None]
            place = (y * width + x)[:, None] * num_channels + channels[None, :]
            seen = tl.load(x_ptr + place, inside, 0.0).to(tl.float32)
            tap = (down * SIDE + right) * num_channels + channels[None, :]
            value += seen * tl.load(weight_ptr + tap, known, 0.0).to(tl.float32)
    value += tl.load(bias_ptr + channels[None, :], known, 0.0).to(tl.float32)
    value = activated(value, low, high, slope, HARDSWISH)
    place = pixels[:, None] * num_channels + channels[None, :]
    kept = known & (pixels < out_width)[:, None]
    tl.store(out_ptr + place, value.to(out_ptr.dtype.element_ty), kept)


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
    vector = math.gcd(channels, VECTOR_BYTES // x.itemsize)
    pixels, block = _tile(channels, x.itemsize)
    columns = triton.cdiv(out_width, pixels)
    x, weight, bias = (_aligned(tensor) for tensor in (x, weight, bias))
    with torch.cuda.device_of(x):
        depthwise_kernel[columns * triton.cdiv(channels, block), out_height, batch](
            x,
            weight,
            bias,
            out,
            height,
            width,
            out_width,
            channels // vector,
            columns,
            stride,
            padding,
            *numbers(activation, slope),
            SIDE=len(weight),
            HARDSWISH=activation == "hardswish",
            VECTOR=vector,
            PIXELS=pixels,
            CHANNELS=block,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,
        )
    return out


def _aligned(tensor: Tensor) -> Tensor:
    """Returns the tensor where a thread can load a vector at once: torch's own memory, no view."""
    return tensor if tensor.data_ptr() % VECTOR_BYTES == 0 else tensor.clone()


def _tile(channels: int, itemsize: int) -> tuple[int, int]:
    """Returns the pixels and the channels of a program, each of whose threads loads 16 bytes.

    Of the widths the one that leaves the fewest lanes without a channel, and of these the widest.
    """
    block = min(WIDTHS, key=lambda width: (-(-channels // width) * width, -width))
    return NUM_WARPS * 32 * VECTOR_BYTES // itemsize // block, block


def shipped_configs() -> list[Shipped]:
    """Returns what `depthwise_triton` launches for NanoDet's channels and MobileNets'."""
    pointers = ("x_ptr", "weight_ptr", "bias_ptr", "out_ptr")
    constants = ("SIDE", "HARDSWISH", "VECTOR", "PIXELS", "CHANNELS")
    shipped = []
    for dtype, itemsize in (("bf16", 2), ("fp16", 2), ("fp32", 4)):
        for channels, hardswish in (
            *((channels, False) for channels in (58, 96, 116, 192)),
            *((channels, True) for channels in (96, 192)),
        ):
            vector = math.gcd(channels, VECTOR_BYTES // itemsize)
            pixels, block = _tile(channels, itemsize)
            shipped += [
                Shipped(
                    f"depthwise/{dtype}x{vector}_{block}_{side}" + "_hardswish" * hardswish,
                    depthwise_kernel,
                    {
                        **dict.fromkeys(pointers, f"*{dtype}"),
                        **dict.fromkeys(SIZES, "i32"),
                        **dict.fromkeys(("low", "high", "slope"), "fp32"),
                        **dict.fromkeys(constants, "constexpr"),
                    },
                    dict(zip(constants, (side, hardswish, vector, pixels, block), strict=True)),
                    NUM_WARPS,
                    aligned=pointers,
                )
                for side in (3, 5)
            ]
    # In float32 116 channels take the same form as 192.
    return list({each.name: each for each in shipped}.values())
