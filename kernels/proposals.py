"""The records that the proposal stage hands on: fixed numbers of slots per image, on the device."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


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


def level_sizes(
    objectness: Sequence[Tensor], base_anchors: Sequence[Tensor], pre_nms_top_n: int
) -> tuple[int, ...]:
    """Returns the number of candidates of each level: min(pre_nms_top_n, A·H·W)."""
    return tuple(
        min(pre_nms_top_n, base.shape[0] * level.shape[2] * level.shape[3])
        for level, base in zip(objectness, base_anchors, strict=True)
    )
