"""The state of a source while it runs: its counts and times, and what is followed in it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from stream_rpn.drops import Drop, DropKind, DropReason, count_of
from stream_rpn.frame import Proposals, StreamInfo
from stream_rpn.log import log
from stream_rpn.timing import Histogram, StageTimes
from stream_rpn.tracking import Tracking, TrackSpec

if TYPE_CHECKING:
    from stream_rpn.sources.select import Selection
    from stream_rpn.sources.source import Source


class StreamStatistics:
    """The state of one source while it runs; may be read from any thread.

    Attributes:
        info: what is known of the source, once it is open.
        selection: what was asked of it.
        times: how long each stage took.
        ages: of live frames in milliseconds, from the arrival of the last packet until the result
            was written.
        num_results: results so far.
        num_held: those of them that are of an earlier frame, as the picture had not changed.
        elapsed_seconds: from the start of decoding to the last result.
        stopped: why it ended before its end: "interrupted" by a signal or "failed"; "" otherwise.
    """

    info: StreamInfo

    def __init__(self, selection: Selection, track: TrackSpec | None = None) -> None:
        self.selection = selection
        self._track = track
        self._tracking: Tracking | None = None
        self.times = StageTimes()
        self.ages = Histogram()
        self.num_results = 0
        self.num_held = 0
        self.elapsed_seconds = 0.0
        self.stopped = ""
        self._source: Source | None = None
        self._told: dict[str, int] = {}  # losses that results told of
        self._beyond: dict[str, int] = {}  # losses behind the last frame that was asked for
        self._abandoned = 0
        self._settled = False
        self._started = time.perf_counter()

    def receive(self, proposals: Proposals) -> Proposals:
        """Returns a result that has left the network, with its tracks where objects are followed.

        It counts from now on.
        """
        if self._track is not None:
            with self.times.measure("track"):
                # Here, as a live source tells its rate with its first frame.
                self._tracking = self._tracking or Tracking(self._track, self.info.fps)
                proposals = self._tracking.track(proposals)
        proposals.source = self.info.source
        if proposals.age_seconds is not None:
            proposals.unix_seconds = time.time() - proposals.age_seconds
        self.num_results += 1
        self.num_held += proposals.held is not None
        self.elapsed_seconds = time.perf_counter() - self._started
        for drop in proposals.drops:
            self._told[drop.reason] = self._told.get(drop.reason, 0) + drop.count
        self._log(proposals.drops, f"before frame {proposals.frame}")
        return proposals

    def _log(self, drops: Iterable[Drop], where: str) -> None:
        for drop in drops:
            damage = DropReason(drop.reason).kind is DropKind.DAMAGE
            level = logging.WARNING if damage else logging.INFO
            count = f", {drop.count} lost" if drop.count else ""
            gap = "" if drop.seconds is None else f", {drop.seconds:g} s missing"
            log.log(level, "%s: %s%s%s %s", self.info.source, drop.reason, count, gap, where)

    @property
    def num_chosen(self) -> int:
        """Frames so far that were decoded and chosen, whatever became of them then."""
        raise NotImplementedError

    @property
    def losses_behind(self) -> dict[str, int]:
        """Chosen frames so far that were dropped before the network, by reason."""
        return {}

    @property
    def drops(self) -> dict[str, int]:
        """Packets and frames that were lost so far, by reason.

        Those that wait to be told with the next result are among them, and where the end is known
        those that no result tells of. 0 stands for a loss of which nobody knows how many.
        """
        drops = self._source.tally.losses.copy() if self._source else {}
        for reason, count in self.losses_behind.copy().items():
            drops[reason] = drops.get(reason, 0) + count
        not_wanted = self._abandoned + sum(self._beyond.values())
        for reason, count in self._beyond.items():
            drops[reason] -= count
            if not drops[reason]:
                del drops[reason]
        if not_wanted:
            drops[DropReason.NOT_WANTED] = drops.get(DropReason.NOT_WANTED, 0) + not_wanted
        return drops

    @property
    def frames_in(self) -> int:
        """Frames that came so far: those with results, those dropped, and those under way.

        A packet that was lost before it was decoded counts as a frame. Frames that were not chosen
        (by stride, rate or time) do not count.
        """
        lost = sum(self._source.tally.losses.copy().values()) if self._source else 0
        return self.num_chosen + lost

    def account(self) -> dict[str, Any]:
        """Returns `frames`, `drops` and `frames_in`, which is no less than their sum."""
        # In this order: what comes in between is under way.
        account = {"frames": self.num_results, "drops": self.drops}
        return {**account, "frames_in": self.frames_in}

    def settle(self, limit: int | None) -> None:
        """Counts the frames under way as not wanted, now that no further result will come.

        Where there were as many results as `limit`, so does what was found damaged behind them.
        """
        lost_behind = sum(self.losses_behind.copy().values())
        self._abandoned = self.num_chosen - lost_behind - self.num_results
        if self._source is not None and self.num_results == limit:
            self._beyond = {
                reason: count - self._told.get(reason, 0)
                for reason, count in self._source.tally.losses.copy().items()
                if DropReason(reason).kind is DropKind.DAMAGE
            }
        elif self._source is not None and not self._settled and hasattr(self, "info"):
            self._log(self._source.trailing_drops, "after the last frame")
        self._settled = True

    @property
    def missing_seconds(self) -> float | None:
        """How much of the time that the source promised did not come; None where nothing tells."""
        return self._source.tally.missing_seconds if self._source else None

    def written(self, proposals: Proposals) -> None:
        """Notes how old a live frame is now that its result has been written."""
        if proposals.age_seconds is not None:
            self.ages.add(proposals.age_seconds * 1e3)

    @property
    def queued(self) -> int:
        """Items waiting at the network: decoded frames, or batches of them where NVDEC decodes."""
        raise NotImplementedError

    @property
    def reconnecting_seconds(self) -> float | None:
        """How long the connection has been lost by now; None while there is one."""
        return None

    @property
    def stage_times(self) -> StageTimes:
        """Times of the stages, those that sources share among them."""
        return self.times

    @property
    def damaged_packets(self) -> int:
        """Packets or still images that could not be decoded or are missing, so far."""
        return count_of(self.drops, DropKind.DAMAGE)

    @property
    def corrupt_frames(self) -> int:
        """Frames so far whose picture the decoder marked as damaged; they are used all the same."""
        return self._source.corrupt_frames if self._source else 0

    def oddities(self) -> dict[str, Any]:
        """Returns what is said of a source only where there is anything to say.

        That is `missing_seconds`, and what had to be mended of its clock as `clock_mended`.
        """
        mended = self._source.clock.mended if self._source else {}
        missing = self.missing_seconds
        return {
            **({} if missing is None else {"missing_seconds": missing}),
            **({"clock_mended": mended} if mended else {}),
        }

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
            **self.account(),
            **({"held": self.num_held} if self.num_held else {}),
            "complete": not self.stopped,
            **({"stopped": self.stopped} if self.stopped else {}),
            "elapsed_seconds": round(self.elapsed_seconds, 3),
            "damaged_packets": self.damaged_packets,
            "corrupt_frames": self.corrupt_frames,
            **self.oddities(),
        }
