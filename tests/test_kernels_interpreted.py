"""The Triton kernels under Triton's interpreter equal their references bit for bit, on a CPU.

The references are held to a float64 oracle and to torchvision elsewhere, so this holds the kernels
to them, too. Uninitialised memory is filled with NaN and the largest integers meanwhile.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from stream_rpn.kernels.nms_reference import nms_reference
from stream_rpn.kernels.proposals import Candidates, HeadOutputs, ProposalSpec
from stream_rpn.kernels.propose_reference import select_candidates_reference
from tests.preprocess_oracle import Picture, lay_out
from tests.proposal_cases import (
    DTYPES,
    FPN_SIZES,
    candidates,
    from_boxes,
    head_outputs,
    problems,
)

nms_module = pytest.importorskip("stream_rpn.kernels.nms_triton", reason="needs triton")
preprocess_module = pytest.importorskip(
    "stream_rpn.kernels.preprocess_triton", reason="needs triton"
)
propose_module = pytest.importorskip("stream_rpn.kernels.propose_triton", reason="needs triton")

pytestmark = [
    pytest.mark.interpreter,
    # NumPy warns of the 0/0 that stands for the IoU of boxes without area, and of NaN deltas.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
LIMITS = ProposalSpec(20, 12, score_thresh=0.1, min_size=1.0)
SETTINGS = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def _poison_uninitialised_memory():
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def check_candidates(args, spec):
    expected = select_candidates_reference(args, spec)
    got = propose_module.select_candidates_triton(args, spec)
    for name, one, other in zip(("boxes", "logits", "anchors"), got, expected, strict=True):
        assert torch.equal(one, other), name
    return expected


def check_nms(given_candidates, sizes, nms_thresh, post_nms_top_n):
    spec = ProposalSpec(nms_thresh=nms_thresh, post_nms_top_n=post_nms_top_n)
    expected = nms_reference(given_candidates, sizes, spec)
    got = nms_module.nms_triton(given_candidates, sizes, spec)
    for name, one, other in zip(expected._fields, got, expected, strict=True):
        assert torch.equal(one.view(torch.int32), other.view(torch.int32)), name
    return expected


def test_real_size_fpn_image():
    parts = check_candidates(head_outputs(FPN_SIZES), ProposalSpec(pre_nms_top_n=400))
    result = check_nms(parts, (400,) * 5, 0.7, 400)
    assert result.count.tolist() == [400]


@pytest.mark.parametrize("dtype", [pytest.param("fp16", marks=pytest.mark.slow), "bf16"])
def test_channels_last_halves(dtype):
    args = head_outputs(FPN_SIZES[2:], dtype=DTYPES[dtype], channels_last=True)
    check_candidates(args, ProposalSpec(pre_nms_top_n=1000, score_thresh=0.3, min_size=0.0))


def test_vgg16_head_with_thousands_of_candidates():
    args = head_outputs([(37, 62)], num_anchors=9, softmax=True, stride=(16, 16))
    assert args[1][0].numel() == 4 * 20_646
    check_candidates(args, ProposalSpec(pre_nms_top_n=3000, min_size=0.0))


def test_a_million_anchors_in_more_blocks_than_one_load_of_counts():
    args = head_outputs([(1024, 1030)], num_anchors=1, dtype=torch.bfloat16)
    check_candidates(args, ProposalSpec(pre_nms_top_n=300, min_size=0.0))


@SETTINGS
@given(problems())
def test_candidates_of_hard_cases(problem):
    args, spec = problem
    check_candidates(args, spec)


def test_levels_of_different_dtypes_and_heads():
    first = head_outputs([(5, 6)], batch=2, softmax=True, dtype=torch.float16)
    second = head_outputs([(4, 3)], batch=2)
    args = [[*one, *other] for one, other in zip(first[:4], second[:4], strict=True)]
    check_candidates(HeadOutputs(*args, first[4]), ProposalSpec(pre_nms_top_n=30, min_size=0.0))


def test_softmax_heads_have_all_bits_beside_heads_that_have_sixteen():
    # In every other image the lower bits of a softmax head's logits decide.
    softmax = head_outputs([(36, 36)], batch=4, softmax=True, dtype=torch.bfloat16)
    sigmoid = head_outputs([(4, 3)], batch=4, dtype=torch.bfloat16)
    for levels in ((softmax, sigmoid), (sigmoid, softmax)):
        args = [[part for level in levels for part in level[i]] for i in range(4)]
        check_candidates(
            HeadOutputs(*args, softmax[4]), ProposalSpec(pre_nms_top_n=300, min_size=0.0)
        )


def test_an_empty_level_between_one_of_whole_blocks_and_another():
    args = head_outputs([(64, 64), (0, 5), (9, 7)], batch=2, num_anchors=1)
    parts = check_candidates(args, ProposalSpec(pre_nms_top_n=100, min_size=0.0))
    check_nms(parts, (100, 0, 63), 0.5, 50)


def test_arguments_of_any_strides():
    args = head_outputs([(5, 6), (3, 2)], batch=3)
    table = torch.zeros(3, 12, dtype=torch.int64)
    table[:, -2:] = args[4]
    base = [anchors.t().contiguous().t() for anchors in args[2]]
    parts = check_candidates(
        args._replace(base_anchors=base, image_sizes=table[:, -2:]),
        ProposalSpec(pre_nms_top_n=30, min_size=0.0),
    )
    spread = Candidates(*(torch.stack((part, part), dim=-1)[..., 0] for part in parts))
    assert not any(part.is_contiguous() for part in spread)
    check_nms(spread, (30, 18), 0.5, 20)


def test_all_scores_equal():
    args = head_outputs([(70, 70), (9, 9)], batch=2)
    for logits in args[0]:
        logits.fill_(0.25)
    boxes, _, anchors = check_candidates(args, ProposalSpec(pre_nms_top_n=500, min_size=0.0))
    assert anchors[0, :500].tolist() == list(range(500))
    assert boxes.isfinite().all()


@pytest.mark.parametrize(("batch", "size"), [(0, (4, 5)), (2, (0, 5))], ids=["images", "cells"])
def test_nothing_in_gives_nothing_out(batch, size):
    args = HeadOutputs(
        [torch.randn(batch, 3, *size)],
        [torch.randn(batch, 12, *size)],
        [torch.zeros(3, 4)],
        [(4, 4)],
        torch.ones(batch, 2),
    )
    parts = check_candidates(args, ProposalSpec(pre_nms_top_n=10, min_size=0.0))
    check_nms(parts, (parts[1].shape[1],), 0.7, 6)


@SETTINGS
@given(
    st.lists(st.integers(0, 150), min_size=1, max_size=3),
    st.sampled_from([1, 5, 64, 65, 300]),
    st.sampled_from([0.01, 0.5, 0.7, 1.0]),
    st.booleans(),
    st.sampled_from([None, 2]),
    st.sampled_from([0.0, 0.2, 1.0]),
    st.integers(0, 999),
)
def test_nms_on_random_cases(sizes, top, thresh, integer, steps, rejected, seed):
    torch.manual_seed(seed)
    made = candidates(sizes, batch=2, span=100.0, integer=integer, steps=steps, rejected=rejected)
    check_nms(made, sizes, thresh, top)


@pytest.mark.slow  # the smaller chunks below take the same path
def test_nms_in_two_chunks_of_the_shipped_size():
    count = nms_module.CHUNK + 52
    assert check_nms(candidates([count], span=900.0), [count], 0.5, count).count.item() > 1500


def test_nms_that_has_enough_after_some_chunks(monkeypatch):
    monkeypatch.setattr(nms_module, "CHUNK", 256)
    result = check_nms(candidates([900], span=500.0), [900], 0.5, 300)
    assert result.count.item() == 300


def test_every_kept_box_suppresses_in_later_chunks(monkeypatch):
    monkeypatch.setattr(nms_module, "CHUNK", 128)
    apart = [[20 * i, 0, 20 * i + 10, 10] for i in range(128)]
    assert check_nms(from_boxes(apart * 3), [384], 0.5, 384).count.item() == 128


@pytest.mark.parametrize("n", [64, 65, 200])
def test_a_chain_of_suppressions_of_full_length(n):
    chain = from_boxes([[i, 0, i + 1.9, 1] for i in range(n)])
    assert check_nms(chain, [n], 0.2, n).count.item() == (n + 1) // 2


@pytest.mark.parametrize(
    "boxes",
    [
        [[0, 0, 8, 10], [2, 0, 10, 10]],
        [[5, 5, 5, 5]] * 3 + [[5, 5, 9, 5]] * 2,
        [[0, 0, 1e9, 1e9], [0, 0, 1e9, 0.99e9]],
        [[0, 0, 1e19, 1e19], [0, 0, 1e19, 1e19]],
    ],
    ids=["at-threshold", "no-area", "huge", "area-beyond-float32"],
)
def test_odd_boxes(boxes):
    check_nms(from_boxes(boxes), [len(boxes)], 0.6, len(boxes))


def test_integer_boxes_whose_iou_a_reciprocal_would_flip():
    # IoUs that are 0.7 exactly in float32, and one step to either side, among small fractions.
    side = torch.arange(1, 101)
    inner = (side * 7 // 10).clamp(min=1)
    pairs = torch.stack((torch.zeros(100), torch.zeros(100), side, torch.ones(100)), 1)
    others = torch.stack((torch.zeros(100), torch.zeros(100), inner, torch.ones(100)), 1)
    boxes = torch.stack((pairs, others), 1).reshape(200, 4)
    # Pairs stand far apart, so that each box meets its own partner only.
    boxes[:, 1::2] += torch.arange(100).repeat_interleave(2)[:, None] * 10
    result = check_nms(from_boxes(boxes.tolist()), [200], 0.7, 200)
    assert 100 < result.count.item() < 200


HARD_COORDINATES = (
    *(0.0, 1.0, 2.0, 3.0, 7.0, 10.0, -5.0, 1e-23, 2e-23, 3e-23, 1e-22, 7e-23),
    *(1e19, 0.7e19, 3e38, float("inf"), -float("inf"), float("nan")),
)


@pytest.mark.parametrize("thresh", [1e-46, 1e-40, 0.5, 0.7, 1.0])
def test_boxes_of_no_normal_size(thresh):
    # Of areas that are 0, subnormal, infinite or not numbers, and turned over; thresholds, too,
    # that are 0 or subnormal in float32. Only a division tells what their IoUs round to.
    torch.manual_seed(0)
    for coordinates in (HARD_COORDINATES, HARD_COORDINATES[:6], HARD_COORDINATES[7:12]):
        for _ in range(2):
            draw = torch.randint(len(coordinates), (50, 4))
            check_nms(from_boxes(torch.tensor(coordinates)[draw].tolist()), [50], thresh, 50)


@pytest.mark.parametrize("thresh", [0.3, 0.7, 1 / 3])
def test_ious_next_to_the_threshold(thresh):
    # Pairs by themselves, each a box and its left part, whose IoU is one of the floats around.
    sides = torch.rand(40) * 100 + 1
    parts = sides * thresh
    for steps in range(-2, 3):
        towards = torch.full_like(parts, 1e9 if steps > 0 else 0.0)
        near = parts
        for _ in range(abs(steps)):
            near = torch.nextafter(near, towards)
        y = torch.arange(40.0) * 2
        zero, one = torch.zeros(40), y + 1
        pairs = torch.stack(
            (torch.stack((zero, y, sides, one), 1), torch.stack((zero, y, near, one), 1)), 1
        )
        check_nms(from_boxes(pairs.reshape(80, 4).tolist()), [80], thresh, 80)


class RefuseSynchronisation(TorchDispatchMode):
    """Raises at operations that wait for a device, or whose output's shape depends on data."""

    REFUSED = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "is_nonzero",
        "equal",
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        boolean = name.startswith("index") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8)
            for index in (args[1] if isinstance(args[1], list | tuple) else [])
        )
        if name in self.REFUSED or boolean:
            raise AssertionError(f"{name} synchronises")
        return func(*args, **(kwargs or {}))


def test_launchers_never_wait_for_the_device():
    args = head_outputs([(9, 7), (3, 2)], batch=2)
    with RefuseSynchronisation():
        parts = propose_module.select_candidates_triton(args, LIMITS)
        nms_module.nms_triton(parts, (20, 18), LIMITS)


def test_launchers_read_nothing_back(monkeypatch):
    # Tensors without data: what asks for a value, by whatever way, fails.
    launched = []

    class Launch:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            assert all(isinstance(side, int) for side in grid)
            return lambda *args, **options: launched.append(self.name)

    for module in (propose_module, nms_module, preprocess_module):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Launch(name))
    args = head_outputs([(9, 7), (3, 2)], batch=2).to("meta")
    args = args._replace(image_sizes=torch.empty(2, 2, device="meta"))
    parts = propose_module.select_candidates_triton(args, LIMITS)
    nms_module.nms_triton(parts, (20, 18), LIMITS)
    data, table, matrix = (tensor.to("meta") for tensor in lay_out([Picture(8, 8, (8, 8))]))
    mean, out = torch.empty(3, device="meta"), torch.empty(1, 3, 8, 8, device="meta")
    preprocess_module.preprocess_triton(data, table, matrix, mean, mean, out, antialias=False)
    assert len(launched) == 3 + 4 + 3 + 1


def test_the_refusing_mode_refuses():
    with RefuseSynchronisation():
        for wait in (lambda t: t.sum().item(), lambda t: t[t > 0], lambda t: t.nonzero()):
            with pytest.raises(AssertionError, match="synchronises"):
                wait(torch.ones(3))


def test_repeated_runs_give_the_same_bits():
    args = head_outputs([(20, 20)], batch=2, steps=2)
    runs = [
        propose_module.select_candidates_triton(args, ProposalSpec(pre_nms_top_n=100, min_size=0.0))
        for _ in range(2)
    ]
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)
