"""The rules of `agreement`: what differs by rounding agrees, what differs by more does not."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from stream_rpn.kernels.generate import generate_proposals
from stream_rpn.kernels.proposals import HeadOutputs, ProposalSpec
from stream_rpn.kernels.propose import select_candidates
from tests.agreement import (
    Limits,
    Selection,
    assert_same_selection,
    assert_within,
    selections,
    tolerances,
)
from tests.proposal_cases import head_outputs

SPEC = {"pre_nms_top_n": 100, "post_nms_top_n": 60, "nms_thresh": 0.5, "min_size": 1.0}
TINY = 1e-6


def outcome(objectness, deltas, rest, **changes) -> Selection:
    spec = ProposalSpec(**{**SPEC, **changes})
    return selections(generate_proposals(HeadOutputs(objectness, deltas, *rest), spec))[0]


def everything(objectness, deltas, rest) -> Selection:
    heads = HeadOutputs(objectness, deltas, *rest)
    found = select_candidates(heads, ProposalSpec(pre_nms_top_n=10_000, min_size=0.0))
    return Selection(found.boxes[0], found.logits[0].sigmoid())


def unnamed(side: Selection) -> Selection:
    """As torchvision returns it."""
    return Selection(side.boxes, side.scores)


def made_up(seed: int, steps: int | None, *, grid: bool = False):
    """Head outputs, and the same with other roundings; logits in steps have many near ties."""
    torch.manual_seed(seed)
    objectness, deltas, *rest = head_outputs([(8, 12), (4, 6)], steps=steps, stride=(8, 8))
    if grid:  # with IoUs at the threshold
        deltas = [torch.zeros_like(level) for level in deltas]
    noisy = ([level + (torch.rand_like(level) - 0.5) * TINY for level in levels]
             for levels in (objectness, deltas))  # fmt: skip
    return (objectness, deltas), tuple(noisy), rest


def limits_of(objectness, deltas, rest, **changes) -> Limits:
    spec = {**SPEC, **changes}
    heads = HeadOutputs(objectness, deltas, *rest)
    sizes = heads.level_sizes(spec["pre_nms_top_n"])
    found = select_candidates(heads, ProposalSpec(pre_nms_top_n=spec["pre_nms_top_n"], min_size=0))
    lowest = [level.sigmoid()[0, -1].item() for level in found.logits.split(sizes, 1)]
    # A delta moves a side by its share of the anchor's, of 100 pixels at most, or of the box's.
    return Limits(
        300 * TINY,
        TINY,
        spec["nms_thresh"],
        spec["post_nms_top_n"],
        tuple(lowest),
        SPEC["min_size"],
    )


@pytest.mark.parametrize("changes", [{}, {"post_nms_top_n": 400}, {"pre_nms_top_n": 30}], ids=str)
@pytest.mark.parametrize("grid", [False, True], ids=["random", "grid"])
@pytest.mark.parametrize("steps", [None, 2], ids=["distinct", "near-ties"])
def test_other_roundings_agree(steps, grid, changes):
    differ = 0
    for seed in range(6):
        exact, noisy, rest = made_up(seed, steps, grid=grid)
        ours, theirs = outcome(*exact, rest, **changes), outcome(*noisy, rest, **changes)
        limits = limits_of(*exact, rest, **changes)
        assert_same_selection(ours, theirs, limits)
        assert_same_selection(theirs, ours, limits)
        assert_same_selection(ours, unnamed(theirs), limits, everything(*exact, rest))
        differ += len(ours) != len(theirs) or bool(
            ((ours.boxes - theirs.boxes).abs() > limits.boxes).any()
        )
    # With ties a comparison place by place would not do.
    assert steps is None or differ > 3


def shifted(side: Selection) -> Selection:
    boxes = side.boxes.clone()
    boxes[len(side) // 3, 0] += 1
    return replace(side, boxes=boxes)


def rescored(side: Selection) -> Selection:
    scores = side.scores.clone()
    scores[0] += 0.01
    return replace(side, scores=scores)


def without(side: Selection, index: int) -> Selection:
    left = [i for i in range(len(side)) if i != index]
    return Selection(*(t[left] for t in vars(side).values()))


def doubled(side: Selection) -> Selection:
    return Selection(*(torch.cat((t[:1], t)) for t in vars(side).values()))


@pytest.mark.parametrize("steps", [None, 2], ids=["distinct", "near-ties"])
@pytest.mark.parametrize(
    "spoil",
    [
        shifted,
        rescored,
        lambda side: without(side, 0),
        lambda side: without(side, len(side) // 3),
        lambda side: without(side, len(side) - 3),
        lambda side: Selection(*(t.flip(0) for t in vars(side).values())),
        lambda side: replace(side, boxes=side.boxes.flip(0)),
        doubled,
    ],
    ids=["box", "score", "first", "middle", "late", "reversed", "boxes-reversed", "twice"],
)
def test_mistakes_do_not(spoil, steps):
    for seed in range(2):
        exact, noisy, rest = made_up(seed, steps)
        # Nothing is cut off: a box at a cut may be missing.
        no_cuts = {"pre_nms_top_n": 10_000, "post_nms_top_n": 10_000}
        ours, theirs = (outcome(*heads, rest, **no_cuts) for heads in (exact, noisy))
        limits = replace(limits_of(*exact, rest, **no_cuts), floors=())
        all_of_them = everything(*exact, rest)
        for one, other, *more in (
            (spoil(ours), theirs),
            (theirs, spoil(ours)),
            (spoil(ours), unnamed(theirs), all_of_them),
            (ours, unnamed(spoil(theirs)), all_of_them),
        ):
            with pytest.raises(AssertionError):
                assert_same_selection(one, other, limits, *more)


@pytest.mark.parametrize("named", [True, False], ids=["anchors", "candidates"])
@pytest.mark.parametrize("thresh", [0.55, 0.45])
def test_another_threshold_does_not(thresh, named):
    exact, noisy, rest = made_up(0, None)
    ours = outcome(*exact, rest, post_nms_top_n=400)
    theirs = outcome(*noisy, rest, post_nms_top_n=400, nms_thresh=thresh)
    limits = limits_of(*exact, rest, post_nms_top_n=400)
    sides = (theirs,) if named else (unnamed(theirs),)
    candidates = () if named else (everything(*exact, rest),)
    with pytest.raises(AssertionError, match="no counterpart and no reason"):
        assert_same_selection(ours, *sides, limits, *candidates)


def test_a_swap_at_the_cut_agrees_and_a_skip_does_not():
    boxes = torch.arange(6.0)[:, None] * 100 + torch.tensor([0.0, 0.0, 10.0, 10.0])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.6 - 1e-7, 0.5])
    limits = Limits(1e-3, 1e-6, 0.7, top=4)
    ours = Selection(boxes[:4], scores[:4])
    swapped, skipped = [0, 1, 2, 4], [0, 1, 2, 5]
    candidates = Selection(boxes, scores)
    assert_same_selection(ours, Selection(boxes[swapped], scores[swapped]), limits, candidates)
    with pytest.raises(AssertionError, match="no reason"):
        assert_same_selection(ours, Selection(boxes[skipped], scores[skipped]), limits, candidates)


class Chain(nn.Module):
    """Convolutions with what else networks have between them."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1) for _ in range(8))
        self.activation = nn.Hardswish()

    def forward(self, x):
        for conv in self.convs:
            y = self.activation(conv(x))
            x = x + y * y.mean((2, 3), keepdim=True).sigmoid()
        return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_error_of_a_number_format_is_within_its_tolerance_and_a_mistake_is_not(dtype):
    torch.manual_seed(0)
    exact, image = Chain().to(dtype).double(), torch.randn(1, 32, 24, 24).to(dtype)
    true, within = tolerances(lambda: exact(image.double()), dtype)
    with torch.inference_mode():
        rounded = exact.to(dtype)(image)
        assert_within(rounded, true, within)
        # No looser than it must be.
        assert (rounded - true).abs().max() > within[0] / 20
        for spoil in (
            lambda: setattr(exact, "activation", nn.SiLU()),
            lambda: exact.convs[3].weight.neg_(),
        ):
            spoil()
            with pytest.raises(AssertionError, match="is off by"):
                assert_within(exact(image), true, within)
            exact.activation = nn.Hardswish()
