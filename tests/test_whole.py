"""Files that were cut off, or begin in the middle, say so; whole ones of any container never do."""

import io
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from stream_rpn.cli import main
from stream_rpn.drops import Drop
from stream_rpn.frame import StreamRPNError
from stream_rpn.sources import open_source
from stream_rpn.sources.promise import Promise

FRAMES = 60

X264 = {"g": "12", "bf": "2", "b-adapt": "0"}
FRAGMENTED = {"movflags": "empty_moov+default_base_moof+frag_keyframe"}

# name: encoder, its options, the container's options and name, pixel format
KINDS: dict[str, tuple] = {
    "fast.mp4": ("libx264", X264, {"movflags": "faststart"}),
    "fragmented.mp4": ("libx264", X264, FRAGMENTED),
    "h264.mov": ("libx264", X264, {"movflags": "faststart"}),
    "h264.3gp": ("libx264", X264, {"movflags": "faststart"}),
    "hevc.mp4": ("libx265", {"x265-params": "log-level=error"}, {"movflags": "faststart"}),
    "h264.mkv": ("libx264", X264, {}),
    "mjpeg.mkv": ("mjpeg", {}, {}, None, "yuvj420p"),
    "hevc.mkv": ("libx265", {"x265-params": "log-level=error"}, {}),
    "vp8.webm": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16"}, {}),
    "vp9.webm": ("libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16"}, {}),
    "av1.webm": ("libsvtav1", {"preset": "12"}, {}),
    "h264.avi": ("libx264", X264, {}),
    "mpeg4.avi": ("mpeg4", {"bf": "2"}, {}),
    "mjpeg.avi": ("mjpeg", {}, {}, None, "yuvj420p"),
    "raw.avi": ("rawvideo", {}, {}),
    "h264.flv": ("libx264", X264, {}),
    "sorenson.flv": ("flv1", {}, {}),
    "h264.ts": ("libx264", X264, {}),
    "mpeg2.ts": ("mpeg2video", {"bf": "2"}, {}),
    "h264.m2ts": ("libx264", X264, {"mpegts_m2ts_mode": "1"}, "mpegts"),
    "vp8.ogv": ("libvpx", {}, {}),
    "raw.y4m": ("wrapped_avframe", {}, {}),
    "wmv2.wmv": ("wmv2", {}, {}, "asf"),
    "mpeg2.mxf": ("mpeg2video", {"bf": "2"}, {}),
    "vp8.ivf": ("libvpx", {}, {}),
    "sorenson.swf": ("flv1", {}, {}),
    "picture.gif": ("gif", {}, {}, None, "rgb8"),
    "raw.mjpeg": ("mjpeg", {}, {}, None, "yuvj420p"),
    "rv10.rm": ("rv10", {}, {}),
    "ffv1.nut": ("ffv1", {}, {}),
    "mpeg2.mpg": ("mpeg2video", {"bf": "2"}, {}),
    "mpeg1.mpg": ("mpeg1video", {}, {}),
    "mpeg2.vob": ("mpeg2video", {"bf": "2"}, {}, "vob"),
    "mpeg2.m2v": ("mpeg2video", {"bf": "2"}, {}),
    "mpeg4.m4v": ("mpeg4", {"bf": "2"}, {}, "m4v"),
    "h264.h264": ("libx264", X264, {}),
    "h264.nut": ("libx264", X264, {}),
    "hevc.hevc": ("libx265", {"x265-params": "log-level=error"}, {}),
    "av1.obu": ("libsvtav1", {"preset": "12"}, {}, "obu"),
    "interlaced.mkv": ("libx264", {**X264, "x264-params": "interlaced=1:tff=1"}, {}),
    "interlaced.ts": ("mpeg2video", {"flags": "+ildct+ilme"}, {}),
}

# Bare streams and program streams say nothing of their length. What their last picture lacks the
# decoder may tell.
SILENT = {"mpeg2.mpg", "mpeg1.mpg", "mpeg2.vob", "mpeg2.m2v", "mpeg4.m4v", "h264.h264", "h264.nut",
          "hevc.hevc", "av1.obu"}  # fmt: skip

SOUNDS = {"mp4": "aac", "mkv": "aac", "webm": "libopus", "flv": "aac", "ts": "aac", "avi": "mp3",
          "mov": "aac"}  # fmt: skip


def write(
    path: Path,
    encoder: str,
    options: dict[str, str],
    container_options: dict[str, str],
    container_format: str | None = None,
    pixel_format: str = "yuv420p",
    *,
    times: Callable[[int], int] = lambda index: 40 * index,
    sound_seconds: float = 0.0,
    sound_start: float = 0.0,
) -> Path:
    """Encodes FRAMES frames, each at `times(index)` milliseconds, and silence beside them."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 400, 3), dtype=np.uint8)
    constant = [times(index) for index in range(FRAMES)] == list(range(0, 40 * FRAMES, 40))
    unit = Fraction(1, 25 if constant else 1000)
    with av.open(str(path), "w", format=container_format, container_options=container_options) as c:
        stream = c.add_stream(encoder, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        stream.codec_context.time_base = unit
        # libvpx's threads spin while they wait for each other, which takes minutes on busy cores.
        stream.thread_count = 1
        sound = c.add_stream(SOUNDS[path.suffix[1:]], rate=48000) if sound_seconds else None
        for index in range(FRAMES):
            shown = np.ascontiguousarray(pixels[:, 3 * index : 3 * index + 64])
            frame = av.VideoFrame.from_ndarray(shown, format="rgb24").reformat(format=pixel_format)
            frame.pts, frame.time_base = round(times(index) / 1000 / unit), unit
            c.mux(stream.encode(frame))
        c.mux(stream.encode(None))
        for start in range(0, int(48000 * sound_seconds), 960) if sound else ():
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.int16), "s16", "stereo")
            silence.sample_rate = 48000
            silence.pts, silence.time_base = start + int(48000 * sound_start), Fraction(1, 48000)
            c.mux(sound.encode(silence))
        if sound:
            c.mux(sound.encode(None))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("clips")

    def encoded(name: str) -> Path:
        path = folder / name
        return path if path.exists() else write(path, *KINDS[name])

    return encoded


def told(path: Path) -> tuple[int, list[Drop], int]:
    """The frames, what was lost, and the frames with errors of a file."""
    with open_source(str(path), decoder="cpu") as source:
        frames = list(source)
        drops = [drop for frame in frames for drop in frame.drops]
        return len(frames), [*drops, *source.trailing_drops], source.corrupt_frames


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_file_has_nothing_missing(clip, name: str):
    assert told(clip(name)) == (FRAMES, [], 0)


@pytest.mark.parametrize("name", [n for n in KINDS if not n.endswith(("mp4", "mov", "3gp"))])
def test_a_whole_file_has_nothing_missing_where_it_cannot_be_looked_at(
    clip, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("stream_rpn.sources.file.local_file", lambda uri: None)
    assert told(clip(name)) == (FRAMES, [], 0)


def test_a_head_that_lies_farther_in_than_is_looked_raises_no_alarm(clip, tmp_path: Path):
    path = tmp_path / "late.mxf"
    path.write_bytes(bytes((1 << 16) - 14) + clip("mpeg2.mxf").read_bytes())
    assert told(path) == (FRAMES, [], 0)


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("name", [name for name in KINDS if name not in SILENT])
def test_a_file_that_was_cut_off_says_so(clip, tmp_path: Path, name: str, share: float):
    data = clip(name).read_bytes()
    cut = tmp_path / name
    # An odd number of bytes is on no border of packets.
    cut.write_bytes(data[: int(len(data) * share) | 1])
    try:
        _, drops, _ = told(cut)
    except StreamRPNError:
        return
    assert drops
    assert {str(drop.reason) for drop in drops} <= {"damaged packet", "missing packet", "cut off"}


@pytest.mark.parametrize("name", [name for name in KINDS if name not in SILENT])
def test_a_file_that_lacks_its_last_frames_says_so(clip, tmp_path: Path, name: str):
    data = clip(name).read_bytes()
    cut = tmp_path / name
    cut.write_bytes(data[: int(len(data) * 0.99) | 1])
    try:
        frames, drops, _ = told(cut)
    except StreamRPNError:
        return
    assert drops or frames == FRAMES


@pytest.mark.parametrize(
    ("name", "reason"),
    [("h264.avi", "missing packet"), ("fast.mp4", "missing packet"), ("h264.mkv", "cut off")],
)
def test_how_much_is_missing_is_told_where_it_is_known(clip, tmp_path: Path, name, reason):
    data = clip(name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    frames, drops, _ = told(tmp_path / name)
    last = drops[-1]
    assert last.reason == reason
    if reason == "missing packet":
        assert frames + sum(drop.count for drop in drops) in (FRAMES, FRAMES - 1)
    else:
        assert last.count == 0
        assert last.seconds == pytest.approx(0.04 * (FRAMES - frames), abs=0.09)


@pytest.mark.parametrize("name", ["h264.mkv", "vp9.webm", "sorenson.flv", "h264.avi", "raw.y4m"])
def test_the_command_says_in_a_sentence_that_a_file_was_cut_off(
    clip, tmp_path: Path, name: str, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    data = clip(name).read_bytes()
    Path(name).write_bytes(data[: len(data) // 2 | 1])
    arguments = ["-o", "o.jsonl", "--model", "tiny", "--size", "64", "--json-summary", "s.json"]
    assert main([name, *arguments]) == 3
    summary = json.loads(Path("s.json").read_text())
    (sentence,) = summary["failures"]
    assert "the video is damaged (" in sentence
    assert sentence in capsys.readouterr().err
    assert summary["frames_in"] == summary["frames"] + sum(summary["drops"].values())
    assert any(reason in ("cut off", "missing packet") for reason in summary["drops"])
    end = json.loads(Path("o.jsonl").read_text().splitlines()[-1])["end"]
    assert end["drops"] == summary["drops"]
    if name in ("h264.mkv", "vp9.webm", "sorenson.flv"):
        missing = 0.04 * (FRAMES - summary["frames"])
        assert end["missing_seconds"] == pytest.approx(missing, abs=0.09)


HELD_LAST = [40 * index for index in range(FRAMES - 1)] + [40 * FRAMES + 5000]
UNEVEN = [40 * index + index * index % 37 for index in range(FRAMES)]


@pytest.mark.parametrize("looked_at", [True, False], ids=["file", "pipe"])
@pytest.mark.parametrize(
    "case",
    [
        {"sound_seconds": 5.0},
        {"sound_seconds": 1.0},
        {"sound_seconds": 2.4, "sound_start": 3.0},
        {"times": lambda index: 3000 + 40 * index, "sound_seconds": 5.6},
        {"times": lambda index: HELD_LAST[index]},
        {"times": lambda index: UNEVEN[index]},
        {"times": lambda index: 3000 + UNEVEN[index]},
    ],
    ids=["long sound", "short sound", "late sound", "late", "held last", "uneven", "late uneven"],
)
@pytest.mark.parametrize("suffix", ["mkv", "webm", "flv", "mp4", "mov", "ts"])
def test_whole_files_with_odd_lengths_raise_no_alarm(
    tmp_path: Path, suffix: str, case: dict, looked_at: bool, monkeypatch: pytest.MonkeyPatch
):
    if not looked_at:
        monkeypatch.setattr("stream_rpn.sources.file.local_file", lambda uri: None)
    encoder = "libvpx" if suffix == "webm" else "libx264"
    path = write(tmp_path / f"odd.{suffix}", encoder, {}, {}, **case)
    assert told(path) == (FRAMES, [], 0)


def test_an_avi_with_sound_raises_no_alarm(tmp_path: Path):
    for seconds in (1.0, 5.0):
        path = write(tmp_path / f"{seconds}.avi", "mpeg4", {}, {}, sound_seconds=seconds)
        assert told(path) == (FRAMES, [], 0)


def test_an_index_that_was_cut_off_alone_raises_no_alarm(clip, tmp_path: Path):
    data = clip("vp8.webm").read_bytes()
    cues = data.rfind(b"\x1c\x53\xbb\x6b")
    assert cues > len(data) // 2
    (tmp_path / "v.webm").write_bytes(data[: cues + 3])
    assert told(tmp_path / "v.webm") == (FRAMES, [], 0)


def test_a_matroska_file_that_grew_without_an_end_promises_nothing(tmp_path: Path):
    path = write(tmp_path / "live.mkv", "libx264", X264, {"live": "1"})
    assert told(path) == (FRAMES, [], 0)


@pytest.mark.parametrize("name", ["fast.mp4", "h264.flv", "sorenson.flv", "wmv2.wmv"])
def test_a_recording_that_was_appended_and_is_not_read_is_told(clip, tmp_path: Path, name: str):
    data = clip(name).read_bytes()
    (tmp_path / name).write_bytes(data + data)
    frames, drops, _ = told(tmp_path / name)
    assert frames == FRAMES
    assert [(str(drop.reason), drop.count) for drop in drops] == [("unread recording", 0)]


@pytest.mark.parametrize(
    "name", ["h264.mkv", "vp9.webm", "h264.avi", "mjpeg.avi", "mpeg2.mxf", "h264.ts", "mpeg2.mpg"]
)
def test_a_recording_that_was_appended_is_read_where_ffmpeg_can(clip, tmp_path: Path, name: str):
    data = clip(name).read_bytes()
    (tmp_path / name).write_bytes(data + data)
    assert told(tmp_path / name)[:2] == (2 * FRAMES, [])
    with open_source(str(tmp_path / name), decoder="cpu") as source:
        times = [frame.pts_seconds for frame in source]
    steps = np.diff(times)
    assert steps.min() >= 0
    assert np.sum(steps) == pytest.approx(0.04 * (2 * FRAMES - 1), abs=0.1)


def test_a_promise_of_a_pipe_counts_with_its_duration(clip):
    for name, rest in (("h264.mkv", "cut off"), ("h264.avi", "missing packet")):
        data = clip(name).read_bytes()
        with av.open(io.BytesIO(data[: len(data) // 2])) as container:
            stream = container.streams.video[0]
            promise = Promise(container, stream)
            for packet in container.demux(stream):
                if packet.size:
                    promise.saw(packet)
            (missing,) = promise.broken()
            assert missing.reason == rest


def without_beginning(path: Path, target: Path, skipped: int) -> int:
    """Copies the packets of a video but the first ones; returns how many are before a key frame."""
    before = 0
    with av.open(str(path)) as container, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        key = False
        for number, packet in enumerate(container.demux(video=0)):
            if packet.size and number >= skipped:
                key = key or packet.is_keyframe
                before += not key
                packet.stream = stream
                output.mux(packet)
    return before


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("suffix", ["ts", "mkv", "h264"])
def test_a_recording_that_begins_between_key_frames_says_what_it_lost(
    clip, tmp_path: Path, suffix: str, threads: int
):
    target = tmp_path / f"late.{suffix}"
    # Where the parameter sets come with key frames, nothing before them is even an error.
    before = without_beginning(clip("h264.ts"), target, 5)
    assert before == 7
    with open_source(str(target), decoder="cpu", threads=threads) as source:
        frames = list(source)
    assert len(frames) == FRAMES - 12
    assert sum(drop.count for drop in frames[0].drops) == before
    assert "no key frame" in {str(drop.reason) for drop in frames[0].drops}
    assert source.damaged_packets == before
    assert source.trailing_drops == ()


@pytest.mark.parametrize("name", ["mpeg2.ts", "hevc.mkv", "vp8.webm", "h264.flv", "mpeg4.avi"])
@pytest.mark.parametrize("skipped", [0, 1, 2, 5])
def test_no_frame_is_both_given_and_lost(clip, tmp_path: Path, name: str, skipped: int):
    target = tmp_path / f"late.{'mkv' if name != 'mpeg2.ts' else 'ts'}"
    without_beginning(clip(name), target, skipped)
    try:
        frames, drops, _ = told(target)
    except StreamRPNError:
        return
    assert frames + sum(drop.count for drop in drops) <= FRAMES - skipped
    assert not drops or skipped


def test_the_command_tells_what_was_before_the_first_key_frame(
    clip, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    without_beginning(clip("h264.ts"), tmp_path / "late.ts", 7)
    assert main(["late.ts", "-o", "o.jsonl", "--model", "tiny", "--size", "64"]) == 3
    rows = [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]
    assert [(d["reason"], d["count"]) for d in rows[1]["drops"]] == [("no key frame", 5)]
    assert rows[-1]["end"]["drops"] == {"no key frame": 5}
    assert "5 × no key frame" in capsys.readouterr().err
