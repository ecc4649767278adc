"""Pipes, named or on standard input, that can be waited for without being stuck in them."""

from __future__ import annotations

import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from stream_rpn.frame import StreamRPNError
from stream_rpn.queues import POLL_SECONDS
from stream_rpn.sources.packet_queue import Interrupted

_READ_BYTES = 1 << 16  # what a pipe holds


class Pipe(io.RawIOBase):
    """The end that reads; it ends where nobody wants any more, and where another thread closes it.

    Args:
        number: its descriptor, which is closed with the file.
        stopped: tells that no more is wanted.

    Attributes:
        cut: whether it ended for that reason, while more might have come.
    """

    def __init__(self, number: int, stopped: Callable[[], bool]) -> None:
        self.stopped = stopped
        self.cut = False
        self._number = number
        self._ahead = bytearray()
        self._closing = False
        # A descriptor must not be closed under who waits for it: it may be another file's by then.
        self._held = threading.Lock()

    def readable(self) -> bool:  # noqa: D102
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: D102
        data = self._ahead[: len(buffer)] or self._receive(len(buffer))
        del self._ahead[: len(data)]
        buffer[: len(data)] = data
        return len(data)

    def look(self, count: int) -> bytes:
        """Returns the next `count` bytes, fewer at the end; they are read again afterwards."""
        while len(self._ahead) < count and (data := self._receive(_READ_BYTES)):
            self._ahead += data
        return bytes(self._ahead[:count])

    def wait(self, seconds: float) -> bool:
        """Tells whether there is something to read, or the end, within `seconds`."""
        # Windows cannot wait for pipes; there, reading one may not be stopped.
        return sys.platform == "win32" or bool(select.select([self._number], [], [], seconds)[0])

    def close(self) -> None:  # noqa: D102
        self._closing = True
        # Where reading cannot be stopped the descriptor goes with the process.
        if self._held.acquire(timeout=1.0):
            try:
                if not self.closed:
                    os.close(self._number)
                super().close()
            finally:
                self._held.release()

    def _receive(self, count: int) -> bytes:
        # Exceptions would come out of FFmpeg as tracebacks.
        while not self._closing:
            with self._held:
                if not self.closed and self.wait(POLL_SECONDS):
                    return os.read(self._number, count)
            if self.stopped():
                self.cut = True
                break
        return b""


def opened_pipe(number: int, what: str, timeout: float, stopped: Callable[[], bool]) -> Pipe:
    """Waits until somebody writes to a pipe.

    Args:
        number: its descriptor, which is closed with the file.
        what: said of it in a sentence.
        timeout: seconds until the first byte.
        stopped: tells that no more is wanted.

    Raises:
        StreamRPNError: nobody wrote.
        Interrupted: it is not wanted any more.
    """
    pipe = Pipe(number, stopped)
    end = time.monotonic() + timeout
    while not pipe.wait(POLL_SECONDS):
        if stopped() or time.monotonic() > end:
            pipe.close()
            if stopped():
                raise Interrupted
            raise StreamRPNError(f"{what} that nobody wrote to for {timeout:g} s")
    return pipe
