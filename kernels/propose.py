"""propose: raw head outputs of all levels → the best anchors, decoded, clipped and filtered."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stream_rpn.kernels.dispatch import fused_or_reference, opaque_op
from stream_rpn.kernels.propose_reference import propose_reference

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Candidates(NamedTuple):
    """The best anchors of every level, level after level, each level by logit, best first.

    M is the sum over levels of min(pre_nms_top_n, N). Equal logits stand by anchor index. A slot
    whose box was rejected stays where it is, with box 0, logit −inf and anchor −1.

    Attributes:
        boxes: [B, M, 4] float32, pixels of the network input.
        logits: [B, M] float32.
        anchors: [B, M] int32, (y·W + x)·A + a within the level.
    """

    boxes: Tensor
    logits: Tensor
    anchors: Tensor


def level_sizes(
    objectness: Sequence[Tensor], base_anchors: Sequence[Tensor], pre_nms_top_n: int
) -> tuple[int, ...]:
    """Returns the number of candidates of each level: min(pre_nms_top_n, A·H·W)."""
    return tuple(
        min(pre_nms_top_n, base.shape[0] * level.shape[2] * level.shape[3])
        for level, base in zip(objectness, base_anchors, strict=True)
    )


@torch.no_grad()
def propose(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    base_anchors: Sequence[Tensor],
    strides: Sequence[tuple[int, int]],
    image_sizes: Tensor,
    *,
    pre_nms_top_n: int,
    score_thresh: float,
    min_size: float,
) -> Candidates:
    """Returns the candidates of a batch: the highest logits of each level, decoded and clipped.

    Rejected are logits of NaN or −inf, boxes that are not finite, boxes with a side below
    `min_size` after clipping, and probabilities below `score_thresh`. Head outputs may
    have any strides and be float32, float16 or bfloat16; everything is computed in float32.

    Args:
        objectness: per level [B, A, H, W] logits, or [B, 2A, H, W] with background|object
            interleaved per anchor (the logit is object − background).
        deltas: per level [B, 4A, H, W], dx, dy, dw, dh per anchor.
        base_anchors: per level [A, 4] float32.
        strides: per level (y, x) input pixels per cell.
        image_sizes: [B, 2] (height, width) to clip to, any real dtype.
        pre_nms_top_n: candidates per level, at least 1.
        score_thresh: in [0, 1].
        min_size: in pixels of the network input, at least 0.

    Raises:
        ValueError: a shape, device or number does not fit.
        TypeError: an argument is of another type.
    """
    check_heads(objectness, deltas, base_anchors, strides, image_sizes)
    check_selection(pre_nms_top_n, score_thresh, min_size)
    flat_strides = [side for stride in strides for side in stride]
    return Candidates(
        *_propose_op(
            list(objectness),
            list(deltas),
            list(base_anchors),
            flat_strides,
            image_sizes,
            pre_nms_top_n,
            float(score_thresh),
            float(min_size),
        )
    )


@opaque_op("propose")
def _propose_op(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    base_anchors: Sequence[Tensor],
    strides: Sequence[int],
    image_sizes: Tensor,
    pre_nms_top_n: int,
    score_thresh: float,
    min_size: float,
) -> tuple[Tensor, Tensor, Tensor]:
    # On a GPU this check would wait for the device; there the boxes are rejected one by one.
    if not image_sizes.is_cuda:
        check_finite(base_anchors)
    pairs = list(zip(strides[::2], strides[1::2], strict=True))
    heads = (objectness, deltas, base_anchors, pairs, image_sizes)
    limits = (pre_nms_top_n, score_thresh, min_size)

    def fused() -> tuple[Tensor, Tensor, Tensor]:
        from stream_rpn.kernels.propose_triton import propose_triton

        return propose_triton(*heads, *limits)

    def reference() -> tuple[Tensor, Tensor, Tensor]:
        return propose_reference(*heads, *limits)

    return fused_or_reference("propose", image_sizes, fused, reference)


@torch.library.register_fake("stream_rpn::propose")  # type: ignore[untyped-decorator]
def _(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    base_anchors: Sequence[Tensor],
    strides: Sequence[int],
    image_sizes: Tensor,
    pre_nms_top_n: int,
    score_thresh: float,
    min_size: float,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, size = image_sizes.shape[0], sum(level_sizes(objectness, base_anchors, pre_nms_top_n))
    return (
        image_sizes.new_empty(batch, size, 4, dtype=torch.float32),
        image_sizes.new_empty(batch, size, dtype=torch.float32),
        image_sizes.new_empty(batch, size, dtype=torch.int32),
    )


def check_finite(base_anchors: Sequence[Tensor]) -> None:
    """Raises ValueError where an anchor is not finite; waits for the device."""
    if not torch.cat(list(base_anchors)).isfinite().all():
        raise ValueError("base_anchors must be finite, got NaN or infinity")


def check_selection(pre_nms_top_n: int, score_thresh: float, min_size: float) -> None:
    """Raises ValueError or TypeError where one of these arguments of `propose` does not fit."""
    _check_number("pre_nms_top_n", pre_nms_top_n, at_least=1, integer=True)
    _check_number("score_thresh", score_thresh, at_least=0, at_most=1)
    _check_number("min_size", min_size, at_least=0)


def check_heads(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    base_anchors: Sequence[Tensor],
    strides: Sequence[tuple[int, int]],
    image_sizes: Tensor,
) -> None:
    """Raises ValueError or TypeError where one of these arguments of `propose` does not fit."""
    if not isinstance(image_sizes, Tensor):
        raise TypeError(f"image_sizes must be a tensor [B, 2], got {type(image_sizes).__name__}")
    if image_sizes.ndim != 2 or image_sizes.shape[1] != 2:
        raise ValueError(
            f"image_sizes must be [B, 2] (height, width), got {list(image_sizes.shape)}"
        )
    if image_sizes.is_complex():
        raise TypeError(f"image_sizes must be of a real dtype, got {image_sizes.dtype}")
    levels = {
        "objectness": objectness,
        "deltas": deltas,
        "base_anchors": base_anchors,
        "strides": strides,
    }
    for name, per_level in levels.items():
        if not isinstance(per_level, Sequence):
            raise TypeError(
                f"{name} must be a list with an item per level, got {type(per_level).__name__}"
            )
    lengths = {name: len(per_level) for name, per_level in levels.items()}
    if len(set(lengths.values())) != 1 or not objectness:
        raise ValueError(
            f"objectness, deltas, base_anchors and strides must have the same number of levels, "
            f"at least one, got {lengths}"
        )
    for level, (logits, delta, base, stride) in enumerate(
        zip(objectness, deltas, base_anchors, strides, strict=True)
    ):
        named = {"objectness": logits, "deltas": delta, "base_anchors": base}
        for name, tensor in named.items():
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name}[{level}] must be a tensor, got {type(tensor).__name__}")
            if tensor.dtype not in FLOAT_DTYPES:
                raise TypeError(
                    f"{name}[{level}] must be float32, float16 or bfloat16, got {tensor.dtype}"
                )
            if tensor.device != image_sizes.device:
                raise ValueError(
                    f"{name}[{level}] must be on the device of image_sizes, {image_sizes.device}, "
                    f"got {tensor.device}"
                )
        if base.ndim != 2 or base.shape[1] != 4:
            raise ValueError(f"base_anchors[{level}] must be [A, 4], got {list(base.shape)}")
        num_anchors, batch = base.shape[0], image_sizes.shape[0]
        if (
            logits.ndim != 4
            or logits.shape[0] != batch
            or logits.shape[1] not in (num_anchors, 2 * num_anchors)
        ):
            raise ValueError(
                f"objectness[{level}] must be [{batch}, {num_anchors} or {2 * num_anchors}, H, W] "
                f"for {batch} images and {num_anchors} anchors per cell, got {list(logits.shape)}"
            )
        expected = (batch, 4 * num_anchors, *logits.shape[2:])
        if delta.shape != expected:
            raise ValueError(f"deltas[{level}] must be {list(expected)}, got {list(delta.shape)}")
        if (
            not isinstance(stride, Sequence)
            or len(stride) != 2
            or not all(isinstance(side, int) and side >= 1 for side in stride)
        ):
            raise ValueError(
                f"strides[{level}] must be (y, x) in whole pixels of at least 1, got {stride}"
            )


def _check_number(
    name: str,
    value: float,
    *,
    at_least: float,
    at_most: float = math.inf,
    integer: bool = False,
) -> None:
    if isinstance(value, bool) or not isinstance(value, int if integer else int | float):
        kind = "an int" if integer else "a number"
        raise TypeError(f"{name} must be {kind}, got {value!r}")
    if not at_least <= value <= at_most:
        bound = f"at least {at_least}" if at_most == math.inf else f"in [{at_least}, {at_most}]"
        raise ValueError(f"{name} must be {bound}, got {value}")
