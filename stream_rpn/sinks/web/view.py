"""The view of one source: what has become of it, its newest result, and the summary so far."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any

from stream_rpn.drops import DropKind, count_of
from stream_rpn.frame import Color, Proposals, StreamInfo
from stream_rpn.sinks.web.history import History
from stream_rpn.sinks.web.pictures import Pictures

Status = Callable[[], dict[str, Any]]

_KEYS = itertools.count()


class State(StrEnum):
    """What has become of a source.

    Attributes:
        WAITING: it has had no result yet.
        RUNNING: results come, of a source that is not live.
        LIVE: results come, of a live one.
        RECONNECTING: its connection was lost, and is tried again.
        FINISHED: it came to its end.
        STOPPED: the run was stopped before its end.
        FAILED: it could not be opened, or could not go on.
    """

    WAITING = "waiting"
    RUNNING = "running"
    LIVE = "live"
    RECONNECTING = "reconnecting"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


class View:
    """One source. The pipeline's thread writes it, the server's reads it; neither waits.

    Attributes:
        key: tells it from all others, those of the same source among them.
        source: the source as results name it.
        name: the short name by which its addresses go.
        header: the header of its results; empty before it has begun.
        number: counts the results; 0 before the first one.
        ended: whether the source has come to its end, of whatever kind.
        pictures: the newest result as others take it.
    """

    def __init__(self, source: str, name: str, pictures: Pictures | None = None) -> None:
        self.key = next(_KEYS)
        self.source = source
        self.name = name
        self.header: dict[str, Any] = {}
        self.number = 0
        self.ended = False
        self.pictures = pictures or Pictures()
        self._live = False
        self._color = Color("bt601", full_range=False, tagged=False)
        self._status: Status = dict
        self._why = State.WAITING
        self._oldest_seconds: float | None = None
        self._put_at = self._changed_at = time.monotonic()
        self._history = History()

    # What the pipeline calls.

    def begin(self, header: dict[str, Any], info: StreamInfo, status: Status) -> None:
        """Takes what is known of the source now that its first result is here."""
        self._color, self._live, self._status = info.color, info.live, status
        self._why = State.LIVE if info.live else State.RUNNING
        self._put_at = self._changed_at = time.monotonic()
        self.header = header

    def put(self, proposals: Proposals) -> None:
        """Replaces the newest result."""
        self.pictures.put(self.number + 1, proposals, proposals.color or self._color)
        self.number += 1
        self._put_at = time.monotonic()
        if (age := proposals.age_seconds) is not None:
            self._oldest_seconds = max(age, self._oldest_seconds or 0.0)

    def finish(self, stopped: str) -> None:
        """Notes the end: "" for a proper one, else why it came early: "interrupted", "failed"."""
        self._why = {"": State.FINISHED, "failed": State.FAILED}.get(stopped, State.STOPPED)
        self._changed_at = time.monotonic()
        self.ended = True

    # What the server calls.

    @property
    def silent_seconds(self) -> float:
        """Seconds since the last result came, or the source began, or is waited for."""
        return time.monotonic() - self._put_at

    def summary(self) -> dict[str, Any]:
        """Returns what `--json-summary` would say now; nothing before the source has begun."""
        return self._status()

    def state_of(self, summary: dict[str, Any]) -> tuple[State, float]:
        """Returns what has become of the source by a summary, and for how many seconds so."""
        away: float | None = summary.get("reconnecting_seconds")
        if away is not None and not self.ended:
            return State.RECONNECTING, away
        return self._why, time.monotonic() - self._changed_at

    def sample(self) -> None:
        """Takes a reading of the history; once a second, from the first result to the end."""
        if self.number and not self.ended:
            oldest, self._oldest_seconds = self._oldest_seconds, None
            self._history.add(time.monotonic(), self.number, oldest, _lost_of(self.summary()))

    def status(self) -> dict[str, Any]:
        """Returns what the page shows of the source beside its picture."""
        summary = self.summary()
        state, seconds = self.state_of(summary)
        return {
            "key": self.key,
            "source": self.source,
            "name": self.name,
            "state": state,
            "seconds": round(seconds, 1),
            "silent_seconds": round(self.silent_seconds, 1),
            "results": self.number,
            "picture": self.pictures.exist,
            "rate": round(self._history.rate, 1),
            "lost": _lost_of(summary),
            "history": self._history.record(),
            "summary": summary or None,
        }


def _lost_of(summary: dict[str, Any]) -> int:
    return count_of(summary.get("drops", {}), DropKind.DAMAGE, DropKind.POLICY)


def named(views: Iterable[View], name: str) -> View | None:
    """Returns the view of that name, None where there is none."""
    return next((view for view in views if view.name == name), None)
