"""Replays the network as one CUDA graph per input shape, so that a batch costs one launch.

Why sharing one memory pool among the graphs is safe. A graph's outputs and intermediate tensors lie
at addresses that a later capture may have reused for its own, so replaying one graph may overwrite
what another has left behind. Nothing that a replay left behind is needed when the next one starts:
all replays, and everything that reads their outputs, are given to one stream, and a caller reads or
clones the outputs of a replay before it asks for another. Tensors that have to outlive a replay
are not in the pool: the inputs are allocated before the capture, and so are the tables that the
kernels keep, by the warm-up.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from stream_rpn.network.upload import PackedBatch

T = TypeVar("T")

# Batches of a kind that run eagerly before a graph of them is captured; more after each eviction,
# so that inputs of many shapes in turn do not spend their time on captures.
PATIENCE, MOST_PATIENCE = 3, 64
MAX_GRAPHS = 4

# torch allows one capture at a time in a process.
_capturing = threading.Lock()

# Those that torch 2.11 will still ask whether they are capturing.
_failed: list[torch.cuda.CUDAGraph] = []


class Graph(NamedTuple, Generic[T]):
    """A captured function: fill the inputs, replay, read the outputs.

    Attributes:
        replay: starts it on the current stream.
        inputs: the tensors that it reads.
        outputs: what the function returned; every replay overwrites it.
    """

    replay: Callable[[], None]
    inputs: PackedBatch
    outputs: T


def capture(function: Callable[[PackedBatch], T], inputs: PackedBatch, pool: Any) -> Graph[T]:
    """Returns `function` as a CUDA graph, captured on the current stream.

    Args:
        function: launches GPU work that depends on the inputs' contents only through the GPU.
        inputs: valid inputs, which the graph keeps.
        pool: of `torch.cuda.graph_pool_handle`.
    """
    # Objects made once and kept (compiled kernels, libraries' handles, tables) must not be made
    # while capturing.
    function(inputs)
    graph, failure = torch.cuda.CUDAGraph(), None
    with _capturing:
        try:
            with _record(graph, pool):
                try:
                    outputs = function(inputs)
                except Exception as error:
                    # The end of the capture that this spoils only says that it is spoilt.
                    failure = error
        except Exception as error:
            failure = failure or error
            _mend(graph, pool)
    try:
        if failure is not None:
            raise failure
    finally:
        # It would hold this frame, and with it the tensors of all below, which hold it.
        del failure
    return Graph(graph.replay, inputs, outputs)


def why_no_capture(device: torch.device) -> str | None:
    """Returns why a GPU does not capture what is to be captured anywhere, None where it does."""
    try:
        with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
            ones = PackedBatch(*(torch.ones(4, device=device) for _ in range(3)))
            graph = capture(lambda batch: batch.data * 2, ones, torch.cuda.graph_pool_handle())
            graph.replay()
            wrong = graph.outputs.tolist() != [2.0] * 4
    except Exception as error:
        return _first_line(error)
    return "a graph computes something else than what was captured" if wrong else None


def _record(graph: torch.cuda.CUDAGraph, pool: Any = None) -> torch.cuda.graph:
    # "thread_local": in the default mode a call of another thread, such as the decoder's, that
    # could not be captured would spoil the capture.
    stream = torch.cuda.current_stream()
    return torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")


def _mend(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """Ends what a failed capture leaves open.

    In torch 2.11 the allocator goes on as if it were capturing: memory that several streams used is
    never given back, and the next capture meets an internal assertion. In later versions, too, the
    generator of random numbers does; an empty capture that succeeds ends that.
    """
    device = torch.cuda.current_device()
    with suppress(RuntimeError):  # where torch has ended it itself
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
        _failed.append(graph)
    with suppress(Exception), _record(torch.cuda.CUDAGraph()):
        torch.zeros(1, device=device)


class GraphCache(Generic[T]):
    """Runs a function on batches of few kinds: eagerly at first, then as the graph of their kind.

    At most MAX_GRAPHS graphs are kept, those used last. Whatever goes wrong in a capture is
    reported once, and no more are captured. For one thread at a time, on one stream.

    Args:
        enabled: False to run everything eagerly.
        capture: how a graph is made.
        obstacle: tells why a capture would fail, None where nothing is in its way. Whoever knows of
            an obstacle has reported it.

    Attributes:
        why_not: why no graph is captured any more; None where all is well.
    """

    def __init__(
        self,
        *,
        enabled: bool = True,
        capture: Callable[[Callable[[PackedBatch], T], PackedBatch, Any], Graph[T]] = capture,
        obstacle: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._enabled = enabled
        self._capture = capture
        self._obstacle = obstacle
        self.why_not: str | None = None
        self._pool = (
            torch.cuda.graph_pool_handle() if enabled and torch.cuda.is_available() else None
        )
        self._graphs: OrderedDict[Hashable, Graph[T]] = OrderedDict()
        self._seen: Counter[Hashable] = Counter()
        self._patience = PATIENCE

    def get(
        self, key: Hashable, function: Callable[[PackedBatch], T], batch: PackedBatch, capacity: int
    ) -> Graph[T] | None:
        """Returns the graph of this kind of batch, filled with `batch`, or None: run it eagerly.

        Args:
            key: what kind of batch this is: all that `function` does depends on nothing else.
            function: what to capture.
            batch: the tensors to run on.
            capacity: bytes of data that a batch of this kind has at most.
        """
        key = (key, capacity)
        graph = self._graphs.get(key)
        if graph is None and self._due(key):
            graph = self._try_to_capture(key, function, batch, capacity)
        if graph is not None:
            self._graphs.move_to_end(key)
            _fill(graph.inputs, batch)
        return graph

    def _due(self, key: Hashable) -> bool:
        """Counts a batch and tells whether its kind has come often enough."""
        if not self._enabled or self.why_not:
            return False
        self.why_not = self._obstacle()
        if self.why_not:
            return False
        if len(self._seen) > 64 * MAX_GRAPHS:
            self._seen.clear()
        self._seen[key] += 1
        return self._seen[key] > self._patience

    def _try_to_capture(
        self, key: Hashable, function: Callable[[PackedBatch], T], batch: PackedBatch, capacity: int
    ) -> Graph[T] | None:
        if len(self._graphs) == MAX_GRAPHS:
            # Its last replay may be under way.
            _synchronize(batch)
            self._graphs.popitem(last=False)
            self._patience = min(2 * self._patience, MOST_PATIENCE)
        try:
            inputs = PackedBatch(
                batch.data.new_empty(capacity),
                torch.empty_like(batch.table),
                torch.empty_like(batch.matrix),
            )
            _fill(inputs, batch)
            graph = self._graphs[key] = self._capture(function, inputs, self._pool)
        except Exception as error:
            # The warm-up may have met one, and reported it.
            obstacle = self._obstacle()
            self.why_not = obstacle or _first_line(error)
            if obstacle is None:
                warnings.warn(
                    "the network could not be captured as a CUDA graph and is launched kernel by "
                    f"kernel instead, which is slower: {self.why_not}",
                    RuntimeWarning,
                    stacklevel=3,
                )
            return None
        del self._seen[key]
        return graph


def _first_line(error: Exception) -> str:
    """Returns an error's kind and what it says; CUDA's go on with advice to programmers."""
    line, *_ = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {line}"


def _fill(inputs: PackedBatch, batch: PackedBatch) -> None:
    inputs.data[: len(batch.data)].copy_(batch.data)
    inputs.table.copy_(batch.table)
    inputs.matrix.copy_(batch.matrix)


def _synchronize(batch: PackedBatch) -> None:
    if batch.data.is_cuda:
        torch.cuda.current_stream().synchronize()
