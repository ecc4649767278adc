"""The Python interface: streams, images, pooling with RoIAlign, reading results back."""

import copy
import math
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision
from torch import nn

import stream_rpn
from stream_rpn import anchors, api
from stream_rpn.cli import main
from stream_rpn.frame import StreamRPNError
from stream_rpn.input_spec import InputSpec
from stream_rpn.rpn import RPN, ProposalSpec, RPNHead
from tests.synthetic_coco import write_dataset

SYNTHETIC = "synthetic:128x96@10,6"


@pytest.fixture(scope="module")
def rpn():
    return stream_rpn.load("mobilenet_v3_large_320_fpn", "random", size=96, top=50)


def test_stream_yields_every_frame_in_order(rpn):
    results = list(stream_rpn.stream(SYNTHETIC, model=rpn, top=20, dtype="float32"))
    assert [p.frame for p in results] == list(range(6))
    for p in results:
        assert 0 < len(p) <= 20
        assert p.boxes.shape == (len(p), 4)
        assert p.boxes.dtype == p.scores.dtype == np.float32
        assert p.levels.dtype == p.anchors.dtype == np.int32
        ratio = np.array([128 / p.input_size[1], 96 / p.input_size[0]] * 2)
        np.testing.assert_allclose(p.boxes, p.input_boxes * ratio, atol=1e-3)
        assert p.source == SYNTHETIC
        assert p.image is None
        assert p.features is None


def test_leaving_early_leaves_no_thread(rpn):
    before = set(threading.enumerate())
    for proposals in stream_rpn.stream("synthetic:128x96@10,500", model=rpn):
        if proposals.frame == 3:
            break
    assert set(threading.enumerate()) == before


def test_an_exception_of_the_caller_leaves_no_thread(rpn):
    before = set(threading.enumerate())

    def use() -> None:
        with stream_rpn.Pipeline(rpn).open(SYNTHETIC) as stream:
            for _ in stream:
                raise KeyError

    with pytest.raises(KeyError):
        use()
    assert set(threading.enumerate()) == before


def test_errors_of_the_source_reach_the_caller(rpn, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"x" * 1000)
    with pytest.raises(stream_rpn.StreamRPNError, match=r"bad\.mp4"):
        next(iter(stream_rpn.stream(tmp_path / "bad.mp4", model=rpn)))


def test_errors_of_the_network_reach_the_caller():
    class Broken(nn.Module):
        def forward(self, images):
            raise RuntimeError("the backbone is broken")

    broken = RPN(
        Broken(),
        RPNHead(8, 1),
        [torch.tensor([[-8.0, -8, 8, 8]])],
        input_spec=InputSpec(min_size=64, max_size=128),
    )
    with pytest.raises(RuntimeError, match="the backbone is broken"):
        list(stream_rpn.stream(SYNTHETIC, model=broken))


def test_pictures_and_features_on_request(rpn):
    first = next(iter(stream_rpn.stream(SYNTHETIC, model=rpn, images=True, features=True)))
    assert (first.image.width, first.image.height) == (128, 96)
    assert list(first.features) == ["0", "1", "pool"]
    assert first.features["0"].shape[0] == 256


def test_conversions(rpn):
    supervision = pytest.importorskip("supervision")
    first = next(iter(stream_rpn.stream(SYNTHETIC, model=rpn)))
    tensors = first.torch()
    assert tensors["boxes"].data_ptr() == first.boxes.ctypes.data
    assert first.numpy()["scores"] is first.scores
    detections = first.supervision()
    assert isinstance(detections, supervision.Detections)
    assert len(detections) == len(first)


def test_roi_align_pools_what_torchvisions_detector_pools():
    """Our boxes and maps through MultiScaleRoIAlign equal the detector's own pooling."""
    torch.manual_seed(0)
    detector = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None
    ).eval()
    ours = stream_rpn.load("mobilenet_v3_large_320_fpn", "random")
    state = {f"rpn.head.{k}": v for k, v in ours.head.state_dict().items()}
    detector.load_state_dict(state, strict=False)
    unfolded = stream_rpn.models.checkpoint.load_model(
        "mobilenet_v3_large_320_fpn", "random", fold=False
    )
    detector.backbone.load_state_dict(unfolded.backbone.state_dict(), strict=False)
    ours = stream_rpn.load(unfolded, top=30)

    proposals = next(iter(stream_rpn.stream(SYNTHETIC, model=ours, features=True, dtype="float32")))
    features = {name: m[None].float() for name, m in proposals.features.items()}
    boxes = [torch.from_numpy(proposals.input_boxes)]
    with torch.inference_mode():
        theirs = detector.roi_heads.box_roi_pool(features, boxes, [proposals.input_size])
        pool = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
        again = pool(features, boxes, [proposals.input_size])
        torch.testing.assert_close(theirs, again, rtol=0, atol=0)
        assert theirs.shape == (len(proposals), 256, 7, 7)
        # The stride in the result is the spatial scale that RoIAlign needs.
        stride = proposals.strides[0]
        assert stride == (32, 32)
        single = torchvision.ops.roi_align(
            features["0"], boxes, (7, 7), spatial_scale=1 / stride[0], sampling_ratio=2
        )
    torch.testing.assert_close(single, theirs, atol=1e-5, rtol=1e-5)


def test_images_give_what_torchvision_prepares(rpn):
    image = torch.randint(0, 256, (3, 120, 160), dtype=torch.uint8)
    proposals = stream_rpn.propose(image, model=rpn, top=40)
    assert (proposals.width, proposals.height) == (160, 120)
    assert 0 < len(proposals) <= 40
    from_array = stream_rpn.propose(image.permute(1, 2, 0).numpy(), model=rpn, top=40)
    np.testing.assert_array_equal(proposals.boxes, from_array.boxes)
    several = stream_rpn.propose([image, image[:, :60]], model=rpn, top=40)
    np.testing.assert_array_equal(several[0].boxes, proposals.boxes)
    assert several[1].height == 60


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=8, padding=1), nn.ReLU())
    spec = anchors.AnchorSpec(((16.0, 32.0),), (1.0,), order="scale-major", centre=4.0)
    return RPN(backbone, RPNHead(8, 2), spec, input_spec=InputSpec(64, 128, size_divisor=8))


def test_a_device_that_is_missing_is_told_before_weights_are_fetched(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(api, "load", lambda *_, **__: pytest.fail("weights are fetched"))
    with pytest.raises(StreamRPNError, match="cuda:99"):
        next(stream_rpn.stream(SYNTHETIC, model="resnet50_fpn", device="cuda:99"))
    with pytest.raises(StreamRPNError, match="cuda:99"):
        stream_rpn.propose(np.zeros((8, 8, 3), np.uint8), model="resnet50_fpn", device="cuda:99")
    annotations, images = write_dataset(tmp_path, 1)
    given = ["--annotations", str(annotations), "--images", str(images)]
    assert main(["eval", *given, "--model", "resnet50_fpn", "--device", "cuda:99"]) == 2
    assert "cuda:99" in capsys.readouterr().err


class TestOptionsOfPropose:
    """What `stream` takes, `propose` takes as well; on a network that costs nothing."""

    IMAGES = tuple(torch.randint(0, 256, (3, h, 80), dtype=torch.uint8) for h in (60, 60, 90, 60))

    def test_batches_change_nothing(self, small):
        one_by_one = [stream_rpn.propose(image, model=small) for image in self.IMAGES]
        calls = []
        small.backbone.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
        together = stream_rpn.propose(self.IMAGES, model=small, batch=8)
        small.backbone._forward_pre_hooks.clear()
        assert calls == [2, 1, 1]
        assert [p.frame for p in together] == [0, 1, 2, 3]
        for one, other in zip(one_by_one, together, strict=True):
            assert len(one) > 10
            np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
            assert (one.width, one.height) == (other.width, other.height)

    def test_features_are_those_of_each_image_for_pooling(self, small):
        both = stream_rpn.propose(self.IMAGES[:2], model=small, batch=2, features=True)
        for image, proposals in zip(self.IMAGES, both, strict=False):
            alone = stream_rpn.propose(image, model=small, features=True)
            torch.testing.assert_close(proposals.features["0"], alone.features["0"])
            assert proposals.features["0"].shape == (8, 8, 11)
            assert proposals.strides == ((8, 8),)
        assert stream_rpn.propose(self.IMAGES[0], model=small).features is None

    def test_the_number_format_is_the_models_own_unless_named(self, small):
        def dtype(**options):
            proposals = stream_rpn.propose(self.IMAGES[0], features=True, **options)
            return proposals.features["0"].dtype

        assert dtype(model=small) == torch.float32
        assert dtype(model=small, dtype="bfloat16") == torch.bfloat16
        assert next(small.parameters()).dtype == torch.float32
        half = copy.deepcopy(small).bfloat16()
        assert dtype(model=half) == torch.bfloat16
        assert dtype(model=half, dtype="float32") == torch.float32
        with pytest.raises(StreamRPNError, match="torch, which computes this, has no dtype 'int8'"):
            dtype(model=small, dtype="int8")
        with pytest.raises(StreamRPNError, match="there is no dtype 'int4'"):
            dtype(model=small, dtype="int4")

    def test_pictures_are_kept_on_request(self, small, tmp_path):
        pixels = self.IMAGES[0].permute(1, 2, 0).numpy()
        PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
        (kept,) = stream_rpn.propose([tmp_path / "a.png"], model=small, images=True)
        assert kept.name == "a.png"
        assert kept.draw(top=0).size == (80, 60)
        assert abs(np.asarray(kept.draw(top=0)).astype(int) - pixels).mean() < 60
        assert stream_rpn.propose(self.IMAGES[0], model=small).image is None

    def test_no_images_have_no_proposals(self, small):
        assert stream_rpn.propose([], model=small) == []

    def test_errors_name_the_image(self, small):
        with pytest.raises(ValueError, match="image 1 must be"):
            stream_rpn.propose([self.IMAGES[0], torch.zeros(80, 60)], model=small)


def test_a_backbone_and_anchors_of_ones_own():
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=8, padding=1), nn.ReLU())
    spec = anchors.AnchorSpec(((16.0, 32.0),), (1.0,), order="scale-major", centre=4.0)
    mine = RPN(
        backbone,
        RPNHead(8, 2, softmax=True),
        spec,
        input_spec=InputSpec(min_size=96, max_size=200, size_divisor=8),
        proposal_spec=ProposalSpec(pre_nms_top_n=100, post_nms_top_n=10),
    )
    results = list(stream_rpn.stream(SYNTHETIC, model=mine, top=None))
    assert [len(p) for p in results] == [10] * 6
    assert results[0].strides == ((8, 8),)


def test_memory_does_not_grow_with_the_video(rpn):
    """The peak after 100 frames and after 500 more differs by noise only."""
    import resource

    def peak_megabytes() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    small = stream_rpn.load(rpn, size=32, top=10)
    for proposals in stream_rpn.stream("synthetic:320x240@30,600", model=small, batch=8):
        if proposals.frame == 100:
            before = peak_megabytes()
    assert peak_megabytes() - before < 16
    stream_rpn.load(rpn, size=96)


def test_anchor_overrides(rpn):
    with pytest.raises(stream_rpn.StreamRPNError, match="anchor sizes must be 15"):
        stream_rpn.load("mobilenet_v3_large_320_fpn", "random", anchor_sizes=[1, 2])
    changed = stream_rpn.load(
        "mobilenet_v3_large_320_fpn",
        "random",
        anchor_sizes=[16, 24, 32, 48, 64],
        anchor_ratios=[1, 2, 3],
    )
    expected = anchors.ratio_major([16, 24, 32, 48, 64], [1, 2, 3])
    torch.testing.assert_close(changed.base_anchors[2], expected)


def state_of(rpn):
    """Everything of a model that a call might change."""
    tensors = {name: (t.clone(), t.stride()) for name, t in rpn.state_dict().items()}
    anchors_ = [level.clone() for level in rpn.base_anchors]
    modes = [module.training for module in rpn.modules()]
    return tensors, anchors_, modes, rpn.proposal_spec, rpn.input_spec, rpn.anchor_spec


def assert_unchanged(rpn, before):
    tensors, anchors_, *rest = before
    after, anchors_after, *rest_after = state_of(rpn)
    assert rest == rest_after
    for name, (tensor, stride) in tensors.items():
        assert after[name][0].dtype == tensor.dtype
        assert after[name][1] == stride
        assert torch.equal(after[name][0], tensor), name
    assert all(map(torch.equal, anchors_, anchors_after))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        lambda rpn: stream_rpn.propose(np.zeros((60, 80, 3), np.uint8), model=rpn, top=3, size=64),
        lambda rpn: stream_rpn.propose(np.zeros((60, 80, 3), np.uint8), model=rpn, device="cpu"),
        lambda rpn: stream_rpn.propose(
            np.zeros((60, 80, 3), np.uint8), model=rpn, anchor_sizes=[8, 16, 24, 32, 40]
        ),
        lambda rpn: list(stream_rpn.stream(SYNTHETIC, model=rpn, dtype="bfloat16", top=3)),
        lambda rpn: list(stream_rpn.stream(SYNTHETIC, model=rpn, nms=0.3, max_frames=1)),
        lambda rpn: stream_rpn.load(rpn, top=3, nms=0.2, size=64, min_size=5),
    ],
)
def test_a_call_leaves_the_model_that_it_was_given_as_it_is(training, call):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=8, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    sizes = ((16.0, 32.0, 48.0, 64.0, 80.0),)
    spec = anchors.AnchorSpec(sizes, (1.0,), order="scale-major", centre=4.0)
    mine = RPN(backbone, RPNHead(8, 5), spec, input_spec=InputSpec(96, 128))
    mine.train(training)
    before = state_of(mine)
    call(mine)
    assert_unchanged(mine, before)


def test_streams_of_one_model_do_not_meddle_with_each_other(rpn):
    alone = [p.boxes for p in stream_rpn.stream(SYNTHETIC, model=rpn, dtype="float32")]
    pairs = zip(
        stream_rpn.stream(SYNTHETIC, model=rpn, dtype="float32"),
        stream_rpn.stream(SYNTHETIC, model=rpn, dtype="float32", top=3),
        strict=True,
    )
    for boxes, (one, other) in zip(alone, pairs, strict=True):
        np.testing.assert_array_equal(one.boxes, boxes)
        np.testing.assert_array_equal(other.boxes, boxes[:3])


class TestPictures:
    """Whatever a picture is, it has the proposals of its pixels."""

    PIXELS = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)

    def same(self, rpn, picture, pixels=PIXELS):
        wanted = stream_rpn.propose(pixels, model=rpn)
        got = stream_rpn.propose(picture, model=rpn)
        assert (got.width, got.height) == (wanted.width, wanted.height)
        np.testing.assert_allclose(got.scores, wanted.scores, atol=1e-5)

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize(
        "change",
        [
            lambda a: a[:, ::-1][:, ::-1],
            lambda a: a.astype(np.float32) / 255,
            lambda a: a.astype(">f8") / 255,
            lambda a: torch.from_numpy(a.copy()).permute(2, 0, 1),
            lambda a: np.frombuffer(a.tobytes(), np.uint8).reshape(a.shape),
            lambda a: PIL.Image.fromarray(a),
            lambda a: PIL.Image.fromarray(a).convert("RGBA"),
        ],
        ids=["flipped", "float", "big-endian", "tensor", "read-only", "Pillow", "alpha"],
    )
    def test_of_any_kind(self, rpn, change):
        self.same(rpn, change(self.PIXELS))

    @pytest.mark.parametrize("kind", [str, Path])
    def test_files(self, rpn, tmp_path, kind):
        exif = PIL.Image.Exif()
        exif[0x112] = 6
        PIL.Image.fromarray(self.PIXELS).save(tmp_path / "a.png", exif=exif)
        turned = np.ascontiguousarray(np.rot90(self.PIXELS, -1))
        self.same(rpn, kind(tmp_path / "a.png"), turned)

    def test_gray_of_sixteen_bits(self, rpn):
        gray = self.PIXELS[..., 0]
        wanted = np.repeat(gray[..., None], 3, -1)
        self.same(rpn, PIL.Image.fromarray(gray.astype(np.uint16) * 257), wanted)

    @pytest.mark.parametrize(
        ("picture", "error", "says"),
        [
            (
                PIXELS.astype(np.float32),
                ValueError,
                r"image 0 .* must be in \[0, 1\], got 25\d; div",
            ),
            (
                (PIXELS.astype(np.float32) / 255 - 0.5) / 0.2,
                ValueError,
                r"must be in \[0, 1\], got -2\.\d+; give it as it was before",
            ),
            (torch.full((3, 60, 80), math.nan), ValueError, "got nan; NaN is no colour"),
            (PIXELS[..., 0], ValueError, r"must be \[H, W, 3\], got \[60, 80\]"),
            (torch.zeros(60, 80, 3), ValueError, r"must be \[3, H, W\], got \[60, 80, 3\]"),
            (PIXELS.astype(np.int64), TypeError, "must be uint8 or floating"),
            (3, TypeError, "image 0 must be a tensor, an array, an image of Pillow or a path"),
            ([PIXELS, None], TypeError, "image 1 must be .* got NoneType"),
            ("nothing.jpg", StreamRPNError, r"nothing\.jpg cannot be read: No such file"),
            (Path(__file__), StreamRPNError, r"test_api\.py is not an image"),
        ],
    )
    def test_what_is_none_is_said_in_a_sentence(self, rpn, picture, error, says):
        with pytest.raises(error, match=says):
            stream_rpn.propose(picture, model=rpn)


CALLS = """
import stream_rpn
from stream_rpn import LivePolicy, Proposals

reveal_type(stream_rpn.propose("a.jpg", features=True, top=3))
reveal_type(stream_rpn.propose(["a.jpg"], dtype="float32"))
reveal_type(next(stream_rpn.stream([0, "a.mp4"], nms=0.5, policy=LivePolicy())))
reveal_type(stream_rpn.read("a.jsonl")[0][0].score)
stream_rpn.stream("a.mp4", topp=3)
stream_rpn.propose("a.jpg", size="large")
"""


def test_a_type_checker_knows_every_keyword(tmp_path):
    """With the cache that `make lint` leaves it takes a second or two."""
    (tmp_path / "calls.py").write_text(CALLS)
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", str(tmp_path / "calls.py")],
        capture_output=True,
        text=True,
        cwd=root,
    )
    lines = [line.partition(".py:")[2] for line in done.stdout.splitlines()]
    assert [line for line in lines if "note: Revealed" in line] == [
        '5: note: Revealed type is "stream_rpn.frame.Proposals"',
        '6: note: Revealed type is "list[stream_rpn.frame.Proposals]"',
        '7: note: Revealed type is "stream_rpn.frame.Proposals"',
        '8: note: Revealed type is "float"',
    ]
    topp, size = [line for line in lines if "error:" in line]
    assert topp.startswith('9: error: Unexpected keyword argument "topp" for "stream"')
    assert size.startswith('10: error: No overload variant of "propose"')
