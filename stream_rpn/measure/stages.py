"""The pipeline's parts alone and all of it: what each takes, the ceiling it sets, the bottleneck.

Three parts run side by side: `decode`, `network` (on a GPU, or on a core for each batch under way)
and `sink`. Each is measured alone, with the rest of the machine at its service, then the product's
own pipeline as a whole. Of the whole, two ratios tell how well it uses the machine:

* overlap: its frames/s ÷ those of its slowest part alone. At 1, all else is hidden behind it.
* of the cores: its frames/s ÷ what the cores could do if they never waited, which is cores ÷ the
  CPU seconds that a frame takes in all parts. On a machine of few cores this is the one that
  counts, as the parts share them. It can exceed 1: threads that spin while waiting count as work.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from stream_rpn import sinks
from stream_rpn.cores import available_cores
from stream_rpn.frame import Frame, Proposals, StreamRPNError
from stream_rpn.measure.meter import Meter, Usage
from stream_rpn.network.gpu import GPUNetwork
from stream_rpn.network.network import Network
from stream_rpn.pipeline import Pipeline
from stream_rpn.queues import prefetch
from stream_rpn.sources import open_source
from stream_rpn.sources.select import Selection
from stream_rpn.sources.source import Source
from stream_rpn.timing import Histogram, StageTimes

Decoder = Literal["auto", "cpu", "nvdec"]

# Pre-decoded frames for measurements without the decoder: more of 1080p than caches hold.
_SAMPLE_FRAMES = 16


@dataclass
class Part:
    """The measurements of one part, or of the whole.

    Attributes:
        name: "decode", "network", "sink" or "whole".
        frames: how many went through it in the time measured.
        usage: time, CPU, memory, energy for them.
        latency_ms: of a frame: p50, p95, p99 and mean.
        stages_ms: the same of each stage within, per frame.
        warm_up_seconds: what went before, not counted above: compiling, capturing, first touches.
    """

    name: str
    frames: int
    usage: Usage
    latency_ms: dict[str, float]
    stages_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    warm_up_seconds: float = 0.0

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self.frames / self.usage.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds a frame, all cores together."""
        return self.usage.cpu_seconds / self.frames * 1e3

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON takes it."""
        return {
            "fps": round(self.fps, 3),
            "cpu_ms": round(self.cpu_ms, 4),
            **{name: _rounded(value) for name, value in asdict(self).items()},
        }


@dataclass
class BatchReport:
    """The measurements at one batch size.

    Attributes:
        batch: frames per network call.
        decode: frames out of the file, nothing else.
        network: decoded frames to proposals, in the product's own threads.
        unqueued: one batch at a time from decoded frame to proposals: `latency_ms` is what a frame
            waits for when nothing is queued before it, `stages_ms` are the network's stages.
        sink: writing proposals as JSON lines.
        whole: the product. `latency_ms` is from the decoder to the written line, queues included.
    """

    batch: int
    decode: Part
    network: Part
    unqueued: Part
    sink: Part
    whole: Part

    @property
    def slowest(self) -> Part:
        """The part that alone is the slowest."""
        return min((self.decode, self.network, self.sink), key=lambda part: part.fps)

    @property
    def overlap(self) -> float:
        """Frames/s of the whole ÷ frames/s of its slowest part alone."""
        return self.whole.fps / self.slowest.fps

    @property
    def cores_fps(self) -> float:
        """Frames/s if the cores never waited and did nothing else."""
        return (
            available_cores() / sum(p.cpu_ms for p in (self.decode, self.network, self.sink)) * 1e3
        )

    def bottleneck(self) -> str:
        """Returns the bottleneck of the whole, in one sentence."""
        slowest, stages = self.slowest, self.unqueued.stages_ms
        name, share = slowest.name, ""
        if slowest is self.network and stages:
            total = sum(stage["mean_ms"] for stage in stages.values())
            top = max(stages, key=lambda stage: stages[stage]["mean_ms"])
            if top != "network":  # which is one graph by OpenVINO
                name = f"network, mostly its {top}"
                share = f" ({100 * stages[top]['mean_ms'] / total:.0f} % of it)"
        at = f"at batch {self.batch}"
        if self.cores_fps < 0.95 * slowest.fps:
            parts = (self.decode, self.network, self.sink)
            split = ", ".join(f"{part.name} {part.cpu_ms:.1f}" for part in parts)
            return (
                f"{_count(available_cores(), 'core')} set the pace {at}: a frame takes {split} ms "
                f"of CPU time, so at most {self.cores_fps:.1f} frames/s; the {name}{share} is the "
                "part to make cheaper."
            )
        if self.whole.fps > 1.1 * slowest.fps:
            return (
                f"What limits it {at} cannot be told: the {slowest.name} alone gave "
                f"{slowest.fps:.1f} frames/s and the whole {self.whole.fps:.1f}, so the machine "
                "was slower while the one was measured than while the other was; measure again."
            )
        return (
            f"The {name}{share} is the bottleneck {at}: alone it gives {slowest.fps:.1f} frames/s, "
            f"and the whole {self.whole.fps:.1f}."
        )

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON takes it."""
        parts = (self.decode, self.network, self.unqueued, self.sink, self.whole)
        names = ("decode", "network", "unqueued", "sink", "whole")
        return {
            "batch": self.batch,
            **{name: part.to_json() for name, part in zip(names, parts, strict=True)},
            "slowest_part": self.slowest.name,
            "overlap": round(self.overlap, 3),
            "cores_fps": round(self.cores_fps, 3),
            "of_the_cores": round(self.whole.fps / self.cores_fps, 3),
            "bottleneck": self.bottleneck(),
        }


class Looped(Source):
    """A source that begins again at its end, and notes when each frame left it.

    Measuring by the clock needs as many frames as it takes, whatever the length of the clip.

    Attributes:
        handed_out: `time.perf_counter()` of each frame by index; the reader takes them out.
    """

    def __init__(self, uri: str, *, decoder: Decoder = "auto", device: str | None = None) -> None:
        self._uri, self._decoder, self._device = uri, decoder, device
        self._source = self._open()
        self.info = self._source.info
        self.tally, self.clock = self._source.tally, self._source.clock
        self.handed_out: dict[int, float] = {}

    def _open(self) -> Source:
        return open_source(self._uri, decoder=self._decoder, device=self._device)

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        while True:
            first = index
            for frame in self._source:
                frame.index = index
                self.handed_out[index] = time.perf_counter()
                yield frame
                index += 1
                # A surface of the GPU's decoder must not be held while the next one is made.
                del frame
            if index == first:
                return
            self._source.close()
            self._source = self._open()

    def close(self) -> None:  # noqa: D102
        self._source.close()


def sample(uri: str) -> list[Frame]:
    """Returns the first frames of a source, decoded into the host's memory.

    Raises:
        StreamRPNError: there are none.
    """
    with open_source(uri, decoder="cpu") as source:
        frames = list(itertools.islice(source, _SAMPLE_FRAMES))
    if not frames:
        raise StreamRPNError(f"{uri} holds no frame that could be decoded")
    return frames


def decode_alone(uri: str, pipeline: Pipeline, seconds: float, decoder: Decoder = "auto") -> Part:
    """Measures decoding by the product's own decoder and settings."""
    times = StageTimes()
    frames = 0
    with Looped(uri, decoder=decoder, device=pipeline.device) as source:
        decoded = times.each("decode", source)
        next(decoded)
        with Meter(pipeline.device) as meter:
            for frame in decoded:
                del frame
                frames += 1
                if meter.elapsed() >= seconds:
                    break
    return Part("decode", frames, meter.usage, percentiles(times.stages["decode"]))


def network_alone(pipeline: Pipeline, frames: list[Frame], seconds: float) -> Part:
    """Measures decoded frames → proposals, in the threads and queues of the product."""
    times, batch = StageTimes(), pipeline.batch
    ahead = prefetch(_cycled(frames), pipeline.queue_size, name="decode")
    queues = pipeline.network.queues(ahead, times)
    started = time.perf_counter()
    with queues:
        results = iter(queues)
        for _ in range(2 * batch):
            next(results)
        warm_up = time.perf_counter() - started
        count = 0
        with Meter(pipeline.device) as meter:
            while count < 3 * batch or count % batch or meter.elapsed() < seconds:
                next(results)
                count += 1
    per_frame = {
        name: percentiles(stage) for name, stage in times.stages.items() if name != "decode"
    }
    return Part("network", count, meter.usage, {}, per_frame, warm_up)


def network_unqueued(
    pipeline: Pipeline, frames: list[Frame], seconds: float
) -> tuple[Part, list[Proposals]]:
    """Measures one batch after another; also returns proposals to write.

    On a GPU the stages are timed in a second run, kernel by kernel, as a graph has no inside: their
    sum exceeds the time of the graph.
    """
    part, kept = _one_at_a_time(pipeline.network, pipeline, frames, seconds)
    if isinstance(pipeline.network, GPUNetwork) and pipeline.device.startswith("cuda"):
        eager = GPUNetwork(
            pipeline.network.rpn,
            pipeline.network.device,
            pipeline.network.dtype,
            pipeline.batch,
            features=False,
            images=False,
            graphs=False,
        )
        part.stages_ms = _one_at_a_time(eager, pipeline, frames, seconds)[0].stages_ms
    return part, kept


def _one_at_a_time(
    network: Network, pipeline: Pipeline, frames: list[Frame], seconds: float
) -> tuple[Part, list[Proposals]]:
    batch, endless = pipeline.batch, _cycled(frames)
    handed_out = 0.0

    def feed(until: float) -> Iterator[list[Frame]]:
        nonlocal handed_out
        while True:
            handed_out = time.perf_counter()
            yield list(itertools.islice(endless, batch))
            if time.perf_counter() >= until:
                return

    for _ in network.process(feed(0.0), StageTimes()):
        pass
    times, latency = StageTimes(), Histogram()
    kept: list[Proposals] = []
    count = 0
    with Meter(pipeline.device) as meter:
        for proposals in network.process(feed(time.perf_counter() + seconds), times):
            count += 1
            if count % batch == 0:
                latency.add((time.perf_counter() - handed_out) * 1e3, batch)
            if len(kept) < _SAMPLE_FRAMES:
                kept.append(proposals)
    per_frame = {name: percentiles(stage) for name, stage in times.stages.items()}
    return Part("network", count, meter.usage, percentiles(latency), per_frame), kept


def sink_alone(pipeline: Pipeline, uri: str, proposals: list[Proposals], path: Path) -> Part:
    """Measures writing proposals as JSON lines to `path`, for half a second."""
    times = StageTimes()
    count = 0
    with open_source(uri, decoder="cpu") as source, _sink(path) as sink:
        sink.begin(_header(pipeline, source), source.info)
        with Meter() as meter:
            for each in itertools.cycle(proposals):
                with times.measure("sink"):
                    sink.write(each)
                count += 1
                if meter.elapsed() >= 0.5:
                    break
        sink.end({})
    return Part("sink", count, meter.usage, percentiles(times.stages["sink"]))


def whole(
    pipeline: Pipeline, uri: str, path: Path, seconds: float, decoder: Decoder = "auto"
) -> Part:
    """Measures the product from the file to JSON lines at `path`, in its steady state.

    The clock starts when the first batches are through and the queues are as full as they stay.
    """
    started, batch = time.perf_counter(), pipeline.batch
    source = Looped(uri, decoder=decoder, device=pipeline.device)
    latency, count = Histogram(), 0
    with pipeline.open(source, Selection(decoder=decoder)) as stream, _sink(path) as sink:
        sink.begin(_header(pipeline, source), stream.info)
        results = iter(stream)

        def step(histogram: Histogram) -> None:
            proposals = next(results)
            with stream.times.measure("sinks"):
                sink.write(proposals)
            left = source.handed_out.pop(proposals.frame)
            histogram.add((time.perf_counter() - left) * 1e3)

        for _ in range(batch * max(1, 4 // batch)):
            step(Histogram())
        warm_up = time.perf_counter() - started
        with Meter(pipeline.device) as meter:
            while count < 3 * batch or count % batch or meter.elapsed() < seconds:
                step(latency)
                count += 1
        sink.end(stream.end())
    per_frame = {name: percentiles(stage) for name, stage in stream.times.stages.items()}
    return Part("whole", count, meter.usage, percentiles(latency), per_frame, warm_up)


def percentiles(histogram: Histogram) -> dict[str, float]:
    """Returns p50_ms, p95_ms, p99_ms and mean_ms."""
    values = {f"p{p}_ms": round(histogram.percentile(p), 4) for p in (50, 95, 99)}
    mean = histogram.total_ms / histogram.count if histogram.count else 0.0
    return {**values, "mean_ms": round(mean, 4)}


def _cycled(frames: list[Frame]) -> Iterator[Frame]:
    for index in itertools.count():
        # A copy of the record: the pipeline takes the image out of it.
        yield replace(frames[index % len(frames)], index=index)


def _sink(path: Path) -> sinks.Sink:
    return sinks.open_sink(str(path), overwrite=True)


def _header(pipeline: Pipeline, source: Source) -> dict[str, Any]:
    return sinks.make_header(source.info, **pipeline.provenance(Selection()))


def _count(number: int, noun: str) -> str:
    return f"The {number} {noun}s" if number != 1 else f"The one {noun}"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return round(value, 4) if isinstance(value, float) else value
