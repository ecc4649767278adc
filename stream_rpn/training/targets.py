"""Targets of the anchors: matching, sampling, and the dense maps of the literature.

A match is an int64 tensor [N] with, for every anchor, the index of its object, or `BACKGROUND`, or
`IGNORED`. Three ways of matching are offered. `match_classic` is Ren et al. 2015, §3.1.2: fixed IoU
thresholds, and every object's best anchors whatever their IoU. `match_atss` is Zhang et al. 2020
("Bridging the gap between anchor-based and anchor-free detection", §3.2): every object sets its own
threshold, so that small objects, which no anchor fits well, get as many positives as large ones.
`match_aligned` asks the network itself which of its anchors see an object best (Feng et al. 2021,
"TOOD", §3.2), so that one that is trained already goes on from what it does well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stream_rpn.kernels import boxes as box_ops

BACKGROUND = -1
IGNORED = -2


def match_classic(
    anchors: Tensor,
    gt_boxes: Tensor,
    *,
    fg_iou_thresh: float = 0.7,
    bg_iou_thresh: float = 0.3,
    low_quality: bool = True,
) -> Tensor:
    """Returns the match [N] of anchors [N, 4] with objects [G, 4] by fixed thresholds.

    Positive is an anchor whose best IoU is at least `fg_iou_thresh` or, with `low_quality`, that
    attains the best IoU of some object (every one of several that tie); it takes the object of
    *its* best IoU, which need not be that one, as in torchvision and detectron2. Background is one
    below `bg_iou_thresh`; the rest is ignored. Without objects everything is background.
    """
    if not 0 <= bg_iou_thresh <= fg_iou_thresh <= 1:
        raise ValueError(
            "thresholds must satisfy 0 <= bg_iou_thresh <= fg_iou_thresh <= 1, "
            f"got {bg_iou_thresh} and {fg_iou_thresh}"
        )
    if len(gt_boxes) == 0:
        return torch.full((len(anchors),), BACKGROUND, device=anchors.device)
    iou = box_ops.iou(gt_boxes.float(), anchors.float())
    best_iou, best_object = iou.max(dim=0)
    match = best_object.clone()
    match[best_iou < fg_iou_thresh] = IGNORED
    match[best_iou < bg_iou_thresh] = BACKGROUND
    if low_quality:
        attains_best = (iou == iou.max(dim=1, keepdim=True).values).any(dim=0)
        match = torch.where(attains_best, best_object, match)
    return match


def match_atss(
    anchors: Sequence[Tensor], gt_boxes: Tensor, *, num_anchors: int, top_k: int = 9
) -> Tensor:
    """Returns the match [N] of all levels' anchors with objects [G, 4], thresholds set per object.

    The candidates of an object are, on every level, the anchors of the `top_k` cells nearest to
    its centre. Positive are those whose IoU reaches the candidates' mean plus one standard
    deviation and whose centre lies in the object; and its best candidates (several where they tie,
    as around an object of a few pixels), so that no object is left out. An anchor that several
    objects claim takes the one of the highest IoU. Everything else is background.

    Args:
        anchors: per level [H·W·A, 4] in anchor-index order.
        gt_boxes: [G, 4] float32.
        num_anchors: A, anchors per cell.
        top_k: cells per level.
    """
    every = torch.cat(list(anchors))
    match = torch.full((len(every),), BACKGROUND, device=every.device)
    if len(gt_boxes) == 0:
        return match
    centres = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
    within_cell = torch.arange(num_anchors, device=every.device)
    candidates, offset = [], 0
    for level in anchors:
        cells = level.view(-1, num_anchors, 4).mean(dim=1)
        distance = torch.cdist((cells[:, :2] + cells[:, 2:]) / 2, centres)
        nearest = distance.topk(min(top_k, len(cells)), dim=0, largest=False).indices
        indices = nearest[:, None] * num_anchors + within_cell[:, None] + offset
        candidates.append(indices.flatten(0, 1))
        offset += len(level)
    candidate = torch.cat(candidates)  # [C, G]
    boxes = every[candidate]
    iou = _paired_iou(boxes, gt_boxes[None])
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    within = (centre > gt_boxes[:, :2]).all(-1) & (centre < gt_boxes[:, 2:]).all(-1)
    positive = within & (iou >= iou.mean(dim=0) + iou.std(dim=0))
    positive |= (iou == iou.max(dim=0).values) & (iou > 0)

    claim, owner = positive.nonzero(as_tuple=True)
    return _award(match, candidate[claim, owner], owner, iou[claim, owner])


def match_aligned(
    anchors: Tensor,
    boxes: Tensor,
    scores: Tensor,
    gt_boxes: Tensor,
    *,
    top_k: int = 13,
    beta: float = 6.0,
) -> Tensor:
    """Returns the match [N] of anchors with objects [G, 4], by what the network makes of them.

    The candidates of an object are the anchors whose centre lies in it, or the nearest one. They
    are ranked by score · IoU^`beta` of their decoded box; positive are the first k, k being the sum
    of the `top_k` best IoUs (Ge et al. 2021, "YOLOX", §2.1): few where little fits, one at least.
    An anchor that several objects claim takes the one of the highest IoU. Everything else is
    background.

    Args:
        anchors: [N, 4].
        boxes: [N, 4] float32, decoded.
        scores: [N] in [0, 1].
        gt_boxes: [G, 4] float32.
        top_k: the most positives of an object.
        beta: how much the IoU counts against the score.
    """
    match = torch.full((len(anchors),), BACKGROUND, device=anchors.device)
    if len(gt_boxes) == 0:
        return match
    top_k = min(top_k, len(anchors))
    centres = (anchors[:, None, :2] + anchors[:, None, 2:]) / 2
    within = (centres > gt_boxes[:, :2]).all(-1) & (centres < gt_boxes[:, 2:]).all(-1)
    nearest = torch.cdist(centres[:, 0], (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2).argmin(dim=0)
    objects = torch.arange(len(gt_boxes), device=anchors.device)
    within[nearest, objects] |= ~within.any(dim=0)
    iou = box_ops.iou(boxes, gt_boxes)
    aligned = torch.where(within, scores[:, None] * iou.pow(beta), -1.0)
    wanted = torch.where(within, iou, 0.0).topk(top_k, dim=0).values.sum(dim=0).int().clamp(min=1)
    value, anchor = aligned.topk(top_k, dim=0)
    positive = (value >= 0) & (torch.arange(top_k, device=anchors.device)[:, None] < wanted)
    rank, owner = positive.nonzero(as_tuple=True)
    return _award(match, anchor[rank, owner], owner, iou[anchor[rank, owner], owner])


def _award(match: Tensor, anchor: Tensor, owner: Tensor, quality: Tensor) -> Tensor:
    """Returns `match` with every claimed anchor given to the object that claims it best."""
    best = torch.zeros(len(match), device=match.device)
    best.scatter_reduce_(0, anchor, quality, "amax")
    wins = quality == best[anchor]
    match[anchor[wins]] = owner[wins]
    return match


def _paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Returns the IoU [...] of boxes [..., 4] with others [..., 4], pair by pair."""
    top_left = torch.maximum(boxes[..., :2], others[..., :2])
    bottom_right = torch.minimum(boxes[..., 2:], others[..., 2:])
    sides = (bottom_right - top_left).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    union = box_ops.area(boxes) + box_ops.area(others) - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))


def ignore_crowd(
    match: Tensor, anchors: Tensor, crowd_boxes: Tensor, *, overlap: float = 0.5
) -> Tensor:
    """Returns `match` with the background anchors that lie in a crowd region ignored.

    An anchor lies in a region where the region covers at least `overlap` of the anchor's area: what
    is there may well be an object that nobody outlined.
    """
    if len(crowd_boxes) == 0:
        return match
    top_left = torch.maximum(anchors[:, None, :2], crowd_boxes[None, :, :2])
    bottom_right = torch.minimum(anchors[:, None, 2:], crowd_boxes[None, :, 2:])
    covered = (bottom_right - top_left).clamp(min=0).prod(-1) / box_ops.area(anchors)[:, None]
    in_crowd = (covered >= overlap).any(dim=1)
    return torch.where(in_crowd & (match == BACKGROUND), IGNORED, match)


def sample(
    match: Tensor,
    batch_size_per_image: int = 256,
    positive_fraction: float = 0.5,
    *,
    permutation: Callable[[int], Tensor] = torch.randperm,
) -> tuple[Tensor, Tensor]:
    """Returns the indices of the positives and of the negatives of one image's minibatch.

    At most `batch_size_per_image`·`positive_fraction` positives; negatives fill the rest.

    Args:
        match: [N].
        batch_size_per_image: anchors that enter the loss.
        positive_fraction: upper bound of the positives' share.
        permutation: called first with the number of positives, then with that of negatives.
    """
    positive = (match >= 0).nonzero()[:, 0]
    negative = (match == BACKGROUND).nonzero()[:, 0]
    num_positive = min(len(positive), int(batch_size_per_image * positive_fraction))
    num_negative = min(len(negative), batch_size_per_image - num_positive)
    chosen = permutation(len(positive))[:num_positive].to(match.device)
    others = permutation(len(negative))[:num_negative].to(match.device)
    return positive[chosen], negative[others]


def dense_targets(
    match: Tensor, anchors: Tensor, gt_boxes: Tensor, map_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Returns one level's labels [H, W, 2A] and offsets [H, W, 4A], the maps of the literature.

    Channels 2a and 2a + 1 of the labels are "background" and "object" of anchor a: (1, 0), (0, 1),
    or (0, 0) where it is ignored. Channels 4a … 4a + 3 of the offsets are its (dx, dy, dw, dh), 0
    where it is not positive. This is the channel order of the softmax head.

    Args:
        match: [H·W·A], of this level alone.
        anchors: [H·W·A, 4].
        gt_boxes: [G, 4].
        map_size: (H, W).
    """
    height, width = map_size
    labels = torch.stack((match == BACKGROUND, match >= 0), dim=1).float()
    offsets = torch.zeros(len(match), 4, device=match.device)
    positive = match >= 0
    offsets[positive] = box_ops.encode(gt_boxes[match[positive]], anchors[positive])
    return labels.reshape(height, width, -1), offsets.reshape(height, width, -1)
