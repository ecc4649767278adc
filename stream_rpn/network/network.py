"""The pipeline's middle: batches of frames → network → proposals of each frame.

Two forms, chosen by device, that give the same results:

* `EagerNetwork`, on a CPU or Apple's GPU: the CPU samples the decoder's own planes. On a CPU a few
  batches are computed at a time, each on its share of the cores.
* `GPUNetwork`, on a CUDA device: planes are uploaded, preprocessing is part of the network, all of
  it is one CUDA graph, and while the GPU computes on one batch the next is uploaded and the last
  one's results are copied back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stream_rpn import preprocess
from stream_rpn.frame import Frame, Proposals
from stream_rpn.kernels.proposals import ProposalBatch
from stream_rpn.queues import Queues
from stream_rpn.rpn import RPN
from stream_rpn.timing import StageTimes


class Output(NamedTuple):
    """The network's results for a batch.

    Attributes:
        kept: the proposals, on the device.
        maps: feature maps [B, C, H, W] by name, if they are wanted.
        strides: per level (y, x) input pixels per cell.
    """

    kept: ProposalBatch
    maps: dict[str, Tensor]
    strides: tuple[tuple[int, int], ...]


class Network(ABC):
    """A model on its device, and the way that frames take to it.

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
        # The layers that compute the maps and the head's outputs.
        self._layers = rpn
        self.device = device
        self.dtype = dtype
        self.batch = batch
        self.features = features
        self.images = images

    @abstractmethod
    def queues(self, frames: Iterable[Frame | None], times: StageTimes) -> Queues[Proposals]:
        """Starts the threads behind `frames`; what they give are each frame's proposals, in order.

        Args:
            frames: decoded frames; `None` among them ends a batch before it is full. A queue is
                ended with those behind it; anything else is iterated over in the first thread.
            times: gets how long each stage takes per frame.
        """

    @abstractmethod
    def process(self, frames: Iterable[list[Frame]], times: StageTimes) -> Iterator[Proposals]:
        """Yields the proposals of batches of frames, in order, without threads."""

    def _run(self, images: Tensor, image_sizes: Tensor, mark: Callable[[str], None]) -> Output:
        """Runs the network; `mark` is called with a stage's name after it."""
        rpn = self.rpn
        maps = self._layers.features(images)
        mark("backbone")
        objectness, deltas = self._layers.head(list(maps.values()))
        mark("head")
        strides = rpn.strides(images, list(maps.values()))
        kept = rpn.proposals_of_heads(objectness, deltas, strides, image_sizes)
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
                Proposals.of(
                    frame,
                    boxes=frame_boxes[row, :n],
                    scores=scores[row, :n],
                    levels=levels[row, :n],
                    anchors=anchors[row, :n],
                    input_boxes=boxes[row, :n],
                    input_size=sizes[row],
                    strides=output.strides,
                    features={name: m[row] for name, m in output.maps.items()} or None,
                    keep_image=self.images,
                )
            )
        return results
