"""Where the pipeline overlaps: bounded queues between threads, pinned slots on the way to a GPU.

The threads of the stages, pinned memory and CUDA streams are made in this file only (and the
threads that read live packets in `packet_queue.py`; sinks that talk to a network have their own).
Every stage is a generator that takes an iterator and yields; run one after another they are plain
function nesting, and `prefetch` puts a thread and a bounded queue at a boundary.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from stream_rpn import preprocess
from stream_rpn.frame import Drop, Frame
from stream_rpn.kernels.preprocess import Source
from stream_rpn.sources.packet_queue import POLL_SECONDS
from stream_rpn.timing import StageTimes

T = TypeVar("T")
R = TypeVar("R")

# How long closing waits for threads that decode.
JOIN_SECONDS = 1.5

# However long a burst: so many live frames at most wait in memory.
MOST_WAITING = 32


class prefetch(Generic[T]):
    """Iterates over `upstream` in a thread of its own, at most `size` items ahead of the consumer.

    The order is kept and nothing is dropped: a full queue makes the thread wait. An exception of
    upstream is raised in the consumer, after the items before it. `close` (or leaving the `with`)
    stops the thread after the item it is at, closes upstream in that thread and waits for it.
    """

    def __init__(self, upstream: Iterable[T], size: int, *, name: str) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self._upstream = upstream
        self._size = size
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._finished = False
        self._stopped = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        iterator = iter(self._upstream)
        try:
            for item in iterator:
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped or len(self._items) < self._size)
                    if self._stopped:
                        break
                    self._items.append(item)
                    self._changed.notify_all()
                # Otherwise this local would keep one more item alive than the queue holds.
                del item
        except BaseException as error:
            self._error = error
        finally:
            try:
                close = getattr(iterator, "close", None)
                if close is not None:
                    close()
            except BaseException as error:
                self._error = self._error or error
            with self._changed:
                self._finished = True
                self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        item = self.take()
        assert item is not None
        return item

    def take(self, timeout: float | None = None) -> T | None:
        """Returns the next item, or None where none comes within `timeout` seconds.

        Raises:
            StopIteration: at the end.
        """
        with self._changed:
            there = self._changed.wait_for(
                lambda: self._items or self._finished or self._stopped, timeout
            )
            if self._items and not self._stopped:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
        if not there:
            return None
        if self._error is not None and not self._stopped:
            error, self._error = self._error, None
            raise error
        raise StopIteration

    def __len__(self) -> int:
        return len(self._items)

    def stop(self) -> None:
        """Ends the iteration now, on both sides, without waiting for the thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def close(self) -> None:
        """Stops, and waits for the thread; items not yet taken are let go."""
        self.stop()
        self._thread.join()
        self._items.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def in_order(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yields function(item) of each item, in order, computed for `workers` items at a time.

    An item is taken from `items`, in a thread of its own, once a worker is free for it. The workers
    share the cores out: operations of torch run on torch.get_num_threads() // workers of them. An
    exception of `items` or of `function` is raised after the results before it.
    """
    iterator, free = iter(items), threading.Semaphore(workers)

    def begun() -> Iterator[Future[R]]:
        while True:
            free.acquire()
            try:
                item = next(iterator)
            except StopIteration:
                return
            future = pool.submit(function, item)
            # Otherwise this local would keep the item alive while the next is waited for.
            del item
            future.add_done_callback(lambda _: free.release())
            yield future

    pool = ThreadPoolExecutor(workers, thread_name_prefix="worker")
    try:
        _share_cores(pool, workers)
        with prefetch(begun(), workers, name="begin") as futures:
            for future in futures:
                yield future.result()
    finally:
        pool.shutdown()


_sharing = threading.Lock()


def _share_cores(pool: ThreadPoolExecutor, workers: int) -> None:
    with _sharing:
        threads = torch.get_num_threads()
        all_here = threading.Barrier(workers)

        def begin(_: int) -> None:
            # Asking first: torch would otherwise set this thread up at its first operation.
            torch.get_num_threads()
            torch.set_num_threads(max(1, threads // workers))
            all_here.wait()

        list(pool.map(begin, range(workers)))
        # A worker's number is its own, but torch gives the last one set to threads to come.
        torch.set_num_threads(threads)


class Merge:
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
        shape: the network's input shape for a frame.
        max_age: seconds from the arrival of a frame to the beginning of its batch.
        batch_wait: seconds that a batch waits for more frames.
        limit: frames to give of each source; None without limit.
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
        limit: int | None = None,
    ) -> None:
        self.lanes = [lane for lane, _ in upstreams]
        self._size, self._batch, self._shape = size, batch, shape
        self._max_age, self._batch_wait = max_age, batch_wait
        self._limit = limit
        self._stopped = stopped
        self._over = False
        self._changed = threading.Condition()
        self._idle_at = -math.inf  # when last there was nothing to give
        self._turn = 0
        self._begun = 0.0  # when the batch that is being given was begun
        self._given = 0  # frames of it
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
                frame.stream = index
                if not self._offer(lane, frame):
                    break
                del frame
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

    def _offer(self, lane: Lane, frame: Frame) -> bool:
        """Lines a frame up; False where nobody wants it any more."""
        with self._changed:
            if frame.arrived is None:
                self._changed.wait_for(
                    lambda: self._over or lane.closed or len(lane.waiting) < self._size
                )
            if self._over or lane.closed:
                return False
            lane.frames += 1
            if lane.carried:
                frame.drops, lane.carried = joined(lane.carried + frame.drops), ()
            lane.waiting.append(frame)
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
        live = [lane for lane in self.lanes if lane.waiting and lane.waiting[0].arrived is not None]
        overload = time.monotonic() - self._idle_at > self._max_age / 2
        room = self._batch if overload else max(self._batch, MOST_WAITING)
        if sum(len(lane.waiting) for lane in live) >= room + len(self.lanes):
            max(live, key=lambda lane: len(lane.waiting)).drop("queue full")

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
                if self._given:
                    patience = self._begun + self._batch_wait - time.monotonic()
                    if patience <= 0:
                        self._given = 0
                        return None
                self._changed.wait(min(patience, POLL_SECONDS))
            self._over = True
            self._changed.notify_all()
        raise StopIteration

    def _choose(self) -> Frame | None:
        now = time.monotonic()
        count = len(self.lanes)
        ready: dict[int, tuple[int, int]] = {}
        for index in ((self._turn + offset) % count for offset in range(count)):
            waiting = self.lanes[index].waiting
            while waiting and _older(waiting[0], now - self._max_age):
                self.lanes[index].drop("stale")
            if waiting:
                ready[index] = self._shape(waiting[0])
        if not ready:
            self._idle_at = now
            return None
        fitting = [i for i, shape in ready.items() if self._given and shape == self._batch_shape]
        index = (fitting or list(ready))[0]
        shape = ready[index]
        self._turn = (index + 1) % count
        lane = self.lanes[index]
        frame = lane.waiting.popleft()
        lane.taken += 1
        if lane.taken == self._limit:
            self._end(lane)
        if not self._given or shape != self._batch_shape:
            self._begun, self._given, self._batch_shape = now, 0, shape
        self._given = (self._given + 1) % self._batch
        return frame

    def end(self, index: int) -> None:
        """Takes no further frame from a source."""
        with self._changed:
            self._end(self.lanes[index])
            self._changed.notify_all()

    def _end(self, lane: Lane) -> None:
        lane.closed = True
        while lane.waiting:
            lane.drop("not wanted")

    def __len__(self) -> int:
        return sum(len(lane.waiting) for lane in self.lanes)

    def stop(self) -> None:
        """Ends the iteration now, on both sides, without waiting for the threads."""
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


@dataclass
class Lane:
    """The frames of one source in a `Merge`.

    Attributes:
        waiting: frames that wait for their turn, the oldest first.
        carried: what was lost and waits for a frame to say so.
        frames: frames that came, whatever became of them.
        taken: frames given to the network.
        error: why the source failed.
        closed: no further frame is wanted.
        finished: its thread has ended.
    """

    waiting: deque[Frame] = field(default_factory=deque)
    carried: tuple[Drop, ...] = ()
    frames: int = 0
    taken: int = 0
    error: Exception | None = None
    closed: bool = False
    finished: bool = False

    @property
    def ended(self) -> bool:
        """Whether nothing can come any more."""
        return (self.finished or self.closed) and not self.waiting

    def drop(self, reason: str) -> None:
        """Drops the oldest frame and tells the next one."""
        frame = self.waiting.popleft()
        drops = (*frame.drops, Drop(reason, 1, frame.pts))
        if self.waiting:
            self.waiting[0].drops = joined(drops + self.waiting[0].drops)
        else:
            self.carried = joined(drops)


def joined(drops: Iterable[Drop]) -> tuple[Drop, ...]:
    """Returns one record for each reason; lost connections stay one by one."""
    result: dict[Any, Drop] = {}
    for drop in drops:
        key = drop.reason if drop.seconds is None else object()
        first = result.get(key)
        result[key] = drop if first is None else replace(first, count=first.count + drop.count)
    return tuple(result.values())


def _older(frame: Frame, moment: float) -> bool:
    return frame.arrived is not None and frame.arrived < moment


def input_shape(frame: Frame, spec: preprocess.InputSpec) -> tuple[int, int]:
    """Returns (height, width) of the network's input for a frame, padding included."""
    resized = preprocess.resized_size(frame.height, frame.width, spec.min_size, spec.max_size)
    return preprocess.padded_size(resized, spec.size_divisor)


def batches(
    frames: Iterable[Frame | None], size: int, spec: preprocess.InputSpec
) -> Iterator[list[Frame]]:
    """Yields lists of at most `size` consecutive frames that share one padded input shape.

    `None` among the frames ends a batch before it is full. An exception of `frames` is raised after
    the frames before it.
    """
    batch: list[Frame] = []
    shape: tuple[int, int] | None = None
    try:
        for frame in frames:
            if frame is None:
                if batch:
                    yield batch
                batch = []
                continue
            previous, shape = shape, input_shape(frame, spec)
            if batch and shape != previous:
                yield batch
                batch = []
            batch.append(frame)
            del frame
            if len(batch) == size:
                yield batch
                batch = []
    except Exception:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


class HostStream:
    """Stands for a stream where there are none: on a CPU every call has finished when it returns.

    With it the code below runs, and is tested, on machines without a GPU.
    """

    def wait_event(self, event: Any) -> None:  # noqa: D102
        pass

    def synchronize(self) -> None:  # noqa: D102
        pass


class HostEvent:
    """Stands for a CUDA event next to a `HostStream`; keeps the host's time."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def record(self, stream: Any) -> None:  # noqa: D102
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:  # noqa: D102
        pass

    def elapsed_time(self, end: HostEvent) -> float:  # noqa: D102
        return (end.seconds - self.seconds) * 1e3


def new_stream(device: torch.device) -> Any:
    """Returns a stream of its own on a GPU; it is not ordered with any other stream."""
    if device.type == "cuda":
        return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return HostStream()


def new_event(device: torch.device) -> Any:
    """Returns an event that can be timed."""
    if device.type == "cuda":
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return HostEvent()


def on(stream: Any) -> AbstractContextManager[Any]:
    """Returns a context in which this thread's GPU work goes to `stream`."""
    return nullcontext() if isinstance(stream, HostStream) else torch.cuda.stream(stream)


class Packed(NamedTuple):
    """A batch as `kernels.preprocess` reads it.

    Attributes:
        data: [bytes] uint8, the planes of all frames.
        table: [B, 12] int64, a `Source` a row.
        matrix: [B, 3, 4] float32.
    """

    data: Tensor
    table: Tensor
    matrix: Tensor


# Uploaded batches that wait for the network, while it computes on one and one is being filled.
AHEAD = 1
NUM_SLOTS = AHEAD + 2


class Slot:
    """Room for one batch on its way to the device: pinned memory, and its counterpart there.

    Two threads pass it on, and only its owner touches it: the uploading thread from `begin` to
    `send`, the network's from then to `release`. Two events order what the device does with it:

    * `uploaded`, on the copy stream after the copies of `send`: the network's stream waits for it
      before it reads, and the host before it fills the pinned memory again;
    * `consumed`, on the network's stream after its last read: whatever writes the slot's device
      memory next waits for it.
    """

    def __init__(self, device: torch.device, batch: int, spec: preprocess.InputSpec) -> None:
        self._on, self._batch, self._spec = device, batch, spec
        self._copies = new_stream(device)
        # FFmpeg fills its surfaces on the device's legacy stream, which no other is ordered with.
        self._decoding = (
            torch.cuda.default_stream(device) if device.type == "cuda" else self._copies
        )
        self.started, self.uploaded = new_event(device), new_event(device)
        self._copied, self._consumed = new_event(device), new_event(device)
        self._busy = False
        self._allocate(1)
        self.frames: list[Frame] = []
        self.shape = (0, 0)
        self.capacity = 0
        self._used = 0
        self._surfaces = False

    def _allocate(self, num_bytes: int) -> None:
        pin = self._on.type == "cuda"
        fields = len(Source._fields)
        self._host = Packed(
            torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pin),
            torch.empty(self._batch, fields, dtype=torch.int64, pin_memory=pin),
            torch.empty(self._batch, 3, 4, pin_memory=pin),
        )
        # From the copy stream's own memory: no other stream's pending work can be on it.
        with on(self._copies):
            self._device = Packed(*(torch.empty_like(t, device=self._on) for t in self._host))

    def begin(self, first: Frame) -> None:
        """Starts a batch that begins with `first`; waits until the slot's last one has left it."""
        if self._busy:
            raise RuntimeError("a batch was begun in a slot whose last batch was not yet released")
        self._busy = True
        self.uploaded.synchronize()
        size = self._batch * preprocess.packed_bytes([first])
        # Powers of two: few different sizes, as a captured graph has a copy of its own of each.
        self.capacity = max(1 << 20, 1 << (size - 1).bit_length())
        if self.capacity > len(self._host.data):
            self._consumed.synchronize()
            self._allocate(self.capacity)
        self.frames, self._used = [], 0
        self.shape, self._surfaces = input_shape(first, self._spec), _is_surface(first)
        self._copies.wait_event(self._consumed)
        if self._surfaces:
            self._decoding.wait_event(self._consumed)

    def takes(self, frame: Frame) -> bool:
        """Tells whether the batch has room for `frame` and is of its kind."""
        return (
            len(self.frames) < self._batch
            and input_shape(frame, self._spec) == self.shape
            and _is_surface(frame) == self._surfaces
            and self._used + preprocess.packed_bytes([frame]) <= self.capacity
        )

    def add(self, frame: Frame) -> None:
        """Copies a frame's planes: into pinned memory, or a surface within the device's memory."""
        row, end = len(self.frames), self._used + preprocess.packed_bytes([frame])
        target = self._device if self._surfaces else self._host
        with on(self._decoding):
            preprocess.pack(
                [frame],
                self._spec,
                target.data[self._used : end],
                self._host.table[row : row + 1],
                self._host.matrix[row : row + 1],
            )
        # `pack` counts from the beginning of what it was given.
        self._host.table[row, :3] += self._used
        self._used = end
        self.frames.append(frame)
        if self._surfaces:
            # The decoder takes its surface back as soon as the frame goes.
            self._copied.record(self._decoding)
            self._copied.synchronize()

    @property
    def full(self) -> bool:
        """Whether the batch is complete."""
        return len(self.frames) == self._batch

    def send(self) -> None:
        """Starts the copies to the device; rows without a frame repeat the last one."""
        count = len(self.frames)
        for tensor in (self._host.table, self._host.matrix):
            tensor[count:] = tensor[count - 1]
        # New ones for each batch: the network's thread reads the times of the last one later.
        self.started, self.uploaded = new_event(self._on), new_event(self._on)
        with on(self._copies):
            self.started.record(self._copies)
            if not self._surfaces:
                self._device.data[: self._used].copy_(
                    self._host.data[: self._used], non_blocking=True
                )
            self._device.table.copy_(self._host.table, non_blocking=True)
            self._device.matrix.copy_(self._host.matrix, non_blocking=True)
            self.uploaded.record(self._copies)

    def receive(self, stream: Any) -> Packed:
        """Returns the batch on the device, for work on `stream` up to `release`."""
        stream.wait_event(self.uploaded)
        return Packed(self._device.data[: self._used], self._device.table, self._device.matrix)

    def release(self, stream: Any) -> None:
        """Gives the slot back, once what was given to `stream` so far has run."""
        self._consumed.record(stream)
        self._busy = False

    def sizes(self) -> list[tuple[int, int]]:
        """Returns (height, width) of every frame as resized, without padding."""
        rows = self._host.table[: len(self.frames), -2:].tolist()
        return [(height, width) for height, width in rows]

    def synchronize(self) -> None:
        """Waits until no copy is under way."""
        self._copies.synchronize()


def upload(
    frames: Iterable[Frame | None], slots: Sequence[Slot], times: StageTimes, *, keep_images: bool
) -> Iterator[Slot]:
    """Yields batches of consecutive frames of one padded input shape, on their way to the device.

    Slots are used in turn. The consumer must release a batch before it asks for the next; with at
    most AHEAD batches in a queue between, NUM_SLOTS slots suffice: while one is filled, AHEAD wait,
    and one is the consumer's. An exception of `frames` is raised after the frames before it.

    Args:
        frames: decoded frames, in the host's memory or as CUDA surfaces of the same device; `None`
            among them ends a batch before it is full.
        slots: the ring.
        times: gets the time that packing takes, per frame, as "pack".
        keep_images: leave the decoded image with each frame once its planes have been copied.
    """
    turn = itertools.cycle(slots)
    slot: Slot | None = None
    try:
        for frame in frames:
            if slot is not None and (frame is None or not slot.takes(frame)):
                slot.send()
                yield slot
                slot = None
            if frame is None:
                continue
            if slot is None:
                free = next(turn)
                free.begin(frame)
                slot = free
            with times.measure("pack"):
                slot.add(frame)
            if not keep_images:
                frame.image = None  # type: ignore[assignment]  # so that the decoder may reuse it
            del frame
            if slot.full:
                slot.send()
                yield slot
                slot = None
    except Exception:
        if slot is not None and slot.frames:
            slot.send()
            yield slot
        raise
    else:
        if slot is not None:
            slot.send()
            yield slot
    finally:
        for each in slots:
            each.synchronize()


class Download:
    """Tensors on their way to the host, from the current stream, without waiting for it."""

    def __init__(self, tensors: Iterable[Tensor], stream: Any, device: torch.device) -> None:
        pin = device.type == "cuda"
        self._host = []
        for tensor in tensors:
            host = torch.empty_like(tensor, device="cpu", pin_memory=pin)
            self._host.append(host.copy_(tensor, non_blocking=True))
        self._done = new_event(device)
        self._done.record(stream)

    def wait(self) -> list[Tensor]:
        """Returns the tensors once they have arrived, in pageable memory: results may live long."""
        self._done.synchronize()
        return [tensor.clone() for tensor in self._host]


def _is_surface(frame: Frame) -> bool:
    return frame.image.sw_format is not None
