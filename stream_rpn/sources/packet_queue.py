"""Packets of a live source on their way to its decoder: stamped when they come, never piling up."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

import av.error

from stream_rpn.drops import DropReason
from stream_rpn.queues import POLL_SECONDS

_JOIN_SECONDS = 1.0


class Interrupted(Exception):
    """The run was stopped while its source had nothing to give."""


class PacketQueue:
    """Reads packets in a thread of its own, so that time spent decoding never hides in a socket.

    `opaque` of each packet is the `time.monotonic()` at which it came. A decoder too slow for its
    source finds packets that have waited too long left out, up to a key frame.

    Iterating ends with the source, or where reading fails: then `error` says how.

    Args:
        packets: what to read.
        max_age: seconds that a packet may wait.
        timeout: seconds to wait for the first packet, and for each after it; None without limit.
        intra_only: every packet can be decoded without those before it.
        stopped: tells that the run was stopped; waiting then ends with `Interrupted`.
        skip: told in the decoder's thread what was left out: reason, count, first pts.
        release: called when the thread ends, if `close` could not wait for it.
    """

    def __init__(
        self,
        packets: Generator[Any, None, None],
        *,
        max_age: float,
        timeout: tuple[float | None, float | None],
        intra_only: bool,
        stopped: Callable[[], bool],
        skip: Callable[[DropReason, int, int | None], None],
        release: Callable[[], None],
    ) -> None:
        self.error: Exception | None = None
        self.waited_seconds = 0.0
        self._packets = packets
        self._max_age = max_age
        self._timeout, self._next_timeout = timeout
        self._intra_only = intra_only
        self._stopped = stopped
        self._skip = skip
        self._release = release
        self._waiting: deque[Any] = deque()
        self._left_out = 0
        self._first_left_out: int | None = None
        self._needs_key = False
        self._changed = threading.Condition()
        self._closed = self._finished = self._abandoned = False
        self._thread = threading.Thread(target=self._work, name="read", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for packet in self._packets:
                # PyAV's last packet is empty and no packet of the source.
                if packet.size:
                    packet.opaque = time.monotonic()
                    self._put(packet)
                if self._closed:
                    break
        except Exception as error:
            self.error = error
        finally:
            self._packets.close()
            with self._changed:
                self._finished = True
                self._changed.notify_all()
                abandoned = self._abandoned
            if abandoned:
                self._release()

    def _put(self, packet: Any) -> None:
        with self._changed:
            if self._is_key(packet):
                self._needs_key = False
            if self._needs_key:
                self._leave_out(packet)
                return
            self._waiting.append(packet)
            if packet.opaque - self._waiting[0].opaque > self._max_age:
                self._catch_up(packet.opaque)
            self._changed.notify_all()

    def _catch_up(self, now: float) -> None:
        """Leaves out what has waited too long and what cannot be decoded without it."""
        waiting = self._waiting
        while waiting and not (
            self._is_key(waiting[0]) and now - waiting[0].opaque <= self._max_age
        ):
            self._leave_out(waiting.popleft())
        self._needs_key = not waiting

    def _is_key(self, packet: Any) -> bool:
        return self._intra_only or packet.is_keyframe

    def _leave_out(self, packet: Any) -> None:
        if not self._left_out:
            self._first_left_out = packet.pts
        self._left_out += 1

    def __iter__(self) -> PacketQueue:
        return self

    def __next__(self) -> Any:
        started = time.monotonic()
        with self._changed:
            while not self._waiting:
                waited = time.monotonic() - started
                if self._finished or self._closed or self.error is not None:
                    self._tell()
                    if self.error is not None and not _is_loss(self.error):
                        raise self.error
                    raise StopIteration
                if self._stopped():
                    self._tell()
                    raise Interrupted
                if self._timeout is not None and waited >= self._timeout:
                    self._tell()
                    self.error = TimeoutError(f"nothing came for {self._timeout:g} seconds")
                    raise StopIteration
                self._changed.wait(POLL_SECONDS)
            packet = self._waiting.popleft()
            self._tell()
        self._timeout = self._next_timeout
        self.waited_seconds += time.monotonic() - started
        return packet

    def _tell(self) -> None:
        count, self._left_out = self._left_out, 0
        if count:
            self._skip(DropReason.DECODER, count, self._first_left_out)

    def close(self) -> bool:
        """Ends the reading; returns False where the thread is still waiting for a packet."""
        self._closed = True
        self._thread.join(_JOIN_SECONDS)
        with self._changed:
            self._waiting.clear()
            # Once the thread has been left alone with it, `release` is its to call.
            self._abandoned = self._abandoned or not self._finished
        return not self._abandoned


def _is_loss(error: Exception) -> bool:
    """Tells whether reading failed for a reason outside of this program."""
    return isinstance(error, (av.error.FFmpegError, OSError))
