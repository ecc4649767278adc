"""Boxes in plain PyTorch: encode, decode, clip and intersection over union.

Boxes are (x1, y1, x2, y2) in float32 pixels; deltas are (dx, dy, dw, dh) of Ren et al. 2015, eq. 2.
`encode` and `decode` are inverses of each other for boxes with positive sides.

Everything here but `encode` uses additions, multiplications, divisions and comparisons only, which
IEEE 754 rounds exactly: a box has the same bits alone and inside a batch, on a CPU and in the
Triton kernels (which repeat these formulas operation by operation, with fusion off). A library's
exp() promises none of this: its vector body and its scalar tail may differ in the last bit.
"""

import math

import torch
from torch import Tensor

# A predicted side grows at most by 1000/16 over its anchor's: exp() of anything larger is noise
# that overflows (the constant is Detectron's and is used by torchvision and detectron2 alike).
MAX_LOG_SCALE = math.log(1000.0 / 16.0)

# exp(x) = 2ⁿ · p(r) with n = round(x / ln 2) and r = x − n·ln 2, |r| ≤ ln 2 / 2 (Cody and Waite
# 1980, ch. 6). ln 2 is split in two so that n·LN2_HIGH is exact; p is the Taylor polynomial of
# degree 7; the result is within one float32 step. The limit keeps 2ⁿ, exp(x) and 1 / (1 + exp(x))
# normal numbers.
MAX_EXPONENT = 87.0
LOG2_E = 1.4426950408889634
LN2_HIGH = 0.693359375
LN2_LOW = -2.12194440054690583e-4
EXP_COEFFICIENTS = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)


def exp(x: Tensor) -> Tensor:
    """Returns e to the power of float32 `x`, clamped to ±87, by exactly rounded operations only."""
    x = x.clamp(min=-MAX_EXPONENT, max=MAX_EXPONENT)
    n = torch.floor(x * LOG2_E + 0.5)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = r * EXP_COEFFICIENTS[0] + EXP_COEFFICIENTS[1]
    for coefficient in EXP_COEFFICIENTS[2:]:
        p = p * r + coefficient
    power = ((n.nan_to_num().to(torch.int32) + 127) << 23).view(torch.float32)
    return p * power


def sigmoid(logits: Tensor) -> Tensor:
    """Returns the probabilities of `logits` in float32, never 0: logits are clamped to ±87."""
    return 1.0 / (1.0 + exp(-logits.float()))


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Returns the deltas that move `anchors` onto `boxes`, both [..., 4], as [..., 4] float32.

    Sides of anchors and boxes must be positive.
    """
    boxes, anchors = boxes.float(), anchors.float()
    anchor_w, anchor_h = anchors[..., 2] - anchors[..., 0], anchors[..., 3] - anchors[..., 1]
    box_w, box_h = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    anchor_cx, anchor_cy = anchors[..., 0] + 0.5 * anchor_w, anchors[..., 1] + 0.5 * anchor_h
    box_cx, box_cy = boxes[..., 0] + 0.5 * box_w, boxes[..., 1] + 0.5 * box_h
    return torch.stack(
        (
            (box_cx - anchor_cx) / anchor_w,
            (box_cy - anchor_cy) / anchor_h,
            torch.log(box_w / anchor_w),
            torch.log(box_h / anchor_h),
        ),
        dim=-1,
    )


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Returns `anchors` moved by `deltas`, both [..., 4], as [..., 4] float32 boxes.

    dw and dh are clamped from above at log(1000/16). Computed in float32 whatever comes in: half
    precision has steps of one or two pixels above 2048.
    """
    deltas, anchors = deltas.float(), anchors.float()
    sides = anchors[..., 2:] - anchors[..., :2]
    centres = deltas[..., :2] * sides + (anchors[..., :2] + 0.5 * sides)
    half_sides = 0.5 * (exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE)) * sides)
    return torch.cat((centres - half_sides, centres + half_sides), dim=-1)


def clip(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Returns `boxes` [..., N, 4] clipped to [0, width] × [0, height].

    `image_sizes` is [..., 2] as (height, width), its leading dimensions those of `boxes`.
    """
    # Coordinate by coordinate: a limit of its own for every one of four neighbours in memory is 5
    # times slower on a CPU.
    height, width = image_sizes.to(boxes.dtype)[..., None, None].unbind(dim=-3)
    x = torch.minimum(boxes[..., 0::2].clamp(min=0), width)
    y = torch.minimum(boxes[..., 1::2].clamp(min=0), height)
    return torch.stack((x, y), dim=-1).flatten(-2)


def area(boxes: Tensor) -> Tensor:
    """Returns the areas [...] of `boxes` [..., 4]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Returns the intersection over union [..., N, M] of boxes [..., N, 4] and others [..., M, 4].

    Two boxes of no area have IoU 0 with everything, themselves included (0/0 counts as 0).
    """
    top_left = torch.maximum(boxes[..., :, None, :2], others[..., None, :, :2])
    bottom_right = torch.minimum(boxes[..., :, None, 2:], others[..., None, :, 2:])
    sides = (bottom_right - top_left).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    union = area(boxes)[..., :, None] + area(others)[..., None, :] - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(intersection))
