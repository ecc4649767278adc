"""The network on a CPU as one graph of OpenVINO, some frames side by side.

Bytes go in and proposals come out (see `openvino_stage`). Where a source waits for its results, a
frame is computed on each core, which beats all cores on one frame: no core waits for another. A
live source has one frame at a time on all cores, so that it gets its result sooner.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from stream_rpn import yuv
from stream_rpn.cache import cache_folder
from stream_rpn.embedding import DTYPE, Embedding
from stream_rpn.frame import Frame, Proposals, StreamRPNError
from stream_rpn.input_spec import frame_boxes, input_shape, padded_size, resized_size
from stream_rpn.network.compiled import compiled_graphs
from stream_rpn.network.converted import Converted
from stream_rpn.network.network import Network
from stream_rpn.network.openvino_stage import whole_graph
from stream_rpn.queues import Queues, map_in_order, prefetch
from stream_rpn.timing import StageTimes

# Compiled for one shape of its input a graph is a third faster than for all shapes, but that takes
# half a second and memory, and folders of pictures have dozens. A source's first shape has a graph
# of its own at once, others when so many frames have had them, and only so many.
PATIENCE = 16
MAX_SHAPES = 12
ANY_SHAPE = (-1, -1)
# With so few cells of 64×64 pixels OpenVINO 2026.4 crashes where it computes in int8 by AMX with a
# graph for all shapes (its issue 37577), not with one for the shape; such shapes are few.
FEW_CELLS = 4
# More frames at a time would take more memory than they save time: each gets some cores then.
MAX_STREAMS = 8
# Of an input. OpenVINO's own sentence about more of them is about layers.
MAX_VALUES = 2**31
# The pixels of the largest input whose compiled graph is kept on disk.
MAX_CACHED = 2**21


@cache
def core() -> ov.Core:
    """Returns the one core of this process, which stays.

    With the last core its threads end, and one of them may be the one that ends it: the process
    would abort.
    """
    return ov.Core()


class OpenVINONetwork(Network):
    """The form for CPUs.

    Args:
        model: the network.
        dtype: "float32" or "bfloat16".
        cores: how many to compute on.
        images: keep the decoded frame in the results.
        embedding: how boxes become vectors, None where they do not.
    """

    def __init__(
        self,
        model: Converted,
        dtype: str,
        cores: int,
        *,
        images: bool,
        embedding: Embedding | None = None,
    ) -> None:
        self.model = model
        self.images = images
        self._embedding = embedding
        self._dtype, self._cores = dtype, cores
        self._streams = min(cores, MAX_STREAMS)
        self._latency = False
        self._lock = threading.Lock()
        self._compiled: dict[tuple[int, int], ov.CompiledModel] = {}
        self._thread = _OfThread()

    def queues(  # noqa: D102
        self, frames: Iterable[Frame | None], times: StageTimes, *, latency: bool = False
    ) -> Queues[Proposals]:
        if latency != self._latency:
            self._latency, self._compiled = latency, {}
        # One more than streams: while it is prepared and told, the others are computed.
        workers = 1 if latency else self._streams + 1
        tasks = self._tasks(frame for frame in frames if frame is not None)
        computed = map_in_order(
            lambda task: self._process(*task, times), tasks, workers, behind=frames
        )
        return Queues(frames, last=prefetch(computed, 2, name="propose"))

    def process(  # noqa: D102
        self, frames: Iterable[list[Frame]], times: StageTimes
    ) -> Iterator[Proposals]:
        for frame, compiled in self._tasks(chain.from_iterable(frames)):
            yield self._process(frame, compiled, times)

    def _tasks(self, frames: Iterable[Frame]) -> Iterator[tuple[Frame, tuple[int, int]]]:
        """Yields frames with the shape of the graph that is theirs.

        That is settled by what came before in the same source, not by which thread is the first:
        graphs of different shapes may round differently.
        """
        seen: Counter[tuple[int, int]] = Counter()
        own: set[tuple[int, int]] = set()
        for frame in frames:
            shape = input_shape(frame, self.model.input_spec)
            seen[shape] += 1
            cells = ceil(shape[0] / 64) * ceil(shape[1] / 64)
            few = self.model.quantised is not None and cells <= FEW_CELLS
            if not few and (not own or (seen[shape] > PATIENCE and len(own) < MAX_SHAPES)):
                own.add(shape)
            yield frame, shape if few or shape in own else ANY_SHAPE
            del frame

    def _process(self, frame: Frame, compiled: tuple[int, int], times: StageTimes) -> Proposals:
        spec = self.model.input_spec
        size = resized_size(frame.height, frame.width, spec.min_size, spec.max_size)
        shape = padded_size(size, spec.size_divisor)
        if 3 * shape[0] * shape[1] >= MAX_VALUES:
            raise MemoryError
        request = self._request(compiled).shaped(shape)
        with times.measure("preprocess"):
            request.prepare(frame, size)
        with times.measure("network"):
            request.infer.infer()
        with times.measure("results"):
            boxes, scores, levels, anchors, strides, *vectors = (
                output.data.copy() for output in request.infer.output_tensors
            )
            return Proposals.of(
                frame,
                boxes=frame_boxes(boxes, size, (frame.height, frame.width)),
                scores=scores,
                levels=levels,
                anchors=anchors,
                input_boxes=boxes,
                input_size=size,
                strides=tuple(map(tuple, strides.tolist())),
                embeddings=vectors[0].astype(DTYPE) if vectors else None,
                keep_image=self.images,
            )

    def _request(self, shape: tuple[int, int]) -> _Request:
        """Returns this thread's request to the graph for a shape."""
        with self._lock:
            if shape not in self._compiled:
                self._compiled[shape] = self._compile(shape)
            compiled = self._compiled[shape]
        mine = self._thread.requests
        if compiled not in mine:
            mine[compiled] = _Request(compiled, self.model)
        return mine[compiled]

    def _compile(self, shape: tuple[int, int]) -> ov.CompiledModel:
        model = self.model
        graph = whole_graph(
            model.heads,
            shape,
            model.levels,
            model.input_spec,
            model.proposal_spec,
            self._embedding,
        )
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY" if self._latency else "THROUGHPUT",
            "NUM_STREAMS": 1 if self._latency else self._streams,
            "INFERENCE_NUM_THREADS": self._cores,
            "INFERENCE_PRECISION_HINT": "bf16" if self._dtype == "bfloat16" else "f32",
            # Decoding needs the cores as well.
            "ENABLE_CPU_PINNING": False,
        }
        folder, kept = cache_folder(), None
        if folder is not None and 0 < shape[0] * shape[1] <= MAX_CACHED:
            # Compiled for this processor: a third of the time at the next start.
            kept = folder / "compiled"
        try:
            return _compiled(graph, config, kept)
        except RuntimeError as error:
            if "bad_alloc" in str(error):
                raise MemoryError from error
            raise StreamRPNError(
                f"OpenVINO cannot compile {model.name} for this machine "
                f"({' '.join(str(error).split())[-120:]}); the engine torch does without it"
            ) from error


def _compiled(graph: ov.Model, config: dict[str, Any], kept: Path | None) -> ov.CompiledModel:
    if kept is not None:
        with suppress(RuntimeError, OSError), compiled_graphs(kept) as folder:
            return core().compile_model(graph, "CPU", {**config, "CACHE_DIR": str(folder)})
    return core().compile_model(graph, "CPU", config)


class _OfThread(threading.local):
    """What each thread has for itself: its requests by the graph that they are to."""

    def __init__(self) -> None:
        self.requests: dict[ov.CompiledModel, _Request] = {}


class _Request:
    """A graph in one thread, and the memory that its input lies in."""

    def __init__(self, compiled: ov.CompiledModel, model: Converted) -> None:
        self.infer = compiled.create_infer_request()
        self._spec = model.input_spec
        self._matrix = np.zeros((3, 4), np.float32)
        self._size = np.zeros(2, np.float32)
        self._images = np.zeros((1, 3, 0, 0))
        self._set("image_size", self._size)
        if self._spec.antialias:
            self._set("matrix", self._matrix)

    def _set(self, name: str, array: np.ndarray) -> None:
        self.infer.set_tensor(name, ov.Tensor(array, shared_memory=True))

    def shaped(self, shape: tuple[int, int]) -> _Request:
        """Returns itself, with memory for images of this shape."""
        if self._images.shape[2:] != shape:
            kind = np.uint8 if self._spec.antialias else np.float32
            self._images = np.zeros((1, 3, *shape), kind)
            self._set("images", self._images)
        return self

    def prepare(self, frame: Frame, size: tuple[int, int]) -> None:
        """Fills the input with a frame."""
        self._size[:] = size
        if self._spec.antialias:
            self._matrix[:] = yuv.shrink(frame, size, self._images[0])
        else:
            import torch

            from stream_rpn import preprocess

            preprocess.to_input([frame], self._spec, out=torch.from_numpy(self._images))
