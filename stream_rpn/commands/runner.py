"""`stream-rpn SOURCE …`: every source through one pipeline into every sink, and a summary."""

from __future__ import annotations

import argparse
import json
import signal
import threading
import types
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from stream_rpn import api, sinks
from stream_rpn.commands.outputs import Output, check_file, resolve_outputs
from stream_rpn.commands.progress import Progress, complain, say
from stream_rpn.commands.summary import describe
from stream_rpn.compute import DTYPE_NAMES
from stream_rpn.frame import Proposals, StreamRPNError
from stream_rpn.multistream import LivePolicy, LiveStream, LiveStreams
from stream_rpn.pipeline import Pipeline, Stream, parameters
from stream_rpn.sources import expand, is_live, masked, parse_time, stem
from stream_rpn.sources.select import Selection
from stream_rpn.statistics import StreamStatistics

WHOLE, NOTHING, PARTLY = 0, 2, 3
NO_FRAME = "no frame lies between --start and --end"


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code.

    Raises:
        StreamRPNError: nothing could be produced.
    """
    uris = expand(arguments.sources)
    policy = _policy(arguments)
    together = policy.realtime or any(map(is_live, uris))
    # Passwords are no difference: results are told apart by names without them.
    if together and len(set(map(masked, uris))) < len(uris):
        raise StreamRPNError(
            "a source is given twice; sources that run at a time must differ, and not by a password"
        )
    if arguments.serve_token and arguments.serve is None:
        raise StreamRPNError("--serve-token is for --serve, which is not given")
    serve = [] if arguments.serve is None else [f"serve:{arguments.serve}"]
    outputs = resolve_outputs(
        arguments.output + serve,
        uris,
        stems=[stem(uri) for uri in uris],
        overwrite=arguments.overwrite,
        draw=arguments.draw,
        crops=arguments.crops,
        token=arguments.serve_token,
    )
    if arguments.json_summary is not None:
        check_file(arguments.json_summary, uris, outputs, overwrite=arguments.overwrite)
    selection = Selection(
        start=None if arguments.start is None else parse_time(arguments.start),
        end=None if arguments.end is None else parse_time(arguments.end),
        stride=arguments.stride,
        fps=arguments.fps,
        max_frames=arguments.max_frames,
        video_stream=arguments.stream,
        decoder=arguments.decoder,
    )
    with _one_thread():
        rpn = api.load(
            arguments.model,
            arguments.weights,
            size=arguments.size,
            top=arguments.top,
            pre_nms=arguments.pre_nms,
            nms=arguments.nms,
            score_thresh=arguments.score_thresh,
            min_size=arguments.min_size,
            anchor_sizes=arguments.anchor_sizes,
            anchor_ratios=arguments.anchor_ratios,
        )
        pipeline = Pipeline(
            rpn,
            device=arguments.device,
            dtype=arguments.dtype,
            batch=arguments.batch,
            images=any(output.needs_image for output in outputs),
        )
    if not rpn.trained:
        complain(
            f"warning: the model '{rpn.name}' is UNTRAINED: its boxes mean nothing yet; only the "
            "speed is real"
        )
    return _Run(arguments, pipeline, selection, policy, uris, outputs, together).run()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Has torch work on one thread: on weights, threads would wait longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _policy(arguments: argparse.Namespace) -> LivePolicy:
    return LivePolicy(
        max_age=arguments.max_age,
        open_timeout=arguments.open_timeout,
        read_timeout=arguments.read_timeout,
        reconnect=arguments.reconnect,
        realtime=arguments.realtime,
    )


class _Run:
    """The state of one run over all its sources."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        pipeline: Pipeline,
        selection: Selection,
        policy: LivePolicy,
        uris: list[str],
        outputs: list[Output],
        together: bool,
    ) -> None:
        self.arguments = arguments
        self.pipeline = pipeline
        self.selection = selection
        self.policy = policy
        self.uris = uris
        self.outputs = outputs
        self.stop = threading.Event()
        self.signal: int | None = None
        self.failures: list[str] = []
        self.num_results = 0
        # By position in `outputs`. One that was given up is not opened again for a later source:
        # that would wipe what it holds.
        self.open_sinks: dict[int, sinks.Sink] = {}
        self.begun: set[int] = set()
        self.given_up: set[int] = set()
        self.summaries: list[dict[str, Any]] = []
        self.together = together

    def run(self) -> int:
        before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM)
            if threading.current_thread() is threading.main_thread()
        }
        try:
            self._open_at_once()
            if self.together:
                self._run_together()
            else:
                self._run_in_turn()
            for position in list(self.open_sinks):
                self._finish(position)
        except BaseException:
            for sink in self.open_sinks.values():
                sink.abort()
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.arguments.json_summary is not None:
            self._write_json_summary(self.arguments.json_summary)
        if self.signal is not None:
            return 128 + self.signal
        if self.failures:
            return PARTLY if self.num_results else NOTHING
        return WHOLE

    def _open_at_once(self) -> None:
        """Opens what clients come to; if that fails, nothing else is begun."""
        for position, output in enumerate(self.outputs):
            if output.opens_at_once:
                sink = self.open_sinks[position] = output.open()
                if isinstance(sink, sinks.WebSink) and not (
                    self.arguments.quiet and self.arguments.serve_token != "auto"
                ):
                    say(f"watch at {sink.url}")

    def _on_signal(self, number: int, frame: types.FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        self.stop.set()

    def _outputs_of(self, index: int) -> list[int]:
        """Returns the positions of the outputs of a source that have not been given up."""
        return [
            position
            for position, output in enumerate(self.outputs)
            if index in output.sources and position not in self.given_up
        ]

    def _run_in_turn(self) -> None:
        for index, uri in enumerate(self.uris):
            mine = self._outputs_of(index)
            if mine and not self.stop.is_set():
                self._run_source(uri, mine)

    def _run_together(self) -> None:
        """Streams all sources at a time; each ends its own outputs when it ends."""
        streams = LiveStreams(
            self.pipeline,
            self.uris,
            self.selection,
            self.policy,
            stop=self.stop,
            notice=complain,
        )
        progress = Progress(self.selection, self.pipeline.device, quiet=self.arguments.quiet)
        running = list(streams.streams)
        begun: set[int] = set()
        with streams, progress:
            try:
                for proposals in streams:
                    if proposals is not None:
                        self._take(streams, proposals, begun)
                    progress.show(s for s in streams.streams if s.opened)
                    for stream in [s for s in running if s.ended]:
                        running.remove(stream)
                        self._end_live(stream, begun)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                self._fail_for_memory(", ".join(stream.name for stream in running))
            streams.close()
            for stream in running:
                self._end_live(stream, begun)

    def _take(self, streams: LiveStreams, proposals: Proposals, begun: set[int]) -> None:
        stream = streams.streams[proposals.stream]
        mine = self._outputs_of(stream.index)
        if not mine:
            streams.end(stream)
            return
        if stream.index not in begun:
            begun.add(stream.index)
            self._begin(stream, mine)
        self.num_results += 1
        with stream.times.measure("sinks"):
            self._write(mine, proposals)
        stream.written(proposals)

    def _end_live(self, stream: LiveStream, begun: set[int]) -> None:
        stream.finish()
        error = stream.failure
        if error is not None and not isinstance(error, StreamRPNError):
            raise error
        if error is not None:
            self._fail(str(error))
        elif not stream.opened and not self.stop.is_set():
            self._fail(f"{stream.name}: {NO_FRAME}")
        if not stream.opened:
            return
        mine = self._outputs_of(stream.index)
        if mine and stream.index not in begun:
            self._begin(stream, mine)
        self._finish_source(stream, mine)

    def _run_source(self, uri: str, mine: list[int]) -> None:
        """Streams one source into the outputs at the positions `mine`."""
        try:
            stream = self.pipeline.open(uri, self.selection, stop=self.stop)
        except StreamRPNError as error:
            self._fail(str(error))
            return
        progress = Progress(self.selection, self.pipeline.device, quiet=self.arguments.quiet)
        with stream, progress:
            try:
                self._feed(stream, mine, progress)
            except StreamRPNError as error:
                self._fail(f"{masked(uri)}: {error}")
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                self._fail_for_memory(masked(uri))
            stream.close()
            self._finish_source(stream, mine)

    def _finish_source(self, stream: StreamStatistics, mine: list[int]) -> None:
        if not self.given_up.issuperset(mine):
            self._report_damage(stream)
        for position in mine:
            if position in self.open_sinks:
                with self._guarded(position):
                    self.open_sinks[position].end(stream.end())
                if len(self.outputs[position].sources) == 1:
                    self._finish(position)
        summary = self._summary(stream, mine)
        self.summaries.append(summary)
        if not self.arguments.quiet and (self.num_results or not self.failures):
            say(describe(summary))

    def _fail_for_memory(self, name: str) -> None:
        self._fail(
            f"{name}: the memory of {self.pipeline.device} is full; use a smaller --batch or --size"
        )

    def _feed(self, stream: Stream, mine: list[int], progress: Progress) -> None:
        """Passes results to the sinks while one of them takes them.

        They begin with the first result: a source that fails before it leaves no file behind.
        """
        results = iter(stream)
        first = next(results, None)
        if first is None and not self.stop.is_set():
            raise StreamRPNError(NO_FRAME)
        self._begin(stream, mine)
        for proposals in chain([first] if first is not None else [], results):
            if self.given_up.issuperset(mine):
                break
            self.num_results += 1
            with stream.times.measure("sinks"):
                self._write(mine, proposals)
            progress.show([stream])

    def _begin(self, stream: StreamStatistics, mine: list[int]) -> None:
        header = sinks.make_header(
            stream.info,
            model=self.pipeline.rpn.name,
            parameters=parameters(self.pipeline.rpn, self.selection),
        )
        for position in mine:
            with self._guarded(position):
                if position not in self.open_sinks:
                    self.open_sinks[position] = self.outputs[position].open()
                self.open_sinks[position].watch(
                    lambda: {**self._summary(stream, mine), "queued": stream.queued}
                )
                self.open_sinks[position].begin(header, stream.info)
                self.begun.add(position)

    def _write(self, mine: list[int], proposals: Proposals) -> None:
        for position in mine:
            if position in self.open_sinks:
                with self._guarded(position):
                    self.open_sinks[position].write(proposals)

    @contextmanager
    def _guarded(self, position: int) -> Iterator[None]:
        """Gives up an output that fails in the block; the others go on."""
        try:
            yield
        except sinks.ReaderGone:
            self._give_up(position)
        except StreamRPNError as error:
            self._fail(str(error))
            self._give_up(position)

    def _give_up(self, position: int) -> None:
        self.given_up.add(position)
        sink = self.open_sinks.pop(position, None)
        if sink is not None:
            sink.abort()

    def _finish(self, position: int) -> None:
        if position in self.open_sinks:
            with self._guarded(position):
                self.open_sinks[position].close()
            self.open_sinks.pop(position, None)

    def _fail(self, sentence: str) -> None:
        self.failures.append(sentence)
        complain(sentence)

    def _report_damage(self, stream: StreamStatistics) -> None:
        # On the way to a live source packets are lost as a matter of course.
        if stream.info.live:
            return
        lost = dict(stream.drops)
        if stream.corrupt_frames:
            lost["frame with errors in its picture"] = stream.corrupt_frames
        if lost:
            counts = ", ".join(f"{count} × {reason}" for reason, count in lost.items())
            uri = stream.info.source
            self._fail(f"{uri}: the video is damaged ({counts}); every frame that decodes was used")

    def _summary(self, stream: StreamStatistics, mine: list[int]) -> dict[str, Any]:
        times = stream.stage_times
        live = (
            {
                "frames_in": stream.frames_in,
                "reconnects": stream.reconnects,
                "age_ms": stream.ages.percentiles(),
            }
            if isinstance(stream, LiveStream)
            else {}
        )
        return {
            "source": stream.info.source,
            "frames": stream.num_results,
            "fps": round(stream.fps, 2),
            "elapsed_seconds": round(stream.elapsed_seconds, 3),
            "decoder": stream.info.decoder,
            **self._network(),
            "stages": times.summary(),
            "slowest_stage": times.slowest(),
            **live,
            "drops": dict(stream.drops),
            "damaged_packets": stream.damaged_packets,
            "corrupt_frames": stream.corrupt_frames,
            "outputs": self._names(mine),
        }

    def _network(self) -> dict[str, Any]:
        return {
            "device": str(self.pipeline.device),
            "dtype": DTYPE_NAMES[self.pipeline.dtype],
            "batch": self.pipeline.batch,
            "model": self.pipeline.rpn.name,
        }

    def _names(self, positions: Iterable[int]) -> list[str]:
        there = self.begun - self.given_up
        return [masked(self.outputs[position].name) for position in positions if position in there]

    def _json_summary(self) -> dict[str, Any]:
        """Returns the summary of the one source, or the totals of several with each one's own."""
        if len(self.summaries) == len(self.uris) == 1:
            return {**self.summaries[0], "failures": self.failures}
        frames = sum(s["frames"] for s in self.summaries)
        # One after another, or all at a time.
        each = [s["elapsed_seconds"] for s in self.summaries]
        seconds = max(each, default=0.0) if self.together else sum(each)
        drops: Counter[str] = Counter()
        for summary in self.summaries:
            drops.update(summary["drops"])
        return {
            "frames": frames,
            "fps": round(frames / seconds, 2) if seconds else 0.0,
            "elapsed_seconds": round(seconds, 3),
            **self._network(),
            "drops": drops,
            "damaged_packets": sum(s["damaged_packets"] for s in self.summaries),
            "corrupt_frames": sum(s["corrupt_frames"] for s in self.summaries),
            "outputs": self._names(range(len(self.outputs))),
            "failures": self.failures,
            "sources": self.summaries,
        }

    def _write_json_summary(self, path: str) -> None:
        text = json.dumps(self._json_summary(), indent=2) + "\n"
        try:
            Path(path).write_text(text, encoding="utf-8")
        except OSError as error:
            self._fail(f"cannot write {path!r}: {error.strerror}")


def _is_out_of_memory(error: Exception) -> bool:
    # torch has an exception of its own for GPUs only.
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "DefaultCPUAllocator" in str(error)
        or "Storage size calculation overflowed" in str(error)
    )
