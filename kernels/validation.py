"""Checks the arguments of the proposal stage, by whichever of its operations they come in."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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


def check_suppression(nms_thresh: float, post_nms_top_n: int) -> None:
    """Raises ValueError or TypeError where one of these arguments of `nms` does not fit."""
    if isinstance(nms_thresh, bool) or not isinstance(nms_thresh, int | float):
        raise TypeError(f"nms_thresh must be a number, got {nms_thresh!r}")
    if not 0 < nms_thresh <= 1:
        raise ValueError(f"nms_thresh must be in (0, 1], got {nms_thresh}")
    if isinstance(post_nms_top_n, bool) or not isinstance(post_nms_top_n, int):
        raise TypeError(f"post_nms_top_n must be an int, got {post_nms_top_n!r}")
    if post_nms_top_n < 1:
        raise ValueError(f"post_nms_top_n must be at least 1, got {post_nms_top_n}")


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
