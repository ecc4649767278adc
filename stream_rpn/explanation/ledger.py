"""What became of every single anchor: selected or not, filtered, suppressed by whom, proposed.

The pipeline drops what it does not keep, and does not say why. Here its own functions run step by
step, and each anchor's fate is read off what they gave back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

from stream_rpn.explanation.look import Look
from stream_rpn.kernels import boxes as box_ops
from stream_rpn.kernels.nms import nms
from stream_rpn.kernels.proposals import Candidates, ProposalSpec
from stream_rpn.kernels.propose import select_candidates
from stream_rpn.kernels.propose_reference import decode_selected, flatten_levels, select


class Fate(IntEnum):
    """What became of an anchor, in the order in which it may happen.

    Attributes:
        NOT_SELECTED: `pre_nms` anchors of its level scored higher.
        NOT_FINITE: its logit or its box is no number.
        TOO_SMALL: a side of its box, clipped, is below `min_size`.
        SCORED_LOW: its probability is below `score_thresh`.
        SUPPRESSED: a better box of its level overlaps it by more than `nms`.
        BEYOND_TOP: it outlived suppression, but `top` others are better.
        PROPOSED: it is one of the proposals.
    """

    NOT_SELECTED = 0
    NOT_FINITE = 1
    TOO_SMALL = 2
    SCORED_LOW = 3
    SUPPRESSED = 4
    BEYOND_TOP = 5
    PROPOSED = 6


@dataclass(frozen=True)
class Anchors:
    """All anchors of a frame in a row: level after level, each by anchor index.

    Attributes:
        sizes: anchors of each level.
        starts: where each level begins.
        levels: [N] int64.
        anchors: [N, 4], in input pixels.
        logits: [N] float32; background is subtracted where the head has two.
        deltas: [N, 4].
        unclipped: [N, 4], the anchors moved by their deltas.
        boxes: [N, 4], those clipped to the frame.
        ranks: [N] int64, from 1, by logit within the level.
    """

    sizes: list[int]
    starts: list[int]
    levels: Tensor
    anchors: Tensor
    logits: Tensor
    deltas: Tensor
    unclipped: Tensor
    boxes: Tensor
    ranks: Tensor

    @classmethod
    def of(cls, look: Look) -> Anchors:
        """Decodes every anchor, by what the pipeline decodes the selected ones with."""
        flat = flatten_levels(look.heads)
        everyone = torch.arange(flat.logits.shape[1])[None]
        lenient = ProposalSpec(score_thresh=0.0, min_size=0.0)
        decoded, levels = decode_selected(flat, everyone, look.heads, lenient)
        anchors = torch.cat([look.level_anchors(level) for level in range(len(flat.sizes))])
        ranks, starts, start = torch.empty_like(everyone[0]), [], 0
        for size in flat.sizes:
            order = select(flat.logits[:, start : start + size], size)[0]
            ranks[start + order] = torch.arange(1, size + 1)
            starts.append(start)
            start += size
        return cls(
            sizes=flat.sizes,
            starts=starts,
            levels=levels[0].long(),
            anchors=anchors,
            logits=flat.logits[0],
            deltas=flat.deltas[0],
            unclipped=box_ops.decode(flat.deltas[0], anchors),
            boxes=decoded.boxes[0],
            ranks=ranks,
        )


@dataclass(frozen=True)
class Ledger:
    """The fate of every anchor under some limits.

    Attributes:
        spec: the limits.
        every: the anchors.
        fates: [N] int64, members of `Fate`.
        places: [N] int64, from 1, among all that outlived suppression; 0 for the others.
        suppressors: [N] int64, of a suppressed anchor the best kept one that overlaps it too much;
            -1 for the others.
        overlaps: [N] float32, the IoU with that.
    """

    spec: ProposalSpec
    every: Anchors
    fates: Tensor
    places: Tensor
    suppressors: Tensor
    overlaps: Tensor

    def fate(self, number: int) -> Fate:
        """Returns what became of an anchor."""
        return Fate(int(self.fates[number]))

    def proposed(self) -> Tensor:
        """Returns the numbers of the anchors that were proposed, best first."""
        numbers = (self.fates == Fate.PROPOSED).nonzero()[:, 0]
        return numbers[self.places[numbers].argsort()]


@torch.inference_mode()
def ledger(look: Look, every: Anchors, spec: ProposalSpec) -> Ledger:
    """Runs the proposal stage under some limits and notes what became of every anchor."""
    total = len(every.logits)
    candidates, sizes, numbers = chosen(look, every, spec)
    fates = torch.full((total,), int(Fate.NOT_SELECTED))
    rejected = candidates.anchors[0] < 0
    fates[numbers] = torch.where(rejected, int(Fate.NOT_FINITE), int(Fate.SUPPRESSED))
    small = (every.boxes[:, 2:] - every.boxes[:, :2]).amin(1) < spec.min_size
    finite = (every.unclipped.abs().amax(1) < torch.inf) & (every.logits > -torch.inf)
    low = box_ops.sigmoid(every.logits) < spec.score_thresh
    reason = torch.where(small, int(Fate.TOO_SMALL), int(Fate.SCORED_LOW))
    told = (fates == Fate.NOT_FINITE) & finite & (small | low)
    fates[told] = reason[told]

    survivors = survivors_of(candidates, sizes, spec, every)
    places = torch.zeros(total, dtype=torch.int64)
    places[survivors] = torch.arange(1, len(survivors) + 1)
    fates[survivors] = int(Fate.BEYOND_TOP)
    fates[survivors[: spec.post_nms_top_n]] = int(Fate.PROPOSED)

    suppressors = torch.full((total,), -1)
    overlaps = torch.zeros(total)
    for level in range(len(every.sizes)):
        kept = survivors[every.levels[survivors] == level]
        gone = ((fates == Fate.SUPPRESSED) & (every.levels == level)).nonzero()[:, 0]
        if len(gone):
            by, overlap = first_above(every, gone, kept, spec.nms_thresh)
            suppressors[gone], overlaps[gone] = by, overlap
    return Ledger(spec, every, fates, places, suppressors, overlaps)


def chosen(look: Look, every: Anchors, spec: ProposalSpec) -> tuple[Candidates, list[int], Tensor]:
    """Returns the candidates, the slots of each level, and [M] which anchor lies in each slot."""
    candidates = select_candidates(look.heads, spec)
    sizes = list(look.heads.level_sizes(spec.pre_nms_top_n))
    numbers = []
    for size, count, start in zip(every.sizes, sizes, every.starts, strict=True):
        order = every.ranks[start : start + size].argsort()[:count]
        numbers.append(order + start)
    return candidates, sizes, torch.cat(numbers)


def without(candidates: Candidates, gone: Tensor) -> Candidates:
    """Returns the candidates as if those of a mask [M] had been rejected."""
    return candidates._replace(
        logits=candidates.logits.masked_fill(gone, -torch.inf),
        anchors=candidates.anchors.masked_fill(gone, -1),
    )


def survivors_of(
    candidates: Candidates, sizes: list[int], spec: ProposalSpec, every: Anchors
) -> Tensor:
    """Returns the numbers of all that outlive suppression, best first, beyond `top`, too."""
    slots = max(candidates.logits.shape[1], 1)
    kept = nms(candidates, sizes, replace(spec, post_nms_top_n=slots))
    count = int(kept.count)
    starts = torch.tensor([*every.starts, 0])
    return starts[kept.levels[0, :count].long()] + kept.anchors[0, :count].long()


def first_above(
    every: Anchors, gone: Tensor, kept: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """Returns for each suppressed anchor who did it, -1 for nobody, and the IoU.

    That is the best of the kept ones of its level that stand before it and overlap it too much.

    Args:
        every: the anchors.
        gone: [G] numbers of anchors.
        kept: [K] numbers of those of the same level that outlived suppression, best first.
        threshold: of the IoU.
    """
    if not len(kept):
        return torch.full((len(gone),), -1), torch.zeros(len(gone))
    overlap = box_ops.iou(every.boxes[gone], every.boxes[kept])
    hits = (overlap > torch.tensor(threshold)) & (every.ranks[kept] < every.ranks[gone][:, None])
    first = hits.int().argmax(1)
    found = hits.any(1)
    ious = overlap.gather(1, first[:, None])[:, 0]
    return torch.where(found, kept[first], -1), torch.where(found, ious, 0.0)
