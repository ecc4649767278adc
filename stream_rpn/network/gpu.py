"""The network on a CUDA device: uploads, one graph and downloads that overlap."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch

from stream_rpn.frame import Frame, Proposals
from stream_rpn.kernels.dispatch import why_reference
from stream_rpn.kernels.preprocess import preprocess_batch
from stream_rpn.network.cudnn import fused
from stream_rpn.network.first_run import try_kernels
from stream_rpn.network.graph import GraphCache
from stream_rpn.network.torch_network import Output, TorchNetwork
from stream_rpn.network.upload import (
    AHEAD,
    Download,
    PackedBatch,
    Ring,
    Slot,
    new_event,
    new_stream,
    upload,
    using_stream,
)
from stream_rpn.queues import Queues, prefetch
from stream_rpn.timing import StageTimes


class GPUNetwork(TorchNetwork):
    """Uploads, network and downloads overlap; the network is a CUDA graph.

    The results of a batch are waited for only once the next one has been launched, or when there is
    none to launch. Several sources may be streamed at a time, each from its own thread: they take
    turns.
    """

    def __init__(self, *args: Any, graphs: bool = True, **options: Any) -> None:
        super().__init__(*args, **options)
        try_kernels(self.rpn, self.device, self.dtype)
        self._layers = fused(self.rpn)
        spec = self.rpn.input_spec
        self._mean = torch.tensor(spec.mean, device=self.device)
        self._std = torch.tensor(spec.std, device=self.device)
        # None of the streams that copy: with one of those the network would take turns, and a
        # capture would record its copies.
        self._stream = new_stream(self.device, priority=-1)
        if self.device.type == "cuda":
            # The weights were moved here on the caller's stream.
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
        # A reference that waits for the GPU cannot be captured.
        self._graphs: GraphCache[Output] = GraphCache(
            enabled=graphs and self.device.type == "cuda", obstacle=why_reference
        )
        self._lock = threading.Lock()
        # Kept for sources to come, as pinning memory takes long and streams are few.
        self._rings: list[Ring] = []
        self._lending = threading.Lock()

    def queues(  # noqa: D102
        self, frames: Iterable[Frame | None], times: StageTimes, *, latency: bool = False
    ) -> Queues[Proposals]:
        ring = self._ring()
        uploaded = prefetch(self._upload(frames, ring, times), AHEAD, name="upload")
        proposals = prefetch(self._process(uploaded, ring, times), 2 * self.batch, name="propose")
        return Queues(frames, uploaded, last=proposals)

    def process(  # noqa: D102
        self, frames: Iterable[list[Frame]], times: StageTimes
    ) -> Iterator[Proposals]:
        ring = self._ring()
        uploads = self._upload(chain.from_iterable(frames), ring, times)
        return self._process(uploads, ring, times)

    def facts(self) -> dict[str, Any]:  # noqa: D102
        why_not = self._graphs.why_not
        return {} if why_not is None else {"without_cuda_graph": why_not}

    def _ring(self) -> Ring:
        """Returns a ring for a source: one that another source has left, or a new one."""
        with self._lending:
            for ring in self._rings:
                if ring.spec == self.rpn.input_spec:
                    self._rings.remove(ring)
                    return ring
        return Ring(self.device, self.batch, self.rpn.input_spec)

    def _leave(self, ring: Ring) -> None:
        with self._lending:
            if ring.leave():
                self._rings.append(ring)

    def _upload(
        self, frames: Iterable[Frame | None], ring: Ring, times: StageTimes
    ) -> Iterator[Slot]:
        try:
            yield from upload(frames, ring, times, keep_images=self.images)
        finally:
            self._leave(ring)

    def _process(
        self, uploads: Iterator[Slot] | prefetch[Slot], ring: Ring, times: StageTimes
    ) -> Iterator[Proposals]:
        launched: deque[_Launched] = deque()
        try:
            for slot in uploads:
                launched.append(self._launch(slot))
                # With nothing to launch, waiting for results costs nothing and saves latency.
                idle = not isinstance(uploads, prefetch) or len(uploads) == 0
                while len(launched) > (0 if idle else 1):
                    yield from self._collect(launched.popleft(), times)
            while launched:
                yield from self._collect(launched.popleft(), times)
        except Exception:
            while launched:
                yield from self._collect(launched.popleft(), times)
            raise
        finally:
            # Until here the ring must keep the memory that the GPU may still be reading.
            self._stream.synchronize()
            self._leave(ring)

    def _launch(self, slot: Slot) -> _Launched:
        """Gives a batch to the GPU and lets go of its slot, without waiting for anything."""
        with self._lock, using_stream(self._stream), torch.inference_mode():
            batch = slot.receive(self._stream)
            marks = [_Mark("", self._event())]

            def mark(stage: str) -> None:
                marks.append(_Mark(stage, self._event()))

            key = (slot.shape, self.rpn.input_spec, self.rpn.proposal_spec)

            def run(batch: PackedBatch) -> Output:
                return self._forward(batch, slot.shape, lambda stage: None)

            graph = self._graphs.get(key, run, batch, slot.capacity)
            if graph is None:
                output = self._forward(batch, slot.shape, mark)
            else:
                marks = [_Mark("", self._event())]
                graph.replay()
                output = graph.outputs
                mark("network")
            # The next replay overwrites a graph's outputs.
            maps = {name: m if graph is None else m.clone() for name, m in output.maps.items()}
            if self.device.type == "cuda":
                for m in maps.values():
                    # They are used, and freed, by a caller that knows nothing of this stream.
                    m.record_stream(torch.cuda.default_stream(self.device))
            launched = _Launched(
                slot.frames,
                slot.sizes(),
                output._replace(maps=maps),
                Download(output.wanted, self._stream, self.device),
                (slot.started, slot.uploaded),
                marks,
            )
            slot.release(self._stream)
            return launched

    def _forward(
        self, batch: PackedBatch, shape: tuple[int, int], mark: Callable[[str], None]
    ) -> Output:
        images = torch.empty(
            (self.batch, 3, *shape),
            dtype=self.dtype,
            device=self.device,
            memory_format=torch.channels_last,
        )
        antialias = self.rpn.input_spec.antialias
        preprocess_batch(*batch, self._mean, self._std, images, antialias=antialias)
        mark("preprocess")
        # The last two columns of the table are the resized height and width.
        return self._run(images, batch.table[:, -2:], mark)

    def _event(self) -> Any:
        event = new_event(self.device)
        event.record(self._stream)
        return event

    def _collect(self, launched: _Launched, times: StageTimes) -> list[Proposals]:
        wanted = launched.download.wait()
        count = len(launched.frames)
        started, uploaded = launched.upload
        times.add("upload", started.elapsed_time(uploaded) / count, count)
        for before, after in pairwise(launched.marks):
            times.add(after.stage, before.event.elapsed_time(after.event) / count, count)
        with times.measure("results", count):
            return self._results(launched.frames, launched.sizes, wanted, launched.output)


class _Mark(NamedTuple):
    """An event after a stage of the network."""

    stage: str
    event: Any


@dataclass
class _Launched:
    """A batch that the GPU is at."""

    frames: list[Frame]
    sizes: list[tuple[int, int]]
    output: Output
    download: Download
    upload: tuple[Any, Any]
    marks: list[_Mark]
