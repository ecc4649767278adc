"""Regions, masks, crops and tiles: which proposals are kept, and where they lie in the frame."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from av import VideoFrame
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import stream_rpn
from stream_rpn.drops import Drop
from stream_rpn.frame import Color, Frame, Proposals, StreamRPNError
from stream_rpn.gate import Gate, GateSpec
from stream_rpn.input_spec import InputSpec
from stream_rpn.kernels.proposals import ProposalSpec
from stream_rpn.network.network import Network
from stream_rpn.network.viewed import ViewedNetwork, suppressed
from stream_rpn.queues import Queues, prefetch
from stream_rpn.regions import Region
from stream_rpn.sources.select import Selection
from stream_rpn.timing import StageTimes
from stream_rpn.views import View, ViewSpec, check_input, cut

ROOT = Path(__file__).resolve().parents[1]
LEFT = "0,0,0.5,0,0.5,1,0,1"
SPEC = InputSpec(min_size=64, max_size=128)


def frame(
    width: int = 160,
    height: int = 96,
    *,
    rotation: int = 0,
    form: str = "yuv420p",
    luma: np.ndarray | None = None,
    **known,
) -> Frame:
    """Returns a frame whose luma tells where each pixel is stored, a ramp unless given."""
    across = height if rotation % 180 else width
    down = width if rotation % 180 else height
    image = VideoFrame(across, down, form)
    ramp = np.add.outer(np.arange(down), 2 * np.arange(across)) % 251
    for number, plane in enumerate(image.planes):
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        rows[:] = 128
        if not number and "10" not in form:
            rows[:down, :across] = ramp if luma is None else luma
    known = {"index": 0, "pts": 0, "pts_seconds": 0.0} | known
    color = Color("bt709", full_range=False, tagged=True)
    return Frame(width=width, height=height, rotation=rotation, color=color, image=image, **known)


def displayed(shown: Frame) -> np.ndarray:
    """Returns the luma of a frame as it is displayed."""
    plane = shown.image.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return np.rot90(rows[: shown.image.height, : shown.image.width], -shown.rotation // 90)


class TestRegion:
    @pytest.mark.parametrize(
        "region",
        [
            LEFT,
            "0,0,80,0,80,96,0,96",
            [0, 0, 80, 0, 80, 96, 0, 96],
            [(0, 0), (80, 0), (80, 96), (0, 96)],
            np.array([(0, 0), (80, 0), (80, 96), (0, 96)]),
            ["0,0,0.5,0,0.5,0.5,0,0.5", [(0, 48), (80, 48), (80, 96), (0, 96)]],
        ],
        ids=str,
    )
    def test_it_is_said_in_pixels_or_in_shares_in_many_ways(self, region):
        found = Region.parse(region).inside(160, 96)
        assert found.shape == (96, 160)
        assert found[:, :80].all()
        assert not found[:, 80:].any()

    def test_a_file_has_a_polygon_a_line(self, tmp_path):
        (path := tmp_path / "door.txt").write_text(
            "# the door\n0,0,0.25,0,0.25,1,0,1\n\n0.25,0,0.5,0,0.5,1,0.25,1  # and the wall\n"
        )
        for given_as in (str(path), path, [str(path)]):
            assert (
                Region.parse(given_as).inside(160, 96) == Region.parse(LEFT).inside(160, 96)
            ).all()

    def test_a_mask_is_white_where_it_is_looked_at_whatever_its_size(self, tmp_path):
        white = np.zeros((48, 80), bool)
        white[:, :40] = True
        Image.fromarray(white.astype(np.uint8) * 255).save(path := tmp_path / "mask.png")
        for mask in (path, str(path), white, white.astype(np.uint8) * 255):
            found = Region.parse(mask=mask).inside(160, 96)
            assert found[:, :80].all()
            assert not found[:, 80:].any()
        both = Region.parse("0,0,1,0,1,0.5,0,0.5", path).inside(160, 96)
        assert both[:48, :80].all()
        assert both.sum() == 48 * 80

    @pytest.mark.parametrize(
        ("region", "sentence"),
        [
            ("1,2,3", "three points and more"),
            ("1,2,3,4,5,6,7", "three points and more"),
            ("0,0,1,nan,1,1", "three points and more"),
            ("nowhere.txt", "neither x,y,x,y,… nor a file"),
            ("wrong.txt", "wrong.txt, line 2: a region is"),
            ("empty.txt", "has no line"),
            ("0,0,200,0,200,9", "reaches beyond the picture of 160x96 pixels"),
            ("-1,0,20,0,20,9", "reaches beyond"),
            (5, "got 5"),
            ([], "got []"),
            ([[]], "got []"),
            ([None, (0, 0)], "got None"),
        ],
    )
    def test_what_is_none_is_told_in_a_sentence(self, region, sentence, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("wrong.txt").write_text("0,0,1,0,1,1\na,b\n")
        Path("empty.txt").write_text("# nothing\n")
        with pytest.raises(StreamRPNError) as error:
            Region.parse(region).inside(160, 96)
        assert sentence in str(error.value)

    def test_masks_that_are_none_are_told_in_a_sentence(self, tmp_path):
        Image.new("L", (80, 48)).save(tmp_path / "black.png")
        Image.new("L", (48, 80), 255).save(tmp_path / "upright.png")
        (tmp_path / "text.png").write_text("no picture")
        for name, sentence in (
            ("black.png", "is black"),
            ("upright.png", "other proportions than the picture of 160x96"),
            ("text.png", "not an image"),
            ("none.png", "cannot be read"),
        ):
            with pytest.raises(StreamRPNError, match=sentence):
                Region.parse(mask=tmp_path / name).inside(160, 96)
        white = np.zeros((96, 160), bool)
        white[:, 100:] = True
        with pytest.raises(StreamRPNError, match="nothing of the picture"):
            Region.parse(LEFT, white).inside(160, 96)


class TestViews:
    @settings(max_examples=60, deadline=None)
    @given(st.integers(16, 5000), st.integers(16, 5000), st.integers(1, 5), st.integers(1, 5))
    def test_tiles_cover_the_picture_and_overlap(self, width, height, columns, rows):
        if columns * rows == 1:
            return
        spec = ViewSpec.parse(tile=(columns, rows))
        *tiles, whole = spec.views(width, height, SPEC)
        assert whole == (0, 0, width, height)
        assert len(tiles) == columns * rows
        assert len({(t.width, t.height) for t in tiles}) == 1
        seen = np.zeros((height, width), bool)
        for tile in tiles:
            assert tile.x1 % 2 == 0 or tile.x2 == width
            seen[tile.y1 : tile.y2, tile.x1 : tile.x2] = True
        assert seen.all()
        for before, after in pairwise(tiles[:columns]):
            # As much as is promised, but for rounding to even pixels.
            assert before.x2 - after.x1 >= 0.2 * before.width - 4

    def test_auto_has_as_many_tiles_as_the_size_asks_for(self):
        def tiles(width, height):
            spec = InputSpec(min_size=416, max_size=740)
            return len(ViewSpec.parse(tile="auto").views(width, height, spec)) - 1

        assert tiles(640, 360) == 0
        assert tiles(1920, 1080) == 4
        assert tiles(3840, 2160) == tiles(2160, 3840) == 9

    def test_tiles_outside_of_the_region_are_not_looked_at(self):
        spec = ViewSpec.parse(region="0,0,0.1,0,0.1,0.1", tile="3x3")
        assert len(spec.views(300, 300, SPEC)) == 2

    @pytest.mark.parametrize("tile", ["0", "1x1", "3x", "x", "1000", "-2", (2, 3, 4), 2.5, "best"])
    def test_tiles_that_are_none_are_told_in_a_sentence(self, tile):
        with pytest.raises(StreamRPNError, match="tiles must be off, auto"):
            ViewSpec.parse(tile=tile)

    def test_what_says_nothing_changes_nothing(self):
        assert ViewSpec.parse() is None
        assert ViewSpec.parse(tile="off") is None
        with pytest.raises(StreamRPNError, match="to crop there must be a region"):
            ViewSpec.parse(crop=True)

    def test_a_crop_that_is_too_thin_for_the_network_is_told(self):
        spec = InputSpec(min_size=96, max_size=160)
        thin = frame(640, 96, view=ViewSpec.parse("0,0.5,1,0.5,1,0.51,0,0.51", crop=True))
        with pytest.raises(StreamRPNError, match=r"640x96 pixels a part .* of 640x2 pixels is too"):
            check_input(thin, spec)
        check_input(replace(thin, view=ViewSpec.parse(LEFT, crop=True)), spec)

    def test_frames_that_stay_on_a_gpu_are_not_cut(self):
        view = ViewSpec.parse(tile=2)
        assert Selection(view=view).decoder == "cpu"
        assert Selection(view=ViewSpec.parse(LEFT)).decoder == "auto"
        with pytest.raises(StreamRPNError, match="use the decoder cpu"):
            Selection(view=view, decoder="nvdec")

    @settings(max_examples=80, deadline=None)
    @given(
        st.sampled_from([0, 90, 180, 270]),
        st.sampled_from(["yuv420p", "nv12", "yuvj420p"]),
        st.tuples(st.integers(0, 60), st.integers(0, 40)),
        st.tuples(st.integers(8, 90), st.integers(8, 50)),
        st.sampled_from([(160, 96), (151, 97)]),
    )
    def test_a_cut_shows_the_pixels_that_it_says(self, rotation, form, at, size, picture):
        whole = frame(*picture, rotation=rotation, form=form, drops=(Drop("decoder", 1, 0),))
        view = View(*at, at[0] + size[0], at[1] + size[1])
        part, shown = cut(whole, view)
        grown = np.array([view.x1, view.y1, *shown[2:]]) - np.array([*shown[:2], view.x2, view.y2])
        assert grown.min() >= 0
        assert grown.max() <= 1
        assert (part.width, part.height) == (shown.width, shown.height)
        expected = displayed(whole)[shown.y1 : shown.y2, shown.x1 : shown.x2]
        assert np.array_equal(displayed(part), expected)
        assert part.drops == ()

    @pytest.mark.parametrize("form", ["yuv420p10le", "p010le", "nv12", "yuv420p"])
    def test_chroma_and_deep_samples_are_cut_as_they_lie(self, form):
        whole = frame(64, 48, form=form)
        for seed, plane in enumerate(whole.image.planes):
            data = np.random.default_rng(seed).integers(0, 256, plane.buffer_size, np.uint8)
            plane.update(data.tobytes())
        part, _ = cut(whole, View(16, 8, 48, 40))
        deep = 2 if "10" in form else 1
        for number, (plane, cut_plane) in enumerate(
            zip(whole.image.planes, part.image.planes, strict=True)
        ):
            half = 2 if number else 1
            item = deep * (2 if number and form in ("nv12", "p010le") else 1)
            rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
            cut_rows = np.frombuffer(cut_plane, np.uint8).reshape(-1, cut_plane.line_size)
            expected = rows[8 // half : 40 // half, 16 // half * item : 48 // half * item]
            assert np.array_equal(cut_rows[: 32 // half, : 32 // half * item], expected)


class Seeing(Network):
    """Sees the given boxes of the whole frame in each view, as far as they lie in it."""

    def __init__(self, boxes: Iterable[tuple[tuple[float, ...], float]], whole=(160, 96)) -> None:
        self.boxes, self.whole = list(boxes), whole
        self.views: tuple[View, ...] = ()

    def queues(self, frames, times, *, latency=False) -> Queues[Proposals]:
        seen = (self._see(frame) for frame in frames if frame is not None)
        return Queues(frames, last=prefetch(seen, 2, name="see"))

    def process(self, frames, times) -> Iterator[Proposals]:
        return (self._see(frame) for batch in frames for frame in batch)

    def _see(self, shown: Frame) -> Proposals:
        x, y = self.at(shown)
        boxes = np.array([box for box, _ in self.boxes], np.float32).reshape(-1, 4)
        scores = np.array([score for _, score in self.boxes], np.float32)
        boxes = boxes - np.array([x, y, x, y], np.float32)
        boxes = boxes.clip(0, [shown.width, shown.height] * 2)
        seen = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(axis=1)
        rows = np.flatnonzero(seen)[np.argsort(-scores[seen], kind="stable")]
        none = np.zeros(len(rows), np.int32)
        return Proposals.of(
            shown,
            boxes=boxes[rows].astype(np.float32),
            scores=scores[rows],
            levels=none,
            anchors=rows.astype(np.int32),
            input_boxes=boxes[rows].astype(np.float32),
            input_size=(shown.height, shown.width),
        )

    def at(self, shown: Frame) -> tuple[int, int]:
        """Returns where a view lies: its luma tells."""
        ramp = displayed(frame(*self.whole))
        return next(
            (view.x1, view.y1)
            for view in self.views
            if np.array_equal(ramp[view.y1 : view.y2, view.x1 : view.x2], displayed(shown))
        )


def seen(boxes, spec: ViewSpec | None, *, top: int = 300, nms_thresh: float = 0.7) -> Proposals:
    network = Seeing(boxes)
    picture = frame(view=spec)
    views = spec.views(160, 96, SPEC) if spec is not None and spec.cuts else ()
    network.views = (*views, View(0, 0, 160, 96))
    limits = ProposalSpec(post_nms_top_n=top, nms_thresh=nms_thresh)
    viewed = ViewedNetwork(network, SPEC, limits, 1, images=False)
    (result,) = viewed.process([[picture]], StageTimes())
    with viewed.queues([frame(view=spec)], StageTimes()) as queues:
        (again,) = queues
    assert np.array_equal(result.boxes, again.boxes)
    assert (result.width, result.height) == (160, 96)
    assert (np.diff(result.scores) <= 0).all()
    return result


NEAR = ((10.0, 10.0, 30.0, 30.0), 0.5)
FAR = ((110.0, 60.0, 130.0, 80.0), 0.9)
ACROSS = ((60.0, 40.0, 104.0, 60.0), 0.8)


class TestResults:
    def test_those_whose_centres_lie_in_the_region_are_kept(self):
        kept = seen([FAR, ACROSS, NEAR], ViewSpec.parse(LEFT))
        assert kept.boxes.tolist() == [[*NEAR[0]]]
        assert len(seen([FAR, ACROSS, NEAR], None)) == 3

    def test_others_take_no_place_of_theirs(self):
        others = [((100.0 + i, 50.0, 120.0 + i, 70.0), 0.9) for i in range(30)]
        kept = seen([*others, NEAR], ViewSpec.parse(LEFT), top=1)
        assert kept.boxes.tolist() == [[*NEAR[0]]]

    def test_boxes_of_a_crop_lie_in_the_frame(self):
        spec = ViewSpec.parse("100,50,140,50,140,90,100,90", crop=True)
        kept = seen([FAR, NEAR], spec)
        assert kept.boxes.tolist() == [[*FAR[0]]]

    def test_of_tiles_and_the_whole_each_object_comes_once_and_uncut(self):
        kept = seen([FAR, ACROSS, NEAR], ViewSpec.parse(tile="2x2"))
        assert kept.boxes.tolist() == [[*FAR[0]], [*ACROSS[0]], [*NEAR[0]]]
        assert len(seen([FAR, ACROSS, NEAR], ViewSpec.parse(tile="2x2"), top=2)) == 2

    def test_a_frame_without_views_passes_beside_one_with(self):
        network = Seeing([FAR, NEAR])
        network.views = (View(0, 0, 160, 96),)
        viewed = ViewedNetwork(network, SPEC, ProposalSpec(), 1, images=False)
        spec = ViewSpec.parse(LEFT)
        frames = [frame(index=0, view=spec), None, frame(index=1)]
        with viewed.queues(frames, StageTimes()) as queues:
            assert [(p.frame, len(p)) for p in queues] == [(0, 1), (1, 2)]

    def test_drops_are_told_once(self):
        network = Seeing([NEAR])
        spec = ViewSpec.parse(tile="2x2")
        network.views = spec.views(160, 96, SPEC)
        viewed = ViewedNetwork(network, SPEC, ProposalSpec(), 1, images=True)
        lost = frame(view=spec, drops=(Drop("decoder", 2, 0),), name="a.png", image_id=7)
        (result,) = viewed.process([[lost]], StageTimes())
        assert result.drops == lost.drops
        assert (result.name, result.image_id) == ("a.png", 7)
        assert (result.image.width, result.image.height) == (160, 96)

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.sampled_from([0.25, 0.5, 1.0]))
    def test_suppression_is_that_of_the_stage(self, seed, count, threshold):
        random = np.random.default_rng(seed)
        corners = random.integers(0, 20, (count, 2))
        boxes = np.hstack([corners, corners + random.integers(1, 20, (count, 2))])
        boxes = boxes.astype(np.float32)
        ours = suppressed(boxes, threshold, 1000)
        assert ours.tolist() == reference(boxes, threshold)
        assert suppressed(boxes, threshold, 3).tolist() == ours[:3].tolist()


def reference(boxes: np.ndarray, threshold: float) -> list[int]:
    """Returns what the definition says, box by box."""
    kept: list[int] = []
    for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        for u1, v1, u2, v2 in boxes[kept].tolist():
            both = max(0, min(x2, u2) - max(x1, u1)) * max(0, min(y2, v2) - max(y1, v1))
            if both > threshold * ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - both):
                break
        else:
            kept.append(index)
    return kept


class TestGate:
    def test_what_changes_outside_of_the_region_does_not_count(self):
        spec = ViewSpec.parse(LEFT)
        still = np.full((192, 320), 90, np.uint8)
        outside, inside = still.copy(), still.copy()
        outside[60:120, 200:300] = 200
        inside[60:120, 20:100] = 200
        for rotation in (0, 180):
            gate = Gate(GateSpec(hold_seconds=1e6))
            turned = [np.rot90(one, rotation // 90) for one in (still, still, outside, inside)]
            frames = [
                frame(320, 192, luma=luma, pts_seconds=float(i), view=spec, rotation=rotation)
                for i, luma in enumerate(turned)
            ]
            assert [gate.looks(one) for one in frames] == [True, False, False, True]
            gate = Gate(GateSpec(hold_seconds=1e6))
            whole = [replace(one, view=None) for one in frames]
            assert [gate.looks(one) for one in whole] == [True, False, True, True]


@pytest.fixture(scope="module")
def clip() -> str:
    return "synthetic:192x128@10,2"


class TestWhole:
    def test_a_region_gives_what_lies_in_it_of_all_that_is_found(self, clip):
        options = {"size": 96, "top": 5, "max_frames": 1, "device": "cpu"}
        (everything,) = stream_rpn.stream(clip, **{**options, "top": 100_000})
        (kept,) = stream_rpn.stream(clip, region=LEFT, **options)
        inside = (everything.boxes[:, 0] + everything.boxes[:, 2]) / 2 < 96
        assert np.array_equal(kept.boxes, everything.boxes[inside][:5])
        assert np.array_equal(kept.scores, everything.scores[inside][:5])

    def test_both_engines_find_the_same_in_tiles(self, clip):
        options = {"size": 64, "top": 20, "max_frames": 1, "device": "cpu", "tile": 2}
        results = [
            next(stream_rpn.stream(clip, engine=engine, **options, dtype="float32"))
            for engine in ("openvino", "torch")
        ]
        ours, theirs = (result.boxes[result.scores.argsort()[-5:]] for result in results)
        assert np.allclose(ours, theirs, atol=0.1)

    def test_features_are_of_whole_frames(self, clip):
        with pytest.raises(StreamRPNError, match="feature maps are those of whole frames"):
            next(stream_rpn.stream(clip, tile=2, features=True))

    def test_a_region_that_does_not_fit_is_told_with_the_frames_size(self, clip):
        with pytest.raises(StreamRPNError, match="beyond the picture of 192x128"):
            next(stream_rpn.stream(clip, region="0,0,500,0,500,50", size=64))
