"""The formulas of `boxes` in Triton, operation by operation, so that results agree bit for bit.

For that every kernel that calls them is launched with enable_fp_fusion=False, divisions are
`tl.div_rn` (a plain `/` compiles to a multiplication by an approximate reciprocal, which flips IoUs
at the threshold), and there is no `tl.exp`, which is approximate.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from stream_rpn.kernels import boxes as box_ops

MAX_EXPONENT = tl.constexpr(box_ops.MAX_EXPONENT)
MAX_LOG_SCALE = tl.constexpr(box_ops.MAX_LOG_SCALE)
LOG2_E = tl.constexpr(box_ops.LOG2_E)
LN2_HIGH = tl.constexpr(box_ops.LN2_HIGH)
LN2_LOW = tl.constexpr(box_ops.LN2_LOW)
EXP_COEFFICIENTS = tl.constexpr(box_ops.EXP_COEFFICIENTS)


@triton.jit
def exp(x):
    """`boxes.exp`. Comparisons instead of tl.minimum, which drops NaN."""
    x = tl.where(x < -MAX_EXPONENT, -MAX_EXPONENT, x)
    x = tl.where(x > MAX_EXPONENT, MAX_EXPONENT, x)
    n = tl.floor(x * LOG2_E + 0.5)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = tl.zeros_like(r) + EXP_COEFFICIENTS[0]
    for i in tl.static_range(1, 8):
        p = p * r + EXP_COEFFICIENTS[i]
    n = tl.where(n == n, n, 0.0)
    power = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return p * power


@triton.jit
def sigmoid(logits):
    """`boxes.sigmoid`."""
    denominator = 1.0 + exp(-logits)
    return tl.div_rn(tl.zeros_like(denominator) + 1.0, denominator)


@triton.jit
def decode_side(offset, log_scale, anchor_low, anchor_high):
    """`boxes.decode` along one axis: returns the low and the high coordinate."""
    anchor_side = anchor_high - anchor_low
    anchor_centre = anchor_low + 0.5 * anchor_side
    log_scale = tl.where(log_scale > MAX_LOG_SCALE, MAX_LOG_SCALE, log_scale)
    centre = offset * anchor_side + anchor_centre
    half_side = 0.5 * (exp(log_scale) * anchor_side)
    return centre - half_side, centre + half_side


@triton.jit
def area(x1, y1, x2, y2):
    """`boxes.area`, but 1 for a box that meets nothing, because it has no area or is turned over.

    With that, unions are above 0, and IoUs are what they are: 0 where there is no intersection.
    """
    product = (x2 - x1) * (y2 - y1)
    return tl.where(product <= 0.0, 1.0, product)


@triton.jit
def intersection_and_union(
    x1, y1, x2, y2, box_area, other_x1, other_y1, other_x2, other_y2, other_area
):
    """What `boxes.iou` divides, by areas of `area`."""
    width = tl.maximum(tl.minimum(x2, other_x2) - tl.maximum(x1, other_x1), 0.0)
    height = tl.minimum(y2, other_y2) - tl.maximum(y1, other_y1)
    intersection = width * height
    return intersection, (box_area + other_area) - intersection
