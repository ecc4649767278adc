"""What is told on standard error, and the progress of a source while it runs.

On a terminal that is a live line, elsewhere plain lines.
"""

from __future__ import annotations

import io
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from stream_rpn.printable import counted, printable, printable_lines

if TYPE_CHECKING:
    from rich.live import Live

    from stream_rpn.frame import StreamInfo
    from stream_rpn.sources.select import Selection
    from stream_rpn.statistics import StreamStatistics

PLAIN_SECONDS = 10.0
_REFRESH_SECONDS = 0.1


class Progress:
    """Shows how far the sources that run are, and how far all of them are where they are several.

    On standard error only. Where that is no terminal, one plain line per source every ten seconds.
    """

    def __init__(self, device: str, num_sources: int = 1, *, quiet: bool = False) -> None:
        self._device = device
        self._num_sources = num_sources
        self._quiet = quiet
        self._started = time.monotonic()
        self._next = self._started + PLAIN_SECONDS
        self._num_ended = self._frames_ended = 0
        self._live: Live | None = None
        if not quiet and _is_display():
            # Not at the top: without a terminal the time to import it is saved.
            from rich.console import Console
            from rich.live import Live

            self._next = 0.0
            self._live = Live(
                console=Console(stderr=True),
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
            )

    def opening(self, name: str) -> None:
        """Shows that a source is being opened, which may take long."""
        if self._live is not None:
            self._draw([], f"opening {printable(name)} …")

    def show(self, streams: Iterable[StreamStatistics]) -> None:
        """Shows how far the streams are that run; draws at most ten times a second."""
        if self._quiet or (now := time.monotonic()) < self._next:
            return
        self._next = now + (PLAIN_SECONDS if self._live is None else _REFRESH_SECONDS)
        rows = [self._row(stream) for stream in streams]
        if self._live is not None:
            self._draw(rows)
        else:
            of_all = f"{self._num_ended} of {self._num_sources} sources ended, "
            for row in rows:
                ended = of_all if self._num_sources > 1 else ""
                frames = counted(row.frames, "frame")
                if row.total:
                    frames = f"{row.frames:,} of {counted(row.total, 'frame')}"
                say(
                    f"{row.name}: {ended}{frames}, {row.fps:.1f} frames/s, {row.where}, {row.state}"
                )

    def _draw(self, rows: list[Row], last: str = "") -> None:
        from rich.text import Text

        assert self._live is not None
        if self._num_sources > 1:
            rows = [self._all(rows, time.monotonic() - self._started), *rows]
        console = self._live.console
        lines = [*layout(rows, console.width, console.height - 2), *([last] if last else [])]
        text = Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
        self._live.update(text, refresh=True)

    def ended(self, stream: StreamStatistics | None) -> None:
        """Notes that a source has ended, or could not be opened."""
        self._num_ended += 1
        self._frames_ended += 0 if stream is None else stream.num_results

    def _row(self, stream: StreamStatistics) -> Row:
        total = expected_results(stream.info, stream.selection)
        done = stream.num_results
        left = (total - done) / stream.fps if total and stream.fps else None
        return Row(
            name=printable(stream.info.stem),
            frames=done,
            total=total,
            share=min(done / total, 1.0) if total else None,
            fps=stream.fps,
            seconds_left=None if left is None else max(left, 0.0),
            live=stream.info.live,
            state=_state(stream),
            where=f"{stream.info.decoder} → {self._device}",
        )

    def _all(self, rows: Sequence[Row], elapsed: float) -> Row:
        """Returns the row of all sources, whose time left is told as if they were alike."""
        frames = self._frames_ended + sum(row.frames for row in rows)
        done = self._num_ended + sum(row.share or 0.0 for row in rows)
        share = min(done / self._num_sources, 1.0)
        endless = any(row.share is None for row in rows)
        return Row(
            name=f"{self._num_ended} of {self._num_sources} sources",
            frames=frames,
            total=None,
            share=None if endless else share,
            fps=frames / elapsed if elapsed else 0.0,
            seconds_left=None if endless or not share else elapsed / share - elapsed,
            live=False,
            state="",
            where="",
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()


class Row(NamedTuple):
    """What is shown of a source while it runs.

    Attributes:
        name: of the source.
        frames: its results so far.
        total: about how many it will give; None where nobody knows.
        share: how much of it is done, from 0 to 1; None where nobody knows.
        fps: results a second.
        seconds_left: None where nobody knows.
        live: whether frames are lost where the network is too slow for it.
        state: what waits and what was lost.
        where: what decodes and computes it.
    """

    name: str
    frames: int
    total: int | None
    share: float | None
    fps: float
    seconds_left: float | None
    live: bool
    state: str
    where: str


_GAP = 2
_LEAST_BAR, _LONGEST_BAR = 10, 40
_LEAST_NAME = 12


def layout(rows: Sequence[Row], width: int, height: int) -> list[str]:
    """Returns a line of a terminal for each row, with as much of it as there is room for.

    What matters most stays longest where it is narrow: the count and the time left, then the rate,
    of live sources what was lost, the bar, and at last where it is computed.

    Args:
        rows: those that are shown; their columns are aligned.
        width: of the terminal, in cells.
        height: the most lines.
    """
    from rich.cells import cell_len, set_cell_size

    if len(rows) > height:
        rows = rows[: max(height, 1)]
    names = [printable(row.name) for row in rows]
    longest = max(map(cell_len, names), default=0)
    columns = {
        "count": [
            f"{row.frames:,}/{row.total:,}" if row.total else counted(row.frames, "frame")
            for row in rows
        ],
        "left": [_clock(row.seconds_left) for row in rows],
        "rate": [f"{row.fps:.1f} frames/s" for row in rows],
        "state": [row.state for row in rows],
        "where": [row.where for row in rows],
    }
    widths = {key: max(map(len, texts), default=0) for key, texts in columns.items()}
    bar = any(row.share is not None for row in rows)
    order = ["count", "left", "rate", *(["bar"] if bar else []), "state", "where"]
    if any(row.live for row in rows):
        order.insert(3, order.pop(order.index("state")))
    widths["bar"] = _LEAST_BAR
    name_width = min(longest, max(_LEAST_NAME, width // 4))
    room = width - name_width
    chosen = set()
    for key in order:
        if 0 < widths[key] <= room - _GAP:
            chosen.add(key)
            room -= widths[key] + _GAP
    # What is left lengthens the name, then the bar.
    wider = min(room, longest - name_width)
    name_width, room = name_width + wider, room - wider
    widths["bar"] = min(_LEAST_BAR + room, _LONGEST_BAR)
    columns["bar"] = [_bar(row.share, widths["bar"]) for row in rows]
    lines = []
    for index, name in enumerate(names):
        if cell_len(name) > name_width:
            name = set_cell_size(name, name_width - 1) + "…"
        parts = [set_cell_size(name, name_width)]
        for key in ("bar", "count", "rate", "left", "state", "where"):
            if key in chosen:
                text = columns[key][index]
                right = key in ("count", "rate", "left")
                parts.append(text.rjust(widths[key]) if right else text.ljust(widths[key]))
        lines.append((" " * _GAP).join(parts)[:width].rstrip())
    return lines


def _bar(share: float | None, width: int) -> str:
    if share is None:
        return ""
    done = int(share * width)
    return "━" * done + "─" * (width - done)


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"


def _is_display() -> bool:
    """Tells whether standard error is a terminal that can move its cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def _state(stream: StreamStatistics) -> str:
    held = f"{stream.num_held:,} held, " if stream.num_held else ""
    if not stream.info.live:
        return f"{held}queue {stream.queued}"
    age = stream.ages.percentiles()
    dropped = sum(stream.drops.values())
    return f"{held}{dropped:,} dropped, age {age['p50']:.0f}/{age['p95']:.0f} ms"


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


def complain(sentence: str) -> None:
    """Prints one sentence on standard error, in one line whatever names are in it."""
    say(f"stream-rpn: {printable(sentence)}")


def say(text: str) -> None:
    """Prints on standard error, without control characters."""
    _clear()
    print(printable_lines(text), file=sys.stderr, flush=True)


_passing = False


@contextmanager
def under_way(what: str, *, quiet: bool = False) -> Iterator[None]:
    """Shows on a terminal what is being done, until it is or something else is to be said."""
    global _passing
    if not quiet and _is_display():
        _clear()
        print(f"{printable(what)} …", end="", file=sys.stderr, flush=True)
        _passing = True
    try:
        yield
    finally:
        _clear()


def _clear() -> None:
    global _passing
    if _passing:
        _passing = False
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


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
