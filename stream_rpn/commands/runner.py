"""`stream-rpn SOURCE …`: every source through one pipeline into every sink, and a summary."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import types
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from typing import Any

from stream_rpn import api, signals
from stream_rpn.commands import summary as summaries
from stream_rpn.commands.arguments import load_options
from stream_rpn.commands.drawing import drawing_options
from stream_rpn.commands.outputs import Output, OutputInUse, check_file, resolve_outputs
from stream_rpn.commands.progress import Progress, complain, expected_results, say, under_way
from stream_rpn.commands.scarcity import is_out_of_memory
from stream_rpn.commands.serving import token_of, wait_for
from stream_rpn.commands.wanted import Wanted, together, wanted
from stream_rpn.frame import Proposals, StreamRPNError
from stream_rpn.multistream import LiveStream, LiveStreams
from stream_rpn.pipeline import Pipeline, Stream
from stream_rpn.sinks import make_header
from stream_rpn.sinks.place import write_whole
from stream_rpn.sources import is_cut_to_one, left_out, loops, masked
from stream_rpn.sources.packet_queue import Interrupted
from stream_rpn.statistics import StreamStatistics

WHOLE, NOTHING, PARTLY = 0, 2, 3
FEW = 4
NO_FRAME = "no frame lies between --start and --end"


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code.

    Raises:
        StreamRPNError: nothing could be produced.
    """
    for asked in [] if arguments.quiet else arguments.asked:
        if others := left_out(asked.address):
            what = f"{others[0]} is" if len(others) == 1 else f"{len(others)} files are"
            say(f"{asked.address}: {what} left out, by the name neither a video nor an image")
        if is_cut_to_one(asked.address):
            say(
                f"{asked.address}: of this animation one picture is read; as .mp4 or .gif all of "
                "them are"
            )
    sources = wanted(arguments)
    uris = [source.uri for source in sources]
    for name in ("serve_token", "serve_keep"):
        if getattr(arguments, name) and arguments.serve is None:
            option = f"--{name.replace('_', '-')}"
            raise StreamRPNError(f"{option} is for --serve, which is not given")
    if arguments.loop and (endless := [uri for uri in uris if not loops(uri)]):
        raise StreamRPNError(f"--loop is for videos, which {masked(endless[0])!r} is not")
    serve = [] if arguments.serve is None else [f"serve:{arguments.serve}"]
    outputs = resolve_outputs(
        arguments.output + serve,
        uris,
        stems=[source.name for source in sources],
        overwrite=arguments.overwrite,
        crops=arguments.crops,
        **drawing_options(arguments, tracked=bool(arguments.track)),
        token=token_of(arguments.serve_token) if serve else "",
        image_ids=arguments.image_ids,
        embed=arguments.embed,
    )
    if arguments.json_summary is not None:
        check_file(arguments.json_summary, uris, outputs, overwrite=arguments.overwrite)
    return _Run(arguments, sources, outputs).run()


def _load(arguments: argparse.Namespace, sources: list[Wanted], *, images: bool) -> Pipeline:
    pipeline = api.open_pipeline(
        arguments.model,
        engine=arguments.engine,
        device=arguments.device,
        dtype=arguments.dtype,
        batch=arguments.batch,
        images=images,
        threads=arguments.threads,
        track=arguments.track,
        selections=[source.selection for source in sources],
        embed=arguments.embed,
        **load_options(arguments),
    )
    if not pipeline.model.trained:
        complain(
            f"warning: the model '{pipeline.model.name}' is UNTRAINED: its boxes mean nothing yet; "
            "only the speed is real"
        )
    return pipeline


class _Run:
    """One run over all its sources: feeds the outputs, and counts what failed."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        sources: list[Wanted],
        outputs: list[Output],
    ) -> None:
        self.arguments = arguments
        self.quiet: bool = arguments.quiet
        self.images = any(output.needs_image for output in outputs)
        self.sources = sources
        self.together = together(sources)
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
            self._open_at_once()
            with under_way(f"loading {self.arguments.model}", quiet=self.quiet):
                self.pipeline = _load(self.arguments, self.sources, images=self.images)
            with signals.handled_by(self._stop):
                device, count = self.pipeline.device, len(self.sources)
                with Progress(device, count, quiet=self.quiet) as progress:
                    (self._run_together if self.together else self._run_in_turn)(progress)
                self._close()
        except BaseException:
            for output in self.outputs:
                output.abort()
            raise
        if self.signal is not None:
            return 128 + self.signal
        if self.failures:
            return PARTLY if self._produced(self.outputs) else NOTHING
        return WHOLE

    def _close(self) -> None:
        """Finishes all outputs; those that clients come to at last, as the page may stay longer."""
        for output in self.outputs:
            if not output.opens_at_once:
                output.close()
        if len(self.summaries) > 1 and not self.quiet:
            say(summaries.describe_all(self._whole(), len(self.sources)))
        self._write_json_summary()
        if self.arguments.serve_keep and self.signal is None and self._produced(self.outputs):
            if not self.quiet:
                say("all sources have ended; the page stays until Ctrl-C")
            wait_for(self.stop)
            self.signal = None  # it ended the page, not the run
        for output in self.outputs:
            output.close()

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
                # A token that is made up is known from here only; another has no place in a log.
                made_up = sink.options.token == "auto"
                if sink.url and (made_up or not self.quiet):
                    page, token, _ = sink.url.partition("?token=")
                    shown = made_up or not token or sys.stderr.isatty()
                    say(f"watch at {sink.url if shown else f'{page}{token}…'}")

    def _outputs_of(self, index: int) -> list[OutputInUse]:
        """Returns the outputs that still want the results of a source."""
        return [o for o in self.outputs if index in o.sources and not o.given_up]

    def _run_in_turn(self, progress: Progress) -> None:
        for index, source in enumerate(self.sources):
            for output in self._outputs_of(index):
                if self.stop.is_set():
                    output.lacks(masked(source.uri), "interrupted")
                else:
                    output.claim_or_give_up()
            mine = self._outputs_of(index)
            if mine and not self.stop.is_set():
                self._run_source(source, mine, progress)

    def _run_source(self, source: Wanted, mine: list[OutputInUse], progress: Progress) -> None:
        """Streams one source into its outputs."""
        uri, timeout = source.uri, source.policy.open_timeout
        progress.opening(masked(uri))
        try:
            stream = self.pipeline.open(
                uri, source.selection, stop=self.stop, open_timeout=timeout, notice=complain
            )
            stream.info = replace(stream.info, stem=source.name)
        except (Interrupted, StreamRPNError) as error:
            # A pipe that ends because of a signal holds half a header.
            why = "interrupted" if self.stop.is_set() else "failed"
            if why == "failed":
                self._fail(str(error))
            self._end_without_results(masked(uri), mine, why)
            progress.ended(None)
            return
        with stream:
            try:
                self._feed(stream, mine, progress)
            except (StreamRPNError, RuntimeError, MemoryError) as error:
                self._fail_by(error, masked(uri))
                stream.stopped = "failed"
            stream.close()
            progress.ended(stream)
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

    def _run_together(self, progress: Progress) -> None:
        """Streams all sources at a time; each ends its own outputs when it ends."""
        streams = LiveStreams(
            self.pipeline,
            [source.uri for source in self.sources],
            [source.selection for source in self.sources],
            [source.policy for source in self.sources],
            stop=self.stop,
            notice=complain,
        )
        running = list(streams.streams)
        begun: set[LiveStream] = set()
        with streams:
            try:
                for proposals in streams:
                    if proposals is not None:
                        self._take(streams, proposals, begun)
                    progress.show(s for s in running if s.opened)
                    for stream in [s for s in running if s.ended]:
                        running.remove(stream)
                        progress.ended(stream)
                        self._end_live(stream, begun)
            except (StreamRPNError, RuntimeError, MemoryError) as error:
                self._fail_by(error, ", ".join(stream.name for stream in running))
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
            stream.info = replace(stream.info, stem=self.sources[stream.index].name)
            self._begin(stream, mine)
        self._write(stream, mine, proposals)
        stream.written(proposals)

    def _end_live(self, stream: LiveStream, begun: set[LiveStream]) -> None:
        stream.finish()
        error = stream.failure
        if error is not None:
            self._fail_by(error, stream.name)
        elif not stream.opened and not self.stop.is_set():
            self._fail(f"{stream.name}: {NO_FRAME}")
        mine = self._outputs_of(stream.index)
        if not stream.opened:
            why = "interrupted" if error is None and self.stop.is_set() else "failed"
            self._end_without_results(stream.name, mine, why)
            return
        # One that failed before its first result leaves no file behind.
        if mine and stream not in begun and error is None:
            self._begin(stream, mine)
        self._finish_source(stream, mine)

    def _begin(self, stream: StreamStatistics, mine: list[OutputInUse]) -> None:
        header = make_header(stream.info, **self.pipeline.provenance(stream.selection))
        for output in mine:
            output.begin(header, stream.info, lambda: self._status(stream, mine))

    def _status(self, stream: StreamStatistics, mine: list[OutputInUse]) -> dict[str, Any]:
        now = {"queued": stream.queued, "reconnecting_seconds": stream.reconnecting_seconds}
        return {**self._summary(stream, mine), **now}

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
            if len(output.sources) == 1 and not output.opens_at_once:
                output.close()
        summary = self._summary(stream, mine)
        self.summaries.append(summary)
        # Of many files, one after another, all are told at once at the end.
        each = self.together or len(self.sources) <= FEW
        if not self.quiet and each and (self._produced(mine) or not self.failures):
            say(summaries.describe(summary))

    @staticmethod
    def _end_without_results(source: str, mine: list[OutputInUse], why: str) -> None:
        """Lets others in where there will be nothing, and notes it where others' results are."""
        for output in mine:
            output.lacks(source, why)
            if len(output.sources) == 1 and not output.opens_at_once:
                output.close()

    def _report_damage(self, stream: StreamStatistics) -> None:
        # On the way to a live source packets are lost as a matter of course.
        if not stream.info.live and (damage := summaries.describe_damage(stream)):
            self._fail(damage)

    def _fail(self, sentence: str) -> None:
        self.failures.append(sentence)
        complain(sentence)

    def _fail_by(self, error: Exception, name: str) -> None:
        """Tells what ended the results of a source; raises what is a fault of this program."""
        if not isinstance(error, StreamRPNError):
            if not is_out_of_memory(error):
                raise error
            error = StreamRPNError(
                f"the memory of {self.pipeline.device} is full; use a smaller --batch or --size"
            )
        # What is wrong with its frames is told without it, what is wrong with itself is not.
        known = str(error).startswith((name, "standard input"))
        self._fail(str(error) if known else f"{name}: {error}")

    def _summary(self, stream: StreamStatistics, mine: list[OutputInUse]) -> dict[str, Any]:
        expected = expected_results(stream.info, stream.selection)
        given = {source.name for source in self.sources if source.named}
        name = stream.info.stem if stream.info.stem in given else None
        return summaries.source_summary(stream, self.pipeline.facts(), _names(mine), expected, name)

    def _whole(self) -> dict[str, Any]:
        return summaries.run_summary(
            self.summaries,
            self.pipeline.facts(),
            _names(self.outputs),
            self.failures,
            together=self.together,
        )

    def _write_json_summary(self) -> None:
        path = self.arguments.json_summary
        if path is None:
            return
        if len(self.summaries) == len(self.sources) == 1:
            summary = {**self.summaries[0], "failures": self.failures}
        else:
            summary = self._whole()
        text = json.dumps(summary, indent=2) + "\n"
        try:
            write_whole(path, text.encode(), replace=self.arguments.overwrite)
        except StreamRPNError as error:
            self._fail(str(error))


def _names(outputs: Iterable[OutputInUse]) -> list[str]:
    """Returns the names of the outputs that have results and keep them."""
    return [output.shown for output in outputs if output.begun and not output.given_up]
