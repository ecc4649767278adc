"""Cameras for tests and for `bench.live`: real senders on the loopback, each a process of its own.

    python -m bench.senders udp PORT SPEC [--stall-after S] [--then SPEC] [--still]
    python -m bench.senders mjpeg PORT SPEC
    python -m bench.senders relay FROM TO --loss SHARE

SPEC is as in `synthetic:`, WxH@FPS. Two seconds of a clip are encoded once and then sent over and
over at their own pace, with times that go on: so a sender takes next to no computing time. With
`--still` nothing moves in them, and each frame has noise of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import io
import itertools
import os
import random
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from stream_rpn.sources.synthetic import SyntheticVideo

_SECONDS = 2


@contextlib.contextmanager
def sender(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a sender until the block is left."""
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "bench.senders", *arguments]
    process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def free_ports(count: int, kind: int = socket.SOCK_DGRAM) -> list[int]:
    """Returns different ports of the loopback that nobody uses."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket(socket.AF_INET, kind)) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def free_port(kind: int = socket.SOCK_DGRAM) -> int:
    """Returns a port of the loopback that nobody uses."""
    return free_ports(1, kind)[0]


def encoded(spec: str, codec: str, *, still: bool = False) -> tuple[list[tuple[float, bytes]], Any]:
    """Returns the packets of a clip as (seconds, data), and their encoder."""
    video = SyntheticVideo.parse(f"synthetic:{spec}")
    count = round(_SECONDS * video.fps)
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = video.width, video.height, pixels
    encoder.time_base, encoder.framerate = 1 / video.fps, video.fps
    encoder.gop_size, encoder.thread_count = count // 2, 1
    encoder.color_range = 2 if codec == "mjpeg" else 1
    options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "28"}
    encoder.options = options if codec == "libx264" else {"qmin": "4", "qmax": "4"}
    packets = []
    for index in range(count):
        rgb = video.image(0 if still else index)[..., :3].copy()
        if still:
            noise = np.random.default_rng(index).normal(0, 3, rgb.shape)
            rgb = (rgb + noise).round().clip(0, 255).astype(np.uint8)
        picture = av.VideoFrame.from_ndarray(rgb, format="rgb24")
        frame = picture.reformat(format=pixels)
        frame.pts, frame.time_base = index, encoder.time_base
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    return [(i / float(video.fps), bytes(packet)) for i, packet in enumerate(packets)], encoder


def endless(packets: list[tuple[float, bytes]]) -> Iterator[tuple[float, bytes, bool]]:
    """Yields (seconds, data, whether it is the first of a round) at the clip's own pace."""
    started = time.monotonic()
    for number in itertools.count():
        for index, (seconds, data) in enumerate(packets):
            seconds += number * _SECONDS
            time.sleep(max(0.0, started + seconds - time.monotonic()))
            yield seconds, data, index == 0


def send_udp(
    port: int, specs: Sequence[str], stall_after: float | None, *, still: bool = False
) -> None:
    """Sends MPEG-TS by UDP: the clips in turn, five seconds each, the last one for ever."""
    codec = "libx264" if "libx264" in av.codec.codecs_available else "mpeg4"
    clips = [encoded(spec, codec, still=still) for spec in specs]
    plug = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    started = time.monotonic()
    offset = 0.0
    for position, (packets, encoder) in enumerate(clips):
        output = _Datagrams(plug, port)
        container = av.open(output, "w", format="mpegts", options={"flush_packets": "1"})
        stream = container.add_stream(codec, rate=encoder.framerate)
        stream.width, stream.height = encoder.width, encoder.height
        for seconds, data, _ in endless(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, encoder.time_base
            packet.pts = packet.dts = round((seconds + offset) / encoder.time_base)
            packet.is_keyframe = data is packets[0][1] or data is packets[len(packets) // 2][1]
            container.mux(packet)
            if stall_after is not None and time.monotonic() - started > stall_after:
                time.sleep(1e6)
            if position + 1 < len(clips) and seconds >= 5:
                break
        offset += 5


class _Datagrams(io.RawIOBase):
    """A file whose bytes leave as datagrams of seven MPEG-TS packets."""

    def __init__(self, plug: socket.socket, port: int) -> None:
        self._plug, self._address = plug, ("127.0.0.1", port)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        for start in range(0, len(view), 1316):
            with contextlib.suppress(ConnectionRefusedError):
                self._plug.sendto(view[start : start + 1316], self._address)
        return len(view)


def serve_mjpeg(port: int, spec: str) -> None:
    """Serves JPEG pictures one after another, as network cameras do, to whoever asks."""
    packets, _ = encoded(spec, "mjpeg")

    class Camera(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=picture")
            self.end_headers()
            with contextlib.suppress(OSError):
                for _, data, _ in endless(packets):
                    head = f"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}"
                    self.wfile.write(head.encode() + b"\r\n\r\n" + data + b"\r\n")

        def log_message(self, *arguments: Any) -> None:
            pass

    http.server.ThreadingHTTPServer(("127.0.0.1", port), Camera).serve_forever()


def relay(source: int, target: int, loss: float) -> None:
    """Passes datagrams on and loses a share of them, the same ones every time."""
    chance = random.Random(0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plug:
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        plug.bind(("127.0.0.1", source))
        while True:
            data = plug.recv(1 << 16)
            if chance.random() >= loss:
                with contextlib.suppress(ConnectionRefusedError):
                    plug.sendto(data, ("127.0.0.1", target))


def _end_with_standard_input() -> None:
    while os.read(0, 1 << 16):
        pass
    os._exit(0)


def main() -> None:
    with contextlib.suppress(OSError):  # closed
        if stat.S_ISFIFO(os.fstat(0).st_mode):
            # Whoever began it may crash, and nobody else would end it.
            threading.Thread(target=_end_with_standard_input, daemon=True).start()
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    udp = kinds.add_parser("udp")
    udp.add_argument("port", type=int)
    udp.add_argument("spec")
    udp.add_argument("--stall-after", type=float)
    udp.add_argument("--then")
    udp.add_argument("--still", action="store_true")
    mjpeg = kinds.add_parser("mjpeg")
    mjpeg.add_argument("port", type=int)
    mjpeg.add_argument("spec")
    lossy = kinds.add_parser("relay")
    lossy.add_argument("source", type=int)
    lossy.add_argument("target", type=int)
    lossy.add_argument("--loss", type=float, required=True)
    arguments = parser.parse_args()
    if arguments.kind == "udp":
        specs = [arguments.spec, arguments.then] if arguments.then else [arguments.spec]
        send_udp(arguments.port, specs, arguments.stall_after, still=arguments.still)
    elif arguments.kind == "mjpeg":
        serve_mjpeg(arguments.port, arguments.spec)
    else:
        relay(arguments.source, arguments.target, arguments.loss)


if __name__ == "__main__":
    main()
