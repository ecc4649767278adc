"""propose in plain PyTorch: the specification of the Triton form, and the product's CPU path."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
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
    # Infinities stay. 10 times faster than torch.where on a CPU.
    return logits.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def select(logits: Tensor, k: int) -> Tensor:
    """Returns the int64 indices [B, k] of the k highest of `logits` [B, N], best first.

    Ties go to the lower index: the first k of a stable descending sort. On a CPU only what reaches
    the k-th highest value is sorted, by numpy (201,600 logits, k = 1000: 0.2 ms, four times as fast
    as torch does the same; the full sort takes 15).
    """
    if logits.device.type != "cpu" or not 0 < k < logits.shape[1]:
        return logits.sort(dim=1, descending=True, stable=True).indices[:, :k]
    indices = np.empty((len(logits), k), np.int64)
    for image, row in enumerate(logits.numpy()):
        lowest = np.partition(row, -k)[-k]
        reaching = np.flatnonzero(row >= lowest)
        indices[image] = reaching[np.argsort(-row[reaching], kind="stable")[:k]]
    return torch.from_numpy(indices)


class Heads(NamedTuple):
    """Head outputs of all levels in one row of anchors: level after level, each by anchor index.

    Attributes:
        logits: [B, N] float32, as `object_logits` returns them.
        deltas: [B, N, 4], of the heads' dtype.
        sizes: anchors of each level.
    """

    logits: Tensor
    deltas: Tensor
    sizes: list[int]


def in_a_row(
    objectness: Sequence[Tensor], deltas: Sequence[Tensor], base_anchors: Sequence[Tensor]
) -> Heads:
    """Returns the head outputs of all levels side by side."""
    logits = [object_logits(o, len(b)) for o, b in zip(objectness, base_anchors, strict=True)]
    rows = [
        level_deltas.permute(0, 2, 3, 1).reshape(*level_logits.shape, 4)
        for level_deltas, level_logits in zip(deltas, logits, strict=True)
    ]
    return Heads(torch.cat(logits, 1), torch.cat(rows, 1), [part.shape[1] for part in logits])


def decode_selected(
    heads: Heads,
    selected: Tensor,
    widths: Sequence[int],
    base_anchors: Sequence[Tensor],
    strides: Sequence[tuple[int, int]],
    image_sizes: Tensor,
    score_thresh: float,
    min_size: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns boxes, logits, anchors as `propose` describes them, and levels [B, M].

    Args:
        heads: all anchors.
        selected: [B, M] int64, which of them, as positions in the row.
        widths: cells in a row of each level's map.
        base_anchors: as in `propose`.
        strides: as in `propose`.
        image_sizes: as in `propose`.
        score_thresh: as in `propose`.
        min_size: as in `propose`.
    """
    device = selected.device
    ends = list(accumulate(heads.sizes))
    levels = torch.bucketize(selected, torch.tensor(ends, device=device), right=True)
    first_bases = accumulate((len(base) for base in base_anchors), initial=0)
    # max(): a level without anchors or cells has nothing selected.
    rows = [
        (end - size, first_base, max(len(base), 1), max(width, 1), stride_x, stride_y)
        for end, size, first_base, base, width, (stride_y, stride_x) in zip(
            ends, heads.sizes, first_bases, base_anchors, widths, strides, strict=False
        )
    ]
    of_level = torch.tensor(rows, device=device)[levels]
    start, first_base, num_anchors, width, stride_x, stride_y = of_level.unbind(-1)
    anchors = selected - start
    a, cell = anchors % num_anchors, anchors // num_anchors
    shift = torch.stack((cell % width * stride_x, cell // width * stride_y), dim=-1).float()
    corners = torch.cat(list(base_anchors)).float().view(-1, 2, 2)[first_base + a]
    images = torch.arange(len(selected), device=device)[:, None]
    boxes = box_ops.decode(
        heads.deltas[images, selected], (corners + shift[..., None, :]).flatten(-2)
    )
    logits = heads.logits.gather(1, selected)
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
        levels.to(torch.int32),
    )


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
    heads = in_a_row(objectness, deltas, base_anchors)
    selected, start = [], 0
    for level_logits in torch.split(heads.logits, heads.sizes, dim=1):
        size = level_logits.shape[1]
        selected.append(select(level_logits, min(pre_nms_top_n, size)) + start)
        start += size
    widths = [level.shape[3] for level in objectness]
    boxes, logits, anchors, _ = decode_selected(
        heads,
        torch.cat(selected, dim=1),
        widths,
        base_anchors,
        strides,
        image_sizes,
        score_thresh,
        min_size,
    )
    return boxes, logits, anchors
