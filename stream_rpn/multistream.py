"""Several sources at a time through one network, live ones among them, and none waits for another.

    source ──> decode ──┐
    source ──> decode ──┼─ newest frames win ──> batches ──> network ──> each source's sinks
    source ──> decode ──┘

Beside the flow of one source in `pipeline` and not in its place: that one opens the source in the
caller's thread, so that what it is stands before its first frame and what is wrong with it comes as
an exception; and it takes NVDEC's surfaces, which must not wait in lanes, as there are few.

Each source has its own threads and clock, is opened there, ends, fails and comes back on its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from stream_rpn import sources
from stream_rpn.frame import Frame, Proposals, StreamRPNError
from stream_rpn.input_spec import InputSpec, input_shape
from stream_rpn.log import log
from stream_rpn.multiplex import Lane, Multiplexer
from stream_rpn.pipeline import Pipeline
from stream_rpn.queues import Closing
from stream_rpn.sources.given import Given, name_of
from stream_rpn.sources.live import LivePolicy, LiveSource
from stream_rpn.sources.packet_queue import Interrupted
from stream_rpn.sources.select import Selection
from stream_rpn.sources.source import Source
from stream_rpn.statistics import StreamStatistics
from stream_rpn.timing import StageTimes
from stream_rpn.tracking import TrackSpec
from stream_rpn.views import check_input

# Seconds after which a caller that waits for results may look at something else.
_TICK_SECONDS = 0.25


class LiveStream(StreamStatistics):
    """One of the sources of `LiveStreams`.

    Attributes:
        index: its place among them.
        name: as the user named it, passwords masked.
        opened: whether there has been a frame; only then is there an `info`.
    """

    def __init__(
        self,
        index: int,
        uri: str | Given,
        selection: Selection,
        policy: LivePolicy,
        track: TrackSpec | None,
        spec: InputSpec,
        network_times: StageTimes,
        stopped: Callable[[], bool],
        notice: Callable[[str], None],
    ) -> None:
        super().__init__(selection, track)
        self.index = index
        self.name = name_of(uri)
        self.lane = Lane(limit=selection.max_frames)
        self.opened = False
        self._uri = uri
        self._policy = policy
        self._input_spec = spec
        self._network_times = network_times
        self._all_stopped = stopped
        self._notice = notice
        self._finished = False
        self._came_to_end = False

    def _stopped(self) -> bool:
        return self._all_stopped() or self.lane.closed

    def frames(self) -> Iterator[Frame]:
        """Opens the source and yields the chosen frames; for the thread that decodes."""
        try:
            self._source = source = self._open()
        except Interrupted:
            return
        try:
            size = None
            for frame in self.selection.frames(self._decoded(source)):
                if size != (frame.width, frame.height):
                    # Here, where one that is too thin ends its own source alone.
                    check_input(frame, self._input_spec)
                    size = (frame.width, frame.height)
                if not self.opened:
                    self.info = source.info
                    self._started = time.perf_counter()
                    self.opened = True
                yield frame
                del frame
            self._came_to_end = not self._stopped()
        finally:
            source.close()

    def _open(self) -> Source:
        selection = self.selection
        if selection.decoder == "nvdec":
            # Frames of several sources wait together, and its surfaces are few.
            raise StreamRPNError(
                f"{self.name} cannot be decoded by NVDEC: live sources, and what runs beside them, "
                "are decoded on the CPU"
            )
        if isinstance(self._uri, Given):
            return self._uri.open(
                realtime=self._policy.realtime,
                video_stream=selection.video_stream,
                max_pixels=selection.max_pixels,
            )
        live = self._policy.realtime or sources.is_live(self._uri)
        if not live or sources.holds_images(self._uri):
            return sources.open_source(
                self._uri,
                decoder="cpu",
                video_stream=selection.video_stream,
                max_pixels=selection.max_pixels,
                open_timeout=self._policy.open_timeout,
                stopped=self._stopped,
                notice=self._notice,
            )
        return LiveSource(
            self._uri,
            self._policy,
            video_stream=selection.video_stream,
            max_pixels=selection.max_pixels,
            stopped=self._stopped,
            notice=self._notice,
            times=self.times,
        )

    def _decoded(self, source: Source) -> Iterator[Frame]:
        frames: Iterator[Frame] = iter(source)
        if not isinstance(source, LiveSource):
            frames = self.times.each("decode", frames)
        for frame in frames:
            if self._stopped():
                return
            yield frame
            del frame

    @property
    def failure(self) -> Exception | None:
        """The reason of its end, where that was no proper one."""
        return self.lane.error

    @property
    def ended(self) -> bool:
        """Whether all its results have come."""
        return self.lane.ended and self.num_results >= self.lane.taken

    @property
    def num_chosen(self) -> int:  # noqa: D102
        return self.lane.frames

    @property
    def losses_behind(self) -> dict[str, int]:  # noqa: D102
        return self.lane.losses

    @property
    def reconnects(self) -> int:
        """Times that the connection was lost and came back."""
        return self._source.reconnects if isinstance(self._source, LiveSource) else 0

    @property
    def reconnecting_seconds(self) -> float | None:  # noqa: D102
        lost_at = self._source.lost_at if isinstance(self._source, LiveSource) else None
        return None if lost_at is None else time.monotonic() - lost_at

    @property
    def queued(self) -> int:  # noqa: D102
        return len(self.lane.waiting)

    @property
    def stage_times(self) -> StageTimes:  # noqa: D102
        return self.times.including(self._network_times)

    def finish(self) -> None:
        """Closes the account, once, when no further result will come."""
        if not self._finished and self._source is not None:
            self._finished = True
            self.settle(self.selection.max_frames)
            if self.failure is not None:
                self.stopped = "failed"
            elif self._all_stopped() and not (
                self._came_to_end or self.num_results == self.selection.max_frames
            ):
                self.stopped = "interrupted"

    def live_totals(self) -> dict[str, Any]:  # noqa: D102
        return {
            "reconnects": self.reconnects,
            "age_ms": self.ages.percentiles(),
        }

    def end(self) -> dict[str, Any]:  # noqa: D102
        return {"source": self.name, **super().end(), **self.live_totals()}


class LiveStreams(Closing):
    """The proposals of several sources, as they come.

    Iterating yields results, `proposals.source_index` says of which source, and `None` where for a
    moment there is none; it ends when all sources have. `close` (or leaving the `with`) ends it
    early. A failure stays in its own stream: see `LiveStream.failure`.

    Args:
        pipeline: the network.
        uris: as `stream_rpn.sources.expand` gives them, or objects.
        selection: which frames to use, of all sources or of each.
        policy: what to do with sources that do not wait, with all or with each; `max_age` and
            `batch_wait` of the first hold for all, as they share batches.
        stop: when set, no further frame is decoded; what waits still gets its results.
        notice: told in a sentence when a connection is lost and when it is back; by default the
            logger of the package.

    Attributes:
        streams: one per source, in order.
        times: of the stages that they share.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        uris: Sequence[str | Given],
        selection: Selection | Sequence[Selection],
        policy: LivePolicy | Sequence[LivePolicy],
        *,
        stop: threading.Event | None = None,
        notice: Callable[[str], None] = log.warning,
    ) -> None:
        stopped = (stop or threading.Event()).is_set
        self.times = StageTimes()
        spec = pipeline.model.input_spec
        selections = [selection] * len(uris) if isinstance(selection, Selection) else selection
        policies = [policy] * len(uris) if isinstance(policy, LivePolicy) else policy
        self.streams = [
            LiveStream(i, uri, selection, policy, pipeline.track, spec, self.times, stopped, notice)
            for i, (uri, selection, policy) in enumerate(
                zip(uris, selections, policies, strict=True)
            )
        ]
        self._multiplexer = Multiplexer(
            [(stream.lane, stream.frames()) for stream in self.streams],
            size=pipeline.queue_size,
            batch=pipeline.batch,
            shape=partial(input_shape, spec=spec),
            max_age=policies[0].max_age,
            batch_wait=policies[0].batch_wait,
            stopped=stopped,
        )
        self._queues = pipeline.network.queues(
            self._multiplexer, self.times, latency=len(self.streams) == 1
        )

    def __iter__(self) -> Iterator[Proposals | None]:
        while True:
            try:
                proposals = self._queues.take(_TICK_SECONDS)
            except StopIteration:
                return
            if proposals is not None:
                proposals = self.streams[proposals.source_index].receive(proposals)
            yield proposals

    def end(self, stream: LiveStream) -> None:
        """Takes no further frame of a source."""
        self._multiplexer.end(stream.index)

    def close(self) -> None:
        """Stops decoding and joins the threads.

        One that waits for an address that does not answer ends later, by itself.
        """
        self._queues.close()
        for stream in self.streams:
            stream.finish()


def proposals_of(streams: LiveStreams) -> Iterator[Proposals]:
    """Yields the proposals of all sources as they come; one that fails does not end the others.

    Raises:
        Exception: when all have ended, the failure of the first that never came, or was lost and
            did not come back: a StreamRPNError, but for frames of a program that are none.
    """
    failed: set[int] = set()
    for proposals in streams:
        if proposals is not None:
            yield proposals
            streams.streams[proposals.source_index].written(proposals)
        for stream in streams.streams if len(streams.streams) > 1 else ():
            if stream.failure is not None and stream.index not in failed:
                failed.add(stream.index)
                log.error("%s", stream.failure)
    failures = [stream.failure for stream in streams.streams if stream.failure is not None]
    if failures:
        raise first_of(failures)


def in_turn(
    pipeline: Pipeline, found: Sequence[str | Given], selection: Selection
) -> Iterator[Proposals]:
    """Yields the proposals of sources that wait, one after the other.

    Raises:
        StreamRPNError: when all have ended, the failure of the first that could not be read.
    """
    failures: list[Exception] = []
    for index, one in enumerate(found):
        try:
            with pipeline.open(one, selection) as results:
                for proposals in results:
                    proposals.source_index = index
                    yield proposals
        except StreamRPNError as error:
            if len(found) == 1:
                raise
            log.error("%s", error)
            failures.append(error)
    if failures:
        raise first_of(failures)


def first_of(failures: Sequence[Exception]) -> Exception:
    """Returns the first failure of several sources, which says how many others there were."""
    first, *others = failures
    if others and isinstance(first, StreamRPNError):
        return StreamRPNError(f"{first} (and {len(others)} more of the sources failed)")
    return first


__all__ = ["LivePolicy", "LiveStream", "LiveStreams", "in_turn", "proposals_of"]
