"""Annotated video as a live stream: `-o rtsp://…`, `-o rtmp://…`, `-o udp://…`.

The pipeline leaves its newest frames and goes on. A thread draws and encodes (H.264 without delay)
and hands the packets to a process that talks to the peer, see `relay`. Frames that the encoder or
the peer is too slow for are left out; a peer that is not there, goes away or takes nothing any more
ends this output only.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import BinaryIO, ClassVar, cast

import av.error

from stream_rpn.frame import Proposals, StreamRPNError
from stream_rpn.sinks import relay
from stream_rpn.sinks.sink import SinkOptions
from stream_rpn.sinks.video import VideoSink
from stream_rpn.sources.address import masked

# By scheme, the container that FFmpeg sends this way.
FORMATS = {
    "rtsp": "rtsp",
    "rtsps": "rtsp",
    "rtmp": "flv",
    "rtmps": "flv",
    "udp": "mpegts",
}

STUCK_SECONDS = 10.0
"""For so long a peer may take nothing before it is given up."""

_WAITING_FRAMES = 2
_CLOSE_SECONDS = 5.0


class StreamSink(VideoSink):
    """Sends every frame with its best boxes to a peer, at the time it is shown in the source."""

    low_delay: ClassVar[bool] = True
    container_format: ClassVar[str] = "flv"
    container_options: ClassVar[dict[str, str]] = {
        "flush_packets": "1",
        "flvflags": "no_duration_filesize",
    }

    def __init__(self, name: str, options: SinkOptions) -> None:
        self._waiting: deque[Proposals] = deque(maxlen=_WAITING_FRAMES)
        self._changed = threading.Condition()
        self._over = False
        self._error: Exception | None = None
        self._busy_since: float | None = None
        self._thread: threading.Thread | None = None
        super().__init__(name, options)

    def _write(self, proposals: Proposals) -> None:
        if self._thread is None:
            self._connect()
        if self._relay.poll() is not None or self._error is not None:
            self._fail()
        since = self._busy_since
        if since is not None and time.monotonic() - since > STUCK_SECONDS:
            raise StreamRPNError(
                f"cannot stream to {masked(self.name)!r}: it takes nothing any more"
            )
        with self._changed:
            self._waiting.append(proposals)
            self._changed.notify()

    def _connect(self) -> None:
        url, scheme = self.name, self.name.partition(":")[0].lower()
        if scheme == "udp" and "pkt_size=" not in url:
            # Seven packets of MPEG-TS, which no network splits.
            url += ("&" if "?" in url else "?") + "pkt_size=1316"
        # -P: the names of our modules are not to be found in place of others'. In a session of its
        # own it does not end by a Ctrl-C before the pipeline has.
        self._relay = subprocess.Popen(
            [sys.executable, "-P", str(Path(relay.__file__)), FORMATS[scheme]],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._work, args=(url,), name="stream", daemon=True)
        self._thread.start()

    def _path(self) -> BinaryIO:
        return cast(BinaryIO, self._relay.stdin)

    def _work(self, url: str) -> None:
        pipe = self._path()
        try:
            pipe.write(os.fsencode(url) + b"\n")
            while (proposals := self._take()) is not None:
                self._busy_since = time.monotonic()
                super()._write(proposals)
                pipe.flush()
                self._busy_since = None
            self._busy_since = time.monotonic()
            self._finish()
        except Exception as error:
            self._error = error
        finally:
            with contextlib.suppress(OSError):
                pipe.close()

    def _take(self) -> Proposals | None:
        """Returns the next frame, None at the end; waits for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._over)
            return self._waiting.popleft() if self._waiting else None

    def _close(self) -> None:
        if self._thread is None:
            self._finish()  # says that there was no frame
        assert self._thread is not None
        with self._changed:
            self._over = True
            self._changed.notify()
        self._thread.join(_CLOSE_SECONDS)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._relay.wait(_CLOSE_SECONDS)
        if self._relay.returncode != 0 or self._error is not None:
            self._fail()
        self._release()

    def _fail(self) -> None:
        """Raises what went wrong with the peer, or else in our thread."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._relay.wait(1.0)
        if self._relay.returncode is None:
            why = "it does not take the end of the video"
        else:
            why = cast(BinaryIO, self._relay.stderr).read().decode(errors="replace").strip()
        if self._error is not None and not isinstance(self._error, (OSError, av.error.FFmpegError)):
            raise self._error
        raise StreamRPNError(
            f"cannot stream to {masked(self.name)!r}: {why or 'the connection ended'}"
        )

    def _abort(self) -> None:
        with self._changed:
            self._waiting.clear()
            self._over = True
            self._changed.notify()
        if self._thread is not None:
            self._relay.kill()
            self._release()

    def _release(self) -> None:
        assert self._thread is not None
        self._thread.join()
        self._relay.wait()
        cast(BinaryIO, self._relay.stderr).close()
