"""When two ways of computing the same agree: as far as rounding, and as far as ties, explain.

*Numbers.* `tolerances` runs one of the two ways a few times more while every operation's result is
off by a random error of the size of its own roundings: one of the number format, and √K of float32
at the size of the result for a sum of K terms (as independent roundings add up, Higham and Mary
2019). As both ways round, they may be apart by twice the furthest that an output moved.

*Selections.* Greedy suppression keeps exactly those boxes that no better one of their level that it
kept overlaps, so each box that only one side has needs a reason of its own, within the tolerances:
see `assert_same_selection`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stream_rpn import anchors as anchor_ops
from stream_rpn.kernels import boxes as box_ops

RUNS = 3
MARGIN = 2

ROUNDED_ONCE = {
    "add", "sub", "rsub", "mul", "div", "addcmul", "exp", "log", "sqrt", "sigmoid", "softmax",
    "_softmax", "hardsigmoid", "hardswish", "upsample_bilinear2d", "roi_align", "batch_norm",
    "native_batch_norm", "_native_batch_norm_legit_no_training",
}  # fmt: skip
REDUCTIONS = {
    "sum", "mean", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "avg_pool2d",
    "binary_cross_entropy_with_logits", "cross_entropy_loss", "l1_loss", "smooth_l1_loss",
}  # fmt: skip
FLOAT32 = 2.0**-24


class Roundings(TorchDispatchMode):
    """Adds to what operations return random errors as large as those of their roundings.

    Args:
        dtype: the number format whose roundings are meant; what runs may be in a finer one.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.unit = torch.finfo(dtype).eps / 2

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        terms = _terms(function, args, out)
        result = out[0] if isinstance(out, tuple) else out
        if terms and result.is_floating_point() and result.numel():
            size = result.double().square().mean().sqrt().item()
            error = torch.empty_like(result).uniform_(-self.unit, self.unit).mul_(result)
            if terms > 1:
                most = sqrt(terms) * FLOAT32 * size
                error.add_(torch.empty_like(result).uniform_(-most, most))
            result.add_(error)
        return out


def _terms(function, args, out) -> int:
    """Returns how many terms an operation sums up for one number, 0 where it rounds nothing."""
    name = function.__name__.split(".")[0].removesuffix("_")
    # What is one operation under inference_mode may be several, of other names, without.
    if name in ("conv2d", "convolution", "linear"):
        return prod(args[1].shape[1:])
    if name in ("addmm", "mm", "bmm", "matmul", "mv"):
        # A vector has one dimension only.
        return args[-1].shape[-2:][0]
    if name in REDUCTIONS:
        return max(args[0].numel() // max(out.numel(), 1), 1)
    return int(name in ROUNDED_ONCE)


def tolerances(
    run: Callable[[], Any], dtype: torch.dtype = torch.float32, *, runs: int = RUNS
) -> tuple[Any, list[float]]:
    """Returns what `run` returns, and how far another way may be from each tensor in it.

    More `runs` are for few numbers, of which one may happen not to move.
    """
    with torch.inference_mode(), torch.random.fork_rng(devices=()):
        result = run()
        tensors = _tensors(result)
        moved = [0.0] * len(tensors)
        for seed in range(runs):
            torch.manual_seed(seed)
            with Roundings(dtype):
                again = _tensors(run())
            for index, (one, other) in enumerate(zip(tensors, again, strict=True)):
                if one.numel():
                    moved[index] = max(moved[index], float((one - other).abs().max()))
    return result, [MARGIN * far for far in moved]


def _tensors(result) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def assert_within(found, expected, within: Sequence[float]) -> None:
    """Asserts that each tensor of `found` is as far from that of `expected` as it may be."""
    pairs = zip(_tensors(found), _tensors(expected), strict=True)
    for index, ((one, other), far) in enumerate(zip(pairs, within, strict=True)):
        assert one.shape == other.shape
        distance = float((one.double() - other.double()).abs().max()) if one.numel() else 0.0
        assert distance <= far, f"tensor {index} is off by {distance:.3g}, allowed are {far:.3g}"


@dataclass(frozen=True)
class Selection:
    """What suppression kept of an image.

    Attributes:
        boxes: [N, 4].
        scores: [N], best first.
        levels: [N]: only boxes of the same one suppress each other; None where it is not known.
        anchors: [N]: which of its level each is; None where it is not known.
    """

    boxes: Tensor
    scores: Tensor
    levels: Tensor | None = None
    anchors: Tensor | None = None

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Limits:
    """What decided which boxes are kept, and how far numbers of two sides may be apart.

    Attributes:
        boxes: by how much coordinates may differ.
        scores: by how much scores may differ.
        nms_thresh: a box is suppressed where its IoU with a better one exceeds this.
        top: how many boxes are kept at most.
        floors: scores below which a box is no candidate: a threshold, or the last that a
            selection before the suppression let in.
        min_size: boxes with a shorter side are no candidates; 0 where that does not matter.
    """

    boxes: float
    scores: float
    nms_thresh: float
    top: int | None = None
    floors: Sequence[float] = ()
    min_size: float = 0.0


def expectations(
    heads: Callable[[], Any],
    base_anchors: Sequence[Tensor],
    strides: Sequence[tuple[int, int]],
    image_sizes: Tensor,
    *,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    nms_thresh: float,
    score_thresh: float = 0.0,
    min_size: float = 0.0,
) -> list[tuple[Limits, Selection]]:
    """Returns, for each image, what `assert_same_selection` needs to know of a proposal stage.

    Args:
        heads: returns objectness and deltas of every level. Their computation counts among what
            rounds, unless it was done before.
        base_anchors: as the other arguments, those of `generate_proposals`.
    """
    named: list[list[int]] = []

    def decoded() -> tuple[Tensor, Tensor]:
        objectness, deltas = heads()
        boxes, scores = [], []
        named[:] = [[], []]
        levels = zip(objectness, deltas, base_anchors, strides, strict=True)
        for level, (logits, delta, base, stride) in enumerate(levels):
            batch, count, (height, width) = len(logits), len(base), logits.shape[2:]
            logits = logits.float().permute(0, 2, 3, 1).flatten(1)
            if logits.shape[1] == 2 * count * height * width:
                logits = logits[:, 1::2] - logits[:, 0::2]
            delta = delta.float().permute(0, 2, 3, 1).reshape(batch, -1, 4)
            grid = anchor_ops.grid(base, (height, width), stride)
            boxes.append(box_ops.clip(box_ops.decode(delta, grid), image_sizes))
            scores.append(box_ops.sigmoid(logits))
            named[0] += [level] * len(grid)
            named[1] += range(len(grid))
        return torch.cat(boxes, 1), torch.cat(scores, 1)

    (boxes, scores), (moved, changed) = tolerances(decoded)
    levels, anchors = map(torch.tensor, named)
    found = []
    for image in range(len(boxes)):
        floors = [score_thresh] if score_thresh else []
        for level in range(len(base_anchors)):
            ranked = scores[image, levels == level].sort(descending=True).values
            floors += ranked[pre_nms_top_n - 1 : pre_nms_top_n].tolist()
        limits = Limits(moved, changed, nms_thresh, post_nms_top_n, floors, min_size)
        found.append((limits, Selection(boxes[image], scores[image], levels, anchors)))
    return found


def scored(boxes: Tensor, limits: Limits, candidates: Selection) -> Selection:
    """Returns boxes that came without scores, best first, with those of the candidates they are."""
    exact, all_scores = candidates.boxes.double(), candidates.scores.double()
    scores: list[float] = []
    for index, box in enumerate(boxes.double()):
        these = all_scores[(exact - box).abs().amax(1) <= limits.boxes]
        if scores:
            these = these[these <= scores[-1] + limits.scores]
        assert len(these), f"number {index} is no candidate, or none in falling order: {box}"
        scores.append(min(float(these.max()), scores[-1] if scores else 1.0))
    return Selection(boxes, torch.tensor(scores, dtype=torch.float64))


def selections(kept) -> list[Selection]:
    """Returns the selection of every image of a ProposalBatch."""
    return [
        Selection(*(tensor[image, :count] for tensor in kept[:-1]))
        for image, count in enumerate(kept.count.tolist())
    ]


def assert_same_selection(
    ours: Selection, theirs: Selection, limits: Limits, candidates: Selection | None = None
) -> dict[int, int]:
    """Asserts that two selections are the same but for ties within the tolerances.

    Scores fall. A box that has its counterpart on the other side has the same numbers there, up to
    the tolerances. Of a box that has none the absence has a reason:
    - the other side has a box with at least its score (up to the tolerance) that suppresses it, and
      this side has not; or has, but their IoU is at the threshold;
    - the other side is full, and ends with at least its score;
    - its score is at a floor, or a side of it is at the smallest size.
    A reason of the first kind leads to a better box on one side only, and so on; where that ends
    there is a tie. So that no wrong box counts as one that won a tie, either both sides know their
    anchors, or every box is one of `candidates`: all there are, with exact numbers, in any order.

    Returns:
        Which of ours is which of theirs.
    """
    ours, theirs = _in_float64(ours), _in_float64(theirs)
    for name, side in (("ours", ours), ("theirs", theirs)):
        assert (side.scores.diff() <= 0).all(), f"the scores of {name} do not fall"
        assert limits.top is None or len(side) <= limits.top, f"{name} are more than {limits.top}"
        if candidates is not None:
            _assert_candidates(name, side, _in_float64(candidates), limits)
    alike = _alike(ours, theirs, limits)
    if candidates is None:
        same = _same_anchor(ours, theirs)
        wrong = (same & ~alike).nonzero().tolist()
        assert not wrong, f"number {wrong[0][0]} of ours and {wrong[0][1]} of theirs differ"
        alike &= same
    pairs = _pairs(alike)
    _assert_reasons("ours", ours, theirs, set(pairs), set(pairs.values()), limits)
    _assert_reasons("theirs", theirs, ours, set(pairs.values()), set(pairs), limits)
    return pairs


def _in_float64(side: Selection) -> Selection:
    return replace(
        side,
        boxes=torch.as_tensor(side.boxes).double(),
        scores=torch.as_tensor(side.scores).double(),
        levels=None if side.levels is None else torch.as_tensor(side.levels),
        anchors=None if side.anchors is None else torch.as_tensor(side.anchors),
    )


def _assert_candidates(name: str, side: Selection, candidates: Selection, limits: Limits) -> None:
    for index, (box, score) in enumerate(zip(side.boxes, side.scores, strict=True)):
        near = candidates.boxes[(candidates.scores - score).abs() <= limits.scores]
        assert ((near - box).abs().amax(1) <= limits.boxes).any(), (
            f"number {index} of {name} is no candidate: {box.tolist()}, score {float(score)}"
        )


def _same_anchor(ours: Selection, theirs: Selection) -> Tensor:
    if ours.anchors is None or theirs.anchors is None:
        raise TypeError("selections without anchors are compared with the help of the candidates")
    return (ours.anchors[:, None] == theirs.anchors[None]) & _same_level(ours, theirs)


def _same_level(ours: Selection, theirs: Selection) -> Tensor:
    if ours.levels is None or theirs.levels is None:
        return torch.ones(len(ours), len(theirs), dtype=torch.bool)
    return ours.levels[:, None] == theirs.levels[None]


def _alike(ours: Selection, theirs: Selection, limits: Limits) -> Tensor:
    """Returns [N, M] whether two may be the same: equal numbers up to the tolerances."""
    moved = (ours.boxes[:, None] - theirs.boxes[None]).abs().amax(2)
    changed = (ours.scores[:, None] - theirs.scores[None]).abs()
    return (moved <= limits.boxes) & (changed <= limits.scores) & _same_level(ours, theirs)


def _pairs(alike: Tensor) -> dict[int, int]:
    """Returns which is which, as many pairs as there can be (Kuhn's augmenting paths)."""
    choices = [row.nonzero()[:, 0].tolist() for row in alike]
    mine: dict[int, int] = {}

    def settle(index: int, seen: set[int]) -> bool:
        for choice in choices[index]:
            if choice not in seen:
                seen.add(choice)
                if choice not in mine or settle(mine[choice], seen):
                    mine[choice] = index
                    return True
        return False

    for index in range(len(choices)):
        settle(index, set())
    return {index: choice for choice, index in mine.items()}


def _assert_reasons(
    name: str,
    side: Selection,
    other: Selection,
    paired: set[int],
    others_paired: set[int],
    limits: Limits,
) -> None:
    alone = [index for index in range(len(side)) if index not in paired]
    if not alone:
        return
    boxes, scores = side.boxes[alone], side.scores[alone]
    overlap, slack = box_ops.iou(boxes, other.boxes), _iou_slack(boxes, other.boxes, limits.boxes)
    suppresses = other.scores[None] >= scores[:, None] - limits.scores
    suppresses &= overlap > limits.nms_thresh - slack
    suppresses &= _same_level(
        Selection(boxes, scores, None if side.levels is None else side.levels[alone]), other
    )
    both = torch.tensor([index in others_paired for index in range(len(other))], dtype=torch.bool)
    excused = (suppresses & (~both | (overlap <= limits.nms_thresh + slack))).any(1)
    if limits.top is not None and len(other) == limits.top:
        excused |= scores <= other.scores[-1] + limits.scores
    for floor in limits.floors:
        excused |= (scores - floor).abs() <= limits.scores
    if limits.min_size:
        sides = (boxes[:, 2:] - boxes[:, :2]).amin(1)
        excused |= (sides - limits.min_size).abs() <= 2 * limits.boxes
    left = [index for index, fine in zip(alone, excused.tolist(), strict=True) if not fine]
    assert not left, (
        f"{len(left)} of {len(side)} boxes of {name} have no counterpart and no reason, the first "
        f"is number {left[0]}: {side.boxes[left[0]].tolist()}, score {float(side.scores[left[0]])}"
    )


def _iou_slack(boxes: Tensor, others: Tensor, moved: float) -> Tensor:
    """Returns [N, M] by how much an IoU differs where coordinates differ by `moved`.

    Moving the sides of a w × h box changes its area, or an intersection within it, by at most
    2·(w + h)·moved; the intersection counts once above and once below the line.
    """
    girth, other_girth = ((b[:, 2:] - b[:, :2]).sum(1) for b in (boxes, others))
    union = torch.maximum(box_ops.area(boxes)[:, None], box_ops.area(others)[None])
    changed = 4 * moved * (girth[:, None] + other_girth[None]) + 8 * moved**2
    return torch.where(union > 0, changed / union, torch.ones_like(union)) + 8 * FLOAT32
