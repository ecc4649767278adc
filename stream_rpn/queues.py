"""Overlap in the pipeline: bounded queues between threads.

Every stage is a generator that takes an iterator and yields; run one after another they are plain
function nesting, and `prefetch` puts a thread and a bounded queue at a boundary. Threads are made
here, in `multiplex` (one a source that runs beside others) and in `sources.packet_queue` (one a
live connection) only; sinks that talk to a network have their own.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Seconds between looks of a waiting thread at whether the run has been stopped.
POLL_SECONDS = 0.1


class Closing(ABC):
    """Something that ends at `close`, or where a `with` block does."""

    @abstractmethod
    def close(self) -> None:
        """Ends everything, threads and files, and waits for it; may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Queue(Closing):
    """What waits between two threads."""

    @abstractmethod
    def __len__(self) -> int:
        """Returns how many items wait."""

    @abstractmethod
    def stop(self) -> None:
        """Ends the iteration now, on both sides, without waiting for the thread."""


class prefetch(Queue, Generic[T]):
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

    def stop(self) -> None:  # noqa: D102
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def close(self) -> None:
        """Stops, and waits for the thread; items not yet taken are let go."""
        self.stop()
        self._thread.join()
        self._items.clear()


class Queues(Queue, Generic[T]):
    """The queues of a flow as one: iterates over what leaves the last, and ends all of them.

    Args:
        last: gives the results.
        before: what feeds it, in the direction of the flow; of these the queues are ended with it.
    """

    def __init__(self, *before: Iterable[Any], last: prefetch[T]) -> None:
        self._last = last
        self._all = [*(stage for stage in before if isinstance(stage, Queue)), last]

    def __iter__(self) -> Iterator[T]:
        return self._last

    def take(self, timeout: float | None = None) -> T | None:
        """Returns the next result, or None where none comes within `timeout` seconds.

        Raises:
            StopIteration: at the end.
        """
        return self._last.take(timeout)

    def __len__(self) -> int:
        """Returns how many items wait in the first queue."""
        return len(self._all[0])

    def stop(self) -> None:  # noqa: D102
        for queue in self._all:
            queue.stop()

    def close(self) -> None:
        """Stops all threads and waits for them."""
        # Stop them all first: a thread that waits for its neighbour would never see the end.
        self.stop()
        for queue in reversed(self._all):
            queue.close()


def map_in_order(
    function: Callable[[T], R],
    items: Iterable[T],
    workers: int,
    *,
    behind: Iterable[Any] = (),
    share_cores: bool = False,
) -> Iterator[R]:
    """Yields function(item) of each item, in order, computed for `workers` items at a time.

    An item is taken from `items`, in a thread of its own, once a worker is free for it. With
    `share_cores` operations of torch run on torch.get_num_threads() // workers cores. An exception
    of `items` or of `function` is raised after the results before it; where what is `behind` the
    items is a queue it is stopped then, as the thread may be waiting there for long.
    """
    iterator, free = iter(items), threading.Semaphore(workers)

    def submitted() -> Iterator[Future[R]]:
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
        if share_cores:
            _share_cores(pool, workers)
        with prefetch(submitted(), workers, name="begin") as futures:
            try:
                for future in futures:
                    yield future.result()
            except BaseException:
                if isinstance(behind, Queue):
                    behind.stop()
                raise
    finally:
        pool.shutdown()


_sharing = threading.Lock()


def _share_cores(pool: ThreadPoolExecutor, workers: int) -> None:
    # Not at the top: whoever does without torch queues here as well.
    import torch

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
