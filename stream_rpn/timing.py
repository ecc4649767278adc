"""Times of the stages: percentiles in constant memory, however long the video."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_BUCKETS_PER_DECADE = 100  # a step of 2.3 %
_SMALLEST_MS = 1e-4
_NUM_BUCKETS = 10 * _BUCKETS_PER_DECADE  # up to a million milliseconds


class Histogram:
    """Durations in logarithmic buckets; percentiles are exact to about one per cent."""

    def __init__(self) -> None:
        self.counts = [0] * _NUM_BUCKETS
        self.count = 0
        self.total_ms = 0.0

    def add(self, elapsed_ms: float, count: int = 1) -> None:
        """Records `count` items that took `elapsed_ms` each."""
        decades = math.log10(max(elapsed_ms, _SMALLEST_MS) / _SMALLEST_MS)
        bucket = min(int(decades * _BUCKETS_PER_DECADE), _NUM_BUCKETS - 1)
        self.counts[bucket] += count
        self.count += count
        self.total_ms += elapsed_ms * count

    def percentile(self, percent: float) -> float:
        """Returns the given percentile in milliseconds, 0 when nothing was recorded."""
        rank, seen = math.ceil(percent / 100 * self.count), 0
        for bucket, count in enumerate(self.counts):
            seen += count
            if count and seen >= rank:
                return _SMALLEST_MS * math.pow(10.0, (bucket + 0.5) / _BUCKETS_PER_DECADE)
        return 0.0

    def percentiles(self) -> dict[str, float]:
        """Returns p50, p95 and p99 in milliseconds."""
        return {f"p{p}": round(self.percentile(p), 2) for p in (50, 95, 99)}


class StageTimes:
    """One histogram per stage, in the order in which the stages first reported.

    Stages may run in any threads.
    """

    def __init__(self) -> None:
        self.stages: dict[str, Histogram] = {}
        self._adding = threading.Lock()

    def add(self, stage: str, elapsed_ms: float, count: int = 1) -> None:
        """Records `count` frames that took `elapsed_ms` each in `stage`."""
        with self._adding:
            self.stages.setdefault(stage, Histogram()).add(elapsed_ms, count)

    @contextmanager
    def measure(self, stage: str, count: int = 1) -> Iterator[None]:
        """Times a block that handles `count` frames, on the host's clock."""
        start = time.perf_counter()
        yield
        self.add(stage, (time.perf_counter() - start) * 1e3 / count, count)

    def laps(self, count: int = 1) -> Callable[[str], None]:
        """Times stages in a row: calling what it returns ends the stage of that name."""
        start = time.perf_counter()

        def mark(stage: str) -> None:
            nonlocal start
            before, start = start, time.perf_counter()
            self.add(stage, (start - before) * 1e3 / count, count)

        return mark

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Passes `items` on, recording how long each one took to come."""
        iterator = iter(items)
        while True:
            start = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.add(stage, (time.perf_counter() - start) * 1e3)
            yield item
            # Otherwise this local would keep the item alive while the next is made.
            del item

    def summary(self) -> dict[str, dict[str, float]]:
        """Returns per stage p50_ms, p95_ms (per frame) and total_seconds."""
        return {
            name: {
                "p50_ms": round(histogram.percentile(50), 4),
                "p95_ms": round(histogram.percentile(95), 4),
                "total_seconds": round(histogram.total_ms / 1e3, 4),
            }
            # A copy, as the threads of a run may be adding stages.
            for name, histogram in list(self.stages.items())
        }

    def including(self, other: StageTimes) -> StageTimes:
        """Returns a view of the stages of both."""
        both = StageTimes()
        both.stages = {**self.stages, **other.stages}
        return both

    def slowest(self) -> str:
        """Returns the stage that took the most time in all, "" when nothing ran."""
        return max(list(self.stages), key=lambda name: self.stages[name].total_ms, default="")
