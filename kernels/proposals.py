"""The record that the proposal stage hands on: a fixed number of slots per image, on the device."""

from typing import NamedTuple

from torch import Tensor


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
