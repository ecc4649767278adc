"""MP4 on standard input: read as it comes where it can be, else kept in a file first."""

import io
import os
import sys
import tempfile
import threading
from pathlib import Path

import av
import pytest

from stream_rpn.frame import StreamRPNError
from stream_rpn.sources import open_source, spool
from stream_rpn.sources.packet_queue import Interrupted

FRAMES = 40


def encoded(path: Path, **options: str) -> bytes:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast", "g": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(FRAMES):
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


@pytest.fixture(scope="module")
def last(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return encoded(tmp_path_factory.mktemp("last") / "a.mp4")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return encoded(tmp_path_factory.mktemp("first") / "a.mp4", movflags="+faststart")


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch):
    """Returns what makes standard input a pipe that is written in pieces; ends when closed."""
    threads: list[threading.Thread] = []
    reading, writing = os.pipe()

    def write(pieces: list[bytes], closing: bool = True) -> None:
        def work() -> None:
            for piece in pieces:
                os.write(writing, piece)
            if closing:
                os.close(writing)

        threads.append(threading.Thread(target=work, daemon=True))
        threads[-1].start()

    with io.TextIOWrapper(os.fdopen(reading, "rb")) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield write
    for thread in threads:
        thread.join(10)


def count(**options) -> int:
    with open_source("-", decoder="cpu", **options) as source:
        return len(list(source))


def test_an_mp4_whose_index_stands_at_its_end(feed, last):
    assert last.index(b"mdat") < last.index(b"moov")
    feed([last])
    assert count() == FRAMES


@pytest.mark.parametrize("index", ["first", "last"])
def test_what_standard_input_is_read_from_is_closed_with_the_source(feed, index, request):
    feed([request.getfixturevalue(index)])
    source = open_source("-", decoder="cpu")
    assert not source._file.closed
    source.close()
    assert source._file.closed


def test_a_video_on_standard_input_leaves_it_open(last, tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(last)
    with (tmp_path / "a.mp4").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert count() == FRAMES
        assert os.lseek(stdin.fileno(), 0, os.SEEK_SET) == 0


def test_bytes_that_trickle(feed, last):
    feed([*(last[i : i + 1] for i in range(200)), last[200:]])
    assert count() == FRAMES


def test_an_mp4_whose_index_stands_in_front_is_read_as_it_comes(feed, first, monkeypatch):
    monkeypatch.setattr(spool, "_spooled", lambda *_: pytest.fail("was kept"))
    half = first.index(b"mdat") + (len(first) - first.index(b"mdat")) // 2
    feed([first[:half]], closing=False)
    asked = iter(range(1000))
    # More will not come, and whoever waits for it asks whether it is still wanted.
    with open_source("-", decoder="cpu", stopped=lambda: next(asked) > 1) as source:
        assert 5 < len(list(source)) < FRAMES


def test_what_is_cut_off_is_told(feed, last):
    feed([last[: last.index(b"moov")]])
    with pytest.raises(StreamRPNError, match=r"^standard input is cut off: its index \(moov\)"):
        count()


@pytest.mark.parametrize("data", [b"no", b"no video " * 100, b"\0\0\0\x08free" * 3])
def test_what_is_no_video_is_told(feed, data):
    feed([data])
    with pytest.raises(StreamRPNError, match=r"^standard input is not a video that PyAV can read$"):
        count()


def test_an_empty_pipe_is_told(feed):
    feed([])
    with pytest.raises(StreamRPNError, match=r"^standard input is empty"):
        count()


def test_a_full_disk_is_told(feed, last, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "wb"))  # noqa: SIM115
    feed([last])
    with pytest.raises(StreamRPNError, match=r"No space left on device; have TMPDIR name a folder"):
        count()


def test_much_is_told_once_and_too_much_is_refused(feed, last, monkeypatch):
    monkeypatch.setattr(spool, "_COPY_BYTES", 100)
    monkeypatch.setattr(spool, "LARGE_BYTES", 200)
    monkeypatch.setattr(spool, "MOST_BYTES", len(last) // 2)
    told: list[str] = []
    feed([last])
    with pytest.raises(StreamRPNError, match="does not come within"):
        count(notice=told.append)
    assert len(told) == 1
    assert "before its first frame" in told[0]


def test_a_pipe_that_falls_silent_while_it_is_kept_can_be_left(feed, last):
    feed([last[: len(last) // 2]], closing=False)
    asked = iter(range(1000))
    with pytest.raises(Interrupted):
        count(stopped=lambda: next(asked) > 1)


def test_a_closed_standard_input_is_told(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(StreamRPNError, match=r"^standard input is closed"):
        count()
