"""propose in plain PyTorch: the specification of the Triton form, and the product's CPU path."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stream_rpn.kernels import boxes as box_ops


def object_logits(objectness: Tensor, num_anchors: int) -> Tensor:
    """Returns logits [B, N] float32 in anchor-index order, NaN as −inf, from a head's output.

    `objectness` is [B, A, H, W], or [B, 2A, H, W] with background|object interleaved per anchor.
    """
    logits = objectness.float()
    if objectness.shape[1] == 2 * num_anchors:
        logits = logits[:, 1::2] - logits[:, 0::2]
    logits = logits.permute(0, 2, 3, 1).flatten(1)
    return torch.where(logits.isnan(), -torch.inf, logits)


def select(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k highest of `logits` [B, N], best first, and their int64 indices, both [B, k].

    Ties go to the lower index: the first k of a stable descending sort. On a CPU only what reaches
    the k-th highest value is sorted (201,600 logits, k = 1000: 1 ms where the full sort takes 15).
    """
    if logits.device.type != "cpu" or not 0 < k < logits.shape[1]:
        ordered = logits.sort(dim=1, descending=True, stable=True)
        return ordered.values[:, :k], ordered.indices[:, :k]
    values = logits.new_empty(len(logits), k)
    indices = torch.empty_like(values, dtype=torch.int64)
    for image, row in enumerate(logits):
        lowest = row.topk(k, sorted=False).values.min()
        reaching = (row >= lowest).nonzero()[:, 0]
        ordered = row[reaching].sort(descending=True, stable=True)
        values[image] = ordered.values[:k]
        indices[image] = reaching[ordered.indices[:k]]
    return values, indices


def propose_reference(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    base_anchors: Sequence[Tensor],
    strides: Sequence[tuple[int, int]],
    image_sizes: Tensor,
    pre_nms_top_n: int,
    score_thresh: float,
    min_size: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns boxes [B, M, 4], logits [B, M] and anchors [B, M] as `propose` describes them."""
    images = torch.arange(len(image_sizes), device=image_sizes.device)[:, None]
    logit_parts, index_parts, delta_parts, anchor_parts = [], [], [], []
    for level_objectness, level_deltas, base, (stride_y, stride_x) in zip(
        objectness, deltas, base_anchors, strides, strict=True
    ):
        num_anchors, width = len(base), level_objectness.shape[3]
        level_logits = object_logits(level_objectness, num_anchors)
        logits, index = select(level_logits, min(pre_nms_top_n, level_logits.shape[1]))
        # max(): a level without anchors or cells has nothing to index, but is still divided by.
        a, cell = index % max(num_anchors, 1), index // max(num_anchors, 1)
        x, y = cell % max(width, 1), cell // max(width, 1)
        # A view: splitting a dimension never copies.
        split = level_deltas.view(len(level_deltas), num_anchors, 4, *level_deltas.shape[2:])
        delta_parts.append(split[images, a, :, y, x].float())
        shift = torch.stack((x * stride_x, y * stride_y), dim=-1).float()
        corners = base.float().view(num_anchors, 2, 2)[a]
        anchor_parts.append((corners + shift[..., None, :]).flatten(-2))
        logit_parts.append(logits)
        index_parts.append(index)
    logits, anchors = torch.cat(logit_parts, dim=1), torch.cat(index_parts, dim=1)
    boxes = box_ops.decode(torch.cat(delta_parts, dim=1), torch.cat(anchor_parts, dim=1))
    finite = boxes.abs().amax(dim=-1) < torch.inf
    boxes = box_ops.clip(boxes, image_sizes)
    large_enough = (boxes[..., 2:] - boxes[..., :2]).amin(dim=-1) >= min_size
    keep = finite & large_enough & (logits > -torch.inf)
    if score_thresh > 0:
        keep &= box_ops.sigmoid(logits) >= score_thresh
    return (
        torch.where(keep[..., None], boxes, 0.0),
        torch.where(keep, logits, -torch.inf),
        torch.where(keep, anchors, -1).to(torch.int32),
    )
