"""Results published by ZeroMQ, to real subscribers."""

import json
import resource
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zmq

from stream_rpn import cli
from stream_rpn.frame import Color, Proposals, StreamInfo, StreamRPNError
from stream_rpn.sinks import make_header, open_sink

FAST = ("--model", "tiny", "--weights", "random", "--size", "96")
COLOR = Color("bt709", full_range=False, tagged=True)
INFO = StreamInfo("camera", "camera", 320, 240, color=COLOR)


def proposals(number, count=3, source="camera"):
    boxes = np.tile(np.array([[1, 2, 30.5, 40]], np.float32), (count, 1))
    return Proposals(
        frame=number,
        pts=number,
        pts_seconds=number / 25,
        width=320,
        height=240,
        boxes=boxes,
        scores=np.linspace(0.9, 0.1, count, dtype=np.float32),
        levels=np.zeros(count, np.int32),
        anchors=np.zeros(count, np.int32),
        input_boxes=boxes,
        source=source,
    )


@pytest.fixture
def publisher():
    with open_sink("zmq:tcp://127.0.0.1:0") as sink:
        yield sink


@pytest.fixture
def context():
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


def subscriber(context, endpoint, topic=b""):
    receiver = context.socket(zmq.SUB)
    receiver.rcvtimeo = 10_000
    receiver.reconnect_ivl = 10
    receiver.subscribe(topic)
    receiver.connect(endpoint)
    return receiver


def resident():
    """Returns the bytes of memory in use now; the peak would be that of who started the process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def meet(sink, *receivers):
    """Publishes until all receivers have had something: joining takes a moment."""
    waiting = set(receivers)
    end = time.monotonic() + 60
    while waiting:
        assert time.monotonic() < end
        sink.write(proposals(0))
        sink.write(proposals(0, source="other"))
        waiting = {receiver for receiver in waiting if not receiver.poll(20)}


def messages(receiver):
    """Returns what comes until the end of a source, without what `meet` sent."""
    found = []
    while True:
        topic, line = receiver.recv_multipart()
        message = json.loads(line)
        if message.get("frame") != 0:
            found.append((topic.decode(), message))
        if "end" in message:
            return found


def test_subscribers_get_the_lines_of_a_result_file(publisher, context):
    everything = subscriber(context, publisher.endpoint)
    other = subscriber(context, publisher.endpoint, b"other")
    meet(publisher, everything, other)
    header = make_header(INFO, model="tiny")
    publisher.begin(header, INFO)
    publisher.write(proposals(1))
    publisher.write(proposals(2, source="other"))
    publisher.end({"frames": 2, "source": "other"})
    found = messages(everything)
    assert [topic for topic, _ in found] == ["camera", "camera", "other", "other"]
    assert found[0][1] == header
    result = found[1][1]
    assert (result["frame"], result["source"]) == (1, "camera")
    assert (result["width"], result["height"]) == (320, 240)
    assert result["boxes"][0] == [1, 2, 30.5, 40]
    assert found[3][1] == {"end": {"frames": 2, "source": "other"}, "source": "other"}
    assert [topic for topic, _ in messages(other)] == ["other", "other"]


def test_a_subscriber_that_stops_reading_costs_nothing():
    """In a process of its own, as memory is measured; another subscriber goes on meanwhile."""
    script = """
        import time, zmq
        from stream_rpn.sinks import open_sink
        from tests.test_zeromq import proposals, resident, subscriber, meet
        context = zmq.Context()
        with open_sink("zmq:tcp://127.0.0.1:0") as sink:
            stuck = context.socket(zmq.SUB)
            stuck.setsockopt(zmq.RCVHWM, 1)
            stuck.setsockopt(zmq.RCVBUF, 4096)
            stuck.subscribe(b"")
            stuck.connect(sink.endpoint)
            reading = subscriber(context, sink.endpoint)
            meet(sink, stuck, reading)
            record = proposals(1, count=1000)
            slowest, before, got = 0.0, None, 0
            for number in range(4000):
                began = time.perf_counter()
                sink.write(record)
                slowest = max(slowest, time.perf_counter() - began)
                # Now and then it waits: writing is quicker than what carries messages to a reader.
                while reading.poll(1 if number % 20 == 0 else 0):
                    got += 1
                    reading.recv_multipart()
                if number == 500:
                    before = resident()
            grown = resident() - before
        context.destroy(linger=0)
        print(slowest, grown / 2**20, got)
    """
    root = Path(__file__).resolve().parents[1]
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    slowest, grown_mib, got = map(float, answer.stdout.split())
    # Who waits for it waits for ever: it reads nothing until the end.
    assert slowest < 10
    # 3,500 messages of 33 KB, were they kept, would be 110 MiB.
    assert grown_mib < 10
    assert got > 100


@pytest.mark.parametrize(
    "address",
    [
        "tcp://0.0.0.0:1",
        "tcp://*:1",
        "tcp://192.0.2.1:1",
        "tcp://127.0.0.1",
        "ipc:///x",
        "",
        "tcp://a",
    ],
)
def test_only_this_machine_may_subscribe(address):
    with pytest.raises(StreamRPNError, match=r"must be zmq:tcp://127\.0\.0\.1:PORT"):
        open_sink(f"zmq:{address}")


def test_a_port_in_use(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        outputs = ("-o", "x.jsonl", "-o", f"zmq:{address}")
        assert cli.main([*FAST, "synthetic:64x64@10,3", *outputs]) == 2
    assert f"cannot publish at {address}: Address already in use" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "zmq", None)
    with pytest.raises(StreamRPNError, match=r"pip install 'stream-rpn\[zmq\]'"):
        open_sink("zmq:tcp://127.0.0.1:0")


def test_command_publishes_what_it_writes(tmp_path, monkeypatch, context):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    receiver = subscriber(context, address)
    found = []
    thread = threading.Thread(target=lambda: found.extend(messages(receiver)))
    thread.start()
    outputs = ("-o", "x.jsonl", "-o", f"zmq:{address}")
    assert cli.main([*FAST, "synthetic:64x64@10,40", *outputs]) == 0
    thread.join(60)
    written = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    by_frame = {line["frame"]: line for line in written if "frame" in line}
    results = [message for _, message in found if "frame" in message]
    assert results
    for result in results:
        assert by_frame[result["frame"]].items() <= result.items()
    assert found[-1][1]["end"] == written[-1]["end"]
