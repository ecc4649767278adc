"""The records of the proposal stage: what goes in, its limits, and what is handed on.

An option of the stage is a field of `ProposalSpec`: torch's ops pass the record on as lists of
numbers, which only `ProposalSpec.to_lists` and `ProposalSpec.from_lists` know.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class HeadOutputs(NamedTuple):
    """The raw outputs of a head for a batch, with what is needed to make proposals of them.

    They may have any strides in memory and be float32, float16 or bfloat16.

    Attributes:
        objectness: per level [B, A, H, W] logits, or [B, 2A, H, W] with background|object
            interleaved per anchor (the logit is object − background).
        deltas: per level [B, 4A, H, W], dx, dy, dw, dh per anchor.
        base_anchors: per level [A, 4] float32.
        strides: per level (y, x) input pixels per cell.
        image_sizes: [B, 2] (height, width) of the resized images without padding, to clip to, any
            real dtype.
    """

    objectness: Sequence[Tensor]
    deltas: Sequence[Tensor]
    base_anchors: Sequence[Tensor]
    strides: Sequence[tuple[int, int]]
    image_sizes: Tensor

    def to(self, device: torch.device | str) -> HeadOutputs:
        """Returns them on another device."""
        return HeadOutputs(
            [level.to(device) for level in self.objectness],
            [level.to(device) for level in self.deltas],
            [level.to(device) for level in self.base_anchors],
            self.strides,
            self.image_sizes.to(device),
        )

    def image(self, index: int) -> HeadOutputs:
        """Returns those of one image, as a batch of one."""
        rows = slice(index, index + 1)
        return self._replace(
            objectness=[level[rows] for level in self.objectness],
            deltas=[level[rows] for level in self.deltas],
            image_sizes=self.image_sizes[rows],
        )

    def level_sizes(self, pre_nms_top_n: int) -> tuple[int, ...]:
        """Returns the number of candidates of each level: min(pre_nms_top_n, A·H·W)."""
        return tuple(
            min(pre_nms_top_n, base.shape[0] * level.shape[2] * level.shape[3])
            for level, base in zip(self.objectness, self.base_anchors, strict=True)
        )


@dataclass(frozen=True)
class ProposalSpec:
    """How head outputs become proposals.

    Attributes:
        pre_nms_top_n: candidates per level that enter non-maximum suppression, at least 1.
        post_nms_top_n: proposals per image, all levels together, at least 1.
        nms_thresh: a box is suppressed where its IoU with a better one exceeds this, in (0, 1].
        score_thresh: boxes of a lower objectness probability are left out, in [0, 1].
        min_size: boxes with a side under this many input pixels are left out, at least 0.

    Raises:
        ValueError: a number is out of its range.
        TypeError: a field is no number.
    """

    pre_nms_top_n: int = 1000
    post_nms_top_n: int = 1000
    nms_thresh: float = 0.7
    score_thresh: float = 0.0
    min_size: float = 1e-3

    def __post_init__(self) -> None:
        _check_number("pre_nms_top_n", self.pre_nms_top_n, at_least=1, integer=True)
        _check_number("post_nms_top_n", self.post_nms_top_n, at_least=1, integer=True)
        _check_number("nms_thresh", self.nms_thresh)
        if not 0 < self.nms_thresh <= 1:
            raise ValueError(f"nms_thresh must be in (0, 1], got {self.nms_thresh}")
        _check_number("score_thresh", self.score_thresh, at_least=0, at_most=1)
        _check_number("min_size", self.min_size)
        if not self.min_size >= 0:
            raise ValueError(f"min_size must not be negative, got {self.min_size}")

    def to_lists(self) -> tuple[list[int], list[float]]:
        """Returns the counts and the thresholds, of which a torch op's schema can take lists.

        One after the other they hold every field in the order in which the fields stand: counts
        before thresholds. A new field goes after the others of its kind, here and there.
        """
        return (
            [self.pre_nms_top_n, self.post_nms_top_n],
            [float(self.nms_thresh), float(self.score_thresh), float(self.min_size)],
        )

    @classmethod
    def from_lists(cls, counts: Sequence[int], thresholds: Sequence[float]) -> ProposalSpec:
        """Returns the record of which `to_lists` gave these."""
        return cls(*counts, *thresholds)


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


class ProposalBatch(NamedTuple):
    """Kept proposals of B images in K slots each, best first; unused slots hold 0, 0, −1, −1.

    Attributes:
        boxes: [B, K, 4] float32, pixels of the network input.
        scores: [B, K] float32 probabilities.
        levels: [B, K] int32.
        anchors: [B, K] int32, (y·W + x)·A + a within the level.
        count: [B] int32, slots in use.
    """

    boxes: Tensor
    scores: Tensor
    levels: Tensor
    anchors: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody needs here


def _check_number(
    name: str,
    value: float,
    *,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    integer: bool = False,
) -> None:
    if isinstance(value, bool) or not isinstance(value, int if integer else int | float):
        kind = "an int" if integer else "a number"
        raise TypeError(f"{name} must be {kind}, got {value!r}")
    if at_least > -math.inf and not at_least <= value <= at_most:
        bound = f"at least {at_least}" if at_most == math.inf else f"in [{at_least}, {at_most}]"
        raise ValueError(f"{name} must be {bound}, got {value}")
