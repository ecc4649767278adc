"""nms in plain PyTorch: the specification of the Triton form, and the product's CPU path.

Greedy suppression in each level and a merge by logit is the same as one greedy walk over all
levels in merged order in which boxes of different levels never meet: so the walk can stop as soon
as it has kept post_nms_top_n boxes altogether. It goes in blocks: a block meets the boxes kept so
far in one matrix of IoUs, then its survivors meet each other.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stream_rpn.kernels import boxes as box_ops
from stream_rpn.kernels.proposals import Candidates, ProposalBatch, ProposalSpec

# Larger blocks waste IoUs on boxes that the block itself suppresses, smaller ones wait for Python.
BLOCK = 160


def greedy(boxes: Tensor, levels: Tensor, nms_thresh: float, limit: int) -> Tensor:
    """Returns the positions, at most `limit`, of the boxes kept of [n, 4] in falling order.

    IoUs are computed by the operations of `boxes.iou` on coordinates that lie apart, in place: 3
    times faster. Masks are numpy's, whose comparisons and `any` take a fifth of torch's time.
    """
    limit = min(limit, len(boxes))
    columns = torch.cat((boxes.t(), box_ops.area(boxes)[None], levels[None]))
    kept = np.empty(limit, np.int64)
    # The boxes kept so far, and behind them the block.
    others = columns.new_empty(len(columns), limit + BLOCK)
    count = 0
    for start in range(0, len(boxes), BLOCK):
        block = columns[:, start : start + BLOCK]
        end = count + block.shape[1]
        others[:, count:end] = block
        x1, y1, x2, y2, area, level = block[:, :, None]
        other_x1, other_y1, other_x2, other_y2, other_area, other_level = others[:, None, :end]
        width = torch.minimum(x2, other_x2).sub_(torch.maximum(x1, other_x1)).clamp_(min=0)
        height = torch.minimum(y2, other_y2).sub_(torch.maximum(y1, other_y1)).clamp_(min=0)
        intersection = width.mul_(height)
        union = (area + other_area).sub_(intersection)
        # 0/0 is NaN and not above any threshold, as IoU 0 is not.
        hit = intersection.div_(union).numpy() > np.float32(nms_thresh)
        hit &= level.numpy() == other_level.numpy()
        alive = ~hit[:, :count].any(axis=1)
        hit = torch.from_numpy(hit[:, count:]).tril_(-1).numpy()
        # Kept: not hit by a kept one before it. Each round settles at least one more box for good.
        keep, previous = alive, None
        while previous is None or (keep != previous).any():
            keep, previous = alive & ~(hit & keep).any(axis=1), keep
        chosen = np.flatnonzero(keep)[: limit - count]
        end = count + len(chosen)
        kept[count:end] = start + chosen
        others[:, count:end] = block[:, torch.from_numpy(chosen)]
        count = end
        if count == limit:
            break
    return torch.from_numpy(kept[:count])


def nms_in_order(candidates: Candidates, levels: Tensor, spec: ProposalSpec) -> ProposalBatch:
    """Returns the kept proposals of candidates of all levels that stand by logit already.

    Args:
        candidates: on the CPU, all levels together, logits falling but for rejected slots.
        levels: [B, M] int32, of each candidate.
        spec: the limits.
    """
    boxes, logits, anchors = candidates
    post_nms_top_n = spec.post_nms_top_n
    batch = len(boxes)
    out = ProposalBatch(
        torch.zeros(batch, post_nms_top_n, 4),
        torch.zeros(batch, post_nms_top_n),
        torch.full((batch, post_nms_top_n), -1, dtype=torch.int32),
        torch.full((batch, post_nms_top_n), -1, dtype=torch.int32),
        torch.zeros(batch, dtype=torch.int32),
    )
    for image in range(batch):
        order = (logits[image] > -torch.inf).nonzero()[:, 0]
        kept = greedy(boxes[image, order], levels[image, order], spec.nms_thresh, post_nms_top_n)
        order, count = order[kept], len(kept)
        out.boxes[image, :count] = boxes[image, order]
        out.scores[image, :count] = box_ops.sigmoid(logits[image, order])
        out.levels[image, :count] = levels[image, order]
        out.anchors[image, :count] = anchors[image, order]
        out.count[image] = count
    return out


def nms_reference(
    candidates: Candidates, level_sizes: Sequence[int], spec: ProposalSpec
) -> ProposalBatch:
    """Returns the kept proposals as `nms` describes them.

    The walk is sequential and its length depends on the data: it runs on the host, whatever device
    the candidates are on.
    """
    device = candidates.boxes.device
    boxes, logits, anchors = (tensor.cpu() for tensor in candidates)
    levels = torch.repeat_interleave(
        torch.arange(len(level_sizes), dtype=torch.int32), torch.tensor(level_sizes)
    )
    order = logits.argsort(dim=1, descending=True, stable=True)
    images = torch.arange(len(boxes))[:, None]
    ordered = Candidates(boxes[images, order], logits[images, order], anchors[images, order])
    out = nms_in_order(ordered, levels[order], spec)
    return ProposalBatch(*(tensor.to(device) for tensor in out))
