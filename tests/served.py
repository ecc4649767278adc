"""A page that is served to tests: a sink of `--serve`, fed as by a pipeline."""

import asyncio
import json
import re
import threading
import time
import urllib.error
import urllib.request

import av
import numpy as np

from stream_rpn.drops import Drop
from stream_rpn.frame import Color, Proposals, StreamInfo
from stream_rpn.sinks import SinkOptions, make_header
from stream_rpn.sinks.web.sink import WebSink

WIDTH, HEIGHT = 320, 240
BOX = (64.0, 48.0, 256.0, 192.0)
COLOR = Color("bt709", full_range=False, tagged=True)
WIDTH, HEIGHT = 320, 240
BOX = (64.0, 48.0, 256.0, 192.0)
STATUS = {
    "source": "camera",
    "frames": 7,
    "held": 4,
    "fps": 12.5,
    "decoder": "h264 (software)",
    "device": "cpu",
    "dtype": "float32",
    "batch": 1,
    "model": "tiny",
    "stages": {"decode": {"p50_ms": 1.0, "p95_ms": 2.0, "total_seconds": 0.5}},
    "drops": {"stale": 3, 'odd "reason"\n': 1},
    "damaged_packets": 2,
    "corrupt_frames": 0,
    "queued": 1,
    "frames_in": 11,
    "reconnects": 0,
    "age_ms": {"p50": 40.0, "p95": 90.0, "p99": 120.0},
}


def picture(number):
    """A gray picture with a white bar that moves."""
    planes = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
    planes[:HEIGHT] = 90
    left = 8 * number % (WIDTH - 16)
    planes[:24, left : left + 16] = 235
    return av.VideoFrame.from_ndarray(planes, format="yuv420p")


def proposals(number, source="camera", count=3):
    boxes = np.array([BOX] * count, np.float32)
    boxes[1:] = np.linspace((10, 10, 20, 20), (100, 100, 140, 140), count - 1)
    return Proposals(
        frame=number,
        pts=number,
        pts_seconds=number / 25,
        width=WIDTH,
        height=HEIGHT,
        boxes=boxes,
        scores=np.linspace(0.9, 0.3, count, dtype=np.float32),
        levels=np.zeros(count, np.int32),
        anchors=np.zeros(count, np.int32),
        input_boxes=boxes,
        image=picture(number),
        color=COLOR,
        source=source,
        drops=(Drop("stale", 2, None),) if number == 5 else (),
    )


class Camera:
    """A sink that is fed at 50 frames per second by a thread, as by a pipeline.

    Attributes:
        status: what differs from STATUS, by source.
        silent: the sources that give nothing now.
    """

    def __init__(
        self, place="127.0.0.1:0", *, token="", count=3, sources=("camera",), first=0, **options
    ):
        self.sink = WebSink(f"serve:{place}", SinkOptions(token=token, **options)).open()
        self.url = self.sink.url
        self.slowest = 0.0
        self.number = first
        self._sources = sources
        self._count = count
        self._stopped = threading.Event()
        self.status = {source: {} for source in sources}
        self.silent = set()
        for source in sources:
            info = StreamInfo(source, source, WIDTH, HEIGHT, color=COLOR)
            self.sink.watch(
                lambda source=source: {**STATUS, "source": source, **self.status[source]}
            )
            self.sink.begin(make_header(info, model="tiny"), info)
        self._thread = threading.Thread(target=self._feed)

    def _feed(self):
        while not self._stopped.wait(0.02):
            for source in (each for each in self._sources if each not in self.silent):
                record = proposals(self.number, source, self._count)
                began = time.perf_counter()
                self.sink.write(record)
                self.slowest = max(self.slowest, time.perf_counter() - began)
            self.number += 1

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stopped.set()
        self._thread.join()
        self.sink.close()


def get(url, **headers):
    """Returns (status, body) of a request."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as r:
            return r.status, r.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def address(url):
    host, port = re.match(r"http://(.*):(\d+)/", url).groups()
    return host, int(port)


def events(url, number, **headers):
    """Returns the first events of the feed as (kind, data)."""
    found, kind = [], "result"
    request = urllib.request.Request(url + "results", headers=headers)
    with urllib.request.urlopen(request, timeout=60) as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"
        for line in stream:
            if line.startswith(b"event: "):
                kind = line[7:].strip().decode()
            elif line.startswith(b"data: "):
                found.append((kind, json.loads(line[6:])))
                kind = "result"
                if len(found) == number:
                    return found
    return found


async def until(condition, *, seconds=60):
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        await asyncio.sleep(0.02)
