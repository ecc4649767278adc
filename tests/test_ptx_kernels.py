"""The kernels as compiled for an H100, on hard cases: the references' bits, and no race.

What Triton's interpreter cannot show is shown here: what the compiler makes of a kernel, of every
specialisation that a launch asks for; where its threads exchange values, and whether they wait.
"""

import os

import pytest
import torch

pytest.importorskip("triton")

from stream_rpn.kernels import nms_triton as nms_module
from stream_rpn.kernels import trial
from stream_rpn.kernels.depthwise_reference import depthwise_reference
from stream_rpn.kernels.depthwise_triton import depthwise_triton
from stream_rpn.kernels.nms_reference import nms_reference
from stream_rpn.kernels.nms_triton import nms_triton
from stream_rpn.kernels.proposals import ProposalSpec
from stream_rpn.kernels.propose_reference import select_candidates_reference
from stream_rpn.kernels.propose_triton import select_candidates_triton
from tests.epilogue_cases import maps
from tests.preprocess_oracle import Picture
from tests.proposal_cases import (
    DTYPES,
    FPN_SIZES,
    HARD_LOGITS,
    candidates,
    from_boxes,
    head_outputs,
)
from tests.ptx import launcher
from tests.test_depthwise import weights
from tests.test_preprocess_interpreted import run as check_preprocessing

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted in this process"
    ),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def launches():
    """Launches of the test, on a simulated GPU; what is not initialised holds NaN or the like."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    with launcher.simulated() as found:
        yield found
    torch.use_deterministic_algorithms(False)


def assert_same_bits(found, expected):
    for name, one, other in zip(expected._fields, found, expected, strict=True):
        assert torch.equal(one.view(torch.int32), other.view(torch.int32)), name


def check_candidates(heads, spec):
    expected = select_candidates_reference(heads, spec)
    found = select_candidates_triton(heads, spec)
    # A candidate's logit of −0 may come out as 0, which is as good and has the same probability.
    same_zeros = (made._replace(logits=made.logits + 0.0) for made in (found, expected))
    assert_same_bits(*same_zeros)
    return expected


def check_nms(given, sizes, nms_thresh, post_nms_top_n):
    spec = ProposalSpec(nms_thresh=nms_thresh, post_nms_top_n=post_nms_top_n)
    expected = nms_reference(given, sizes, spec)
    assert_same_bits(nms_triton(given, sizes, spec), expected)
    return expected


# Levels of most tests have 128 to 255 candidates, of which the compiler makes one kernel: these are
# small, and the kernels take longer to compile than to run.


def hard_heads(sizes, seed, *, share=0.3, **options):
    """Returns head outputs a share of which is odd, and some deltas, too."""
    torch.manual_seed(seed)
    heads = head_outputs(sizes, batch=2, steps=4, stride=(7, 5), **options)
    for tensors, odd, part in (
        (heads.objectness, HARD_LOGITS, share),
        (heads.deltas, (torch.nan, torch.inf, -torch.inf, 60.0), 0.1),
    ):
        for tensor in tensors:
            odd_ones = torch.tensor(odd)[torch.randint(len(odd), tensor.shape)]
            where = torch.rand(tensor.shape) < part
            tensor.copy_(torch.where(where, odd_ones.to(tensor.dtype), tensor))
    return heads


@pytest.mark.parametrize("softmax", [False, True], ids=["sigmoid", "softmax"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_hard_logits_of_every_head(dtype, softmax):
    layout = {"channels_last": (dtype == torch.float16) != softmax}
    heads = hard_heads([(9, 7), (4, 5)], seed=1, dtype=dtype, softmax=softmax, **layout)
    spec = ProposalSpec(150, score_thresh=0.5 * softmax, min_size=1.0)
    given = check_candidates(heads, spec)
    check_nms(given, heads.level_sizes(150), 0.5, 150)


def test_ties_over_several_blocks():
    torch.manual_seed(0)
    heads = head_outputs([(46, 47), (9, 9)], batch=2, steps=1, channels_last=True)
    heads.objectness[0][1] = 0.25
    heads.deltas[0].zero_()
    anchors = check_candidates(heads, ProposalSpec(pre_nms_top_n=300)).anchors
    assert anchors[1, :300].tolist() == list(range(300))


@pytest.mark.parametrize("num_anchors", [[3, 3, 3, 3, 3], [1, 2]], ids=str)
def test_heads_of_the_trial(num_anchors):
    heads = trial.hard_heads(num_anchors, 150, torch.bfloat16)
    given = check_candidates(heads, ProposalSpec(pre_nms_top_n=150))
    check_nms(given, heads.level_sizes(150), 0.7, 150)


@pytest.mark.parametrize(
    ("sizes", "top", "thresh", "options"),
    [
        ([150, 65], 300, 0.5, {"span": 100.0}),
        ([0, 150], 200, 0.5, {"span": 100.0}),
        ([64, 130], 150, 0.7, {"span": 60.0, "integer": True, "steps": 2}),
        ([130, 1], 150, 1.0, {"rejected": 0.0}),
        ([90, 140], 150, 0.01, {"rejected": 1.0}),
        ([250, 200], 250, 0.7, {"span": 700.0, "rejected": 0.0}),
    ],
    ids=["levels", "an-empty-level", "ties", "one", "all-rejected", "most-kept"],
)
def test_suppression(sizes, top, thresh, options):
    torch.manual_seed(0)
    check_nms(candidates(sizes, batch=2, **options), sizes, thresh, top)


def test_suppression_chunk_after_chunk(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(nms_module, "CHUNK", 256)
    check_nms(candidates([600, 300], span=300.0), [600, 300], 0.5, 150)


def test_a_chain_of_suppressions_of_full_length():
    chain = from_boxes([[i, 0, i + 1.9, 1] for i in range(200)])
    assert check_nms(chain, [200], 0.2, 200).count.item() == 100


@pytest.mark.parametrize("thresh", [1e-40, 0.7, 1.0])
def test_boxes_of_no_normal_size(thresh):
    # Of areas that are 0, subnormal, infinite or not numbers, and turned over.
    torch.manual_seed(0)
    inf, nan = torch.inf, torch.nan
    odd = torch.tensor([0, 1, 2, 3, 7, -5, 1e-23, 2e-23, 7e-23, 1e19, 3e38, inf, -inf, nan])
    boxes = torch.cat([part[torch.randint(len(part), (45, 4))] for part in (odd[:6], odd[6:], odd)])
    check_nms(from_boxes(boxes.tolist()), [135], thresh, 135)


def test_ious_next_to_the_threshold():
    # Pairs by themselves, each a box and its left part, whose IoU is one of the floats around.
    sides = torch.rand(80) * 100 + 1
    y = torch.arange(80.0) * 2
    for towards, steps in ((0.0, 1), (1e9, 0), (1e9, 1)):
        near = sides * 0.7
        for _ in range(steps):
            near = torch.nextafter(near, torch.full_like(near, towards))
        corners = [torch.stack((0 * y, y, right, y + 1), dim=1) for right in (sides, near)]
        boxes = torch.stack(corners, dim=1).reshape(160, 4)
        check_nms(from_boxes(boxes.tolist()), [160], 0.7, 160)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_every_pixel_format(rotation):
    size = (21, 37) if rotation % 180 == 0 else (37, 21)
    formats = [
        Picture(29, 43, size, rotation, sample_bytes, interleaved, slack=3)
        for sample_bytes in (1, 2)
        for interleaved in (False, True)
    ]
    check_preprocessing(formats, (40, 39))


@pytest.mark.parametrize(
    ("dtype", "channels_last", "antialias"),
    [
        (torch.float16, False, False),
        (torch.bfloat16, True, False),
        (torch.bfloat16, True, True),
        pytest.param(torch.float32, True, False, marks=pytest.mark.slow),
        pytest.param(torch.float32, False, True, marks=pytest.mark.slow),
        pytest.param(torch.float16, False, True, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_pixels_in_every_dtype(dtype, channels_last, antialias):
    pictures = [
        Picture(60, 44, (32, 40), interleaved=True),
        Picture(17, 9, (32, 17), 90, 2, True),
        Picture(1, 1, (5, 3)),
        Picture(60, 5, (7, 2), 270, sample_bytes=2),
    ]
    check_preprocessing(pictures, (33, 64), dtype, channels_last, antialias)


def test_a_fourth_channel_of_zeros():
    pictures = [Picture(30, 44, (32, 40)), Picture(17, 9, (32, 17), 90, 2, True)]
    check_preprocessing(pictures, (32, 64), torch.bfloat16, True, channels=4)


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_stage_of_a_1080p_frame(dtype, channels_last, launches):
    heads = head_outputs(FPN_SIZES, dtype=dtype, channels_last=channels_last)
    given = check_candidates(heads, ProposalSpec(pre_nms_top_n=1000))
    check_nms(given, heads.level_sizes(1000), 0.7, 1000)
    assert sum(launch.counts.instructions for launch in launches) > 1_000_000


@pytest.mark.slow
def test_suppression_in_two_chunks():
    torch.manual_seed(0)
    size = trial.MOST_CANDIDATES + 200
    check_nms(candidates([size], span=900.0), [size], 0.5, size)


@pytest.mark.slow
@pytest.mark.parametrize("antialias", [False, True], ids=["bilinear", "antialias"])
def test_the_pixels_of_a_1080p_frame(antialias):
    frame = Picture(1080, 1920, (749, 1333), interleaved=True, slack=64)
    check_preprocessing([frame], (768, 1344), torch.bfloat16, True, antialias)


@pytest.mark.parametrize(
    ("dtype", "channels", "side", "stride"),
    [
        (torch.bfloat16, 24, 3, 2),
        (torch.bfloat16, 58, 3, 1),
        (torch.bfloat16, 116, 5, 2),
        (torch.bfloat16, 96, 5, 1),
        (torch.float16, 7, 3, 1),
        (torch.float32, 70, 3, 1),
    ],
    ids=str,
)
def test_depthwise_convolutions(dtype, channels, side, stride):
    x, bias = maps(channels, dtype, (2, 3, 37))
    arguments = (weights(side, channels, dtype)[0], bias, "leaky_relu", 0.1, stride, side // 2)
    found, expected = depthwise_triton(x, *arguments), depthwise_reference(x, *arguments)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))
