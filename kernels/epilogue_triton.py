"""add_bias as one Triton kernel; the formula is in `epilogue_reference`.

Channels last, a map is one long row in which the bias repeats. A program owns BLOCK elements of it,
as groups of VECTOR neighbours: the largest power of two that divides the number of channels, up to
16 bytes. A group never goes beyond the last channel, so that a thread moves it in one load and one
store, needs one remainder to find its bias, and no group is half inside the map.

Bytes: the map once in each direction, which is what bounds it; the bias stays in the caches. Of an
activation only the numbers go in, so that a model compiles one form for each VECTOR that its
numbers of channels have. Sizes are arguments that nothing is compiled for; where a map has 2**31
elements or more, `total` and all that is computed from it have 64 bits, a form of its own.

Races: there are none. Each element is loaded and stored by exactly one program, what is stored
depends on that element and on the bias alone, and nobody writes the bias.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from stream_rpn.kernels import epilogue_reference
from stream_rpn.kernels.epilogue_reference import numbers
from stream_rpn.kernels.shipped import Shipped

BLOCK, NUM_WARPS = 2048, 8
# Bytes that a thread loads at once.
VECTOR_BYTES = 16

ONE_SIXTH = tl.constexpr(epilogue_reference.ONE_SIXTH)


@triton.jit
def activated(value, low, high, slope, HARDSWISH: tl.constexpr):
    """The activation of float32 values, as in `epilogue_reference`."""
    # Comparisons instead of tl.minimum, which drops NaN.
    if HARDSWISH:
        gate = value + 3.0
        gate = tl.where(gate < 0.0, 0.0, gate)
        value = value * tl.where(gate > 6.0, 6.0, gate) * ONE_SIXTH
    else:
        value = tl.where(value < 0.0, value * slope, value)
        value = tl.where(value < low, low, value)
        value = tl.where(value > high, high, value)
    return value


@triton.jit(do_not_specialize=["total", "channel_groups"])
def epilogue_kernel(
    x_ptr,  # [total], channels last
    bias_ptr,  # [channel_groups · VECTOR]
    total,
    channel_groups,
    low,
    high,
    slope,
    HARDSWISH: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Does BLOCK elements of the map."""
    lanes = tl.arange(0, BLOCK // VECTOR)
    within = tl.arange(0, VECTOR)[None, :]
    # The first group is one of the map's; lanes behind its end may overflow, and are masked.
    start = tl.program_id(0).to(total.dtype) * (BLOCK // VECTOR)
    inside = (lanes < total // VECTOR - start)[:, None]
    channels = ((start + lanes) % channel_groups)[:, None] * VECTOR + within
    pointers = x_ptr + start * VECTOR + lanes[:, None] * VECTOR + within

    value = tl.load(pointers, inside, 0.0).to(tl.float32)
    value += tl.load(bias_ptr + channels, inside, 0.0).to(tl.float32)
    value = activated(value, low, high, slope, HARDSWISH)
    tl.store(pointers, value.to(x_ptr.dtype.element_ty), inside)


def add_bias_triton(x: Tensor, bias: Tensor, activation: str, slope: float) -> None:
    """Overwrites `x` in one launch; arguments as in `add_bias_`."""
    total, channels = x.numel(), x.shape[1]
    if total == 0:
        return
    vector = math.gcd(channels, VECTOR_BYTES // x.itemsize)
    with torch.cuda.device_of(x):
        epilogue_kernel[(triton.cdiv(total, BLOCK),)](
            x,
            bias,
            total,
            channels // vector,
            *numbers(activation, slope),
            HARDSWISH=activation == "hardswish",
            VECTOR=vector,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,
        )


def shipped_configs() -> list[Shipped]:
    """Returns what `add_bias_triton` launches, maps of 2**31 elements in one type."""
    forms = [
        (dtype, vector, hardswish, "")
        for dtype, widest in (("bf16", 8), ("fp16", 8), ("fp32", 4))
        for vector in (1, 2, 4, 8)
        for hardswish in (False, True)
        # Numbers of channels that eight does not divide are NanoDet's, without hardswish.
        if vector <= widest and (vector == widest or not hardswish)
    ]
    return [
        Shipped(
            f"epilogue/{dtype}x{vector}" + ("_hardswish" if hardswish else "") + large,
            epilogue_kernel,
            {
                "x_ptr": f"*{dtype}",
                "bias_ptr": f"*{dtype}",
                "total": "i64" if large else "i32",
                "channel_groups": "i32",
                **dict.fromkeys(("low", "high", "slope"), "fp32"),
                **dict.fromkeys(("HARDSWISH", "VECTOR", "BLOCK"), "constexpr"),
            },
            {"HARDSWISH": hardswish, "VECTOR": vector, "BLOCK": BLOCK},
            NUM_WARPS,
        )
        for dtype, vector, hardswish, large in [*forms, ("bf16", 8, False, "_large")]
    ]
