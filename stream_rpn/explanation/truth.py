"""With ground truth: what every anchor would be taught on this frame, and how wrong the head is.

Labels are those of the paper (Ren et al. 2015, §3.1.2), by `training`'s own functions, whatever the
model was trained with; the losses are both that `training` knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stream_rpn import anchors as anchor_ops
from stream_rpn.evaluation.coco import CocoDataset
from stream_rpn.evaluation.files import read_mot
from stream_rpn.explanation.answers import Answer, why_not_object
from stream_rpn.explanation.ledger import Ledger
from stream_rpn.explanation.look import Look
from stream_rpn.frame import Frame, StreamRPNError
from stream_rpn.kernels import boxes as box_ops
from stream_rpn.training import targets
from stream_rpn.training.config import TrainConfig
from stream_rpn.training.losses import Losses, classic_losses, flatten_head, quality_losses

# The label of an anchor that crosses the border, beside those of `targets`.
CROSSING = -3
SEED = 0


@dataclass(frozen=True)
class Truth:
    """What the objects of a frame mean to the anchors.

    Attributes:
        objects: [G, 4] float32, in pixels of the frame.
        answers: per object why it was not proposed, or by which proposal it was.
        labels: [N] int64 per anchor the number of its object, or `targets.BACKGROUND`,
            `targets.IGNORED` or `CROSSING`.
        best_anchors: [G] int64 per object the number of the anchor that overlaps it most, of those
            that lie inside; of all where none does.
        best_overlaps: [G] float32, its IoU.
        positives: numbers of the anchors of the minibatch that are objects.
        negatives: of those that are background.
        wanted: [P, 4] float32, the deltas that would move the positives onto their objects.
        predicted: [P, 4] float32, the head's.
        losses: objectness and box of "classic" and of "quality".
        thresholds: (background below, object from) of the IoU.
    """

    objects: np.ndarray
    answers: list[Answer]
    labels: np.ndarray
    best_anchors: np.ndarray
    best_overlaps: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    wanted: np.ndarray
    predicted: np.ndarray
    losses: dict[str, tuple[float, float]]
    thresholds: tuple[float, float]


def read_objects(path: str, frame: Frame, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the objects [G, 4] and the crowd regions [C, 4] of a frame, in its pixels.

    Args:
        path: COCO instances (.json), where a picture is found by its file's name; or
            MOTChallenge ground truth, where a frame is by its number.
        frame: the frame.
        source: what it is of, for sentences.

    Raises:
        StreamRPNError: the file cannot be read, or has no object in this frame.
    """
    none = np.zeros((0, 4), np.float32)
    if Path(path).suffix.lower() != ".json":
        frames = read_mot(path, frame.width, frame.height)
        if frame.index not in frames:
            span = f"; it has frames {min(frames)} to {max(frames)}" if frames else ""
            raise StreamRPNError(f"{path} has nothing about frame {frame.index} of {source}{span}")
        objects, crowds = frames[frame.index].astype(np.float32), none
    elif frame.name is None:
        raise StreamRPNError(
            f"{path}: COCO annotations name pictures, and {source} is a video; give "
            "MOTChallenge ground truth (.txt), or a picture"
        )
    else:
        dataset = CocoDataset(path, [])
        objects, crowds = dataset.objects_in(frame.name, (frame.height, frame.width))
    # Nothing can be learned from a box that clipping left without an area.
    objects = objects[(objects[:, 2:] > objects[:, :2]).all(1)]
    if not len(objects):
        raise StreamRPNError(f"{path} has no object in frame {frame.index} of {source}")
    return objects, crowds


@torch.inference_mode()
def teach(look: Look, book: Ledger, objects: np.ndarray, crowds: np.ndarray) -> Truth:
    """Returns what the objects [G, 4] of a frame, in its pixels, mean to the anchors."""
    every = book.every
    boxes = look.to_input(torch.from_numpy(objects))
    config = TrainConfig("", (), "")
    crosses = ~anchor_ops.inside(every.anchors, look.image_size)
    labels = torch.full((len(every.anchors),), CROSSING)
    labels[~crosses] = targets.match_classic(
        every.anchors[~crosses],
        boxes,
        fg_iou_thresh=config.fg_iou_thresh,
        bg_iou_thresh=config.bg_iou_thresh,
    )
    regions = look.to_input(torch.from_numpy(crowds))
    labels = targets.ignore_crowd(labels, every.anchors, regions)
    overlaps = box_ops.iou(boxes, every.anchors)
    if not bool(crosses.all()):
        overlaps[:, crosses] = 0.0
    best_overlaps, best = overlaps.max(1)
    generator = torch.Generator().manual_seed(SEED)
    positives, negatives = targets.sample(
        labels,
        config.batch_size_per_image,
        config.positive_fraction,
        permutation=lambda n: torch.randperm(n, generator=generator),
    )
    return Truth(
        objects=objects,
        answers=[why_not_object(look, book, row) for row in objects.tolist()],
        labels=labels.numpy(),
        best_anchors=best.numpy(),
        best_overlaps=best_overlaps.numpy(),
        positives=positives.numpy(),
        negatives=negatives.numpy(),
        wanted=box_ops.encode(boxes[labels[positives]], every.anchors[positives]).numpy(),
        predicted=every.deltas[positives].numpy(),
        losses=_losses(look, every.anchors, boxes, regions, labels, (positives, negatives)),
        thresholds=(config.bg_iou_thresh, config.fg_iou_thresh),
    )


def _losses(
    look: Look,
    anchors: Tensor,
    boxes: Tensor,
    regions: Tensor,
    labels: Tensor,
    sample: tuple[Tensor, Tensor],
) -> dict[str, tuple[float, float]]:
    count = look.rpn.head.num_anchors
    logits, deltas = flatten_head(look.heads.objectness, look.heads.deltas, count)
    levels: Sequence[Tensor] = [look.level_anchors(i) for i in range(len(look.heads.strides))]
    atss = targets.match_atss(levels, boxes, num_anchors=count)
    atss = targets.ignore_crowd(atss, anchors, regions)
    found: dict[str, Losses] = {
        "classic": classic_losses(logits, deltas, anchors, [labels], [boxes], [sample]),
        "quality": quality_losses(logits, deltas, anchors, [atss], [boxes]),
    }
    return {name: (float(loss.objectness), float(loss.box)) for name, loss in found.items()}
