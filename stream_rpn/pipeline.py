"""The flow of one source: decode → queue → batches → network → queue → proposals.

Nested generators, each a stage; a queue between two of them is a thread. `multistream` has the flow
of several sources at a time.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import torch

from stream_rpn import compute, sources
from stream_rpn.frame import Frame, Proposals
from stream_rpn.network.eager import EagerNetwork
from stream_rpn.network.gpu import GPUNetwork
from stream_rpn.network.network import Network
from stream_rpn.queues import Closing, prefetch
from stream_rpn.rpn import RPN
from stream_rpn.sources.select import Selection
from stream_rpn.sources.source import Source
from stream_rpn.statistics import StreamStatistics
from stream_rpn.timing import StageTimes


class Pipeline:
    """A model on a device, ready for any number of sources.

    Args:
        rpn: the model; it is moved to `device` and `dtype` in place. From then on its weights and
            anchors must stay as they are: a captured CUDA graph holds their addresses.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        dtype: "auto", "float32", "bfloat16" or "float16", for the network; boxes are float32.
        batch: frames per network call, or "auto".
        features: attach the feature maps to the results.
        images: keep the decoded frame in the results.
    """

    def __init__(
        self,
        rpn: RPN,
        *,
        device: str = "auto",
        dtype: str = "auto",
        batch: str | int = "auto",
        features: bool = False,
        images: bool = False,
    ) -> None:
        self.device = compute.choose_device(device)
        self.dtype = compute.choose_dtype(dtype, self.device)
        self.batch = compute.choose_batch(str(batch), self.device)
        self.features = features
        self.images = images
        self.rpn = rpn.to(self.device, self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.rpn.eval()
        form = GPUNetwork if self.device.type == "cuda" else EagerNetwork
        self.network: Network = form(
            self.rpn, self.device, self.dtype, self.batch, features=features, images=images
        )

    def open(
        self,
        source: str | Source,
        selection: Selection | None = None,
        *,
        stop: threading.Event | None = None,
    ) -> Stream:
        """Opens a source and starts decoding it.

        Args:
            source: as `stream_rpn.sources.open_source` takes it, or what it returned.
            selection: which frames to use, all by default.
            stop: when set, no further frame is decoded and the stream ends with those under way.

        Raises:
            StreamRPNError: the source cannot be opened.
        """
        selection = selection or Selection()
        if isinstance(source, str):
            source = sources.open_source(
                source,
                decoder=selection.decoder,
                video_stream=selection.video_stream,
                device=str(self.device),
            )
        return Stream(self, source, selection, stop or threading.Event())

    def facts(self) -> dict[str, Any]:
        """Returns what computes, as summaries tell it: device, dtype, batch and model."""
        return {
            "device": str(self.device),
            "dtype": compute.DTYPE_NAMES[self.dtype],
            "batch": self.batch,
            "model": self.rpn.name,
        }

    @property
    def queue_size(self) -> int:
        """Decoded frames of a source that wait at most: two batches, and the ends of two more."""
        return 2 * self.batch + 2

    def process(self, frames: Iterable[list[Frame]], times: StageTimes) -> Iterator[Proposals]:
        """Yields the proposals of batches of frames, in order."""
        return self.network.process(frames, times)


class Stream(StreamStatistics, Closing):
    """The proposals of one source, frame by frame, while later frames are being decoded.

    Iterate once; `close` (or leaving the `with`) stops early and leaves no thread.

    Attributes:
        info: what is known of the source.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        source: Source,
        selection: Selection,
        stop: threading.Event,
    ) -> None:
        super().__init__()
        self.info = source.info
        self._source = source
        frames: Iterable[Frame] = self.times.each("decode", source)
        frames = itertools.takewhile(lambda _: not self._is_stopped(stop), frames)
        frames = itertools.islice(selection.frames(frames), selection.max_frames)
        # Surfaces are never queued, as NVDEC has few: the thread that decodes them copies them.
        if not source.on_gpu:
            frames = prefetch(frames, pipeline.queue_size, name="decode")
        self._queues = pipeline.network.queues(frames, self.times)

    def __iter__(self) -> Iterator[Proposals]:
        for proposals in self._queues:
            self.count(proposals)
            yield proposals
        assert self._source is not None
        self.count_drops(self._source.trailing_drops)

    def _is_stopped(self, stop: threading.Event) -> bool:
        """Tells, where there is a frame left to take, whether it is not to be taken."""
        if stop.is_set():
            self.stopped = "interrupted"
        return stop.is_set()

    @property
    def queued(self) -> int:  # noqa: D102
        return len(self._queues)

    def close(self) -> None:
        """Stops decoding, joins the threads and closes the source."""
        self._queues.close()
        assert self._source is not None
        self._source.close()


def parameters(rpn: RPN, selection: Selection) -> dict[str, Any]:
    """Returns every number that shaped the results, for a result file's header."""
    return {
        "trained": rpn.trained,
        "input": asdict(rpn.input_spec),
        "proposals": asdict(rpn.proposal_spec),
        "selection": asdict(selection),
    }


__all__ = ["Pipeline", "Selection", "Stream", "StreamStatistics", "parameters"]
