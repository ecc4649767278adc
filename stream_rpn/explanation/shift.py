"""Translation: does what the network proposes move along with the picture?

A convolution does, by whole strides; between them anchors cannot, and the deltas have to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from stream_rpn.explanation.look import Look
from stream_rpn.input_spec import frame_boxes
from stream_rpn.kernels import boxes as box_ops

# A proposal is the same one where it covers the old one, moved along, by this IoU.
SAME = 0.5
# Of the best, as the rest is noise in any case.
BEST = 50


@dataclass(frozen=True)
class Shift:
    """What became of the proposals when the picture was moved to the right.

    Attributes:
        pixels: by how much, in pixels of the network's input.
        stride: cells of the level that is looked at are so far apart.
        level: that level.
        expected: by how much boxes would move, in pixels of the frame.
        compared: how many of the best proposals are compared: all but those that leave.
        found: how many of them are found again.
        moved: [found] float32, how far their centres moved, in pixels of the frame.
        score_changes: [found] float32.
        boxes: [found, 4] float32 before, in pixels of the frame.
        after: [found, 4] float32 after.
    """

    pixels: int
    stride: int
    level: int
    expected: float
    compared: int
    found: int
    moved: np.ndarray
    score_changes: np.ndarray
    boxes: np.ndarray
    after: np.ndarray


@torch.inference_mode()
def shifted(look: Look, level: int, pixels: int) -> Shift:
    """Moves the network's input to the right and compares the best proposals.

    What comes in at the left repeats the first column; padding stays where it is.

    Args:
        look: the look at the picture as it is.
        level: whose stride the shift belongs to, for the record.
        pixels: of the network's input.
    """
    height, width = look.image_size
    images = look.images.clone()
    picture = look.images[..., :height, :width]
    pixels = min(pixels, width - 1)
    images[..., :height, pixels:width] = picture[..., : width - pixels]
    images[..., :height, :pixels] = picture[..., :1]
    kept = look.rpn(images, torch.tensor([look.image_size]))
    count = int(kept.count)
    new_boxes, new_scores = kept.boxes[0, :count], kept.scores[0, :count]
    old = torch.from_numpy(look.proposals.input_boxes[:BEST])
    scores = torch.from_numpy(look.proposals.scores[:BEST])
    stays = old[:, 2] + pixels <= width
    old, scores = old[stays], scores[stays]
    along = old + torch.tensor([pixels, 0, pixels, 0])
    size = (look.frame.height, look.frame.width)
    x_scale = look.frame.width / width
    if len(old) and count:
        overlap, partner = box_ops.iou(along, new_boxes).max(1)
        again = overlap >= SAME
    else:
        again, partner = torch.zeros(len(old), dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
    before, after = old[again], new_boxes[partner[again]]
    moved = (after[:, [0, 2]].mean(1) - before[:, [0, 2]].mean(1)) * x_scale
    return Shift(
        pixels=pixels,
        stride=look.strides[level][1],
        level=level,
        expected=pixels * x_scale,
        compared=len(old),
        found=len(before),
        moved=moved.numpy(),
        score_changes=(new_scores[partner[again]] - scores[again]).numpy(),
        boxes=frame_boxes(before.numpy(), look.image_size, size),
        after=frame_boxes(after.numpy(), look.image_size, size),
    )
