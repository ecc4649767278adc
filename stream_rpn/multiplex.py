"""Frames of several sources in one row, the newest first where the network is too slow."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from stream_rpn.drops import Drop, DropReason
from stream_rpn.frame import Frame
from stream_rpn.queues import POLL_SECONDS, Queue

# Seconds that closing waits for threads that decode.
JOIN_SECONDS = 1.5

# However long a burst: so many live frames at most wait in memory.
MOST_WAITING = 32


class Multiplexer(Queue):
    """Frames of several sources for one network: each decoded in a thread, the newest win.

    Iterating gives one frame after another, the sources taking turns; as long as a batch is not
    full, those of its input shape first. `None` says that nobody else comes in time: the batch is
    to go as it is. Frames that carry a time of arrival are live: where too many wait, the oldest of
    the source with the most is dropped ("queue full"), and what is older than `max_age` when its
    turn comes ("stale"). The next frame of that source says so. Other frames wait for room.

    Args:
        upstreams: per source its lane, and its frames: iterated over in a thread of its own, where
            the source is opened, fails and is closed. They must end soon when `stopped` says so.
        size: frames that may wait of a source that is not live.
        batch: frames of a full batch. Live sources share the room for one, but for one frame that
            each has a place for: else more sources would mean older frames.
        shape: the network's input shape for a frame; where there is none, it raises.
        max_age: seconds from the arrival of a frame to the beginning of its batch.
        batch_wait: seconds that a batch waits for more frames.
        stopped: tells that the run was stopped: what waits is still given.
    """

    def __init__(
        self,
        upstreams: Sequence[tuple[Lane, Iterable[Frame]]],
        *,
        size: int,
        batch: int,
        shape: Callable[[Frame], tuple[int, int]],
        max_age: float,
        batch_wait: float,
        stopped: Callable[[], bool],
    ) -> None:
        self.lanes = [lane for lane, _ in upstreams]
        self._size, self._batch, self._shape = size, batch, shape
        self._max_age, self._batch_wait = max_age, batch_wait
        self._stopped = stopped
        self._over = False
        self._changed = threading.Condition()
        self._idle_at = -math.inf  # when last there was nothing to give
        self._turn = 0
        self._begun = 0.0  # when the batch that is being given was begun
        self._given = 0  # frames of it
        self._closed = True  # whether the network knows that nobody else comes in time
        self._batch_shape: tuple[int, int] | None = None
        self._threads = [
            threading.Thread(target=self._work, args=(index, frames), name="decode", daemon=True)
            for index, (_, frames) in enumerate(upstreams)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, index: int, frames: Iterable[Frame]) -> None:
        lane = self.lanes[index]
        iterator = iter(frames)
        try:
            for frame in iterator:
                frame.source_index = index
                # Here, where a frame that has none ends its own source alone.
                waiting = Waiting(frame, self._shape(frame))
                if not self._offer(lane, waiting):
                    break
                del frame, waiting
        except Exception as error:
            lane.error = error
        finally:
            try:
                close = getattr(iterator, "close", None)
                if close is not None:
                    close()
            except Exception as error:
                lane.error = lane.error or error
            with self._changed:
                lane.finished = True
                self._changed.notify_all()

    def _offer(self, lane: Lane, waiting: Waiting) -> bool:
        """Lines a frame up; False where nobody wants it any more."""
        frame = waiting.frame
        with self._changed:
            if frame.arrived is None:
                self._changed.wait_for(
                    lambda: self._over or lane.closed or len(lane.waiting) < self._size
                )
            if self._over or lane.closed:
                return False
            lane.frames += 1
            if lane.carried:
                frame.drops, lane.carried = merge_drops(lane.carried + frame.drops), ()
            lane.waiting.append(waiting)
            if frame.arrived is not None:
                self._make_room()
            self._changed.notify_all()
            return True

    def _make_room(self) -> None:
        """Drops a live frame where too many wait: the oldest of the source that has the most.

        A burst is no overload: cameras pause and then send what has come up, and the network gets
        through it. So there is room for it where the network was idle not long ago. Where it was
        not, all that waits only makes results older: a batch is enough.
        """
        live = [lane for lane in self.lanes if lane.waiting and lane.waiting[0].live]
        overload = time.monotonic() - self._idle_at > self._max_age / 2
        room = self._batch if overload else max(self._batch, MOST_WAITING)
        if sum(len(lane.waiting) for lane in live) >= room + len(self.lanes):
            max(live, key=lambda lane: len(lane.waiting)).drop(DropReason.QUEUE_FULL)

    def __iter__(self) -> Iterator[Frame | None]:
        return self

    def __next__(self) -> Frame | None:
        with self._changed:
            while not self._over:
                frame = self._choose()
                if frame is not None:
                    self._changed.notify_all()
                    return frame
                if self._stopped() or all(lane.ended for lane in self.lanes):
                    break
                patience = POLL_SECONDS
                # After a full batch as well: of its frames the network need not have seen all.
                if not self._closed:
                    patience = self._begun + self._batch_wait - time.monotonic()
                    if patience <= 0:
                        self._given, self._closed = 0, True
                        return None
                self._changed.wait(min(patience, POLL_SECONDS))
            self._over = True
            self._changed.notify_all()
        raise StopIteration

    def _choose(self) -> Frame | None:
        """Takes the next frame: of the first lane in turn whose frame fits the batch, if any does.

        What is stale goes when it is looked at, and no lane is behind the one that is found: with
        many sources each of which has a frame, few lanes are looked at.
        """
        now = time.monotonic()
        found: int | None = None
        for index in (*range(self._turn, len(self.lanes)), *range(self._turn)):
            lane = self.lanes[index]
            while lane.waiting and lane.waiting[0].older(now - self._max_age):
                lane.drop(DropReason.STALE)
            if not lane.waiting:
                continue
            if not self._given or lane.waiting[0].shape == self._batch_shape:
                found = index
                break
            if found is None:
                found = index
        if found is None:
            self._idle_at = now
            return None
        self._turn = (found + 1) % len(self.lanes)
        lane = self.lanes[found]
        frame, shape = lane.waiting.popleft()
        lane.taken += 1
        if lane.taken == lane.limit:
            self._end(lane)
        if not self._given or shape != self._batch_shape:
            self._begun, self._given, self._batch_shape = now, 0, shape
        self._given = (self._given + 1) % self._batch
        self._closed = False
        return frame

    def end(self, index: int) -> None:
        """Takes no further frame from a source."""
        with self._changed:
            self._end(self.lanes[index])
            self._changed.notify_all()

    def _end(self, lane: Lane) -> None:
        lane.closed = True
        while lane.waiting:
            lane.drop(DropReason.NOT_WANTED)

    def __len__(self) -> int:
        return sum(len(lane.waiting) for lane in self.lanes)

    def stop(self) -> None:  # noqa: D102
        with self._changed:
            self._over = True
            # A source that has nothing to give sees by its lane that it need not wait any longer.
            for lane in self.lanes:
                self._end(lane)
            self._changed.notify_all()

    def close(self) -> None:
        """Stops, and waits a little for the threads; one that opens a dead address may take long.

        Such a thread ends by itself, and closes what it was about to open.
        """
        self.stop()
        deadline = time.monotonic() + JOIN_SECONDS
        while self._threads:
            self._threads.pop().join(max(0.0, deadline - time.monotonic()))


class Waiting(NamedTuple):
    """A frame that waits for its turn.

    Attributes:
        frame: with its losses, as far as they are known.
        shape: of the network's input for it.
    """

    frame: Frame
    shape: tuple[int, int]

    @property
    def live(self) -> bool:
        """Whether it may be dropped."""
        return self.frame.arrived is not None

    def older(self, moment: float) -> bool:
        """Tells whether it is live and arrived before `moment`."""
        arrived = self.frame.arrived
        return arrived is not None and arrived < moment


@dataclass
class Lane:
    """The frames of one source in a `Multiplexer`.

    Attributes:
        limit: frames to give to the network; None without limit.
        waiting: frames that wait for their turn, the oldest first.
        carried: what was lost and waits for a frame to say so.
        losses: frames dropped here so far, by reason.
        frames: frames that came, whatever became of them.
        taken: frames given to the network.
        error: why the source failed.
        closed: no further frame is wanted.
        finished: its thread has ended.
    """

    limit: int | None = None
    waiting: deque[Waiting] = field(default_factory=deque)
    carried: tuple[Drop, ...] = ()
    losses: dict[str, int] = field(default_factory=dict)
    frames: int = 0
    taken: int = 0
    error: Exception | None = None
    closed: bool = False
    finished: bool = False

    @property
    def ended(self) -> bool:
        """Whether nothing can come any more."""
        return (self.finished or self.closed) and not self.waiting

    def drop(self, reason: DropReason) -> None:
        """Drops the oldest frame and tells the next one."""
        frame = self.waiting.popleft().frame
        self.losses[reason] = self.losses.get(reason, 0) + 1
        drops = (*frame.drops, Drop(reason, 1, frame.pts))
        if self.waiting:
            following = self.waiting[0].frame
            following.drops = merge_drops(drops + following.drops)
        else:
            self.carried = merge_drops(drops)


def merge_drops(drops: Iterable[Drop]) -> tuple[Drop, ...]:
    """Returns one record for each reason; lost connections stay one by one."""
    result: dict[Any, Drop] = {}
    for drop in drops:
        key = drop.reason if drop.seconds is None else object()
        first = result.get(key)
        result[key] = drop if first is None else replace(first, count=first.count + drop.count)
    return tuple(result.values())
