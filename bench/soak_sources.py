"""The sources of `bench.soak`, which can die and fall silent."""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import av

from bench.senders import free_port, sender
from stream_rpn.sources.synthetic import SyntheticVideo

_LONG, _SHORT, _OTHER, _PICTURES = 250, 60, 30, 20  # frames
_SENT_SECONDS = 2.0
_CAMERA_FRAMES = 30
_AWAY_SECONDS = 2.0
# A camera that is gone for two seconds is lost, and comes back by the third try.
_CAMERA = ["--max-frames", str(_CAMERA_FRAMES), "--read-timeout", "1", "--reconnect", "3",
           "--open-timeout", "30"]  # fmt: skip


@dataclass
class Source:
    """One kind of source in one run.

    Attributes:
        frames: names as the command has them → how many frames each has when whole.
        options: of the command.
        stdin: what the command reads from.
        damaged: whether it is known to be.
        live: whether frames may be dropped.
        seconds_left: how long a run may take until Ctrl-C is sent.
        die: ends what sends.
        fall_silent: stops what sends, for a while or for good.
        begin: called with the process.
        close: called at the end.
    """

    frames: dict[str, int]
    options: list[str] = field(default_factory=list)
    stdin: int = subprocess.DEVNULL
    damaged: bool = False
    live: bool = False
    seconds_left: float = 90.0
    die: Callable[[], object] = lambda: None
    fall_silent: Callable[[], object] = lambda: None
    begin: Callable[[subprocess.Popen[bytes]], object] = lambda process: None
    close: Callable[[], object] = lambda: None

    @property
    def uris(self) -> list[str]:
        """The sources as the command has them."""
        return list(self.frames)


class Sources:
    """All kinds of sources; clips are made at once, cameras are started when they are needed.

    Attributes:
        other: a clip that is none of the sources, for old results and second runs.
    """

    OTHER_FRAMES: ClassVar[int] = _OTHER
    FILES: ClassVar[tuple[str, ...]] = (
        "file", "two files", "file in real time", "cut-off file", "damaged file", "pictures",
    )  # fmt: skip
    ENDING: ClassVar[tuple[str, ...]] = (
        "standard input", "named pipe", "http file", "udp camera", "lossy udp camera",
        "mjpeg camera", "two cameras",
    )  # fmt: skip
    KINDS: ClassVar[tuple[str, ...]] = FILES + ENDING

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.other = _clip(folder / "other.mkv", _OTHER)
        self._short = _clip(folder / "short.mkv", _SHORT)
        self._long = _clip(folder / "long.mp4", _LONG)
        data = self._short.read_bytes()
        self._cut = folder / "cut.mkv"
        self._cut.write_bytes(data[: len(data) // 2 | 1])
        self._damaged = folder / "damaged.mp4"
        data = bytearray(self._long.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 2000] = bytes(2000)
        self._damaged.write_bytes(data)
        self._pictures = folder / "pictures"
        self._pictures.mkdir()
        with av.open(str(self._short)) as container:
            for number, frame in zip(range(_PICTURES), container.decode(video=0), strict=False):
                frame.to_image().save(self._pictures / f"{number:02}.jpg")
        self._cameras: dict[str, _Camera] = {}
        self._server = _Server()

    def open(self, kind: str) -> contextlib.closing[Source]:
        """Returns a source of a kind, to be closed after its run."""
        return contextlib.closing(self._opened(kind))

    def _opened(self, kind: str) -> Source:
        if kind == "file":
            return Source({str(self._long): _LONG})
        if kind == "two files":
            return Source({str(self._short): _SHORT, str(self._long): _LONG})
        if kind == "file in real time":
            return Source({str(self._short): _SHORT}, ["--realtime"], live=True)
        if kind == "cut-off file":
            return Source({str(self._cut): _SHORT}, damaged=True)
        if kind == "damaged file":
            return Source({str(self._damaged): _LONG}, damaged=True)
        if kind == "pictures":
            return Source({str(self._pictures): _PICTURES})
        if kind in ("standard input", "named pipe", "http file"):
            return getattr(self, f"_{kind.replace(' ', '_')}")(_Feed(self._short.read_bytes()))
        names = ["udp camera", "mjpeg camera"] if kind == "two cameras" else [kind]
        cameras = [self._camera(name) for name in names]
        return Source(
            {camera.uri: _CAMERA_FRAMES for camera in cameras},
            _CAMERA,
            live=True,
            die=cameras[0].restart,
            fall_silent=cameras[0].pause,
            close=cameras[0].settle,
        )

    def _standard_input(self, feed: _Feed) -> Source:
        read, write = os.pipe()

        def begin(process: subprocess.Popen[bytes]) -> None:
            os.close(read)
            feed.write_to(lambda: write)

        return Source({"-": _SHORT}, stdin=read, begin=begin, seconds_left=20, **feed.faults())

    def _named_pipe(self, feed: _Feed) -> Source:
        path = self._folder / "pipe.mkv"
        path.unlink(missing_ok=True)
        os.mkfifo(path)

        def begin(process: subprocess.Popen[bytes]) -> None:
            def opened() -> int:
                while process.poll() is None:
                    with contextlib.suppress(OSError):  # nobody reads yet
                        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                        os.set_blocking(descriptor, True)
                        return descriptor
                    time.sleep(0.02)
                return -1

            feed.write_to(opened)

        return Source({str(path): _SHORT}, live=True, begin=begin, seconds_left=20, **feed.faults())

    def _http_file(self, feed: _Feed) -> Source:
        self._server.feed = feed
        return Source({self._server.uri: _SHORT}, seconds_left=60, **feed.faults())

    def _camera(self, kind: str) -> _Camera:
        if kind not in self._cameras:
            self._cameras[kind] = _Camera(kind)
        return self._cameras[kind]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for camera in self._cameras.values():
            camera.close()
        self._server.close()


class _Feed:
    """Gives the bytes of a clip at the pace of a slow sender."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._dead = threading.Event()
        self._silent = threading.Event()

    @property
    def size(self) -> int:
        return len(self._data)

    def faults(self) -> dict[str, Callable[[], object]]:
        return {"die": self._dead.set, "fall_silent": self._silent.set, "close": self._dead.set}

    def __iter__(self) -> Iterator[bytes]:
        chunk = len(self._data) // 40 + 1
        for start in range(0, len(self._data), chunk):
            while self._silent.is_set() and not self._dead.wait(0.02):
                pass
            if self._dead.wait(_SENT_SECONDS / 40):
                return
            yield self._data[start : start + chunk]

    def write_to(self, opened: Callable[[], int]) -> None:
        def write() -> None:
            descriptor = opened()
            if descriptor < 0:
                return
            with contextlib.suppress(OSError), open(descriptor, "wb", buffering=0) as pipe:
                for data in self:
                    pipe.write(data)

        threading.Thread(target=write, daemon=True).start()


class _Server:
    """Serves the clip of the run at hand by HTTP."""

    feed: _Feed

    def __init__(self) -> None:
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                feed = server.feed
                self.send_response(200)
                self.send_header("Content-Length", str(feed.size))
                self.end_headers()
                with contextlib.suppress(OSError):
                    for data in feed:
                        self.wfile.write(data)

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_port}/clip.mkv"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Camera:
    """A process that sends without end, and can be stopped and started."""

    def __init__(self, kind: str) -> None:
        port = free_port(socket.SOCK_STREAM if kind == "mjpeg camera" else socket.SOCK_DGRAM)
        self.uri = f"udp://127.0.0.1:{port}"
        self._arguments = ["udp", str(port), "320x180@15"]
        self._relay = contextlib.ExitStack()
        if kind == "mjpeg camera":
            self.uri = f"http://127.0.0.1:{port}/camera"
            self._arguments[0] = "mjpeg"
        elif kind == "lossy udp camera":
            behind = free_port()
            self._arguments[1] = str(behind)
            self._relay.enter_context(sender("relay", str(behind), str(port), "--loss", "0.1"))
        self._running = contextlib.ExitStack()
        self._back: threading.Timer | None = None
        self._start()
        time.sleep(3)  # until it has encoded its clip

    def _start(self) -> None:
        self._process = self._running.enter_context(sender(*self._arguments))

    def restart(self) -> None:
        """Kills it, and starts it again after a while."""
        self._running.close()
        self._comes_back(self._start)

    def pause(self) -> None:
        """Stops it for a while."""
        self._process.send_signal(signal.SIGSTOP)
        self._comes_back(lambda: self._process.send_signal(signal.SIGCONT))

    def _comes_back(self, back: Callable[[], object]) -> None:
        self._back = threading.Timer(_AWAY_SECONDS, back)
        self._back.start()

    def settle(self) -> None:
        """Waits until it is there again."""
        if self._back is not None:
            self._back.join()
            self._back = None

    def close(self) -> None:
        self.settle()
        self._running.close()
        self._relay.close()


def _clip(path: Path, frames: int) -> Path:
    """Writes a clip in the container that the name says."""
    encoded = SyntheticVideo.parse(f"synthetic:320x180@25,{frames}").encoded()
    with encoded as file, av.open(file) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    return path
