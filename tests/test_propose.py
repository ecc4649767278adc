import math
from dataclasses import asdict, fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection import (
    fasterrcnn_mobilenet_v3_large_320_fpn,
    fasterrcnn_resnet50_fpn,
)
from torchvision.models.detection.rpn import concat_box_prediction_layers

from stream_rpn import anchors as anchor_ops
from stream_rpn.kernels.generate import best_of_all_levels, generate_proposals
from stream_rpn.kernels.nms import nms
from stream_rpn.kernels.proposals import HeadOutputs, ProposalSpec
from stream_rpn.kernels.propose import select_candidates
from stream_rpn.kernels.propose_reference import select
from tests.agreement import Selection, assert_same_selection, expectations, selections
from tests.proposal_cases import DTYPES, FPN_SIZES, head_outputs, problems

LIMITS = ProposalSpec(pre_nms_top_n=50, min_size=0.0)


def oracle(args, spec):
    """Candidates by Python's sort and float64 arithmetic, an anchor at a time."""
    objectness, deltas, base_anchors, strides, image_sizes = args
    images = []
    for image, (height, width) in enumerate(image_sizes.tolist()):
        slots = []
        for logits, delta, base, stride in zip(
            objectness, deltas, base_anchors, strides, strict=True
        ):
            a_count, (h, w) = len(base), logits.shape[2:]
            level = logits[image].float()
            if len(level) == 2 * a_count:
                level = level[1::2] - level[0::2]
            flat = level.permute(1, 2, 0).flatten().tolist()
            flat = [-math.inf if math.isnan(value) else value for value in flat]
            order = sorted(range(len(flat)), key=lambda n: (-flat[n], n))[: spec.pre_nms_top_n]
            grid = anchor_ops.grid(base, (h, w), stride).double()
            per_anchor = delta[image].double().permute(1, 2, 0).reshape(-1, 4)
            for n in order:
                x1, y1, x2, y2 = grid[n].tolist()
                dx, dy, dw, dh = per_anchor[n].tolist()
                cx, cy = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
                limit = math.log(1000 / 16)
                hw = (x2 - x1) / 2 * (math.exp(min(dw, limit)) if dw == dw else math.nan)
                hh = (y2 - y1) / 2 * (math.exp(min(dh, limit)) if dh == dh else math.nan)
                box = (cx - hw, cy - hh, cx + hw, cy + hh)
                finite = all(math.isfinite(side) for side in box)
                box = [
                    min(max(side, 0.0), bound)
                    for side, bound in zip(box, (width, height) * 2, strict=True)
                ]
                probability = 1 / (1 + math.exp(-max(min(flat[n], 80.0), -80.0)))
                kept = finite and flat[n] > -math.inf and probability >= spec.score_thresh
                kept = kept and min(box[2] - box[0], box[3] - box[1]) >= spec.min_size
                slots.append((box, flat[n], n) if kept else ([0.0] * 4, -math.inf, -1))
        images.append(slots)
    return images


@settings(max_examples=60, deadline=None)
@given(problems())
def test_candidates_are_the_oracles(problem):
    args, spec = problem
    got = select_candidates(args, spec)
    for image, slots in enumerate(oracle(args, spec)):
        assert got.anchors[image].tolist() == [n for _, _, n in slots]
        assert got.logits[image].tolist() == [logit for _, logit, _ in slots]
        expected = torch.tensor([box for box, _, _ in slots], dtype=torch.float64).reshape(-1, 4)
        # Float32 steps at the size of the numbers met: below 63 sides of a 100 pixel anchor.
        assert ((got.boxes[image].double() - expected).abs() <= 8 * 2**-24 * 16_384).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([None, 1, 3]), st.integers(0, 99))
def test_select_is_a_stable_sort(n, k, steps, seed):
    torch.manual_seed(seed)
    logits = torch.randn(3, n)
    if steps is not None:
        logits = (logits * steps).round() / steps
    logits[1] = -torch.inf
    expected = logits.sort(dim=1, descending=True, stable=True)
    assert torch.equal(select(logits, min(k, n)), expected.indices[:, :k])


def test_fpn_of_a_1080p_frame():
    args = head_outputs(FPN_SIZES)
    assert sum(logits.numel() for logits in args[0]) == 257_796
    sizes = args.level_sizes(1000)
    assert sizes == (1000, 1000, 1000, 1000, 756)
    got = select_candidates(args, ProposalSpec(pre_nms_top_n=1000, min_size=0.0))
    assert got.boxes.shape == (1, 4756, 4)
    for level, logits in zip(got.logits[0].split(sizes), args[0], strict=True):
        assert torch.equal(level, logits.flatten().sort(descending=True).values[: len(level)])


@pytest.mark.parametrize("softmax", [False, True], ids=["sigmoid", "softmax"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_memory_format_and_views_do_not_matter(dtype, softmax):
    args = head_outputs([(9, 7), (4, 5)], batch=2, dtype=dtype, softmax=softmax, steps=4)
    expected = select_candidates(args, LIMITS)

    def embed(tensor):
        b, c, h, w = tensor.shape
        larger = torch.full((w, b + 1, h, c + 2), 77.0, dtype=dtype)
        view = larger.permute(1, 3, 2, 0)[1:, 1 : c + 1]
        view.copy_(tensor)
        return view

    formats = (
        lambda tensor: tensor.to(memory_format=torch.channels_last),
        embed,
    )
    for change in formats:
        objectness, deltas = ([change(tensor) for tensor in tensors] for tensors in args[:2])
        got = select_candidates(args._replace(objectness=objectness, deltas=deltas), LIMITS)
        for one, other in zip(got, expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_an_image_has_the_same_bits_alone_and_in_a_batch(channels_last):
    args = head_outputs([(19, 23), (7, 5)], batch=5, channels_last=channels_last)
    spec = ProposalSpec(pre_nms_top_n=333, post_nms_top_n=100, nms_thresh=0.7, min_size=0.0)
    together = generate_proposals(args, spec)
    for image in range(5):
        alone = generate_proposals(args.image(image), spec)
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(one, other[image : image + 1])


def test_softmax_logit_is_object_minus_background_interleaved():
    # Anchor 8 of 9 (one-based) owns objectness channels 15|16 and delta channels 29–32.
    objectness, deltas = torch.zeros(1, 18, 2, 2), torch.zeros(1, 36, 2, 2)
    objectness[0, 15, 1, 0] = 5.0
    deltas[0, 28, 1, 0] = 0.5
    base = anchor_ops.scale_major([128.0, 256.0, 512.0], [1.0, 0.5, 2.0])
    heads = HeadOutputs([objectness], [deltas], [base], [(16, 16)], torch.tensor([[2000, 2000]]))
    got = select_candidates(heads, replace(LIMITS, pre_nms_top_n=1))
    assert got.anchors.tolist() == [[(1 * 2 + 0) * 9 + 7]]
    assert got.logits.tolist() == [[5.0]]
    width = float(base[7, 2] - base[7, 0])
    assert got.boxes[0, 0, 2].item() == pytest.approx(0.5 * width + width / 2)


def test_score_threshold_keeps_equality():
    args = head_outputs([(2, 2)], num_anchors=1)
    args[0][0].copy_(torch.tensor([0.0, -0.001, 0.001, -3.0]).view(1, 1, 2, 2))
    got = select_candidates(args, ProposalSpec(pre_nms_top_n=4, score_thresh=0.5, min_size=0.0))
    assert got.anchors.tolist() == [[2, 0, -1, -1]]


def test_small_boxes_are_marked_in_place():
    args = head_outputs([(3, 3)], num_anchors=1)
    args[1][0].zero_()
    args[1][0][0, 2, 1, 1] = -20.0
    got = select_candidates(args, ProposalSpec(pre_nms_top_n=9, min_size=1.0))
    slot = args[0][0].flatten().argsort(descending=True).tolist().index(4)
    assert got.anchors[0, slot] == -1
    assert got.logits[0, slot] == -torch.inf
    assert (got.boxes[0, slot] == 0).all()
    assert (got.anchors[0] >= 0).sum() == 8


@pytest.mark.parametrize(
    ("batch", "sizes", "num_anchors"),
    [(0, [(4, 5)], 3), (2, [(0, 5)], 3), (2, [(4, 5)], 0), (2, [(4, 5), (1, 0)], 2)],
    ids=["no-images", "no-cells", "no-anchors", "one-empty-level"],
)
def test_nothing_in_gives_nothing_out(batch, sizes, num_anchors):
    args = HeadOutputs(
        [torch.randn(batch, num_anchors, h, w) for h, w in sizes],
        [torch.randn(batch, 4 * num_anchors, h, w) for h, w in sizes],
        [torch.tensor([[-8.0, -8.0, 8.0, 8.0]]).expand(num_anchors, 4) for _ in sizes],
        [(4, 4)] * len(sizes),
        torch.full((batch, 2), 64),
    )
    got = generate_proposals(args, ProposalSpec(10, 6, nms_thresh=0.7, min_size=0.0))
    assert [tuple(tensor.shape) for tensor in got] == [
        (batch, 6, 4),
        (batch, 6),
        (batch, 6),
        (batch, 6),
        (batch,),
    ]
    if len(sizes) == 1:
        assert (got.count == 0).all()
        assert (got.anchors == -1).all()


def spread(maps, scale):
    """A fresh head gives all anchors the same; this is its output with a spread of `scale`."""
    maps = [level + level.std() * torch.randn_like(level) for level in maps]
    return [level / level.std() * scale for level in maps]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("builder", "size"),
    [
        (fasterrcnn_resnet50_fpn, (160, 224)),
        pytest.param(fasterrcnn_mobilenet_v3_large_320_fpn, (160, 224), marks=pytest.mark.numeric),
    ],
    ids=["resnet50_fpn", "mobilenet_v3_large_320_fpn"],
)
def test_equal_to_torchvisions_rpn(builder, size, batch):
    torch.manual_seed(0)
    model = builder(weights=None, weights_backbone=None, min_size=256, max_size=400).eval()
    rpn = model.rpn
    with torch.inference_mode():
        images, _ = model.transform([torch.rand(3, *size) for _ in range(batch)])
        features = list(model.backbone(images.tensors).values())
        objectness, deltas = rpn.head(features)
        objectness, deltas = spread(objectness, 2.0), spread(deltas, 0.3)
        anchors = rpn.anchor_generator(images, features)
        per_level = [logits[0].numel() for logits in objectness]
        flat, flat_deltas = concat_box_prediction_layers(objectness, deltas)
        decoded = rpn.box_coder.decode(flat_deltas, anchors).view(batch, -1, 4)
        their_boxes, their_scores = rpn.filter_proposals(
            decoded, flat, images.image_sizes, per_level
        )
    height, width = images.tensors.shape[-2:]
    heads = HeadOutputs(
        objectness,
        deltas,
        list(rpn.anchor_generator.cell_anchors),
        [(height // f.shape[2], width // f.shape[3]) for f in features],
        torch.tensor(images.image_sizes),
    )
    spec = ProposalSpec(
        pre_nms_top_n=rpn.pre_nms_top_n(),
        post_nms_top_n=rpn.post_nms_top_n(),
        nms_thresh=rpn.nms_thresh,
        score_thresh=rpn.score_thresh,
        min_size=rpn.min_size,
    )
    ours = selections(generate_proposals(heads, spec))
    expected = expectations(
        lambda: (objectness, deltas),
        heads.base_anchors,
        heads.strides,
        heads.image_sizes,
        **asdict(spec),
    )
    for mine, boxes, scores, facts in zip(ours, their_boxes, their_scores, expected, strict=True):
        assert len(mine) > 50
        assert_same_selection(mine, Selection(boxes, scores), *facts)


def both_ways(args, spec):
    """The proposals by the short way, or None, and by `select_candidates` and `nms`."""
    short = best_of_all_levels(args, spec)
    sizes = args.level_sizes(spec.pre_nms_top_n)
    return short, nms(select_candidates(args, spec), sizes, spec)


@settings(max_examples=200, deadline=None)
@given(problem=problems(), post_nms_top_n=st.sampled_from([1, 2, 10]))
def test_the_short_way_ends_as_the_long_one_or_not_at_all(problem, post_nms_top_n):
    args, spec = problem
    spec = replace(spec, post_nms_top_n=post_nms_top_n, nms_thresh=0.5)
    short, whole = both_ways(args, spec)
    if short is not None:
        assert all(torch.equal(one, other) for one, other in zip(short, whole, strict=True))


@pytest.mark.parametrize("steps", [None, 4], ids=["distinct", "ties"])
def test_the_short_way_serves_the_default_model(steps):
    args = head_outputs(
        [(80, 144), (40, 72), (20, 36), (10, 18), (5, 9)], batch=2, channels_last=True, steps=steps
    )
    short, whole = both_ways(args, ProposalSpec(2000, 300, nms_thresh=0.5))
    assert short is not None
    assert all(torch.equal(one, other) for one, other in zip(short, whole, strict=True))


def test_custom_op_passes_opcheck():
    objectness, deltas, base, strides, image_sizes = head_outputs([(5, 6), (2, 3)], batch=2)
    flat = [side for stride in strides for side in stride]
    torch.library.opcheck(
        torch.ops.stream_rpn.select_candidates.default,
        (objectness, deltas, base, flat, image_sizes, [20, 10], [0.7, 0.1, 1.0]),
    )


def test_compiles_as_one_graph():
    args = head_outputs([(9, 7), (4, 5)], batch=2)
    compiled = torch.compile(generate_proposals, fullgraph=True, backend="aot_eager")
    for spec in (
        ProposalSpec(40, 30, nms_thresh=0.5, min_size=0.0),
        ProposalSpec(35, 20, nms_thresh=0.6, score_thresh=0.2, min_size=2.0),
        ProposalSpec(30, 25, nms_thresh=0.7, score_thresh=0.1, min_size=1.0),
    ):
        for one, other in zip(compiled(args, spec), generate_proposals(args, spec), strict=True):
            assert torch.equal(one, other)


def test_proposals_carry_no_gradient():
    args = head_outputs([(4, 4)])
    args[1][0].requires_grad_()
    assert not select_candidates(args, LIMITS).boxes.requires_grad


def change(index, value):
    def apply(args):
        return args._replace(**{args._fields[index]: value(args[index])})

    return apply


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (change(0, lambda t: [t[0][:, :2], *t[1:]]), ValueError, r"objectness\[0\] must be"),
        (change(0, lambda t: [t[0][:1], *t[1:]]), ValueError, r"objectness\[0\] must be"),
        (change(0, lambda t: [t[0].long(), *t[1:]]), TypeError, r"objectness\[0\] must be float32"),
        (change(0, lambda t: t[:1]), ValueError, "same number of levels"),
        (change(0, lambda t: [None, *t[1:]]), TypeError, r"objectness\[0\] must be a tensor"),
        (change(0, lambda t: t[0]), TypeError, "objectness must be a list .* got Tensor"),
        (change(1, lambda t: [t[0][..., 1:], *t[1:]]), ValueError, r"deltas\[0\] must be"),
        (change(1, lambda t: [t[0].to("meta"), *t[1:]]), ValueError, "on the device of"),
        (change(2, lambda t: [t[0][:, :3], *t[1:]]), ValueError, r"must be \[A, 4\]"),
        (change(2, lambda t: [t[0] / 0, *t[1:]]), ValueError, "base_anchors must be finite"),
        (change(3, lambda t: [(0, 4), *t[1:]]), ValueError, r"strides\[0\] must be"),
        (change(3, lambda t: [4, *t[1:]]), ValueError, r"strides\[0\] must be"),
        (change(3, lambda t: None), TypeError, "strides must be a list"),
        (change(4, lambda t: t[:, :1]), ValueError, r"image_sizes must be \[B, 2\]"),
        (change(4, lambda t: t.tolist()), TypeError, "image_sizes must be a tensor"),
        (change(4, lambda t: t.cfloat()), TypeError, "image_sizes must be of a real dtype"),
    ],
)
def test_bad_arguments(spoil, error, words):
    args = head_outputs([(4, 5), (2, 3)], batch=2)
    with pytest.raises(error, match=words):
        select_candidates(spoil(args), LIMITS)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("pre_nms_top_n", 0, ValueError),
        ("pre_nms_top_n", 2.5, TypeError),
        ("score_thresh", 1.5, ValueError),
        ("score_thresh", math.nan, ValueError),
        ("score_thresh", "0.5", TypeError),
        ("min_size", -1.0, ValueError),
        ("nms_thresh", 0.0, ValueError),
        ("nms_thresh", True, TypeError),
        ("post_nms_top_n", 0, ValueError),
    ],
)
def test_bad_numbers(name, value, error):
    with pytest.raises(error, match=name):
        ProposalSpec(**{name: value})


def test_records_of_another_kind_are_refused():
    args = head_outputs([(4, 5)])
    with pytest.raises(TypeError, match="heads must be HeadOutputs, got tuple"):
        generate_proposals(tuple(args), LIMITS)
    with pytest.raises(TypeError, match="spec must be a ProposalSpec, got int"):
        generate_proposals(args, 50)


def test_limits_come_out_of_lists_as_they_went_in():
    # Every field has a value of its own, which is not its default.
    values = {
        field.name: 2 + place if isinstance(field.default, int) else 1 / (2 + place)
        for place, field in enumerate(fields(ProposalSpec))
    }
    spec = ProposalSpec(**values)
    counts, thresholds = spec.to_lists()
    assert [*counts, *thresholds] == list(values.values())
    assert ProposalSpec.from_lists(counts, thresholds) == spec


@pytest.mark.parametrize("more", [[], [7]], ids=["as it is", "with another count"])
def test_shapes_are_foreseen_from_the_counts(more):
    heads = head_outputs([(4, 5), (2, 3)], batch=2).to("meta")
    counts, thresholds = LIMITS.to_lists()
    lists = [[side for stride in heads.strides for side in stride], heads.image_sizes]
    ops = torch.ops.stream_rpn
    found = ops.select_candidates(*heads[:3], *lists, [*counts, *more], thresholds)
    slots = found[0].shape[1]
    kept = ops.nms(*found, [slots], [*counts, *more], thresholds)
    assert kept[0].shape == (2, LIMITS.post_nms_top_n, 4)
