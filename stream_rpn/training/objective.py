"""What is minimised: from a batch to its losses, by the assignment that was chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from stream_rpn import anchors as anchor_ops
from stream_rpn.compute import prefers_bfloat16
from stream_rpn.evaluation.coco import Sample
from stream_rpn.kernels import boxes as box_ops
from stream_rpn.rpn import RPN
from stream_rpn.training import targets
from stream_rpn.training.config import TrainConfig
from stream_rpn.training.losses import (
    Losses,
    classic_losses,
    flatten_head,
    logit_of,
    quality_losses,
)


class Objective:
    """Computes the losses of a model on batches.

    Args:
        config: the run.
        model: on the device of the run, when it is called.
    """

    def __init__(self, config: TrainConfig, model: RPN) -> None:
        self.config = config
        self.model = model
        self.float32 = config.float32 or not prefers_bfloat16(torch.device(config.device))
        self._anchors: dict[tuple[int, ...], list[Tensor]] = {}

    def __call__(self, images: Tensor, samples: list[Sample], step: int) -> Losses:
        """Returns the losses of a batch of images [B, 3, H, W]."""
        config, device = self.config, self.config.device
        kind = torch.device(device).type
        with torch.autocast(kind, torch.bfloat16, enabled=not self.float32):
            maps = list(self.model.features(images.to(device)).values())
            objectness, deltas = self.model.head(maps)
        logits, flat_deltas = flatten_head(objectness, deltas, self.model.head.num_anchors)
        levels = self.level_anchors(images, maps)
        anchors = torch.cat(levels)
        gt_boxes = [torch.from_numpy(sample.boxes).to(device) for sample in samples]
        if config.assignment == "aligned":
            with torch.no_grad():
                found = box_ops.decode(flat_deltas, anchors)
                scores = logit_of(logits).sigmoid()
                first = [
                    targets.match_aligned(anchors, found[b], scores[b], boxes)
                    for b, boxes in enumerate(gt_boxes)
                ]
        else:
            first = [self.match(levels, boxes, images) for boxes in gt_boxes]
        matches = [
            targets.ignore_crowd(match, anchors, torch.from_numpy(sample.crowd_boxes).to(device))
            for match, sample in zip(first, samples, strict=True)
        ]
        if config.assignment != "classic":
            return quality_losses(logits, flat_deltas, anchors, matches, gt_boxes)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        chosen = [
            targets.sample(
                match,
                config.batch_size_per_image,
                config.positive_fraction,
                permutation=lambda n: torch.randperm(n, generator=generator),
            )
            for match in matches
        ]
        return classic_losses(logits, flat_deltas, anchors, matches, gt_boxes, chosen)

    def match(self, levels: list[Tensor], gt_boxes: Tensor, images: Tensor) -> Tensor:
        """Returns the match [N] of all levels' anchors with an image's objects [G, 4].

        By where they lie alone, for the assignments that ask no more.
        """
        config = self.config
        if config.assignment == "quality":
            return targets.match_atss(levels, gt_boxes, num_anchors=self.model.head.num_anchors)
        anchors = torch.cat(levels)
        take_part = torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)
        if config.ignore_crossing:
            take_part = anchor_ops.inside(anchors, (images.shape[-2], images.shape[-1]))
        match = torch.full((len(anchors),), targets.IGNORED, device=anchors.device)
        match[take_part] = targets.match_classic(
            anchors[take_part],
            gt_boxes,
            fg_iou_thresh=config.fg_iou_thresh,
            bg_iou_thresh=config.bg_iou_thresh,
        )
        return match

    def level_anchors(self, images: Tensor, maps: list[Tensor]) -> list[Tensor]:
        """Returns per level the anchors [H·W·A, 4] of the feature maps of images."""
        key = tuple(images.shape[-2:])
        if key not in self._anchors:
            strides = self.model.strides(images, maps)
            self._anchors[key] = [
                anchor_ops.grid(base, (m.shape[-2], m.shape[-1]), stride)
                for base, m, stride in zip(self.model.base_anchors, maps, strides, strict=True)
            ]
        return self._anchors[key]
