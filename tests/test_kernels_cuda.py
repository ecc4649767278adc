"""The proposal stage on a GPU equals the references on the CPU bit for bit, and never waits."""

import warnings
from dataclasses import replace

import pytest
import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.models.detection.image_list import ImageList

from stream_rpn.fusion import fuse, unfuse
from stream_rpn.kernels import dispatch, propose_triton
from stream_rpn.kernels.generate import generate_proposals
from stream_rpn.kernels.nms import nms
from stream_rpn.kernels.proposals import ProposalSpec
from tests.agreement import assert_same_selection, expectations, scored
from tests.proposal_cases import DTYPES, FPN_SIZES, candidates, head_outputs

pytestmark = pytest.mark.needs_cuda

SPEC = ProposalSpec(1000, 1000, nms_thresh=0.7, score_thresh=0.1, min_size=1.0)


@pytest.fixture(autouse=True)
def _no_silent_fallback():
    """A kernel that fails and falls back to the reference fails the test."""
    dispatch._broken.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield
    dispatch._broken.clear()


def assert_same(got, expected):
    for name, one, other in zip(expected._fields, got, expected, strict=True):
        assert torch.equal(one.cpu(), other.cpu()), name


@pytest.mark.parametrize("softmax", [False, True], ids=["sigmoid", "softmax"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_equal_to_the_reference(dtype, channels_last, softmax):
    args = head_outputs(
        FPN_SIZES, batch=3, dtype=dtype, channels_last=channels_last, softmax=softmax
    )
    assert_same(generate_proposals(args.to("cuda"), SPEC), generate_proposals(args, SPEC))


@pytest.mark.parametrize("steps", [None, 1, 4], ids=["few-ties", "many-ties", "ties"])
@pytest.mark.parametrize("k", [6000, 12_000])
def test_vgg16_with_large_k(k, steps):
    args = head_outputs([(37, 62)], batch=2, num_anchors=9, softmax=True, steps=steps)
    spec = replace(SPEC, pre_nms_top_n=k, post_nms_top_n=2000)
    assert_same(generate_proposals(args.to("cuda"), spec), generate_proposals(args, spec))


def test_a_million_anchors_in_a_level():
    args = head_outputs([(1000, 1000)], num_anchors=1)
    spec = replace(SPEC, pre_nms_top_n=12_000)
    assert_same(generate_proposals(args.to("cuda"), spec), generate_proposals(args, spec))


def test_sixty_four_images_with_twelve_thousand_candidates_stay_in_memory():
    made = candidates([12_000], batch=64, span=2000.0)
    on_device = type(made)(*(tensor.cuda() for tensor in made))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    nms(on_device, [12_000], ProposalSpec(nms_thresh=0.7, post_nms_top_n=2000))
    assert torch.cuda.max_memory_allocated() - before < 128 * 2**20


@pytest.mark.parametrize("integer", [False, True], ids=["float", "integer"])
@pytest.mark.parametrize("thresh", [0.3, 0.5, 0.7])
def test_nms_equal_to_the_reference(thresh, integer):
    sizes = (1000, 2048, 2049, 0, 63)
    made = candidates(sizes, batch=4, integer=integer, steps=8)
    spec = ProposalSpec(nms_thresh=thresh, post_nms_top_n=1000)
    on_device = type(made)(*(tensor.cuda() for tensor in made))
    assert_same(nms(on_device, sizes, spec), nms(made, sizes, spec))


def test_never_waits_for_the_device():
    args = head_outputs(FPN_SIZES, batch=2).to("cuda")
    generate_proposals(args, SPEC)
    torch.cuda.set_sync_debug_mode("error")
    try:
        generate_proposals(args, SPEC)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_replays_from_a_graph_with_new_inputs():
    args = head_outputs(FPN_SIZES, batch=2).to("cuda")
    generate_proposals(args, SPEC)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        captured = generate_proposals(args, SPEC)
    fresh = head_outputs(FPN_SIZES, batch=2)
    for static, new in zip((*args[0], *args[1]), (*fresh[0], *fresh[1]), strict=True):
        static.copy_(new)
    graph.replay()
    assert_same(captured, generate_proposals(fresh, SPEC))


def test_same_bits_from_run_to_run_and_alone():
    args = head_outputs(FPN_SIZES, batch=8, steps=16).to("cuda")
    together = generate_proposals(args, SPEC)
    for _ in range(20):
        assert_same(generate_proposals(args, SPEC), together)
    alone = generate_proposals(args.image(5), SPEC)
    assert_same(alone, type(together)(*(tensor[5:6] for tensor in together)))


def test_a_failing_kernel_is_reported_once_and_replaced(monkeypatch):
    def fail(*args):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(propose_triton, "select_candidates_triton", fail)
    args = head_outputs([(9, 7)])
    with pytest.warns(RuntimeWarning, match="select_candidates failed.*no such instruction"):
        got = generate_proposals(args.to("cuda"), SPEC)
    assert_same(got, generate_proposals(args, SPEC))
    # A second warning would be an error here.
    generate_proposals(args.to("cuda"), SPEC)


@torch.inference_mode()
def test_a_fused_detector_proposes_what_torchvisions_does():
    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    torch.nn.init.normal_(model.rpn.head.cls_logits.weight, std=0.2)
    torch.nn.init.normal_(model.rpn.head.bbox_pred.weight, std=0.05)
    model.cuda().eval()
    maps = {str(i): torch.randn(2, 256, 10 >> i // 2, 14 >> i // 2).cuda() for i in range(3)}
    images = ImageList(torch.empty(2, 3, 320, 448, device="cuda"), [(320, 430), (300, 448)])
    ours, _ = fuse(model).rpn(images, maps)
    theirs, _ = unfuse(model).rpn(images, maps)
    rpn = model.rpn
    heads = [[level.cpu() for level in levels] for levels in rpn.head(list(maps.values()))]
    facts = expectations(
        lambda: heads,
        [base.cpu() for base in rpn.anchor_generator.cell_anchors],
        [(320 // m.shape[2], 448 // m.shape[3]) for m in maps.values()],
        torch.tensor(images.image_sizes),
        pre_nms_top_n=rpn.pre_nms_top_n(),
        post_nms_top_n=rpn.post_nms_top_n(),
        nms_thresh=rpn.nms_thresh,
        score_thresh=rpn.score_thresh,
        min_size=rpn.min_size,
    )
    for mine, other, (limits, known) in zip(ours, theirs, facts, strict=True):
        assert min(len(mine), len(other)) > 50
        sides = [scored(boxes.cpu(), limits, known) for boxes in (mine, other)]
        assert_same_selection(*sides, limits, known)
