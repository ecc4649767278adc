"""What the user sees while a source runs: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch

from stream_rpn.frame import StreamInfo
from stream_rpn.pipeline import Selection, Stream

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

PLAIN_SECONDS = 10.0
_REFRESH_SECONDS = 0.1


class Progress:
    """Shows frames, frames per second, time left, decoder, device and how full the queue is.

    On standard error only. Where that is no terminal, one plain line every ten seconds.
    """

    def __init__(
        self, stream: Stream, selection: Selection, device: torch.device, *, quiet: bool = False
    ) -> None:
        self._stream = stream
        self._total = expected_results(stream.info, selection)
        self._device = device
        self._quiet = quiet
        self._count = 0
        self._next = time.monotonic() + PLAIN_SECONDS
        self._rich: RichProgress | None = None
        if not quiet and sys.stderr.isatty():
            self._next = 0.0
            self._rich = _display()
            self._task = self._rich.add_task(
                stream.info.stem, total=self._total, rate=0.0, queued=0, where=self._where()
            )

    def _where(self) -> str:
        return f"{self._stream.info.decoder} → {self._device}"

    def advance(self) -> None:
        """Counts one result; draws at most ten times a second."""
        self._count += 1
        if self._quiet or (now := time.monotonic()) < self._next:
            return
        if self._rich is not None:
            self._next = now + _REFRESH_SECONDS
            self._rich.update(
                self._task,
                completed=self._count,
                rate=self._stream.fps,
                queued=self._stream.queued,
            )
            return
        self._next = now + PLAIN_SECONDS
        of = f" of {self._total}" if self._total else ""
        print(
            f"{self._stream.info.stem}: {self._count}{of} frames, {self._stream.fps:.1f} frames/s, "
            f"{self._where()}, queue {self._stream.queued}",
            file=sys.stderr,
            flush=True,
        )

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
        TextColumn("queue {task.fields[queued]}"),
        console=Console(stderr=True),
        transient=True,
    )
