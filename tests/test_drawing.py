"""What pictures show of proposals, and the pixels that show it."""

import re
from datetime import datetime

import av
import numpy as np
import pytest

from stream_rpn.cli import main
from stream_rpn.drawing import COLORS, LABELS, DrawSpec, apart, color_of, stamp_of
from stream_rpn.frame import Color, StreamRPNError
from stream_rpn.sinks import canvas as canvas_module
from stream_rpn.sinks.canvas import Canvas
from stream_rpn.sinks.record import saved_proposals

COLOR = Color("bt709", full_range=False, tagged=True)
RED = np.array([[255, 55, 70]])

STACK = np.array(
    [[10, 10, 50, 90], [12, 10, 52, 90], [10, 10, 50, 48], [60, 10, 90, 90]], np.float32
)
SCORES = np.array([0.9, 0.8, 0.5, 0.3], np.float32)


class Recorder:
    """A canvas that only notes what it is to draw."""

    def draw(self, boxes, colors, texts, thickness, stamp):
        self.boxes, self.colors, self.texts = boxes, colors, texts
        self.thickness, self.stamp = thickness, stamp


def told(spec, source=0, **facts):
    canvas = Recorder()
    count = spec.draw(canvas, saved_proposals(7, STACK, SCORES, **facts), source)
    assert count == len(canvas.boxes) == len(canvas.colors)
    return canvas


class TestDrawSpec:
    def test_shows_objects_and_no_stacks(self):
        np.testing.assert_array_equal(told(DrawSpec()).boxes, STACK[[0, 2, 3]])
        np.testing.assert_array_equal(told(DrawSpec(nms=1)).boxes, STACK)
        np.testing.assert_array_equal(told(DrawSpec(nms=0)).boxes, STACK[[0, 3]])

    def test_those_that_are_shown_are_counted_not_those_left_out(self):
        np.testing.assert_array_equal(told(DrawSpec(top=3)).boxes, STACK[[0, 2, 3]])
        np.testing.assert_array_equal(told(DrawSpec(top=2)).boxes, STACK[[0, 2]])
        assert len(told(DrawSpec(top=0)).boxes) == 0

    def test_weak_boxes_are_left_out(self):
        np.testing.assert_array_equal(told(DrawSpec(score=0.5)).boxes, STACK[[0, 2]])
        assert len(told(DrawSpec(score=0.95)).boxes) == 0

    def test_agrees_with_nms_by_its_definition(self):
        rng = np.random.default_rng(0)
        corners = rng.uniform(0, 60, (200, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(0, 30, (200, 2))], axis=1)
        kept = []
        for index, (x1, y1, x2, y2) in enumerate(boxes):
            for a1, b1, a2, b2 in boxes[kept]:
                shared = max(min(x2, a2) - max(x1, a1), 0) * max(min(y2, b2) - max(y1, b1), 0)
                both = (x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - shared
                if shared > 0.4 * both:
                    break
            else:
                kept.append(index)
        assert apart(boxes, 200, 0.4) == kept
        assert apart(boxes, 9, 0.4) == kept[:9]
        assert apart(boxes[:0], 9, 0.4) == []

    @pytest.mark.parametrize(
        ("labels", "plain", "tracked"),
        [
            ("auto", ["90%", "50%", "30%"], ["#4", "#6"]),
            ("none", [], []),
            ("score", ["90%", "50%", "30%"], ["90%", "50%"]),
            ("id", [], ["#4", "#6"]),
            ("both", [], ["#4 90%", "#6 50%"]),
        ],
    )
    def test_labels(self, labels, plain, tracked):
        assert told(DrawSpec(labels=labels)).texts == plain
        assert told(DrawSpec(labels=labels), track_ids=[4, 5, 6, -1]).texts == tracked

    def test_colours_go_with_score_track_or_source(self):
        by_score = told(DrawSpec()).colors
        assert by_score[0][0] > by_score[2][0]  # the stronger the redder
        by_track = told(DrawSpec(), track_ids=[4, 5, 6, -1]).colors
        np.testing.assert_allclose(by_track, [color_of(4), color_of(6)])
        by_source = told(DrawSpec(color="source"), source=3).colors
        np.testing.assert_allclose(by_source, [color_of(3)] * 3)
        scores = told(DrawSpec(color="score"), track_ids=[4, 5, 6, -1]).colors
        np.testing.assert_allclose(scores, by_score[:2])
        assert len({color_of(number) for number in range(100)}) == 100

    @pytest.mark.parametrize(
        "wrong",
        [
            {"top": -1}, {"nms": 1.5}, {"nms": float("nan")}, {"score": 2}, {"labels": "names"},
            {"color": "red"}, {"thickness": 0},
        ],
    )  # fmt: skip
    def test_what_cannot_be_gets_a_sentence(self, wrong):
        with pytest.raises(StreamRPNError):
            DrawSpec(**wrong)

    def test_only_what_tracks_alone_know_needs_them(self):
        assert [labels for labels in LABELS if DrawSpec(labels=labels).needs_tracks] == [
            "id", "both",
        ]  # fmt: skip
        assert [by for by in COLORS if DrawSpec(color=by).needs_tracks] == ["track"]


def test_the_stamp_is_the_time_in_the_source():
    for seconds, text in [
        (0.04, "0:00:00.040"),
        (59.9996, "0:01:00.000"),
        (7322.5, "2:02:02.500"),
        (-0.5, "-0:00:00.500"),
        (-61.25, "-0:01:01.250"),
    ]:
        proposals = saved_proposals(7, [], [], pts_seconds=seconds)
        assert stamp_of(proposals) == text
    assert stamp_of(saved_proposals(7, [], [])) == "frame 7"


def test_the_stamp_of_a_live_frame_is_when_it_came():
    taken = datetime(2026, 3, 1, 12, 30, 5, 250_000)
    proposals = saved_proposals(7, [], [], pts_seconds=3.0, unix_seconds=taken.timestamp())
    assert stamp_of(proposals) == "2026-03-01 12:30:05.250"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--labels", "names"], "invalid choice: 'names'"),
        (["--color", "red"], "invalid choice: 'red'"),
        (["--thickness", "0"], "must be at least 1"),
        (["--draw-nms", "2"], "must be a number from 0 to 1, got '2'"),
        (["--draw-score", "x"], "must be a number from 0 to 1, got 'x'"),
        (["--labels", "both"], "--labels both shows the tracks of --track"),
        (["--colour", "track"], "--color track shows the tracks of --track"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, capsys, options, words):
    try:
        code = main(["synthetic:64x48@5,2", "-o", f"{tmp_path}/x.mp4", *options])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert words in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


class TestCanvas:
    @pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
    @pytest.mark.parametrize("matrix", ["bt601", "bt709", "bt2020"])
    def test_colours_are_those_asked_for(self, matrix, full_range):
        color = Color(matrix, full_range=full_range, tagged=True)
        canvas = Canvas.of(av.VideoFrame(64, 48, "yuv420p"), color)
        canvas.draw(np.array([[8, 8, 40, 40]]), RED)
        np.testing.assert_allclose(canvas.rgb()[20, 8], [255, 55, 70], atol=6)

    def test_the_best_lies_on_top(self):
        canvas = Canvas.of(av.VideoFrame(64, 48, "yuv420p"), COLOR)
        canvas.draw(np.array([[8, 8, 40, 40]] * 2), np.array([[255, 55, 70], [60, 90, 255]]))
        np.testing.assert_allclose(canvas.rgb()[20, 8], [255, 55, 70], atol=6)

    @pytest.mark.parametrize(
        "box",
        [[-9, -9, 200, 200], [63, 47, 64, 48], [5, 5, 5, 5], [-20, -20, -5, -5], [90, 90, 99, 99]],
        ids=["around", "corner", "empty", "before", "behind"],
    )
    def test_boxes_anywhere(self, box):
        canvas = Canvas.of(av.VideoFrame(64, 48, "yuv420p"), COLOR)
        canvas.draw(np.array([box]), RED, ["87%"])

    @pytest.mark.parametrize("size", [(2, 2), (6, 30), (30, 6)])
    def test_pictures_smaller_than_a_label(self, size):
        canvas = Canvas.of(av.VideoFrame(*size, "yuv420p"), COLOR)
        boxes = np.array([[0, 0, 2, 2], [1, 1, 30, 30]])
        canvas.draw(boxes, np.repeat(RED, 2, axis=0), ["100%", "50%"], stamp="0:00:00.000")

    @pytest.mark.parametrize("rotation", [0, 90, 180, 270])
    def test_turns_as_pillow_does(self, rotation):
        rng = np.random.default_rng(0)
        planes = rng.integers(16, 235, (48 * 3 // 2, 64), dtype=np.uint8)
        image = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        canvas = Canvas.of(image, COLOR, rotation=rotation)
        clockwise = {0: 0, 90: 3, 180: 2, 270: 1}[rotation]
        np.testing.assert_array_equal(canvas.y, np.rot90(planes[:48], clockwise))

    def test_untouched_pixels_are_the_decoded_ones(self):
        rng = np.random.default_rng(0)
        planes = rng.integers(16, 235, (480 * 3 // 2, 640), dtype=np.uint8)
        canvas = Canvas.of(av.VideoFrame.from_ndarray(planes, format="yuv420p"), COLOR)
        canvas.draw(np.array([[100, 100, 300, 300]]), RED)
        frame = canvas.frame().to_ndarray()
        np.testing.assert_array_equal(frame[310:480], planes[310:480])
        np.testing.assert_array_equal(frame[110:290, 110:290], planes[110:290, 110:290])

    def test_labels_never_overprint(self, monkeypatch):
        placed = []
        is_free = canvas_module._is_free

        def noted(place, taken):
            return is_free(place, taken) and placed.append(place) is None

        monkeypatch.setattr(canvas_module, "_is_free", noted)
        canvas = Canvas.of(av.VideoFrame(640, 480, "yuv420p"), COLOR)
        rng = np.random.default_rng(0)
        corners = rng.uniform(0, 200, (60, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(2, 60, (60, 2))], axis=1)
        colors = np.repeat(RED, 60, axis=0)
        canvas.draw(boxes, colors, [f"{n}%" for n in range(60)], stamp="0:00:00.000")
        cover = np.zeros((480, 640), int)
        for left, top, right, bottom in placed:
            assert 0 <= left < right <= 640
            assert 0 <= top < bottom <= 480
            cover[top:bottom, left:right] += 1
        assert cover.max() == 1
        assert 20 < len(placed) <= 61
        assert placed[0][:2] == (0, 0)  # the stamp

    def test_a_label_is_read_from_its_pixels(self):
        canvas = Canvas.of(av.VideoFrame(640, 480, "yuv420p"), COLOR)
        canvas.y[:], canvas.u[:], canvas.v[:] = 128, 128, 128
        before = canvas.y.copy()
        canvas.draw(np.array([[100, 100, 300, 300]]), np.array([[255, 215, 0]]), ["87%"])
        tab = canvas.y[82:98, 102:126]
        assert tab.min() < 60  # dark ink
        assert tab.max() > 160  # on the box's yellow
        canvas.y[:] = before
        canvas.draw(np.array([[100, 100, 300, 300]]), np.array([[255, 215, 0]]))
        assert (canvas.y[82:98, 102:126] == 128).all()

    @pytest.mark.parametrize("thickness", [1, 2, 3, 6])
    def test_lines_are_as_thick_as_asked_for(self, thickness):
        canvas = Canvas.of(av.VideoFrame(64, 48, "yuv420p"), COLOR)
        canvas.y[:] = 128
        canvas.draw(np.array([[8, 8, 56, 40]]), np.array([[255, 255, 255]]), thickness=thickness)
        row = canvas.y[24, :32].tolist()
        assert row == [128] * 7 + [16] + [235] * thickness + [16] + [128] * (23 - thickness)
