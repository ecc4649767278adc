"""Annotated films keep the sound of their source, in time with the picture."""

from fractions import Fraction

import av
import numpy as np
import pytest

from stream_rpn.cli import main
from stream_rpn.sinks import make_header, open_sink
from stream_rpn.sinks.record import saved_proposals
from stream_rpn.sources import open_source

SECONDS, RATE, FPS = 3, 48_000, 10


def write_film(path, *, codec="aac", audio_from=0.0, audio_seconds=SECONDS):
    """A film of gray frames with a tone, whose audio packets are as the encoder made them."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        audio = container.add_stream(codec, rate=RATE, layout="mono")
        planes = np.full((96, 96), 128, np.uint8)
        for pts in range(SECONDS * FPS):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = pts, Fraction(1, FPS)
            container.mux(video.encode(frame))
        size = audio.codec_context.frame_size or 1024
        tone = (8000 * np.sin(np.arange(int(audio_seconds * RATE)) / 20)).astype(np.int16)
        resampler = av.AudioResampler(audio.codec_context.format, "mono", RATE, frame_size=size)
        sound = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        sound.sample_rate, sound.time_base = RATE, Fraction(1, RATE)
        sound.pts = round(audio_from * RATE)
        for frame in [*resampler.resample(sound), *resampler.resample(None)]:
            container.mux(audio.encode(frame))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return str(path)


def packets(path, index=0):
    """The sound's packets as (seconds, content)."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return []
        stream = container.streams.audio[index]
        return [(float(p.pts * p.time_base), bytes(p)) for p in container.demux(stream) if p.size]


def heard(path, start, end):
    """The packets of a source from one time to another, as a film from `start` on has them."""
    return [(time - start, data) for time, data in packets(path) if start <= time < end]


def same_sound(found, wanted, tolerance):
    assert len(found) == len(wanted) > 0
    assert [data for _, data in found] == [data for _, data in wanted]
    np.testing.assert_allclose([t for t, _ in found], [t for t, _ in wanted], atol=tolerance)


def write_results(output, source, frames, *, selection=None, **totals):
    """Writes an annotated film of some frames of a source, as a run does; returns what it notes."""
    with open_source(source, decoder="cpu") as opened, open_sink(str(output)) as sink:
        header = make_header(opened.info, parameters={"selection": selection or {}})
        sink.begin(header, opened.info)
        for frame in opened:
            if frame.index in frames:
                proposals = saved_proposals(
                    frame.index, [], [], pts_seconds=frame.pts_seconds, width=96, height=64
                )
                proposals.image, proposals.color = frame.image, frame.color
                sink.write(proposals)
        sink.end({"frames": len(frames), **totals})
    return sink.notes


ALL = range(SECONDS * FPS)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_film(tmp_path_factory.mktemp("film") / "film.mp4")


# Matroska keeps milliseconds.
@pytest.mark.parametrize(("name", "unit"), [("x.mp4", 1e-5), ("x.mkv", 1e-3)])
def test_all_of_it_is_copied_as_it_is(tmp_path, film, name, unit):
    assert write_results(tmp_path / name, film, ALL) == []
    same_sound(packets(tmp_path / name), heard(film, 0, 99), unit)


@pytest.mark.parametrize(("name", "unit"), [("x.mp4", 1e-5), ("x.mkv", 1e-3)])
def test_of_a_part_it_is_that_of_the_part_in_time(tmp_path, film, name, unit):
    frames, selection = range(12, 21), {"start": 1.2, "end": 2.1}
    write_results(tmp_path / name, film, frames, selection=selection)
    same_sound(packets(tmp_path / name), heard(film, 1.2, 2.1), unit)


def test_frames_that_are_left_out_leave_none_of_it_out(tmp_path, film):
    write_results(tmp_path / "x.mp4", film, ALL[::7])
    same_sound(packets(tmp_path / "x.mp4"), heard(film, 0, 99), 1e-5)


def test_of_a_run_that_was_stopped_it_ends_with_the_picture(tmp_path, film):
    write_results(tmp_path / "x.mkv", film, range(8), stopped="interrupted")
    same_sound(packets(tmp_path / "x.mkv"), heard(film, 0, 0.8), 1e-3)


def test_sound_that_begins_late_begins_as_late(tmp_path):
    source = write_film(tmp_path / "late.mkv", audio_from=0.7, audio_seconds=1)
    write_results(tmp_path / "x.mp4", source, ALL)
    found = packets(tmp_path / "x.mp4")
    assert found[0][0] == pytest.approx(packets(source)[0][0], abs=1e-3)
    assert found[0][0] > 0.6
    same_sound(found, heard(source, 0, 99), 1e-3)


def test_far_into_a_film_it_is_found_by_seeking(tmp_path, film, monkeypatch):
    monkeypatch.setattr("stream_rpn.sinks.sound._WORTH_SEEKING", 1.0)
    write_results(tmp_path / "x.mp4", film, range(25, 30))
    # Where FFmpeg has sought in an MP4 it gives times that are 16 samples earlier.
    same_sound(packets(tmp_path / "x.mp4"), heard(film, 2.5, 99), 5e-4)


def test_what_a_container_does_not_hold_is_told_of_and_no_failure(tmp_path):
    source = write_film(tmp_path / "pcm.mkv", codec="pcm_u8")
    (note,) = write_results(tmp_path / "x.mp4", source, ALL)
    assert note == "its sound in pcm_u8 is left out: mp4 holds none"
    assert packets(tmp_path / "x.mp4") == []
    with av.open(str(tmp_path / "x.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == len(ALL)
    assert write_results(tmp_path / "x.mkv", source, ALL) == []
    same_sound(packets(tmp_path / "x.mkv"), heard(source, 0, 99), 1e-3)


def test_adts_of_a_transport_stream_becomes_what_files_have(tmp_path):
    source = write_film(tmp_path / "x.ts")
    for name in ("x.mp4", "x.mkv"):
        assert write_results(tmp_path / name, source, ALL) == []
        with av.open(str(tmp_path / name)) as container:
            samples = sum(frame.samples for frame in container.decode(audio=0))
        assert samples == pytest.approx(SECONDS * RATE, abs=3 * 1024)


def test_a_film_that_is_cut_off_keeps_what_there_is(tmp_path, film):
    cut = tmp_path / "cut.ts"
    data = open(write_film(tmp_path / "whole.ts"), "rb").read()  # noqa: SIM115
    cut.write_bytes(data[: len(data) // 2])
    write_results(tmp_path / "x.mp4", str(cut), ALL)
    assert 0 < len(packets(tmp_path / "x.mp4")) < len(packets(tmp_path / "whole.ts"))


def test_without_it_on_request(tmp_path, film):
    out = str(tmp_path / "x.mp4")
    with open_source(film) as source, open_sink(str(tmp_path / "r.jsonl")) as sink:
        sink.begin(make_header(source.info), source.info)
        sink.write(saved_proposals(0, [[1, 1, 40, 40]], [0.9], width=96, height=64))
        sink.end({"frames": 1})
    assert main(["render", str(tmp_path / "r.jsonl"), "-o", out, "--no-sound"]) == 0
    assert packets(out) == []
    assert main(["render", str(tmp_path / "r.jsonl"), "-o", out, "--overwrite"]) == 0
    same_sound(packets(out), heard(film, 0, 99), 1e-5)
