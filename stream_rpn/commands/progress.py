"""What is told on standard error, and the progress of a source while it runs.

On a terminal that is a live line, elsewhere plain lines.
"""

from __future__ import annotations

import io
import math
import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from stream_rpn.printable import printable, printable_lines

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from stream_rpn.frame import StreamInfo
    from stream_rpn.sources.select import Selection
    from stream_rpn.statistics import StreamStatistics

PLAIN_SECONDS = 10.0
_REFRESH_SECONDS = 0.1


class Progress:
    """Shows frames, frames per second, time left, decoder, device and how full the queue is.

    On standard error only. Where that is no terminal, one plain line per source every ten seconds.
    """

    def __init__(self, selection: Selection, device: str, *, quiet: bool = False) -> None:
        self._selection = selection
        self._device = device
        self._quiet = quiet
        self._next = time.monotonic() + PLAIN_SECONDS
        self._rich: RichProgress | None = None
        self._tasks: dict[StreamStatistics, TaskID] = {}
        if not quiet and sys.stderr.isatty():
            self._next = 0.0
            self._rich = _display()

    def show(self, streams: Iterable[StreamStatistics]) -> None:
        """Shows how far the open streams are; draws at most ten times a second."""
        if self._quiet or (now := time.monotonic()) < self._next:
            return
        self._next = now + (PLAIN_SECONDS if self._rich is None else _REFRESH_SECONDS)
        for stream in streams:
            if self._rich is not None:
                self._draw(self._rich, stream)
            else:
                total = expected_results(stream.info, self._selection)
                of = f" of {total}" if total else ""
                say(
                    f"{stream.info.stem}: {stream.num_results}{of} frames, {stream.fps:.1f} "
                    f"frames/s, {self._where(stream)}, {_state(stream)}"
                )

    def _draw(self, display: RichProgress, stream: StreamStatistics) -> None:
        if stream not in self._tasks:
            total = expected_results(stream.info, self._selection)
            self._tasks[stream] = display.add_task(
                printable(stream.info.stem),
                total=total,
                rate=0.0,
                state="",
                where=self._where(stream),
            )
        display.update(
            self._tasks[stream],
            completed=stream.num_results,
            rate=stream.fps,
            state=_state(stream),
        )

    def _where(self, stream: StreamStatistics) -> str:
        return f"{stream.info.decoder} → {self._device}"

    def __enter__(self) -> Self:
        if self._rich is not None:
            self._rich.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._rich is not None:
            self._rich.stop()


def _state(stream: StreamStatistics) -> str:
    held = f"{stream.num_held:,} held, " if stream.num_held else ""
    if not stream.info.live:
        return f"{held}queue {stream.queued}"
    age = stream.ages.percentiles()
    dropped = sum(stream.drops.values())
    return f"{held}age {age['p50']:.0f}/{age['p95']:.0f} ms, {dropped} dropped"


def expected_results(info: StreamInfo, selection: Selection) -> int | None:
    """Returns about how many results a source will give, None where nothing tells."""
    count: float | None = info.num_frames
    if count is None and info.duration_seconds and info.fps:
        count = info.duration_seconds * info.fps
    if count is not None:
        if info.duration_seconds:
            end = min(selection.end or math.inf, info.duration_seconds)
            seconds = max(0.0, end - (selection.start or 0.0))
            count *= seconds / info.duration_seconds
            if selection.fps:
                count = min(count, seconds * selection.fps)
        count /= selection.stride
    limits = [limit for limit in (count, selection.max_frames) if limit is not None]
    return math.ceil(min(limits)) if limits else None


def _display() -> RichProgress:
    # Not at the top: without a terminal the time to import it is saved.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} frames/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[where]}"),
        TextColumn("{task.fields[state]}"),
        console=Console(stderr=True),
        transient=True,
    )


def complain(sentence: str) -> None:
    """Prints one sentence on standard error, in one line whatever names are in it."""
    say(f"stream-rpn: {printable(sentence)}")


def say(text: str) -> None:
    """Prints on standard error, without control characters."""
    print(printable_lines(text), file=sys.stderr, flush=True)


class _Convenience(io.FileIO):
    """A file whose writes never fail; what cannot be written is left out."""

    def write(self, data: Any, /) -> int:
        try:
            written = super().write(data)
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written


def let_messages_fail() -> None:
    """Makes standard error a convenience: where it cannot be written, everything goes on.

    A full disk, a reader that has gone or a closed terminal must not cost results.
    """
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(_Convenience(sys.stderr.fileno(), "wb", closefd=False)),
            encoding=sys.stderr.encoding,
            errors="backslashreplace",
            line_buffering=True,
        )
