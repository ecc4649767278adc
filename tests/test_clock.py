"""Times that rise: over B-frames of AVI, raw streams and joined recordings; elsewhere untouched."""

import contextlib
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_rpn import read as read_results
from stream_rpn.cli import main
from stream_rpn.clock import Clock
from stream_rpn.frame import StreamRPNError
from stream_rpn.sources import open_source
from stream_rpn.sources.select import select


def write_clip(
    path: Path,
    times: list[float],
    *,
    rate: int = 10,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_format: str | None = None,
    unit: Fraction | None = None,
) -> Path:
    """Encodes a picture that moves, each shown at its time in seconds."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 400, 3), dtype=np.uint8)
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = 64, 64, pixel_format
        unit = unit or Fraction(1, rate)
        stream.codec_context.time_base = unit
        for index, seconds in enumerate(times):
            shown = np.ascontiguousarray(pixels[:, index % 300 : index % 300 + 64])
            frame = av.VideoFrame.from_ndarray(shown, format="rgb24")
            frame.pts, frame.time_base = round(seconds / unit), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def times_of(path: Path, **options) -> list[float | None]:
    with open_source(str(path), decoder="cpu", **options) as source:
        return [frame.pts_seconds for frame in source]


def chosen(path: Path, **selection) -> list[int]:
    with open_source(str(path), decoder="cpu") as source:
        return [frame.index for frame in select(source, **selection)]


def times_in(path: str) -> list[float]:
    """The times of the pictures of an annotated video, from its first one on."""
    with av.open(path) as container:
        return [round(frame.time, 4) for frame in container.decode(video=0)]


def run(*arguments: str) -> int:
    return main([*arguments, "--model", "tiny", "--size", "64", "--top", "5", "--quiet"])


B_FRAMES = {"bf": "2", "g": "12", "b-adapt": "0"}
TENTHS = [index / 10 for index in range(30)]


@pytest.mark.parametrize("threads", [1, 4])
def test_pictures_of_an_avi_with_b_frames_have_times_in_their_order(tmp_path: Path, threads: int):
    path = write_clip(tmp_path / "b.avi", TENTHS, options=B_FRAMES)
    assert times_of(path, threads=threads) == pytest.approx(TENTHS)
    with open_source(str(path)) as source:
        assert source.info.clock == "decoding order"
    assert chosen(path, fps=5) == list(range(0, 30, 2))
    assert chosen(path, start=1.0, end=1.25) == [10, 11, 12]


def write_packed_clip(path: Path) -> Path:
    """Writes an AVI as Xvid and DivX do: a B-frame in the packet of what is shown after it."""
    encoder = av.CodecContext.create("mpeg4", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 64, 64, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 10), Fraction(10)
    encoder.options = {"bf": "1", "g": "12", "b_strategy": "0"}
    pixels = np.random.default_rng(0).integers(0, 256, (64, 200, 3), dtype=np.uint8)
    coded = []
    for index in range(len(TENTHS)):
        shown = np.ascontiguousarray(pixels[:, index : index + 64])
        frame = av.VideoFrame.from_ndarray(shown, format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = index, Fraction(1, 10)
        coded += [bytes(packet) for packet in encoder.encode(frame)]
    coded += [bytes(packet) for packet in encoder.encode(None)]
    # The user data that says "packed" stands before the first picture.
    head, first = coded[0].split(b"\0\0\1\xb6", 1)
    head = head.split(b"\0\0\1\xb2")[0] + b"\0\0\1\xb2DivX503b1393p"
    coded[0] = head + b"\0\0\1\xb6" + first
    packed: list[bytes] = []
    for data in coded:
        if data[data.index(b"\0\0\1\xb6") + 4] >> 6 == 2:
            packed[-1:] = [packed[-1] + data, b"\x7f"]
        else:
            packed.append(data)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number, data in enumerate(packed):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts = stream, number, number
            packet.time_base, packet.is_keyframe = Fraction(1, 10), number == 0
            container.mux(packet)
    return path


@pytest.mark.parametrize("threads", [1, 4])
def test_b_frames_that_were_packed_into_other_packets_have_times_in_their_order(tmp_path, threads):
    path = write_packed_clip(tmp_path / "packed.avi")
    assert times_of(path, threads=threads) == pytest.approx(TENTHS)
    assert chosen(path, fps=5) == list(range(0, 30, 2))


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("broken", [[4], [7, 16], [28], [29]], ids=str)
def test_a_lost_packet_of_an_avi_leaves_the_times_of_later_groups(
    tmp_path: Path, broken: list[int], threads: int
):
    path = write_clip(tmp_path / "b.avi", TENTHS, options=B_FRAMES)
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for position, size in (packets[number] for number in broken):
        data[position + 8 : position + size] = b"\xff" * (size - 8)
    path.write_bytes(data)
    times = times_of(path, threads=threads)
    assert len(times) == 30 - len(broken)
    assert (np.diff(times) > 0.05).all()
    # At most as many places away as pictures are put into another order.
    nearest = [min(abs(time - tenth) for tenth in TENTHS) for time in times]
    assert max(nearest) < 1e-6
    if max(broken) < 12:
        assert times[-18:] == pytest.approx(TENTHS[-18:])


def test_annotated_video_of_an_avi_is_evenly_spaced(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "b.avi", TENTHS[:8], options=B_FRAMES)
    assert run("b.avi", "-o", "out.mp4", "-o", "out.jsonl") == 0
    assert times_in("out.mp4") == pytest.approx(TENTHS[:8])
    results = read_results("out.jsonl")
    assert results.header["clock"] == "decoding order"


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("raw.h264", "libx264", B_FRAMES),
        ("raw.hevc", "libx265", {"x265-params": "log-level=error"}),
        ("raw.m2v", "mpeg2video", {"bf": "2"}),
        ("raw.mpeg4", "mpeg4", {"bf": "2"}),
    ],
)
def test_a_raw_stream_is_counted_by_the_rate_that_it_names(tmp_path, name, codec, options):
    container_format = "m4v" if name.endswith("mpeg4") else None
    path = write_clip(
        tmp_path / name, TENTHS, codec=codec, options=options, container_format=container_format
    )
    with open_source(str(path), decoder="cpu") as source:
        assert source.info.fps == 10
        assert source.info.clock == "frame rate"
    times = times_of(path)
    assert np.subtract(times, times[0]) == pytest.approx(TENTHS)
    assert chosen(path, fps=5) == list(range(0, 30, 2))
    assert chosen(path, end=0.25) == [0, 1, 2]


def test_annotated_video_of_a_raw_stream_lasts_as_long(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "raw.h264", TENTHS[:8], options=B_FRAMES)
    assert run("raw.h264", "-o", "out.mp4") == 0
    assert times_in("out.mp4") == pytest.approx(TENTHS[:8])


def test_a_raw_stream_that_names_no_rate_has_no_times(tmp_path: Path):
    path = write_clip(tmp_path / "raw.mjpeg", TENTHS, codec="mjpeg", pixel_format="yuvj420p")
    with open_source(str(path), decoder="cpu") as source:
        assert source.info.fps is None
        assert source.info.clock == "none"
        assert [frame.pts_seconds for frame in source] == [None] * 30
    with pytest.raises(StreamRPNError, match="has no timestamps"):
        chosen(path, fps=5)
    assert chosen(path, stride=10) == [0, 10, 20]


@pytest.mark.parametrize("container_format", ["mpegts", "mpeg"])
@pytest.mark.parametrize("offset", [0.0, 500.0, -500.0, -0.3], ids=str)
def test_time_goes_on_where_recordings_were_joined(
    tmp_path: Path, monkeypatch, container_format: str, offset: float
):
    monkeypatch.chdir(tmp_path)
    options = {"codec": "mpeg2video", "container_format": container_format}
    first = write_clip(tmp_path / "1.ts", [1000 + t for t in TENTHS[:8]], **options)
    second = write_clip(tmp_path / "2.ts", [1000 + offset + t for t in TENTHS[:8]], **options)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    times = times_of(joined)
    assert np.subtract(times, times[0]) == pytest.approx(TENTHS[:16], abs=1e-3)
    assert chosen(joined, fps=5) == list(range(0, 16, 2))
    assert chosen(joined, start=1.0) == list(range(10, 16))
    assert run("joined.ts", "-o", "out.mp4", "-o", "out.jsonl") == 0
    assert times_in("out.mp4") == pytest.approx(TENTHS[:16], abs=1e-3)
    assert json.loads(Path("out.jsonl").read_text().splitlines()[-1])["end"]["clock_mended"] == {
        "jumps": 1
    }


def test_the_summary_says_that_the_clock_jumped(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = write_clip(tmp_path / "1.ts", TENTHS[:8]).read_bytes()
    (tmp_path / "joined.ts").write_bytes(data + data + data)
    assert main(["joined.ts", "-o", "o.jsonl", "--model", "tiny", "--size", "64"]) == 0
    assert "its clock jumped 2 ×" in capsys.readouterr().err


VARIABLE = [0.0, 0.04, 0.05, 0.25, 0.9, 0.94, 5.0, 5.5, 5.504, 5.6]

HEALTHY = [
    (suffix, codec, times)
    for suffix, codec in [
        ("mkv", "libx264"),
        ("mp4", "libx264"),
        ("mov", "libx264"),
        ("flv", "libx264"),
        ("ts", "libx264"),
        ("nut", "libx264"),
        ("mp4", "libx265"),
        ("webm", "libvpx-vp9"),
    ]
    for times in (TENTHS, VARIABLE, [7 + t for t in VARIABLE])
] + [
    (suffix, codec, times)
    for suffix, codec in [("mkv", "libx264"), ("mp4", "libx264"), ("mov", "mpeg4")]
    for times in ([-1.0, -0.9, 0.0, 0.1, 0.4], [0.0, 0.1, 3700.0, 3700.1])
]


@pytest.mark.parametrize(("suffix", "codec", "times"), HEALTHY)
def test_healthy_files_keep_exactly_their_times(tmp_path, suffix, codec, times):
    options = {"x265-params": "log-level=error"} if codec == "libx265" else {}
    rate = 1000 if suffix in ("nut", "webm") else 10
    unit = None if suffix in ("nut", "webm") else Fraction(1, 20_000)
    path = write_clip(
        tmp_path / f"clip.{suffix}", times, codec=codec, rate=rate, options=options, unit=unit
    )
    with av.open(str(path)) as container:
        expected = [
            (frame.pts, float(frame.pts * container.streams.video[0].time_base))
            for frame in container.decode(video=0)
        ]
    with open_source(str(path), decoder="cpu") as source:
        given = [(frame.pts, frame.pts_seconds) for frame in source]
        assert source.clock.mended == {}
    assert given == expected
    # What an edit list hides is not shown.
    assert len(given) == len(times) or times[0] < 0
    assert source.info.clock == "timestamps"


@given(st.lists(st.floats(-1e4, 1e6), max_size=30, unique=True))
def test_times_that_rise_pass_as_they_are(times: list[float]):
    times.sort()
    clock = Clock()
    assert [clock.place(time, 0.04) for time in times] == times
    assert clock.mended == {}


@given(
    st.lists(st.none() | st.floats(-1e4, 1e6), max_size=40),
    st.sampled_from([10.0, np.inf]),
    st.booleans(),
)
def test_times_never_fall_whatever_the_clock_does(times, longest_step, counts):
    clock = Clock(longest_step=longest_step, counts=counts)
    placed = [clock.place(time, 0.04) for time in times]
    known = [time for time in placed if time is not None]
    assert (np.diff(known) >= 0).all()
    assert None not in placed[placed.index(known[0]) :] if known else True


def test_one_wrong_time_moves_no_other():
    clock = Clock(longest_step=10.0)
    times = [clock.place(time, 0.1) for time in (0.0, 0.1, 900.0, 0.3, 0.4)]
    assert times == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    slight = Clock()
    assert [slight.place(time) for time in (0.0, 0.1, 0.05, 0.2)] == [0.0, 0.1, 0.1, 0.2]
    assert slight.mended == {"held": 1}


def test_a_clock_that_stands_still_is_moved_on():
    clock = Clock()
    times = [clock.place(time, 0.1) for time in (0.0, 0.1, 0.1, 0.1, 0.1, 0.4)]
    assert times == pytest.approx([0.0, 0.1, 0.1, 0.2, 0.3, 0.4])
    assert clock.mended == {"stood": 2}
    # A container in milliseconds has no more to say of two thousand frames a second.
    quick = Clock()
    times = [0.0, 0.0, 0.001, 0.001, 0.001, 0.002]
    assert [quick.place(time, 0.001) for time in times] == times


def test_frames_without_a_time_follow_the_one_before():
    clock = Clock()
    times = [clock.place(time, duration) for time, duration in ((5.0, 0.04), (None, 0.08))]
    times += [clock.place(None), clock.place(5.2), clock.place(None)]
    assert times == pytest.approx([5.0, 5.04, 5.12, 5.2, 5.28])
    assert Clock().place(None, 0.04) is None


@pytest.mark.parametrize("case", ["01_avi_bframe_timestamps", "02_clock_goes_back"])
def test_files_that_once_went_wrong(shared_data: Path, case: str):
    folder = shared_data.parent / "cases" / case
    if not folder.is_dir():
        pytest.skip("the cases are not there")
    with contextlib.closing(open_source(str(next(folder.glob("*.[at][vs]*"))))) as source:
        times = [frame.pts_seconds for frame in source]
    assert np.diff(times) == pytest.approx(0.1)
