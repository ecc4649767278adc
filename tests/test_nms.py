import math

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_rpn.kernels.boxes import iou, sigmoid
from stream_rpn.kernels.nms import nms
from stream_rpn.kernels.proposals import Candidates, ProposalSpec
from tests.agreement import Limits, Selection, assert_same_selection, selections
from tests.proposal_cases import candidates, from_boxes


def kept_anchors(given_candidates, level_sizes, **limits):
    result = nms(given_candidates, level_sizes, ProposalSpec(**limits))
    return [row[:count].tolist() for row, count in zip(result.anchors, result.count, strict=True)]


def oracle(given_candidates, level_sizes, nms_thresh, post_nms_top_n):
    """Kept (level, anchor) pairs by the textbook loop."""
    images = []
    for boxes, logits, anchors in zip(*given_candidates, strict=True):
        overlap, kept, start = iou(boxes, boxes), [], 0
        for level, size in enumerate(level_sizes):
            mine = []
            for slot in range(start, start + size):
                if logits[slot] == -math.inf:
                    continue
                if all(overlap[slot, other] <= nms_thresh for other in mine):
                    mine.append(slot)
                    kept.append((-logits[slot].item(), level, slot, anchors[slot].item()))
            start += size
        images.append([(level, anchor) for _, level, _, anchor in sorted(kept)[:post_nms_top_n]])
    return images


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 90), min_size=1, max_size=3),
    st.integers(1, 120),
    st.sampled_from([0.01, 0.3, 0.5, 0.7, 1.0]),
    st.booleans(),
    st.sampled_from([None, 2]),
    st.sampled_from([0.0, 0.2, 1.0]),
    st.integers(0, 999),
)
def test_keeps_what_the_textbook_loop_keeps(sizes, top, thresh, integer, steps, rejected, seed):
    torch.manual_seed(seed)
    given_candidates = candidates(
        sizes, batch=2, span=100.0, integer=integer, steps=steps, rejected=rejected
    )
    result = nms(given_candidates, sizes, ProposalSpec(nms_thresh=thresh, post_nms_top_n=top))
    for image, expected in enumerate(oracle(given_candidates, sizes, thresh, top)):
        count = int(result.count[image])
        assert (
            list(
                zip(
                    result.levels[image, :count].tolist(),
                    result.anchors[image, :count].tolist(),
                    strict=True,
                )
            )
            == expected
        )
        assert (result.anchors[image, count:] == -1).all()
        assert (result.levels[image, count:] == -1).all()
        assert (result.boxes[image, count:] == 0).all()
        assert (result.scores[image, count:] == 0).all()


@pytest.mark.numeric
@pytest.mark.parametrize("thresh", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("n", [1, 63, 1000, 2500])
def test_equal_to_torchvision_on_one_level(n, thresh):
    given_candidates = candidates([n], rejected=0.0)
    boxes, logits = given_candidates.boxes[0], given_candidates.logits[0]
    expected = torchvision.ops.nms(boxes, logits, thresh)
    theirs = Selection(boxes[expected], sigmoid(logits[expected]), 0 * expected, expected)
    (ours,) = selections(
        nms(given_candidates, [n], ProposalSpec(nms_thresh=thresh, post_nms_top_n=n))
    )
    # The same numbers, but for the roundings of an IoU.
    assert_same_selection(ours, theirs, Limits(0, 0, thresh, top=n))


def test_levels_never_suppress_each_other():
    boxes = torch.tensor([[0.0, 0.0, 50.0, 50.0]]).expand(1, 4, 4)
    logits = torch.tensor([[2.0, 1.0, 3.0, 0.0]])
    given_candidates = Candidates(boxes, logits, torch.tensor([[7, 8, 5, 6]], dtype=torch.int32))
    result = nms(given_candidates, [2, 2], ProposalSpec(nms_thresh=0.7, post_nms_top_n=4))
    assert result.count.tolist() == [2]
    assert result.levels.tolist() == [[1, 0, -1, -1]]
    assert result.anchors.tolist() == [[5, 7, -1, -1]]
    assert result.scores[0, :2].tolist() == pytest.approx([0.9525741, 0.8807971])


def test_equal_logits_go_by_level_then_anchor():
    boxes = torch.arange(6.0)[:, None] * 100 + torch.tensor([0.0, 0.0, 10.0, 10.0])
    anchors = torch.tensor([[3, 9, 1, 4, 0, 2]], dtype=torch.int32)
    given_candidates = Candidates(boxes[None], torch.zeros(1, 6), anchors)
    result = nms(given_candidates, [2, 2, 2], ProposalSpec(nms_thresh=0.7, post_nms_top_n=5))
    assert result.levels.tolist() == [[0, 0, 1, 1, 2]]
    assert result.anchors.tolist() == [[3, 9, 1, 4, 0]]


@pytest.mark.parametrize(
    ("thresh", "kept"), [(0.6, 2), (0.59999, 1)], ids=["at-threshold", "just-above"]
)
def test_iou_exactly_at_the_threshold_stays(thresh, kept):
    # 8×10 against 8×10 moved by 2: 60 of 100.
    given_candidates = from_boxes([[0, 0, 8, 10], [2, 0, 10, 10]])
    assert iou(given_candidates.boxes[0], given_candidates.boxes[0])[0, 1] == torch.tensor(0.6)
    assert (
        nms(given_candidates, [2], ProposalSpec(nms_thresh=thresh, post_nms_top_n=2)).count.item()
        == kept
    )


@pytest.mark.parametrize("n", [64, 128, 129, 700])
def test_a_chain_of_suppressions_of_full_length(n):
    # Each box overlaps its neighbours only, so every other one stays.
    given_candidates = from_boxes([[i, 0, i + 1.9, 1] for i in range(n)])
    assert kept_anchors(given_candidates, [n], nms_thresh=0.2, post_nms_top_n=n) == [
        list(range(0, n, 2))
    ]


def test_boxes_without_area_suppress_nothing():
    given_candidates = from_boxes([[5, 5, 5, 5]] * 3 + [[5, 5, 9, 5]] * 2)
    assert (
        nms(given_candidates, [5], ProposalSpec(nms_thresh=0.5, post_nms_top_n=5)).count.item() == 5
    )


def test_huge_boxes_do_not_overflow_into_keeping():
    given_candidates = from_boxes([[0, 0, 1e9, 1e9], [0, 0, 1e9, 0.99e9]])
    assert (
        nms(given_candidates, [2], ProposalSpec(nms_thresh=0.7, post_nms_top_n=2)).count.item() == 1
    )


def test_one_image_without_any_candidate():
    given_candidates = candidates([40], batch=3)
    given_candidates.logits[1] = -torch.inf
    result = nms(given_candidates, [40], ProposalSpec(nms_thresh=0.7, post_nms_top_n=10))
    assert result.count[1] == 0
    assert (result.count[[0, 2]] > 0).all()


def test_more_slots_never_change_the_first_ones():
    given_candidates = candidates([300, 100])
    few = nms(given_candidates, [300, 100], ProposalSpec(nms_thresh=0.5, post_nms_top_n=20))
    many = nms(given_candidates, [300, 100], ProposalSpec(nms_thresh=0.5, post_nms_top_n=200))
    assert torch.equal(few.anchors, many.anchors[:, :20])
    assert torch.equal(few.boxes, many.boxes[:, :20])


def test_custom_op_passes_opcheck():
    given_candidates = candidates([30, 20], batch=2)
    torch.library.opcheck(
        torch.ops.stream_rpn.nms.default, (*given_candidates, [30, 20], [1000, 25], [0.7, 0.0, 0.0])
    )


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("nms_thresh", 0.0, ValueError),
        ("nms_thresh", 7.0, ValueError),
        ("nms_thresh", math.nan, ValueError),
        ("nms_thresh", "0.7", TypeError),
        ("post_nms_top_n", 0, ValueError),
        ("post_nms_top_n", 1.0, TypeError),
    ],
)
def test_bad_numbers(name, value, error):
    with pytest.raises(error, match=name):
        ProposalSpec(**{name: value})


@pytest.mark.parametrize(
    ("value", "error"),
    [([3, 3], ValueError), ([6, -1], ValueError), ([2.5, 2.5], TypeError), (5, TypeError)],
)
def test_bad_level_sizes(value, error):
    with pytest.raises(error, match="level_sizes"):
        nms(candidates([5]), value, ProposalSpec())


def test_a_spec_of_another_type():
    with pytest.raises(TypeError, match="spec must be a ProposalSpec, got float"):
        nms(candidates([5]), [5], 0.7)


@pytest.mark.parametrize(
    ("field", "change", "error"),
    [
        ("boxes", lambda t: t.double(), TypeError),
        ("boxes", lambda t: t[..., :3], ValueError),
        ("logits", lambda t: t[:, :2], ValueError),
        ("anchors", lambda t: t.long(), TypeError),
        ("anchors", lambda t: t.to("meta"), ValueError),
    ],
)
def test_bad_candidates(field, change, error):
    good = candidates([5])
    with pytest.raises(error, match=f"candidates.{field}"):
        nms(good._replace(**{field: change(getattr(good, field))}), [5], ProposalSpec())


def test_candidates_of_another_type():
    with pytest.raises(TypeError, match=r"candidates must be .* got NoneType"):
        nms(None, [5], ProposalSpec())
