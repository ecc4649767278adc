"""`stream-rpn SOURCE …`: every source through one pipeline into every sink, and a summary."""

from __future__ import annotations

import argparse
import json
import os
import threading
import types
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from stream_rpn import api
from stream_rpn.commands import signals
from stream_rpn.commands.arguments import load_options
from stream_rpn.commands.drawing import drawing_options
from stream_rpn.commands.outputs import Output, OutputInUse, check_file, resolve_outputs
from stream_rpn.commands.progress import Progress, complain, expected_results, say
from stream_rpn.commands.summary import describe, run_summary, source_summary
from stream_rpn.frame import DropKind, DropReason, Proposals, StreamRPNError
from stream_rpn.multistream import LivePolicy, LiveStream, LiveStreams
from stream_rpn.pipeline import Pipeline, Stream
from stream_rpn.sinks import make_header
from stream_rpn.sinks.place import write_whole
from stream_rpn.sinks.web.sink import WebSink
from stream_rpn.sources import expand, is_live, left_out, masked, stem
from stream_rpn.sources.packet_queue import Interrupted
from stream_rpn.sources.select import Selection, parse_time
from stream_rpn.statistics import StreamStatistics

LEAST_TOKEN = 8

WHOLE, NOTHING, PARTLY = 0, 2, 3
NO_FRAME = "no frame lies between --start and --end"


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code.

    Raises:
        StreamRPNError: nothing could be produced.
    """
    uris = expand(arguments.sources)
    for uri in [] if arguments.quiet else arguments.sources:
        if others := left_out(uri):
            what = f"{others[0]} is" if len(others) == 1 else f"{len(others)} files are"
            say(f"{uri}: {what} left out, by the name neither a video nor an image")
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
        crops=arguments.crops,
        **drawing_options(arguments, tracked=bool(arguments.track)),
        token=_token(arguments.serve_token) if serve else "",
        image_ids=arguments.image_ids,
    )
    if arguments.json_summary is not None:
        check_file(arguments.json_summary, uris, outputs, overwrite=arguments.overwrite)
    selection = Selection(
        start=None if arguments.start is None else parse_time(arguments.start),
        end=None if arguments.end is None else parse_time(arguments.end),
        stride=arguments.stride,
        fps=arguments.fps,
        max_frames=arguments.max_frames,
        video_stream=arguments.video_stream,
        decoder=arguments.decoder,
        max_pixels=arguments.max_pixels,
    )
    return _Run(arguments, selection, policy, uris, outputs, together).run()


def _load(arguments: argparse.Namespace, *, images: bool) -> Pipeline:
    pipeline = api.open_pipeline(
        arguments.model,
        engine=arguments.engine,
        device=arguments.device,
        dtype=arguments.dtype,
        batch=arguments.batch,
        images=images,
        threads=arguments.threads,
        gate=arguments.gate,
        gate_hold=arguments.gate_hold,
        track=arguments.track,
        **load_options(arguments),
    )
    if not pipeline.model.trained:
        complain(
            f"warning: the model '{pipeline.model.name}' is UNTRAINED: its boxes mean nothing yet; "
            "only the speed is real"
        )
    return pipeline


def _policy(arguments: argparse.Namespace) -> LivePolicy:
    return LivePolicy(
        max_age=arguments.max_age,
        open_timeout=arguments.open_timeout,
        read_timeout=arguments.read_timeout,
        reconnect=arguments.reconnect,
        realtime=arguments.realtime,
    )


def _token(given: str) -> str:
    """Returns the token of --serve: as given, of a file, or of the environment; "" for none."""
    token = given or os.environ.get("STREAM_RPN_TOKEN", "")
    if token.startswith("@"):
        try:
            token = Path(token[1:]).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise StreamRPNError(
                f"--serve-token cannot be read from {token[1:]!r}: {why}"
            ) from error
        if not token:
            raise StreamRPNError(f"the file {given[1:]!r} of --serve-token is empty")
    if token and token != "auto" and len(token) < LEAST_TOKEN:
        raise StreamRPNError(
            f"the token of --serve must have at least {LEAST_TOKEN} characters: a shorter one can "
            "be guessed; 'auto' makes one up"
        )
    return token


class _Run:
    """One run over all its sources: feeds the outputs, and counts what failed."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        selection: Selection,
        policy: LivePolicy,
        uris: list[str],
        outputs: list[Output],
        together: bool,
    ) -> None:
        self.arguments = arguments
        self.quiet: bool = arguments.quiet
        self.images = any(output.needs_image for output in outputs)
        self.selection = selection
        self.policy = policy
        self.uris = uris
        self.together = together
        self.outputs = [OutputInUse(output, self._fail) for output in outputs]
        self.stop = threading.Event()
        self.signal: int | None = None
        self.failures: list[str] = []
        self.summaries: list[dict[str, Any]] = []

    def run(self) -> int:
        try:
            # At once: another run that has begun to write them may take hours.
            for output in self.outputs if self.together else self._outputs_of(0):
                if not output.opens_at_once:
                    output.claim()
            with signals.handled_by(self._leave):
                self.pipeline = _load(self.arguments, images=self.images)
            with signals.handled_by(self._stop):
                self._open_at_once()
                if self.together:
                    self._run_together()
                else:
                    self._run_in_turn()
                for output in self.outputs:
                    output.close()
        except BaseException:
            for output in self.outputs:
                output.abort()
            raise
        if self.arguments.json_summary is not None:
            self._write_json_summary(self.arguments.json_summary)
        if self.signal is not None:
            return 128 + self.signal
        if self.failures:
            return PARTLY if self._produced(self.outputs) else NOTHING
        return WHOLE

    def _leave(self, number: int, frame: types.FrameType | None) -> None:
        """Ends a run that has nothing yet."""
        for output in self.outputs:
            output.abort()
        signals.unwind(number, frame)

    def _stop(self, number: int, frame: types.FrameType | None) -> None:
        """Lets the first signal end the run in good order, the second one at once."""
        if self.signal is not None:
            signals.unwind(number, frame)
        self.signal = number
        self.stop.set()

    @staticmethod
    def _produced(outputs: Iterable[OutputInUse]) -> bool:
        return any(output.produced for output in outputs)

    def _open_at_once(self) -> None:
        """Opens what clients come to; if that fails, nothing else is begun."""
        for output in self.outputs:
            if output.opens_at_once:
                sink = output.open()
                # One that is made up is known from here only.
                quiet = self.quiet and self.arguments.serve_token != "auto"
                if isinstance(sink, WebSink) and not quiet:
                    say(f"watch at {sink.url}")

    def _outputs_of(self, index: int) -> list[OutputInUse]:
        """Returns the outputs that still want the results of a source."""
        return [o for o in self.outputs if index in o.sources and not o.given_up]

    def _run_in_turn(self) -> None:
        for index, uri in enumerate(self.uris):
            for output in self._outputs_of(index):
                if self.stop.is_set():
                    output.lacks(masked(uri), "interrupted")
                else:
                    output.claim_or_give_up()
            mine = self._outputs_of(index)
            if mine and not self.stop.is_set():
                self._run_source(uri, mine)

    def _run_source(self, uri: str, mine: list[OutputInUse]) -> None:
        """Streams one source into its outputs."""
        try:
            stream = self.pipeline.open(
                uri, self.selection, stop=self.stop, open_timeout=self.policy.open_timeout
            )
        except (Interrupted, StreamRPNError) as error:
            # A pipe that ends because of a signal holds half a header.
            why = "interrupted" if self.stop.is_set() else "failed"
            if why == "failed":
                self._fail(str(error))
            self._end_without_results(masked(uri), mine, why)
            return
        progress = Progress(self.selection, self.pipeline.device, quiet=self.quiet)
        with stream, progress:
            try:
                self._feed(stream, mine, progress)
            except StreamRPNError as error:
                stream.stopped = "failed"
                self._fail(f"{masked(uri)}: {error}")
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                stream.stopped = "failed"
                self._fail_for_memory(masked(uri))
            stream.close()
            self._finish_source(stream, mine)

    def _feed(self, stream: Stream, mine: list[OutputInUse], progress: Progress) -> None:
        """Passes results to the outputs while one of them takes them.

        They begin with the first result: a source that fails before it leaves no file behind.
        """
        results = iter(stream)
        first = next(results, None)
        if first is None and not self.stop.is_set():
            raise StreamRPNError(NO_FRAME)
        self._begin(stream, mine)
        for proposals in chain([first] if first is not None else [], results):
            if all(output.given_up for output in mine):
                break
            self._write(stream, mine, proposals)
            progress.show([stream])

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
        progress = Progress(self.selection, self.pipeline.device, quiet=self.quiet)
        running = list(streams.streams)
        begun: set[LiveStream] = set()
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
                for stream in running:
                    stream.stopped = "failed"
            streams.close()
            for stream in running:
                self._end_live(stream, begun)

    def _take(self, streams: LiveStreams, proposals: Proposals, begun: set[LiveStream]) -> None:
        stream = streams.streams[proposals.source_index]
        mine = self._outputs_of(stream.index)
        if not mine:
            streams.end(stream)
            return
        if stream not in begun:
            begun.add(stream)
            self._begin(stream, mine)
        self._write(stream, mine, proposals)
        stream.written(proposals)

    def _end_live(self, stream: LiveStream, begun: set[LiveStream]) -> None:
        stream.finish()
        error = stream.failure
        if error is not None and not isinstance(error, StreamRPNError):
            raise error
        if error is not None:
            self._fail(str(error))
        elif not stream.opened and not self.stop.is_set():
            self._fail(f"{stream.name}: {NO_FRAME}")
        mine = self._outputs_of(stream.index)
        if not stream.opened:
            why = "interrupted" if error is None and self.stop.is_set() else "failed"
            self._end_without_results(stream.name, mine, why)
            return
        if mine and stream not in begun:
            self._begin(stream, mine)
        self._finish_source(stream, mine)

    def _begin(self, stream: StreamStatistics, mine: list[OutputInUse]) -> None:
        header = make_header(stream.info, **self.pipeline.provenance(self.selection))
        for output in mine:
            output.begin(header, stream.info, lambda: self._status(stream, mine))

    def _status(self, stream: StreamStatistics, mine: list[OutputInUse]) -> dict[str, Any]:
        return {**self._summary(stream, mine), "queued": stream.queued}

    def _write(
        self, stream: StreamStatistics, mine: list[OutputInUse], proposals: Proposals
    ) -> None:
        with stream.times.measure("sinks"):
            for output in mine:
                output.write(proposals)

    def _finish_source(self, stream: StreamStatistics, mine: list[OutputInUse]) -> None:
        if not all(output.given_up for output in mine):
            self._report_damage(stream)
        for output in mine:
            output.end(stream.info.source, stream.end())
            if len(output.sources) == 1:
                output.close()
        summary = self._summary(stream, mine)
        self.summaries.append(summary)
        if not self.quiet and (self._produced(mine) or not self.failures):
            say(describe(summary))

    @staticmethod
    def _end_without_results(source: str, mine: list[OutputInUse], why: str) -> None:
        """Lets others in where there will be nothing, and notes it where others' results are."""
        for output in mine:
            output.lacks(source, why)
            if len(output.sources) == 1 and not output.opens_at_once:
                output.close()

    def _report_damage(self, stream: StreamStatistics) -> None:
        # On the way to a live source packets are lost as a matter of course.
        if stream.info.live:
            return
        lost = [
            f"{count} × {reason}" if count else _told(reason, stream.missing_seconds)
            for reason, count in stream.drops.items()
            if DropReason(reason).kind is DropKind.DAMAGE
        ]
        if stream.corrupt_frames:
            lost.append(f"{stream.corrupt_frames} × frame with errors in its picture")
        if lost:
            self._fail(
                f"{stream.info.source}: the video is damaged ({', '.join(lost)}); every frame that "
                "decodes was used"
            )

    def _fail(self, sentence: str) -> None:
        self.failures.append(sentence)
        complain(sentence)

    def _fail_for_memory(self, name: str) -> None:
        self._fail(
            f"{name}: the memory of {self.pipeline.device} is full; use a smaller --batch or --size"
        )

    def _summary(self, stream: StreamStatistics, mine: list[OutputInUse]) -> dict[str, Any]:
        expected = expected_results(stream.info, self.selection)
        return source_summary(stream, self.pipeline.facts(), _names(mine), expected)

    def _write_json_summary(self, path: str) -> None:
        if len(self.summaries) == len(self.uris) == 1:
            summary = {**self.summaries[0], "failures": self.failures}
        else:
            summary = run_summary(
                self.summaries,
                self.pipeline.facts(),
                _names(self.outputs),
                self.failures,
                together=self.together,
            )
        text = json.dumps(summary, indent=2) + "\n"
        try:
            write_whole(path, text.encode(), replace=self.arguments.overwrite)
        except StreamRPNError as error:
            self._fail(str(error))


def _told(reason: str, missing_seconds: float | None) -> str:
    """Returns a loss of which nobody knows how many, in words."""
    seconds = "" if missing_seconds is None else f" {missing_seconds:.2f} s before its end"
    return f"{reason}{seconds}"


def _names(outputs: Iterable[OutputInUse]) -> list[str]:
    """Returns the names of the outputs that have results and keep them."""
    return [
        masked(output.kept or output.name)
        for output in outputs
        if output.begun and not output.given_up
    ]


def _is_out_of_memory(error: Exception) -> bool:
    # torch has an exception of its own for GPUs only.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in str(error)
        or "Storage size calculation overflowed" in str(error)
        or "bad_alloc" in str(error)
    )
