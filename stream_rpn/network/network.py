"""The pipeline's middle: frames → network → proposals of each frame.

Three forms, chosen by engine and device, of the same results up to rounding (on a CPU an input that
is antialiased is rounded to 8 bits):

* `OpenVINONetwork`, on a CPU: one graph from bytes to boxes, some frames side by side.
* `EagerNetwork`, on a CPU or Apple's GPU: batches that the CPU preprocessed. On a CPU a few batches
  are computed at a time, each on its share of the cores.
* `GPUNetwork`, on a CUDA device: planes are uploaded, preprocessing is part of the network, all of
  it is one CUDA graph, and while the GPU computes on one batch the next is uploaded and the last
  one's results are copied back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

from stream_rpn.frame import Frame, Proposals
from stream_rpn.queues import Queues
from stream_rpn.timing import StageTimes


class Network(ABC):
    """A model where it is computed, and the way that frames take to it."""

    @abstractmethod
    def queues(
        self, frames: Iterable[Frame | None], times: StageTimes, *, latency: bool = False
    ) -> Queues[Proposals]:
        """Starts the threads behind `frames`; what they give are each frame's proposals, in order.

        Args:
            frames: decoded frames; `None` among them ends a batch before it is full. A queue is
                ended with those behind it; anything else is iterated over in the first thread.
            times: gets how long each stage takes per frame.
            latency: a single live source: rather each result soon than many of them.
        """

    @abstractmethod
    def process(self, frames: Iterable[list[Frame]], times: StageTimes) -> Iterator[Proposals]:
        """Yields the proposals of batches of frames, in order, without threads."""

    def facts(self) -> dict[str, Any]:
        """Returns what a summary is to say of how it computes beside `Pipeline.facts`."""
        return {}
