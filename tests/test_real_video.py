"""The command on every real clip, sound or damaged: counts, timestamps, exit codes."""

import json
from pathlib import Path

import av
import pytest

from stream_rpn import cli

CLIPS = {
    "intel-bottle-detection.mp4": (0, 1189),
    "intel-car-detection.mp4": (0, 377),
    "pets09-s2l1-part1.mp4": (0, 160),
    "tud-campus.mp4": (0, 71),
    "vpf-test.mp4": (0, 96),
    "odd/av1_video.mkv": (0, 125),
    "odd/h264_10bits.mp4": (0, 30),
    "odd/h265_video.mp4": (0, 10),
    # FFmpeg's best of its two video streams.
    "odd/nasa_13013.mp4": (0, 390),
    "odd/pets-322x242.mp4": (0, 20),
    "odd/pets-vfr.mkv": (0, 40),
    "odd/rot_video_0.mov": (0, 3),
    "odd/rot_video_90.mov": (0, 3),
    "odd/corrupted.mp4": (3, 49),
    "odd/pets-truncated-faststart.mp4": (3, 24),
    "odd/pets-truncated-no-moov.mp4": (2, 0),
    "odd/sine_mono_s16.wav": (2, 0),
}


@pytest.mark.parametrize("name", CLIPS)
def test_every_clip_gives_every_frame(name, shared_data, tmp_path, monkeypatch, capsys):
    code, count = CLIPS[name]
    monkeypatch.chdir(tmp_path)
    clip = shared_data / "video" / name
    small = ("--model", "tiny", "--weights", "random", "--size", "64", "--batch", "8")
    assert cli.main([str(clip), *small, "--top", "20"]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    results = Path(f"{clip.stem}.proposals.jsonl")
    if count == 0:
        assert not results.exists()
        assert clip.name in err
        return
    header, *frames, end = [json.loads(line) for line in results.read_text().splitlines()]
    assert end["end"]["frames"] == len(frames) == count
    assert [frame["frame"] for frame in frames] == list(range(count))
    if code == 3:
        assert "damaged" in err
        assert end["end"]["damaged_packets"] > 0
        return
    with av.open(str(clip)) as container:
        stream = container.streams.best("video")
        # In these clips every packet is a picture that is shown; to decode them again takes long.
        packets = sorted(p.pts for p in container.demux(stream) if p.size)
        size = (stream.width, stream.height)
        times = [float(pts * stream.time_base) for pts in packets]
    assert [frame["pts"] for frame in frames] == packets
    assert [frame["pts_seconds"] for frame in frames] == pytest.approx(times)
    shown = (header["width"], header["height"])
    assert shown == (size if header["rotation"] % 180 == 0 else size[::-1])
