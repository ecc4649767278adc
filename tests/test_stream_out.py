"""Annotated video streamed to real receivers, each a process of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest

from stream_rpn import cli
from stream_rpn.commands.outputs import resolve_outputs
from stream_rpn.frame import Color, Proposals, StreamInfo, StreamRPNError
from stream_rpn.sinks import make_header, open_sink, stream

ROOT = Path(__file__).resolve().parents[1]
FAST = ("--model", "tiny", "--weights", "random", "--size", "96")
COLOR = Color("bt709", full_range=False, tagged=True)
INFO = StreamInfo("camera", "camera", 320, 240, fps=25.0, color=COLOR)
BOX = (64.0, 48.0, 256.0, 192.0)

# Plays what it is sent until `count` frames have come, then says what it saw.
RECEIVER = """
    import json, sys, time, av
    url, options, count = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    seen, delays = [], []
    with av.open(url, options=options, timeout=(120, 60)) as container:
        for frame in container.decode(video=0):
            luma = frame.to_ndarray()[: frame.height]
            seen.append(int(luma[10, 10]))
            delays.append(time.time())
            codec = container.streams.video[0].codec_context.name
            if len(seen) == count:
                break
    print(json.dumps({
        "size": [frame.width, frame.height],
        "codec": codec,
        "seen": seen,
        "times": delays,
        "box": luma[48 : 192 : 16, 64].tolist(),
        "ground": int(luma[100, 160]),
    }))
"""


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def receiver(url, count, **options):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(RECEIVER), url, json.dumps(options), str(count)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def proposals(number, luma=90):
    planes = np.full((360, 320), 128, np.uint8)
    planes[:240] = luma
    boxes = np.array([BOX], np.float32)
    return Proposals(
        frame=number,
        pts=number,
        pts_seconds=number / 25,
        width=320,
        height=240,
        boxes=boxes,
        scores=np.array([0.9], np.float32),
        levels=np.zeros(1, np.int32),
        anchors=np.zeros(1, np.int32),
        input_boxes=boxes,
        image=av.VideoFrame.from_ndarray(planes, format="yuv420p"),
        color=COLOR,
        source="camera",
    )


def feed(sink, until, written=None, *, seconds=120.0):
    """Writes 25 frames per second, each of another gray, until something has come about.

    `written` gets the time of each.
    """
    written = [] if written is None else written
    sink.begin(make_header(INFO, model="tiny"), INFO)
    began = time.monotonic()
    while not until():
        assert time.monotonic() - began < seconds
        number = len(written)
        sink.write(proposals(number, luma=40 + number % 180))
        written.append(time.time())
        time.sleep(max(0.0, began + len(written) / 25 - time.monotonic()))


@pytest.fixture
def _no_thread_or_process_left():
    def children():
        return Path(f"/proc/self/task/{os.getpid()}/children").read_text()

    threads, processes = set(threading.enumerate()), children()
    yield
    assert set(threading.enumerate()) == threads
    assert children() == processes


@pytest.mark.usefixtures("_no_thread_or_process_left")
@pytest.mark.parametrize(
    ("url", "listening"),
    [
        ("udp://127.0.0.1:{port}", {"fifo_size": "50000", "overrun_nonfatal": "1"}),
        ("rtsp://127.0.0.1:{port}/live", {"rtsp_flags": "listen", "listen_timeout": "120"}),
        ("rtmp://127.0.0.1:{port}/live/x", {"listen": "1", "analyzeduration": "1"}),
    ],
    ids=["udp", "rtsp", "rtmp"],
)
def test_a_receiver_sees_the_boxes(url, listening):
    kind = socket.SOCK_DGRAM if url.startswith("udp") else socket.SOCK_STREAM
    port = free_port(kind)
    url = url.format(port=port)
    # The last frames are still on their way when it has seen enough.
    process = receiver(url, 60, **listening)
    try:
        wait_until_listening(port, kind)
        sink = open_sink(url)
        written = []
        with contextlib.suppress(StreamRPNError):  # the receiver leaves when it has enough
            feed(sink, lambda: process.poll() is not None, written)
        sink.abort()
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, err
    found = json.loads(out)
    assert found["size"] == [320, 240]
    assert found["codec"] == "h264"
    # Consecutive grays: nothing was left out.
    steps = np.diff(found["seen"])
    assert np.median(steps) == 1
    # Within seconds of the start, what is shown is what has just been written.
    delays = [
        # The grays begin anew after 180 frames: it is the last one of this gray before it was seen.
        min(seen_at - at for at in written[luma - 40 :: 180] if at < seen_at + 0.05)
        for luma, seen_at in zip(found["seen"], found["times"], strict=True)
    ]
    assert np.median(delays[-10:]) < 2
    assert all(abs(luma - found["ground"]) > 20 for luma in found["box"])


def wait_until_listening(port, kind=socket.SOCK_STREAM, seconds=60):
    """Waits by looking, as a connection would be taken for the sender."""
    end = time.monotonic() + seconds
    table, state = ("tcp", "0A") if kind == socket.SOCK_STREAM else ("udp", "07")
    while f":{port:04X} 00000000:0000 {state}" not in Path(f"/proc/net/{table}").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.usefixtures("_no_thread_or_process_left")
class TestPeers:
    @pytest.mark.parametrize("scheme", ["rtsp", "rtmp"])
    def test_that_is_not_there(self, scheme):
        sink = open_sink(f"{scheme}://me:secret@127.0.0.1:{free_port()}/live/x")
        with pytest.raises(StreamRPNError, match="refused") as caught:
            feed(sink, lambda: False)
        sink.abort()
        assert "secret" not in str(caught.value)
        assert f"cannot stream to '{scheme}://me:***@127.0.0.1" in str(caught.value)

    def test_that_was_not_there_by_the_end(self):
        sink = open_sink(f"rtsp://127.0.0.1:{free_port()}/live")
        sink.begin(make_header(INFO, model="tiny"), INFO)
        sink.write(proposals(0))
        with pytest.raises(StreamRPNError, match="refused"):
            sink.close()

    def test_that_goes_away(self):
        port = free_port()
        process = receiver(f"rtmp://127.0.0.1:{port}/live/x", 10_000, listen="1")
        wait_until_listening(port)
        sink = open_sink(f"rtmp://127.0.0.1:{port}/live/x")
        killer = threading.Timer(3, process.kill)
        killer.start()
        try:
            with pytest.raises(StreamRPNError, match=r"cannot stream to .*(reset|pipe|ended)"):
                feed(sink, lambda: False)
        finally:
            sink.abort()
            killer.join()
            process.communicate()

    @pytest.mark.parametrize("scheme", ["rtsp", "rtmp"])
    def test_that_accepts_and_says_nothing(self, scheme, monkeypatch):
        """FFmpeg then waits for ever with the interpreter locked; the pipeline must not."""
        monkeypatch.setattr(stream, "STUCK_SECONDS", 5.0)
        with socket.create_server(("127.0.0.1", 0)) as mute:
            sink = open_sink(f"{scheme}://me:secret@127.0.0.1:{mute.getsockname()[1]}/live/x")
            slowest = 0.0
            sink.begin(make_header(INFO, model="tiny"), INFO)
            noise = np.random.default_rng(0).integers(0, 255, (360, 320), dtype=np.uint8)
            with pytest.raises(StreamRPNError, match="takes nothing"):  # noqa: PT012
                for number in range(1000):
                    record = proposals(number)
                    record.image = av.VideoFrame.from_ndarray(noise, format="yuv420p")
                    before = time.perf_counter()
                    sink.write(record)
                    slowest = max(slowest, time.perf_counter() - before)
                    seen_by_others = Path(f"/proc/{sink._relay.pid}/cmdline").read_bytes()
                    time.sleep(0.02)
            sink.abort()
        assert slowest < 4  # nothing waits until it is given up
        assert b"relay" in seen_by_others
        assert b"secret" not in seen_by_others

    def test_that_says_nothing_until_the_end(self, monkeypatch):
        monkeypatch.setattr(stream, "_CLOSE_SECONDS", 0.5)
        with socket.create_server(("127.0.0.1", 0)) as mute:
            sink = open_sink(f"rtmp://127.0.0.1:{mute.getsockname()[1]}/live/x")
            sink.begin(make_header(INFO, model="tiny"), INFO)
            sink.write(proposals(0))
            with pytest.raises(StreamRPNError, match="does not take the end"):
                sink.close()


def test_no_frame():
    sink = open_sink("udp://127.0.0.1:9")
    sink.begin(make_header(INFO, model="tiny"), INFO)
    with pytest.raises(StreamRPNError, match="there was no frame to show"):
        sink.close()


def test_several_sources_need_an_address_each():
    with pytest.raises(StreamRPNError, match=r"rtsp://me:\*\*\*@host/x.*\{stem\}"):
        resolve_outputs(["rtsp://me:secret@host/x"], ["a.mp4", "b.mp4"])
    outputs = resolve_outputs(["rtsp://host/{stem}"], ["a.mp4", "b.mp4"])
    assert [output.name for output in outputs] == ["rtsp://host/a", "rtsp://host/b"]
    assert all(output.needs_image for output in outputs)


def test_other_outputs_go_on(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    url = f"rtsp://me:secret@127.0.0.1:{free_port()}/live"
    outputs = ("-o", url, "-o", "x.jsonl", "--json-summary", "s.json")
    assert cli.main([*FAST, "synthetic:320x240@25,60", *outputs]) == 3
    err = capfd.readouterr().err
    assert "cannot stream to 'rtsp://me:***@" in err
    assert "secret" not in err
    lines = (tmp_path / "x.jsonl").read_text().splitlines()
    assert len(lines) == 62
    assert json.loads((tmp_path / "s.json").read_text())["outputs"] == ["x.jsonl"]


def test_ctrl_c_ends_the_stream_cleanly(tmp_path):
    port = free_port(socket.SOCK_DGRAM)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "stream_rpn", *FAST, "synthetic:320x240@25,100000"),
            *("--realtime", "-o", f"udp://127.0.0.1:{port}"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    watching = receiver(f"udp://127.0.0.1:{port}", 25)
    try:
        out, err = watching.communicate(timeout=300)
        assert watching.returncode == 0, err
        # To the whole group, as a terminal does.
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
        watching.kill()
    assert json.loads(out)["size"] == [320, 240]
    assert process.returncode == 130, err
    assert "cannot" not in err
