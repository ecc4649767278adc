"""The pipeline's middle: batches of frames → network → proposals of each frame.

Two forms, chosen by device, that give the same results:

* `EagerNetwork`, on a CPU or Apple's GPU: the CPU samples the decoder's own planes. On a CPU a few
  batches are computed at a time, each on its share of the cores.
* `GPUNetwork`, on a CUDA device: planes are uploaded, preprocessing is part of the network, all of
  it is one CUDA graph, and while the GPU computes on one batch the next is uploaded and the last
  one's results are copied back.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stream_rpn import preprocess
from stream_rpn.frame import Frame, Proposals
from stream_rpn.kernels.preprocess import preprocess as preprocess_planes
from stream_rpn.kernels.proposals import ProposalBatch
from stream_rpn.network.graph import GraphCache
from stream_rpn.network.onednn import packed
from stream_rpn.queues import (
    AHEAD,
    NUM_SLOTS,
    Download,
    Merge,
    Packed,
    Slot,
    batches,
    in_order,
    new_event,
    new_stream,
    on,
    prefetch,
    upload,
)
from stream_rpn.rpn import RPN
from stream_rpn.timing import StageTimes


class Output(NamedTuple):
    """What the network gives for a batch.

    Attributes:
        kept: the proposals, on the device.
        maps: feature maps [B, C, H, W] by name, if they are wanted.
        strides: per level (y, x) input pixels per cell.
    """

    kept: ProposalBatch
    maps: dict[str, Tensor]
    strides: tuple[tuple[int, int], ...]


class Network(ABC):
    """A model on its device, and how frames reach it.

    Args:
        rpn: the model, on `device` in `dtype`.
        device: where it is.
        dtype: of its input.
        batch: frames per call; shorter batches are padded.
        features: attach the feature maps to the results.
        images: keep the decoded frame in the results.
    """

    def __init__(
        self,
        rpn: RPN,
        device: torch.device,
        dtype: torch.dtype,
        batch: int,
        *,
        features: bool,
        images: bool,
    ) -> None:
        self.rpn = rpn
        # What computes the maps and the head's outputs.
        self._layers = rpn
        self.device = device
        self.dtype = dtype
        self.batch = batch
        self.features = features
        self.images = images

    @abstractmethod
    def queues(
        self, frames: Iterable[Frame] | Merge, times: StageTimes, *, surfaces: bool
    ) -> list[prefetch[Any]]:
        """Starts the threads from `frames` to the last queue, which yields each frame's proposals.

        Args:
            frames: decoded frames; iterated over in the first thread. A `Merge` has threads and
                queues of its own, so none is put behind it: there, frames would only grow old.
            times: gets how long each stage takes per frame.
            surfaces: the frames lie on the GPU, in surfaces of which the decoder has few.
        """

    @abstractmethod
    def propose(self, frames: Iterable[list[Frame]], times: StageTimes) -> Iterator[Proposals]:
        """Yields the proposals of batches of frames, in order, without threads."""

    def _decoded(self, frames: Iterable[Frame] | Merge) -> list[prefetch[Any]]:
        if isinstance(frames, Merge):
            return []
        return [prefetch(frames, 2 * self.batch + 2, name="decode")]

    def _run(self, images: Tensor, image_sizes: Tensor, mark: Callable[[str], None]) -> Output:
        """Runs the network; `mark` is called with a stage's name after it."""
        rpn = self.rpn
        maps = self._layers.features(images)
        mark("backbone")
        objectness, deltas = self._layers.head(list(maps.values()))
        mark("head")
        strides = rpn.strides(images, list(maps.values()))
        kept = rpn.propose(objectness, deltas, strides, image_sizes)
        mark("proposals")
        return Output(kept, maps if self.features else {}, strides)

    def _results(
        self,
        frames: Sequence[Frame],
        sizes: Sequence[tuple[int, int]],
        kept: Sequence[Tensor],
        output: Output,
    ) -> list[Proposals]:
        """Returns the records of a batch from its proposals `kept` on the host."""
        count = len(frames)
        frame_sizes = torch.tensor([[frame.height, frame.width] for frame in frames])
        frame_boxes = preprocess.to_frame_boxes(
            kept[0][:count], torch.tensor(sizes), frame_sizes
        ).numpy()
        boxes, scores, levels, anchors, counts = (tensor.numpy() for tensor in kept)
        results = []
        for row, frame in enumerate(frames):
            n = int(counts[row])
            results.append(
                Proposals(
                    frame=frame.index,
                    pts=frame.pts,
                    pts_seconds=frame.pts_seconds,
                    width=frame.width,
                    height=frame.height,
                    boxes=frame_boxes[row, :n],
                    scores=scores[row, :n],
                    levels=levels[row, :n],
                    anchors=anchors[row, :n],
                    input_boxes=boxes[row, :n],
                    input_size=sizes[row],
                    strides=output.strides,
                    drops=frame.drops,
                    image=frame.image if self.images else None,
                    features={name: m[row] for name, m in output.maps.items()} or None,
                    image_id=frame.image_id,
                    name=frame.name,
                    rotation=frame.rotation,
                    color=frame.color,
                    arrived=frame.arrived,
                    stream=frame.stream,
                )
            )
        return results


# More batches at a time on a CPU would take more memory than they save time.
MAX_WORKERS = 8


class EagerNetwork(Network):
    """Batches preprocessed by the CPU.

    On a CPU, batches side by side on a core each beat batch after batch on all cores: no core waits
    for another at the end of an operation, nor where there is nothing to share out.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.device.type == "cpu":
            self._layers = packed(self.rpn)

    def queues(  # noqa: D102
        self, frames: Iterable[Frame] | Merge, times: StageTimes, *, surfaces: bool
    ) -> list[prefetch[Any]]:
        decoded = self._decoded(frames)
        grouped = batches(decoded[0] if decoded else frames, self.batch, self.rpn.input_spec)
        workers = min(torch.get_num_threads(), MAX_WORKERS) if self.device.type == "cpu" else 1
        computed = in_order(lambda batch: self._propose(batch, times), grouped, workers)
        proposals = prefetch(chain.from_iterable(computed), 2 * self.batch, name="propose")
        return [*decoded, proposals]

    def propose(  # noqa: D102
        self, frames: Iterable[list[Frame]], times: StageTimes
    ) -> Iterator[Proposals]:
        for batch in frames:
            yield from self._propose(batch, times)

    @torch.inference_mode()
    def _propose(self, frames: list[Frame], times: StageTimes) -> list[Proposals]:
        count = len(frames)
        with times.measure("preprocess", count):
            images, image_sizes = preprocess.to_input(
                frames,
                self.rpn.input_spec,
                device=self.device,
                dtype=self.dtype,
                channels_last=True,
            )
            sizes = [(height, width) for height, width in image_sizes.tolist()]
            if count < self.batch:
                # Run short batches as the full ones: the libraries choose algorithms by shape.
                padding = self.batch - count
                images = torch.cat((images, images[-1:].expand(padding, -1, -1, -1)))
                images = images.contiguous(memory_format=torch.channels_last)
                image_sizes = torch.cat((image_sizes, image_sizes[-1:].expand(padding, -1)))
        output = self._run(images, image_sizes, times.laps(count))
        with times.measure("results", count):
            return self._results(frames, sizes, [t.cpu() for t in output.kept], output)


class GPUNetwork(Network):
    """Uploads, network and downloads overlap; the network is a CUDA graph.

    The results of a batch are waited for only once the next one has been launched, or when there is
    none to launch. Several sources may be streamed at a time, each from its own thread: they take
    turns.
    """

    def __init__(self, *args: Any, graphs: bool = True, **options: Any) -> None:
        super().__init__(*args, **options)
        spec = self.rpn.input_spec
        self._mean = torch.tensor(spec.mean, device=self.device)
        self._std = torch.tensor(spec.std, device=self.device)
        self._stream = new_stream(self.device)
        if self.device.type == "cuda":
            # The weights were moved here on the caller's stream.
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
        self._graphs: GraphCache[Output] = GraphCache(enabled=graphs and self.device.type == "cuda")
        self._lock = threading.Lock()

    def queues(  # noqa: D102
        self, frames: Iterable[Frame] | Merge, times: StageTimes, *, surfaces: bool
    ) -> list[prefetch[Any]]:
        # Surfaces are copied in the thread that decodes them, never queued.
        decoded = [] if surfaces else self._decoded(frames)
        slots = self._slots()
        arriving = upload(decoded[0] if decoded else frames, slots, times, keep_images=self.images)
        uploaded = prefetch(arriving, AHEAD, name="upload")
        proposals = prefetch(self._propose(uploaded, slots, times), 2 * self.batch, name="propose")
        return [*decoded, uploaded, proposals]

    def propose(  # noqa: D102
        self, frames: Iterable[list[Frame]], times: StageTimes
    ) -> Iterator[Proposals]:
        slots = self._slots()
        one_by_one = chain.from_iterable(frames)
        arriving = upload(one_by_one, slots, times, keep_images=self.images)
        return self._propose(arriving, slots, times)

    def _slots(self) -> list[Slot]:
        return [Slot(self.device, self.batch, self.rpn.input_spec) for _ in range(NUM_SLOTS)]

    def _propose(
        self, uploads: Iterator[Slot] | prefetch[Slot], slots: list[Slot], times: StageTimes
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
            # Until here `slots` must keep the memory that the GPU may still be reading.
            self._stream.synchronize()
            del slots

    def _launch(self, slot: Slot) -> _Launched:
        """Gives a batch to the GPU and lets go of its slot, without waiting for anything."""
        with self._lock, on(self._stream), torch.inference_mode():
            batch = slot.receive(self._stream)
            marks = [_Mark("", self._event())]

            def mark(stage: str) -> None:
                marks.append(_Mark(stage, self._event()))

            key = (slot.shape, self.rpn.input_spec, self.rpn.proposal_spec)

            def run(batch: Packed) -> Output:
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
                Download(output.kept, self._stream, self.device),
                (slot.started, slot.uploaded),
                marks,
            )
            slot.release(self._stream)
            return launched

    def _forward(
        self, batch: Packed, shape: tuple[int, int], mark: Callable[[str], None]
    ) -> Output:
        images = torch.empty(
            (self.batch, 3, *shape),
            dtype=self.dtype,
            device=self.device,
            memory_format=torch.channels_last,
        )
        antialias = self.rpn.input_spec.antialias
        preprocess_planes(*batch, self._mean, self._std, images, antialias=antialias)
        mark("preprocess")
        # The last two columns of the table are the resized height and width.
        return self._run(images, batch.table[:, -2:], mark)

    def _event(self) -> Any:
        event = new_event(self.device)
        event.record(self._stream)
        return event

    def _collect(self, launched: _Launched, times: StageTimes) -> list[Proposals]:
        kept = launched.download.wait()
        count = len(launched.frames)
        started, uploaded = launched.upload
        times.add("upload", started.elapsed_time(uploaded) / count, count)
        for before, after in pairwise(launched.marks):
            times.add(after.stage, before.event.elapsed_time(after.event) / count, count)
        with times.measure("results", count):
            return self._results(launched.frames, launched.sizes, kept, launched.output)


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
