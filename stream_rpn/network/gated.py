"""A network that is spared the frames in which nothing has changed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any

from stream_rpn.frame import Frame, Proposals
from stream_rpn.gate import Gate, GateSpec
from stream_rpn.network.network import Network
from stream_rpn.queues import Queue, Queues, prefetch
from stream_rpn.timing import StageTimes

# Held frames that wait at most, beside four batches of them: as many as lie between two looks, so
# that both are taken at a time; of those whose pictures are kept fewer, as they take memory.
ROOM, ROOM_FOR_IMAGES = 64, 4


class GatedNetwork(Network):
    """Gives a frame the proposals of the last look at its source, unless its picture has changed.

    Order, times and drops of the frames are kept: a result that was held says so, and of which
    frame it is. Each source has a gate of its own.

    Args:
        network: what looks.
        spec: how much must change in frames that say nothing else; None looks at all of them.
        batch: frames that `network` takes at a time.
        images: keep the decoded frame in results.
    """

    def __init__(
        self, network: Network, spec: GateSpec | None, batch: int, *, images: bool
    ) -> None:
        self._network, self._spec = network, spec
        self._batch, self._images = batch, images
        self._gates: dict[int, Gate] = {}  # of the last run

    def queues(  # noqa: D102
        self, frames: Iterable[Frame | None], times: StageTimes, *, latency: bool = False
    ) -> Queues[Proposals]:
        row = _Row(frames, times, self._spec, self._batch, keep_images=self._images)
        self._gates = row.gates
        looked = self._network.queues(row, times, latency=latency)
        results = prefetch(row.results(looked), 2 * self._batch, name="gate")
        return Queues(frames, row, looked, last=results)

    def process(  # noqa: D102
        self, frames: Iterable[list[Frame]], times: StageTimes
    ) -> Iterator[Proposals]:
        return self._network.process(frames, times)

    def facts(self) -> dict[str, Any]:
        """Returns the gate's numbers as well, and as "without_gate" why it could not tell."""
        facts = self._network.facts()
        if self._spec is not None:
            facts |= {"gate": asdict(self._spec)}
        reasons = [gate.blind for gate in list(self._gates.values()) if gate.blind]
        return {**facts, "without_gate": reasons[0]} if reasons else facts


class _Row(Queue):
    """The frames of a run in their order: whether each waits for the network or is held.

    Iterating gives the frames that the network has to see, and `None` where a batch must not wait
    for more of them. The network's first thread does so, and the gate's takes the results. As many
    held frames wait as there is room for, then the network's thread does.
    """

    def __init__(
        self,
        frames: Iterable[Frame | None],
        times: StageTimes,
        spec: GateSpec | None,
        batch: int,
        *,
        keep_images: bool,
    ) -> None:
        self.gates: dict[int, Gate] = {}
        self._frames, self._times = frames, times
        self._spec, self._keep_images = spec, keep_images
        self._patience = 2 * batch
        self._room = 4 * batch + (ROOM_FOR_IMAGES if keep_images else ROOM)
        # None stands for a frame that the network looks at.
        self._row: deque[Frame | None] = deque()
        self._changed = threading.Condition()
        self._ended = False

    def __iter__(self) -> Iterator[Frame | None]:
        begun = False  # whether the network may be waiting for more frames of a batch
        try:
            for frame in self._frames:
                if frame is None:
                    begun = False
                    yield None
                elif self._looks(frame):
                    begun = True
                    if not self._put(None):
                        return
                    yield frame
                else:
                    # It waits for the frames before it, but not until a batch of them is full.
                    if begun and len(self._row) >= self._patience:
                        begun = False
                        yield None
                    if not self._keep_images:
                        frame = replace(frame, image=None)  # type: ignore[arg-type]
                    if not self._put(frame):
                        return
                # Otherwise this local would keep the frame alive while the next is waited for.
                del frame
        finally:
            self._end()

    def _looks(self, frame: Frame) -> bool:
        spec = frame.gate or self._spec
        if spec is None:
            return True
        gate = self.gates.setdefault(frame.source_index, Gate(spec))
        with self._times.measure("gate"):
            return gate.looks(frame)

    def _put(self, frame: Frame | None) -> bool:
        """Lines up a frame that is held, or None; returns False where nobody wants it any more."""
        with self._changed:
            if frame is not None:
                # What the network looks at is bounded by its own queues.
                self._changed.wait_for(lambda: self._ended or len(self._row) < self._room)
            if self._ended:
                return False
            self._row.append(frame)
            self._changed.notify_all()
            return True

    def results(self, looked: Iterable[Proposals]) -> Iterator[Proposals]:
        """Yields the results of all frames in their order."""
        last: dict[int, Proposals] = {}
        results = iter(looked)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._row or self._ended)
                if not self._row:
                    break
                frame = self._row.popleft()
                self._changed.notify_all()
            if frame is not None:
                yield last[frame.source_index].held_for(frame, self._keep_images)
                continue
            try:
                proposals = next(results)
            except StopIteration:
                return
            # Of a held frame the picture is its own.
            last[proposals.source_index] = replace(proposals, image=None)
            yield proposals
        # What ended the frames may have been a failure, which is the network's last word.
        yield from results

    def _end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def __len__(self) -> int:
        return len(self._row)

    def stop(self) -> None:
        self._end()
        if isinstance(self._frames, Queue):
            self._frames.stop()

    def close(self) -> None:
        self.stop()
