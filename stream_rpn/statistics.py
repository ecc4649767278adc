"""Counts and times of a source while it runs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from stream_rpn.frame import Drop, Proposals, StreamInfo
from stream_rpn.timing import Histogram, StageTimes

if TYPE_CHECKING:
    from stream_rpn.sources.source import Source


class StreamStatistics:
    """The state of one source while it runs; may be read from any thread.

    Attributes:
        times: how long each stage took.
        ages: of live frames in milliseconds, from the arrival of the last packet until the result
            was written.
        num_results: results so far.
        num_held: those of them that are of an earlier frame, as the picture had not changed.
        elapsed_seconds: from the start of decoding to the last result.
        drops: packets and frames that were lost so far, by reason.
        stopped: why it ended before its end: "interrupted" by a signal or "failed"; "" otherwise.
    """

    info: StreamInfo

    def __init__(self) -> None:
        self.times = StageTimes()
        self.ages = Histogram()
        self.num_results = 0
        self.num_held = 0
        self.elapsed_seconds = 0.0
        self.drops: dict[str, int] = {}
        self.stopped = ""
        self._source: Source | None = None
        self._started = time.perf_counter()

    def count(self, proposals: Proposals) -> None:
        """Counts a result that has left the network."""
        proposals.source = self.info.source
        if proposals.age_seconds is not None:
            proposals.unix_seconds = time.time() - proposals.age_seconds
        self.num_results += 1
        self.num_held += proposals.held is not None
        self.elapsed_seconds = time.perf_counter() - self._started
        self.count_drops(proposals.drops)

    def count_drops(self, drops: Iterable[Drop]) -> None:
        """Counts losses by their reason."""
        for drop in drops:
            if drop.count:
                self.drops[drop.reason] = self.drops.get(drop.reason, 0) + drop.count

    def written(self, proposals: Proposals) -> None:
        """Notes how old a live frame is now that its result has been written."""
        if proposals.age_seconds is not None:
            self.ages.add(proposals.age_seconds * 1e3)

    @property
    def queued(self) -> int:
        """Items waiting at the network: decoded frames, or batches of them where NVDEC decodes."""
        raise NotImplementedError

    @property
    def stage_times(self) -> StageTimes:
        """Times of the stages, those that sources share among them."""
        return self.times

    @property
    def damaged_packets(self) -> int:
        """Packets that could not be decoded, so far."""
        return self._source.damaged_packets if self._source else 0

    @property
    def corrupt_frames(self) -> int:
        """Frames so far whose picture the decoder marked as damaged; they are used all the same."""
        return self._source.corrupt_frames if self._source else 0

    @property
    def fps(self) -> float:
        """Results per second, from the start of decoding to the last result."""
        return self.num_results / self.elapsed_seconds if self.elapsed_seconds else 0.0

    def live_totals(self) -> dict[str, Any]:
        """Returns what is told of sources that run beside others; nothing for one alone."""
        return {}

    def end(self) -> dict[str, Any]:
        """Returns the totals that close a result file."""
        return {
            "frames": self.num_results,
            **({"held": self.num_held} if self.num_held else {}),
            **({"stopped": self.stopped} if self.stopped else {}),
            "elapsed_seconds": round(self.elapsed_seconds, 3),
            "drops": self.drops,
            "damaged_packets": self.damaged_packets,
            "corrupt_frames": self.corrupt_frames,
        }
