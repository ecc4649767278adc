"""Why was this not proposed? Answers for a point or an object, each with what would change it.

An answer is true in this sense: with everything done that its obstacles ask for, the box comes out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from stream_rpn.explanation.ledger import (
    Anchors,
    Fate,
    Ledger,
    chosen,
    survivors_of,
    without,
)
from stream_rpn.explanation.look import Look
from stream_rpn.kernels import boxes as box_ops
from stream_rpn.kernels.proposals import Candidates, ProposalSpec
from stream_rpn.model import FIELDS

# An object counts as found by a box of this IoU (Everingham et al. 2010), and so in `eval`'s R50.
FOUND = 0.5


@dataclass(frozen=True)
class Obstacle:
    """One thing that stood between a box and the proposals.

    Attributes:
        kind: "not selected", "too small", "scored low", "not finite", "suppressed" or "beyond top".
        sentence: it, in numbers.
        remedy: options of `stream_rpn.load` under which it would not stand there, by name.
        suppressors: numbers of the anchors whose boxes would have to go, best first.
        overlaps: the IoU with each.
    """

    kind: str
    sentence: str
    remedy: dict[str, float] = field(default_factory=dict)
    suppressors: list[int] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """Why there is no proposal of an object or at a point, or which one there is.

    Attributes:
        target: x1, y1, x2, y2 of the object, or x, y of the point, in pixels of the frame.
        outcome: "proposed", "no anchor fits", "no box fits", or the kind of the first obstacle.
        sentence: the answer.
        contender: number of the anchor that would have made the box; -1 where none comes near.
        place: from 1, of the proposal that there is; 0 for none.
        contender_iou: of the contender's box with the object; 0 for a point.
        best_anchor: number of the anchor that overlaps the object most, as it lies; -1 for a point.
        best_anchor_iou: its IoU; 0 for a point.
        best_box_iou: the highest IoU of any anchor's box with the object; 0 for a point.
        obstacles: in the order in which the box would meet them.
    """

    target: tuple[float, ...]
    outcome: str
    sentence: str
    contender: int
    place: int = 0
    contender_iou: float = 0.0
    best_anchor: int = -1
    best_anchor_iou: float = 0.0
    best_box_iou: float = 0.0
    obstacles: list[Obstacle] = field(default_factory=list)


def why_not_object(look: Look, book: Ledger, box: Sequence[float]) -> Answer:
    """Answers for an object x1, y1, x2, y2 in pixels of the frame.

    Found is it by a proposal of IoU 0.5. Else the contender is, of all boxes that the head made and
    that reach this IoU, the one of the highest logit.
    """
    every = book.every
    target = tuple(float(value) for value in box)
    wanted = look.to_input(torch.tensor([target]))
    overlaps = box_ops.iou(wanted, every.boxes)[0]
    by_anchor = box_ops.iou(wanted, every.anchors)[0]
    best_anchor = int(by_anchor.argmax())
    known: dict[str, Any] = {
        "best_anchor": best_anchor,
        "best_anchor_iou": float(by_anchor[best_anchor]),
        "best_box_iou": float(overlaps.max()),
    }
    proposed = book.proposed()
    finds = proposed[overlaps[proposed] >= FOUND]
    if len(finds):
        number = int(finds[0])
        place = int(book.places[number])
        sentence = f"Proposed: number {place} covers it with IoU {overlaps[number]:.2f}."
        iou = float(overlaps[number])
        return Answer(target, "proposed", sentence, number, place=place, contender_iou=iou, **known)
    near = ((overlaps >= FOUND) & (every.logits > -torch.inf)).nonzero()[:, 0]
    if not len(near):
        fits = known["best_anchor_iou"] >= FOUND
        outcome = "no box fits" if fits else "no anchor fits"
        begin = "An anchor fits" if fits else "No anchor fits it: the best"
        sentence = (
            f"{begin}, with IoU {known['best_anchor_iou']:.2f}, and of all {len(every.logits):,} "
            f"boxes that the head made none reaches {FOUND:g}: the best has "
            f"{known['best_box_iou']:.2f}. No limit changes that; another input size or other "
            "anchors may."
        )
        return Answer(target, outcome, sentence, -1, **known)
    contender = int(near[every.logits[near].argmax()])
    obstacles = _obstacles(look, book, contender)
    return Answer(
        target,
        obstacles[0].kind,
        " ".join(obstacle.sentence for obstacle in obstacles),
        contender,
        contender_iou=float(overlaps[contender]),
        obstacles=obstacles,
        **known,
    )


def why_not_anchors(
    look: Look, book: Ledger, point: tuple[float, float], numbers: Sequence[int]
) -> Answer:
    """Answers for a point of the frame: what became of the best of its anchors.

    Args:
        look: the look.
        book: what became of every anchor.
        point: x, y in pixels of the frame.
        numbers: of the anchors of the cells at the point.
    """
    logits = book.every.logits[list(numbers)]
    contender = numbers[int(logits.argmax())]
    if book.fate(contender) is Fate.PROPOSED:
        place = int(book.places[contender])
        sentence = f"Proposed: the best of the {len(numbers)} anchors here made number {place}."
        return Answer(point, "proposed", sentence, contender, place=place)
    obstacles = _obstacles(look, book, contender)
    sentence = " ".join(obstacle.sentence for obstacle in obstacles)
    return Answer(point, obstacles[0].kind, sentence, contender, obstacles=obstacles)


def _obstacles(look: Look, book: Ledger, number: int) -> list[Obstacle]:
    """Returns what stands between an anchor and the proposals, in the order of the stage's steps.

    Each is told as if those before it were gone, so that together they are all there is to do.
    """
    every, spec = book.every, book.spec
    level, logit = int(every.levels[number]), float(every.logits[number])
    found: list[Obstacle] = []
    rank = int(every.ranks[number])
    if rank > spec.pre_nms_top_n:
        sentence = (
            f"Scored too low: its logit {logit:.2f} is number {rank:,} of the "
            f"{every.sizes[level]:,} of its level, and {spec.pre_nms_top_n:,} are selected."
        )
        found.append(Obstacle("not selected", sentence, {"pre_nms": rank}))
    box = every.boxes[number]
    if not (bool(every.unclipped[number].isfinite().all()) and logit > -math.inf):
        return [*found, Obstacle("not finite", "Its logit or its box is not a finite number.")]
    side = float((box[2:] - box[:2]).min())
    if side < spec.min_size:
        sentence = (
            f"Filtered by size: its shorter side, clipped to the frame, is {side:.3g} pixels of "
            f"the network's input, and {spec.min_size:g} are asked for."
        )
        found.append(Obstacle("too small", sentence, {"min_size": side}))
    score = float(box_ops.sigmoid(every.logits[number]))
    if score < spec.score_thresh:
        sentence = (
            f"Filtered by score: its probability is {score:.3g}, and {spec.score_thresh:g} is "
            "asked for."
        )
        found.append(Obstacle("scored low", sentence, {"score_thresh": _down(score)}))
    for obstacle in found:
        spec = apply(spec, obstacle.remedy)
    suppressed = _suppressed(look, every, spec, number)
    if suppressed is not None:
        found.append(suppressed)
    place = int(book.places[number])
    if found:
        place = _place(look, every, spec, number, suppressed.suppressors if suppressed else [])
    if place > spec.post_nms_top_n:
        sentence = (
            f"Beyond the top: it outlives suppression as number {place:,}, and "
            f"{spec.post_nms_top_n:,} are kept."
        )
        found.append(Obstacle("beyond top", sentence, {"top": place}))
    return found


def apply(spec: ProposalSpec, remedy: dict[str, float]) -> ProposalSpec:
    """Returns the limits with those of a remedy."""
    changes: dict[str, Any] = {FIELDS.get(name, name): value for name, value in remedy.items()}
    return replace(spec, **changes)


def _suppressed(look: Look, every: Anchors, spec: ProposalSpec, number: int) -> Obstacle | None:
    """Returns who suppresses a box: the first, whoever would when that is gone, and so on."""
    level = int(every.levels[number])
    candidates, sizes, slots = chosen(look, every, spec)
    # What stands before it in its level is all that matters to it.
    first = sum(sizes[:level])
    ahead = slice(first, first + int(every.ranks[number]) - 1)
    names = slots[ahead]
    overlap = box_ops.iou(every.boxes[number][None], every.boxes[names])[0]
    hits = names[overlap > torch.tensor(spec.nms_thresh)]
    alone = replace(every, starts=every.starts[level : level + 1])
    rest = Candidates(*(tensor[:, ahead] for tensor in candidates))
    suppressors: list[int] = []
    while len(hits):
        kept = survivors_of(rest, [len(names)], spec, alone)
        direct = kept[torch.isin(kept, hits)]
        if not len(direct):
            break
        suppressors += direct.tolist()
        rest = without(rest, torch.isin(names, direct))
    if not suppressors:
        return None
    of_name = dict(zip(names.tolist(), overlap.tolist(), strict=True))
    overlaps = [of_name[name] for name in suppressors]
    by, own = box_ops.sigmoid(every.logits[[suppressors[0], number]]).tolist()
    sentence = (
        f"Suppressed by a better box of its level: score {by:.3f} against {own:.3f}, IoU "
        f"{overlaps[0]:.3f} above {spec.nms_thresh:g}."
    )
    if len(suppressors) > 1:
        more = len(suppressors) - 1
        stand = "one stands" if more == 1 else f"{more} stand"
        sentence += f" Behind that {stand} who would suppress it, too."
    # Nobody who overlaps it less can.
    needed = math.ceil(float(overlap[candidates.anchors[0, ahead] >= 0].max()) * 1000) / 1000
    remedy = {"nms": needed} if needed <= 1 else {}
    return Obstacle("suppressed", sentence, remedy, suppressors, overlaps)


def _place(
    look: Look, every: Anchors, spec: ProposalSpec, number: int, removed: Sequence[int]
) -> int:
    """Returns the place, from 1, that a box takes among all that outlive suppression."""
    candidates, sizes, slots = chosen(look, every, spec)
    own = every.logits[number]
    logits = every.logits[slots]
    # Equal ones stand by their place in the row.
    behind = (logits < own) | ((logits == own) & (slots > number))
    rest = without(candidates, behind | torch.isin(slots, torch.tensor(list(removed))))
    return len(survivors_of(rest, sizes, spec, every))


def _down(value: float) -> float:
    """Returns a number a little below, of few digits: at it, the value passes."""
    digits = max(0, 3 - math.floor(math.log10(max(value, 1e-30))))
    return float(math.floor(value * 10**digits) / 10**digits)
