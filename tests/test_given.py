"""Sources that are no names: frames that a program makes, open files, cameras by number, lists."""

import io
import logging
import threading
import time
from fractions import Fraction

import av
import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

import stream_rpn
from stream_rpn import cli
from stream_rpn.anchors import AnchorSpec
from stream_rpn.frame import StreamRPNError
from stream_rpn.input_spec import InputSpec
from stream_rpn.rpn import RPN, RPNHead
from stream_rpn.sources.frames import FramesSource
from stream_rpn.sources.select import Selection
from stream_rpn.sources.synthetic import SyntheticVideo

SYNTHETIC = "synthetic:64x48@10,4"
FRAMES = [SyntheticVideo(width=64, height=48).image(i)[..., :3].copy() for i in range(0, 40, 8)]


@pytest.fixture(scope="module")
def rpn():
    torch.manual_seed(0)
    return RPN(
        nn.Sequential(nn.Conv2d(3, 4, 3, stride=8, padding=1), nn.ReLU()),
        RPNHead(4, 2),
        AnchorSpec(((16.0, 32.0),), (1.0,), order="scale-major", centre=4.0),
        input_spec=InputSpec(min_size=48, max_size=96, size_divisor=8, antialias=True),
    )


@pytest.fixture
def stream(rpn, no_thread_is_left):
    return lambda source, **options: stream_rpn.stream(
        source, model=rpn, engine="torch", device="cpu", dtype="float32", **options
    )


def pyav(pts=True):
    for index, pixels in enumerate(FRAMES):
        frame = av.VideoFrame.from_ndarray(pixels)
        if pts:
            frame.pts, frame.time_base = index * 20, Fraction(1, 100)
        yield frame


def turned(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FRAMES,
        lambda: iter(FRAMES),
        lambda: np.stack(FRAMES),
        lambda: (pixels / 255 for pixels in FRAMES),
        lambda: [turned(pixels) for pixels in FRAMES],
        lambda: [turned(pixels).float() / 255 for pixels in FRAMES],
        lambda: [PIL.Image.fromarray(pixels) for pixels in FRAMES],
        lambda: pyav(pts=False),
    ],
    ids=["list", "iterator", "array", "float", "tensors", "float tensors", "Pillow", "PyAV"],
)
def test_frames_of_any_kind_have_the_proposals_of_their_pixels(stream, make):
    wanted = list(stream(FRAMES))
    results = list(stream(make(), fps=8))
    assert [p.frame for p in results] == list(range(5))
    assert [p.pts_seconds for p in results] == [0, 0.125, 0.25, 0.375, 0.5]
    for result, expected in zip(results, wanted, strict=True):
        assert (result.width, result.height, result.source) == (64, 48, "frames")
        assert expected.pts_seconds is None
        assert len(expected) > 3
        np.testing.assert_allclose(result.scores, expected.scores, atol=1e-5)


@pytest.mark.parametrize("fps", [7.3, 23.976, 29.97, 1000 / 3])
def test_no_frame_is_left_out_by_its_own_rate(fps):
    frames = FramesSource((FRAMES[0] for _ in range(300)), fps=fps, name="frames")
    times = [frame.pts_seconds for frame in Selection(fps=fps).frames(frames)]
    assert times == [i / fps for i in range(300)]


def test_frames_of_pyav_keep_their_times_and_fps_chooses_among_them(stream):
    assert [p.pts_seconds for p in stream(pyav())] == [0, 0.2, 0.4, 0.6, 0.8]
    assert [p.pts for p in stream(pyav(), fps=2.5)] == [0, 40, 80]


def test_what_is_given_stays_as_it_is(stream):
    before = [pixels.copy() for pixels in FRAMES]
    generator = iter(FRAMES)
    list(stream(FRAMES))
    next(stream(generator))
    np.testing.assert_array_equal(FRAMES, before)
    file = io.BytesIO(SyntheticVideo(64, 48, num_frames=2).encoded().read())
    list(stream(file))
    assert not file.closed


def test_live_frames_that_the_network_is_too_slow_for_are_dropped_and_counted(stream):
    def camera():
        for _ in range(40):
            time.sleep(0.002)
            yield FRAMES[0]

    results = stream(camera(), policy=stream_rpn.LivePolicy(realtime=True, max_age=0.05))
    came = lost = 0
    for proposals in results:
        came += 1
        lost += sum(drop.count for drop in proposals.drops)
        time.sleep(0.03)
        assert proposals.age_seconds is not None
    assert came < 40
    assert came + lost <= 40
    assert lost > 0


@pytest.mark.parametrize("name", ["a.mkv", None])
def test_an_open_file_is_a_video(stream, tmp_path, name):
    data = SyntheticVideo(64, 48, num_frames=3).encoded().read()
    if name is None:
        results = list(stream(io.BytesIO(data)))
        assert results[0].source == "file"
    else:
        (tmp_path / name).write_bytes(data)
        with (tmp_path / name).open("rb") as file:
            results = list(stream(file))
        assert results[0].source == str(tmp_path / name)
    assert [p.pts_seconds for p in results] == [0, 0.04, 0.08]


def test_several_sources_say_whose_a_result_is(stream, tmp_path):
    file = io.BytesIO(SyntheticVideo(64, 48, num_frames=2).encoded().read())
    results = list(stream([SYNTHETIC, file, FRAMES[:2], iter(FRAMES[:1])], top=3))
    assert [(p.source_index, p.source, p.frame) for p in results] == [
        *((0, SYNTHETIC, i) for i in range(4)),
        *((1, "file", i) for i in range(2)),
        *((2, "frames-2", i) for i in range(2)),
        (3, "frames-3", 0),
    ]


def test_live_sources_run_at_a_time_each_in_its_order(stream):
    policy = stream_rpn.LivePolicy(realtime=True, max_age=20)
    both = list(stream([SYNTHETIC, "synthetic:96x48@10,4"], policy=policy))
    for index, width in enumerate((64, 96)):
        mine = [p for p in both if p.source_index == index]
        assert [p.frame for p in mine] == [0, 1, 2, 3]
        assert {p.width for p in mine} == {width}
        assert {p.source for p in mine} == {f"synthetic:{width}x48@10,4"}
    order = [p.source_index for p in both]
    assert order != sorted(order)


@pytest.mark.parametrize("realtime", [False, True])
def test_a_source_that_fails_leaves_the_others_and_is_told_at_the_end(
    stream, tmp_path, caplog, realtime
):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"no video" * 100)
    files = [tmp_path / "a.mp4", "synthetic:64x48@50,4", str(tmp_path / "b.mp4")]
    policy = stream_rpn.LivePolicy(realtime=realtime, max_age=20)
    results = []

    def collect():
        for proposals in stream(files, policy=policy):
            results.append(proposals.frame)

    says = r"a\.mp4 is not a video.*\(and 1 more of the sources failed\)"
    with caplog.at_level(logging.ERROR), pytest.raises(StreamRPNError, match=says):
        collect()
    assert results == [0, 1, 2, 3]
    assert len([r for r in caplog.records if r.name == "stream_rpn"]) == 2


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        (None, TypeError, "a source is a name, .* got NoneType"),
        (True, TypeError, "got bool"),
        ([1.5], TypeError, "got float"),
        ([], StreamRPNError, "there is no source in the list"),
        (iter([]), StreamRPNError, "frames: there is none"),
        (-1, StreamRPNError, "there is no camera -1"),
        (FRAMES[0], TypeError, "a single picture is for `propose`"),
        (PIL.Image.fromarray(FRAMES[0]), TypeError, "a single picture is for `propose`"),
        ([FRAMES[0], "x"], StreamRPNError, "x cannot be read"),
        ([FRAMES[0], 3], TypeError, "image 1 must be a tensor, an array"),
        ([FRAMES[0][..., 0]], ValueError, r"image 0 must be \[H, W, 3\], got \[48, 64\]"),
        ([FRAMES[0].astype(float)], ValueError, r"image 0 .* must be in \[0, 1\]"),
        (io.StringIO("x"), TypeError, "opened for reading bytes"),
        (io.BytesIO(b""), StreamRPNError, "file is not a video that PyAV can read"),
        (["nowhere.mp4", SYNTHETIC], StreamRPNError, "nowhere.mp4: no such file"),
        ([FRAMES, 77], StreamRPNError, "webcam:77 cannot be opened"),
    ],
)
def test_what_is_no_source_is_said_in_a_sentence(stream, source, error, says):
    with pytest.raises(error, match=says):
        list(stream(source))


def test_objects_have_no_pace_and_no_nvdec(stream):
    with pytest.raises(StreamRPNError, match="give its path"):
        list(stream(io.BytesIO(b"x"), policy=stream_rpn.LivePolicy(realtime=True)))
    with pytest.raises(StreamRPNError, match="cannot be decoded by NVDEC"):
        list(stream(FRAMES, decoder="nvdec"))


def test_a_number_is_a_camera_unless_a_file_has_that_name(stream, own_folder, capsys):
    with pytest.raises(StreamRPNError, match=r"webcam:97 cannot be opened.*stream-rpn devices"):
        next(stream(97))
    assert cli.main(["97"]) == 2
    assert "webcam:97 cannot be opened" in capsys.readouterr().err
    with open("97", "wb") as file:
        file.write(SyntheticVideo(64, 48, num_frames=2).encoded().read())
    assert len(list(stream("97"))) == 2


def test_leaving_early_ends_the_thread_that_takes_the_frames(stream):
    def endless():
        while True:
            yield FRAMES[0]

    before = threading.active_count()
    for proposals in stream(endless()):
        if proposals.frame == 2:
            break
    assert threading.active_count() == before


def test_drops_are_logged_and_nothing_is_printed(stream, tmp_path, caplog, capfd):
    for index in range(4):
        PIL.Image.fromarray(FRAMES[0]).save(tmp_path / f"{index}.png")
    for damaged in (1, 3):
        (tmp_path / f"{damaged}.png").write_bytes(b"no picture")
    with caplog.at_level(logging.INFO, logger="stream_rpn"):
        assert len(list(stream(tmp_path))) == 2
    told = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "stream_rpn"]
    assert told == [
        ("WARNING", f"{tmp_path}: damaged image, 1 lost before frame 2"),
        ("WARNING", f"{tmp_path}: damaged image, 1 lost after the last frame"),
    ]
    assert capfd.readouterr() == ("", "")
