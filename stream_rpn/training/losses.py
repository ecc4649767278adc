"""The losses that the head minimises: the classic pair, and the quality pair.

Classic is Ren et al. 2015, eq. 1: cross-entropy and smooth L1 over a sampled minibatch of anchors.
Quality has no sampling: every anchor enters a focal loss whose target is the IoU that its decoded
box really has with its object (Li et al. 2020, "Generalized focal loss", eq. 2), so that the score
ranks boxes by how well they fit; positives learn their box by generalised IoU (Rezatofighi et al.
2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stream_rpn.kernels import boxes as box_ops
from stream_rpn.training.targets import BACKGROUND


class Losses(NamedTuple):
    """The two terms, each a scalar."""

    objectness: Tensor
    box: Tensor


def flatten_head(
    objectness: Sequence[Tensor], deltas: Sequence[Tensor], num_anchors: int
) -> tuple[Tensor, Tensor]:
    """Returns logits [B, N, 1 or 2] and deltas [B, N, 4] float32, all levels in anchor-index order.

    The last dimension of the logits is 2, background and object, for softmax heads.
    """

    def flatten(maps: Sequence[Tensor], per_anchor: int) -> Tensor:
        return torch.cat(
            [m.float().permute(0, 2, 3, 1).reshape(len(m), -1, per_anchor) for m in maps], dim=1
        )

    return flatten(objectness, objectness[0].shape[1] // num_anchors), flatten(deltas, 4)


def logit_of(logits: Tensor) -> Tensor:
    """Returns the one logit [B, N] of an anchor that logits [B, N, 1 or 2] stand for."""
    return logits[..., 1] - logits[..., 0] if logits.shape[-1] == 2 else logits[..., 0]


def classic_losses(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    matches: Sequence[Tensor],
    gt_boxes: Sequence[Tensor],
    samples: Sequence[tuple[Tensor, Tensor]],
    *,
    beta: float = 1 / 9,
) -> Losses:
    """Returns cross-entropy and smooth L1 over the sampled anchors, both divided by their number.

    Equals torchvision's `RegionProposalNetwork.compute_loss`: one logit per anchor gives binary
    cross-entropy, two give softmax cross-entropy.

    Args:
        logits: [B, N, 1 or 2].
        deltas: [B, N, 4].
        anchors: [N, 4].
        matches: per image [N].
        gt_boxes: per image [G, 4].
        samples: per image the indices of the sampled positives and negatives.
        beta: where smooth L1 turns from quadratic to linear.
    """
    picked, labels, predicted, wanted = [], [], [], []
    for b, (positive, negative) in enumerate(samples):
        both = torch.cat((positive, negative))
        picked.append(logits[b, both])
        labels.append(torch.arange(len(both), device=both.device) < len(positive))
        predicted.append(deltas[b, positive])
        wanted.append(box_ops.encode(gt_boxes[b][matches[b][positive]], anchors[positive]))
    label, logit = torch.cat(labels), torch.cat(picked)
    num_sampled = max(len(label), 1)
    if logits.shape[-1] == 2:
        objectness = F.cross_entropy(logit, label.long(), reduction="sum")
    else:
        objectness = F.binary_cross_entropy_with_logits(logit[:, 0], label.float(), reduction="sum")
    box = F.smooth_l1_loss(torch.cat(predicted), torch.cat(wanted), beta=beta, reduction="sum")
    return Losses(objectness / num_sampled, box / num_sampled)


def quality_losses(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    matches: Sequence[Tensor],
    gt_boxes: Sequence[Tensor],
    *,
    box_weight: float = 2.0,
    gamma: float = 2.0,
) -> Losses:
    """Returns quality focal loss over all anchors and generalised IoU loss over the positives.

    Both are divided by the number of positives of the batch. Ignored anchors take no part.

    Args:
        logits: [B, N, 1 or 2].
        deltas: [B, N, 4].
        anchors: [N, 4].
        matches: per image [N].
        gt_boxes: per image [G, 4].
        box_weight: factor of the box term.
        gamma: exponent of |target − probability|.
    """
    logit = logit_of(logits)
    match = torch.stack(list(matches))
    positive = match >= 0
    wanted = torch.cat([g[m[m >= 0]] for g, m in zip(gt_boxes, matches, strict=True)])
    where = positive.nonzero()[:, 1]
    overlap, generalised = _giou(box_ops.decode(deltas[positive], anchors[where]), wanted)
    target = torch.zeros_like(logit)
    target[positive] = overlap.detach()
    weight = (target - logit.detach().sigmoid()).abs().pow(gamma)
    focal = weight * F.binary_cross_entropy_with_logits(logit, target, reduction="none")
    counted = positive | (match == BACKGROUND)
    num_positive = max(len(where), 1)
    return Losses(
        focal[counted].sum() / num_positive, box_weight * (1 - generalised).sum() / num_positive
    )


def _giou(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Returns IoU and generalised IoU [N] of boxes [N, 4] with others [N, 4], pair by pair."""
    sides = torch.minimum(boxes[:, 2:], others[:, 2:]) - torch.maximum(boxes[:, :2], others[:, :2])
    sides = sides.clamp(min=0)
    intersection = sides[:, 0] * sides[:, 1]
    union = box_ops.area(boxes) + box_ops.area(others) - intersection
    hull = torch.maximum(boxes[:, 2:], others[:, 2:]) - torch.minimum(boxes[:, :2], others[:, :2])
    hull_area = hull[:, 0] * hull[:, 1]
    overlap = intersection / union.clamp(min=1e-6)
    return overlap, overlap - (hull_area - union) / hull_area.clamp(min=1e-6)
