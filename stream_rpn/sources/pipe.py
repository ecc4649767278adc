"""Pipes, named or on standard input, that can be waited for without being stuck in them."""

from __future__ import annotations

import io
import os
import select
import time
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from stream_rpn.frame import StreamRPNError
from stream_rpn.queues import POLL_SECONDS
from stream_rpn.sources.packet_queue import Interrupted


class _Pipe(io.RawIOBase):
    """The end that reads; it ends where nobody wants any more."""

    def __init__(self, number: int, stopped: Callable[[], bool]) -> None:
        self._number = number
        self._stopped = stopped

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.wait(POLL_SECONDS):
            if self._stopped():
                return 0  # an exception would come out of FFmpeg as a traceback
        data = os.read(self._number, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def wait(self, seconds: float) -> bool:
        """Tells whether there is something to read, or the end, within `seconds`."""
        return bool(select.select([self._number], [], [], seconds)[0])

    def close(self) -> None:
        if not self.closed:
            os.close(self._number)
        super().close()


def opened_pipe(number: int, what: str, timeout: float, stopped: Callable[[], bool]) -> BinaryIO:
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
    pipe = _Pipe(number, stopped)
    end = time.monotonic() + timeout
    while not pipe.wait(POLL_SECONDS):
        if stopped() or time.monotonic() > end:
            pipe.close()
            if stopped():
                raise Interrupted
            raise StreamRPNError(f"{what} that nobody wrote to for {timeout:g} s")
    return cast(BinaryIO, io.BufferedReader(pipe))
