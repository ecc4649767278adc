"""Checks the arguments of the proposal stage, by whichever of its operations they come in."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stream_rpn.kernels.proposals import Candidates, HeadOutputs, ProposalSpec

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_finite(base_anchors: Sequence[Tensor]) -> None:
    """Raises ValueError where an anchor is not finite; waits for the device."""
    if not torch.cat(list(base_anchors)).isfinite().all():
        raise ValueError("base_anchors must be finite, got NaN or infinity")


def check_heads(heads: HeadOutputs) -> None:
    """Raises ValueError or TypeError where one of the head outputs does not fit the others."""
    if not isinstance(heads, HeadOutputs):
        raise TypeError(f"heads must be HeadOutputs, got {type(heads).__name__}")
    objectness, deltas, base_anchors, strides, image_sizes = heads
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


def check_candidates(candidates: Candidates, level_sizes: Sequence[int]) -> None:
    """Raises ValueError or TypeError where candidates do not fit each other or the levels."""
    if not isinstance(candidates, tuple) or len(candidates) != 3:
        raise TypeError(
            f"candidates must be the boxes, logits and anchors of Candidates, got "
            f"{type(candidates).__name__}"
        )
    boxes, logits, anchors = candidates
    for name, tensor, dtype in (
        ("boxes", boxes, torch.float32),
        ("logits", logits, torch.float32),
        ("anchors", anchors, torch.int32),
    ):
        if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"candidates.{name} must be a tensor of {dtype}, got {got}")
        if tensor.device != boxes.device:
            raise ValueError(
                f"candidates.{name} must be on the device of the boxes, {boxes.device}, "
                f"got {tensor.device}"
            )
    if boxes.ndim != 3 or boxes.shape[2] != 4:
        raise ValueError(f"candidates.boxes must be [B, M, 4], got {list(boxes.shape)}")
    for name, tensor in (("logits", logits), ("anchors", anchors)):
        if tensor.shape != boxes.shape[:2]:
            raise ValueError(
                f"candidates.{name} must be {list(boxes.shape[:2])}, got {list(tensor.shape)}"
            )
    if not isinstance(level_sizes, Sequence) or not all(isinstance(n, int) for n in level_sizes):
        raise TypeError(f"level_sizes must be a list of ints, got {level_sizes!r}")
    if not level_sizes or min(level_sizes) < 0 or sum(level_sizes) != boxes.shape[1]:
        raise ValueError(
            f"level_sizes must add up to the {boxes.shape[1]} candidates of an image, "
            f"got {tuple(level_sizes)}"
        )


def check_spec(spec: ProposalSpec) -> None:
    """Raises TypeError where `spec` is something else; its fields it has checked itself."""
    if not isinstance(spec, ProposalSpec):
        raise TypeError(f"spec must be a ProposalSpec, got {type(spec).__name__}")
