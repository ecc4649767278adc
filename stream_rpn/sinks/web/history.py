"""The last minute of one source, a reading a second: what the page draws as small lines."""

from __future__ import annotations

from collections import deque
from typing import Any

READINGS = 60
"""Readings that are kept; the oldest goes when one more comes."""

_SMOOTH = 4  # readings that a rate is told from: over a single one it would jump


class History:
    """Rates, ages and losses of one source; only the server's thread touches it.

    Attributes:
        rate: results per second, over the last readings.
    """

    def __init__(self) -> None:
        self.rate = 0.0
        self._counts: deque[tuple[float, int]] = deque(maxlen=_SMOOTH + 1)
        self._lost_before: int | None = None
        self._rates: deque[float] = deque(maxlen=READINGS)
        self._ages: deque[int | None] = deque(maxlen=READINGS)
        self._losses: deque[int] = deque(maxlen=READINGS)

    def add(self, now: float, results: int, age_seconds: float | None, lost: int) -> None:
        """Takes a reading.

        Args:
            now: `time.monotonic()` of it.
            results: of the source so far.
            age_seconds: of the oldest result since the last reading, None where there was none.
            lost: frames of the source so far that were lost.
        """
        self._counts.append((now, results))
        (began, first), (ended, last) = self._counts[0], self._counts[-1]
        self.rate = (last - first) / (ended - began) if ended > began else 0.0
        self._rates.append(round(self.rate, 1))
        self._ages.append(None if age_seconds is None else round(age_seconds * 1e3))
        before = lost if self._lost_before is None else self._lost_before
        self._losses.append(max(lost - before, 0))
        self._lost_before = lost

    def record(self) -> dict[str, list[Any]]:
        """Returns the readings, oldest first: `rate`, `age_ms` (of a live source) and `lost`."""
        return {"rate": [*self._rates], "age_ms": [*self._ages], "lost": [*self._losses]}
