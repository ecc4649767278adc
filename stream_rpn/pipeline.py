"""Source → decode → queue → batch → preprocess → backbone → head → propose → suppress → results."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Literal, Self

import torch

from stream_rpn import compute, sources
from stream_rpn.frame import Drop, Frame, Proposals, StreamInfo
from stream_rpn.network.network import EagerNetwork, GPUNetwork, Network
from stream_rpn.rpn import RPN
from stream_rpn.sources.select import select
from stream_rpn.timing import Histogram, StageTimes


@dataclass(frozen=True)
class Selection:
    """Which frames of a source are used.

    Attributes:
        start: seconds from the first timestamp; frames before it are left out.
        end: seconds from the first timestamp; frames from it on are left out.
        stride: every stride-th frame, by index.
        fps: at most so many frames a second, by time.
        max_frames: stop after so many results.
        video_stream: index of the video stream in a file of several.
        decoder: "auto", "cpu" or "nvdec".
    """

    start: float | None = None
    end: float | None = None
    stride: int = 1
    fps: float | None = None
    max_frames: int | None = None
    video_stream: int | None = None
    decoder: Literal["auto", "cpu", "nvdec"] = "auto"

    def frames(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Yields the chosen ones of the frames, whose number is not limited here."""
        return select(frames, start=self.start, end=self.end, stride=self.stride, fps=self.fps)


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
        source: str | sources.Source,
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

    def propose(self, frames: Iterable[list[Frame]], times: StageTimes) -> Iterator[Proposals]:
        """Yields the proposals of batches of frames, in order."""
        return self.network.propose(frames, times)


class StreamStatistics:
    """What is known of one source while it runs; may be read from any thread.

    Attributes:
        times: how long each stage took.
        ages: of live frames in milliseconds, from the arrival of the last packet until the result
            was written.
        num_results: results so far.
        elapsed_seconds: from the start of decoding to the last result.
        drops: packets and frames that were lost so far, by reason.
    """

    info: StreamInfo

    def __init__(self) -> None:
        self.times = StageTimes()
        self.ages = Histogram()
        self.num_results = 0
        self.elapsed_seconds = 0.0
        self.drops: dict[str, int] = {}
        self._source: sources.Source | None = None
        self._started = time.perf_counter()

    def count(self, proposals: Proposals) -> None:
        """Counts a result that has left the network."""
        proposals.source = self.info.source
        if proposals.age_seconds is not None:
            proposals.unix_seconds = time.time() - proposals.age_seconds
        self.num_results += 1
        self.elapsed_seconds = time.perf_counter() - self._started
        self.count_drops(proposals.drops)

    def count_drops(self, drops: Iterable[Drop]) -> None:
        """Counts what was lost."""
        for drop in drops:
            if drop.count:
                self.drops[drop.reason] = self.drops.get(drop.reason, 0) + drop.count

    def written(self, proposals: Proposals) -> None:
        """Notes how old a live frame is now that its result has been written."""
        if proposals.age_seconds is not None:
            self.ages.add(proposals.age_seconds * 1e3)

    @property
    def queued(self) -> int:
        """What waits at the network: decoded frames, or batches of them where NVDEC decodes."""
        raise NotImplementedError

    @property
    def stage_times(self) -> StageTimes:
        """How long each stage took, those that sources share among them."""
        return self.times

    @property
    def damaged_packets(self) -> int:
        """Packets that could not be decoded, so far."""
        return self._source.damaged_packets if self._source else 0

    @property
    def corrupt_frames(self) -> int:
        """Frames so far whose picture the decoder marked as damaged; they are used all the same."""
        return self._source.corrupt_frames if self._source else 0

    @property
    def fps(self) -> float:
        """Results per second, from the start of decoding to the last result."""
        return self.num_results / self.elapsed_seconds if self.elapsed_seconds else 0.0

    def end(self) -> dict[str, Any]:
        """Returns the totals that close a result file."""
        return {
            "frames": self.num_results,
            "elapsed_seconds": round(self.elapsed_seconds, 3),
            "drops": self.drops,
            "damaged_packets": self.damaged_packets,
            "corrupt_frames": self.corrupt_frames,
        }


class Stream(StreamStatistics):
    """The proposals of one source, frame by frame, while later frames are being decoded.

    Iterate once; `close` (or leaving the `with`) stops early and leaves no thread.

    Attributes:
        info: what is known of the source.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        source: sources.Source,
        selection: Selection,
        stop: threading.Event,
    ) -> None:
        super().__init__()
        self.info = source.info
        self._source = source
        frames: Iterable[Frame] = self.times.each("decode", source)
        frames = itertools.takewhile(lambda _: not stop.is_set(), frames)
        frames = itertools.islice(selection.frames(frames), selection.max_frames)
        surfaces = source.info.decoder.endswith("(nvdec)")
        self._queues = pipeline.network.queues(frames, self.times, surfaces=surfaces)

    def __iter__(self) -> Iterator[Proposals]:
        for proposals in self._queues[-1]:
            self.count(proposals)
            yield proposals
        assert self._source is not None
        self.count_drops(self._source.trailing_drops)

    @property
    def queued(self) -> int:  # noqa: D102
        return len(self._queues[0])

    def close(self) -> None:
        """Stops decoding, joins the threads and closes the source."""
        # Stop them all first: a thread that waits for its neighbour would never see the end.
        for queue in self._queues:
            queue.stop()
        for queue in reversed(self._queues):
            queue.close()
        assert self._source is not None
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def parameters(rpn: RPN, selection: Selection) -> dict[str, Any]:
    """Returns every number that shaped the results, for a result file's header."""
    return {
        "trained": rpn.trained,
        "input": asdict(rpn.input_spec),
        "proposals": asdict(rpn.proposal_spec),
        "selection": asdict(selection),
    }


__all__ = ["Pipeline", "Selection", "Stream", "StreamStatistics", "parameters"]
