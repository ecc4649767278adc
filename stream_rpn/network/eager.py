"""The network on a CPU or Apple's GPU: batches that the CPU preprocessed, some side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch

from stream_rpn import preprocess
from stream_rpn.frame import Frame, Proposals
from stream_rpn.input_spec import InputSpec, input_shape
from stream_rpn.network.onednn import packed
from stream_rpn.network.torch_network import TorchNetwork
from stream_rpn.queues import Queues, map_in_order, prefetch
from stream_rpn.timing import StageTimes

# More batches at a time on a CPU would take more memory than they save time.
MAX_WORKERS = 8


class EagerNetwork(TorchNetwork):
    """Batches preprocessed by the CPU.

    On a CPU, batches side by side on a core each beat batch after batch on all cores: no core waits
    for another at the end of an operation, nor where there is nothing to share out.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.device.type == "cpu":
            self._layers = packed(self.rpn)

    def queues(  # noqa: D102
        self, frames: Iterable[Frame | None], times: StageTimes, *, latency: bool = False
    ) -> Queues[Proposals]:
        grouped = batches(frames, self.batch, self.rpn.input_spec)
        workers = min(torch.get_num_threads(), MAX_WORKERS) if self.device.type == "cpu" else 1
        computed = map_in_order(
            lambda batch: self._process(batch, times),
            grouped,
            workers,
            behind=frames,
            share_cores=True,
        )
        proposals = prefetch(chain.from_iterable(computed), 2 * self.batch, name="propose")
        return Queues(frames, last=proposals)

    def process(  # noqa: D102
        self, frames: Iterable[list[Frame]], times: StageTimes
    ) -> Iterator[Proposals]:
        for batch in frames:
            yield from self._process(batch, times)

    @torch.inference_mode()
    def _process(self, frames: list[Frame], times: StageTimes) -> list[Proposals]:
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
            return self._results(frames, sizes, [t.cpu() for t in output.wanted], output)


def batches(frames: Iterable[Frame | None], size: int, spec: InputSpec) -> Iterator[list[Frame]]:
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
