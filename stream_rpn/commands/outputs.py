"""The outputs that `-o` names, one for each source, checked before anything is opened."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stream_rpn.commands.progress import complain
from stream_rpn.drawing import USUAL_DRAWING, DrawSpec
from stream_rpn.frame import Proposals, StreamInfo, StreamRPNError
from stream_rpn.sinks import (
    ENDINGS,
    SINKS,
    check_place,
    holds_embeddings,
    is_file,
    path_of,
    sink_class_of,
)
from stream_rpn.sinks.sink import ReaderGone, Sink, SinkOptions
from stream_rpn.sources.address import is_device, is_url, local_path, masked, stem

DEFAULT_OUTPUT = "{stem}.proposals.jsonl"


@dataclass(frozen=True, slots=True)
class Output:
    """One sink to open, and the sources whose results it receives.

    Attributes:
        name: the output with `{stem}` filled in.
        sources: indices into the list of sources.
        options: what to open it with.
    """

    name: str
    sources: tuple[int, ...]
    options: SinkOptions

    @property
    def needs_image(self) -> bool:
        """Whether the pipeline must keep decoded frames for this output."""
        return sink_class_of(self.name).needs_image

    @property
    def opens_at_once(self) -> bool:
        """Whether it is opened before there are results."""
        return sink_class_of(self.name).opens_at_once

    def claim(self) -> Sink:
        """Returns the sink, not open yet; from then on no other run can write the output."""
        return sink_class_of(self.name)(path_of(self.name), self.options)

    def open(self) -> Sink:
        """Opens the sink; the checks were done by `resolve_outputs`."""
        return self.claim().open()


class OutputInUse:
    """An output in the course of a run: pending, claimed, open, then closed, or given up.

    What fails is told in a sentence and gives up this output alone; the others go on. One that was
    given up is not opened again for a later source: that would wipe what it holds.

    Args:
        output: what to open once there are results.
        fail: told what went wrong.

    Attributes:
        begun: whether it has had results.
        given_up: whether nothing more is to be written to it.
        kept: where its results lie when it is closed or given up, "" where there are none.
    """

    def __init__(self, output: Output, fail: Callable[[str], None]) -> None:
        self.name, self.sources = output.name, output.sources
        self.opens_at_once = output.opens_at_once
        self.begun = self.given_up = False
        self.kept = ""
        self._output = output
        self._fail = fail
        self._sink: Sink | None = None
        self._num_written = 0
        self._sources: set[str] = set()  # that have begun and not ended
        self._lacking: list[tuple[str, str]] = []

    @property
    def produced(self) -> bool:
        """Whether it holds results, all of them or those until it was given up."""
        return self._num_written > 0 and (not self.given_up or bool(self.kept))

    @property
    def is_elsewhere(self) -> bool:
        """Whether its results lie at another place than the one that was asked for."""
        return self.kept not in ("", path_of(self.name))

    @property
    def shown(self) -> str:
        """What summaries call it: as the user did, or by where its results lie instead."""
        return self.kept if self.is_elsewhere else masked(self.name)

    def claim(self) -> Sink:
        """Keeps other runs from writing it; it is opened by its first results.

        Raises:
            StreamRPNError: another run is writing it, or it cannot be written.
        """
        if self._sink is None:
            self._sink = self._output.claim()
        return self._sink

    def claim_or_give_up(self) -> None:
        """Claims it in the middle of a run, where others go on."""
        with self._guarded():
            self.claim()

    def open(self) -> Sink:
        """Opens the sink.

        Raises:
            StreamRPNError: it cannot be opened.
        """
        return self.claim().open()

    def begin(
        self, header: dict[str, Any], info: StreamInfo, status: Callable[[], dict[str, Any]]
    ) -> None:
        """Begins the results of a source; opens the sink with the first one."""
        with self._guarded():
            sink = self.claim()
            sink.watch(status)
            sink.begin(header, info)
            self._sources.add(info.source)
            self.begun = True

    def write(self, proposals: Proposals) -> None:
        """Writes the proposals of one frame."""
        if self._sink is not None:
            with self._guarded():
                self._sink.write(proposals)
                self._num_written += 1
                self._tell(self._sink)

    def end(self, source: str, totals: dict[str, Any]) -> None:
        """Ends the results of a source; one that never began is lacking."""
        if source not in self._sources:
            self.lacks(source, totals.get("stopped", "failed"))
        elif self._sink is not None:
            self._sources.remove(source)
            with self._guarded():
                self._sink.end(totals)

    def lacks(self, source: str, why: str) -> None:
        """Notes that a source has no results here that should have: "interrupted", "failed".

        Clients that are there already hear it at once; others need what else is in the output.
        """
        if not self.opens_at_once:
            self._lacking.append((source, why))
        elif self._sink is not None:
            with self._guarded():
                self._sink.lacks(source, why)

    def close(self) -> None:
        """Finishes the output, if it is open."""
        if self._sink is not None:
            with self._guarded():
                for source, why in self._lacking if self.begun else ():
                    self._sink.lacks(source, why)
                self._sink.close()
                self.kept = self._sink.kept
                self._tell(self._sink)
            self._sink = None
            if self.is_elsewhere:
                complain(
                    f"{self.name!r} stays as it was, as the run was stopped; what came until then "
                    f"is in {self.kept!r}"
                )

    def _tell(self, sink: Sink) -> None:
        while sink.notes:
            complain(f"{masked(self.name)!r}: {sink.notes.pop(0)}")

    def abort(self) -> None:
        """Leaves what is readable of the output, if it is open."""
        if self._sink is not None:
            self._sink.abort()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Gives the output up where the block fails."""
        try:
            yield
        except ReaderGone:
            self._give_up()
        except StreamRPNError as error:
            self._give_up()
            sentence = str(error)
            if self.produced and is_file(self.name):
                if self.kept == path_of(self.name):
                    sentence += "; what was written until then stays there"
                elif repr(self.kept) not in sentence:
                    sentence += f"; what was written until then is in {self.kept!r}"
            self._fail(sentence)

    def _give_up(self) -> None:
        self.given_up = True
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.abort()
            self.kept = sink.kept


def resolve_outputs(
    specs: Sequence[str],
    sources: Sequence[str],
    *,
    stems: Sequence[str] | None = None,
    overwrite: bool = False,
    draw: DrawSpec = USUAL_DRAWING,
    crops: int = 10,
    draw_fps: float | None = None,
    sound: bool = True,
    token: str = "",
    image_ids: str | None = None,
    embed: bool = False,
) -> list[Output]:
    """Checks all outputs before anything is opened, and says which source goes where.

    An output with `{stem}` in its name becomes one per source; stems of equal name are made unique
    by a number. Without outputs, each source gets `NAME.proposals.jsonl` in the current directory.

    Args:
        specs: the outputs as the user named them.
        sources: the sources as the user named them.
        stems: a short name for each source; from its name where not given.
        overwrite: whether existing files may be replaced.
        draw: passed to the sinks.
        crops: passed to the sinks.
        draw_fps: passed to the sinks.
        sound: passed to the sinks.
        token: passed to the sinks.
        image_ids: a file of COCO annotations that has the ids of the pictures.
        embed: whether boxes have vectors, which an output must hold.

    Raises:
        StreamRPNError: for an output that exists, cannot be written, is a source, occurs twice, or
            cannot hold several sources.
    """
    unique = _unique(stems if stems is not None else [stem(source) for source in sources])
    everything = tuple(range(len(sources)))
    outputs: list[Output] = []
    ids = None
    if image_ids is not None:
        from stream_rpn.commands.image_ids import ImageIds

        ids = ImageIds(image_ids)
        ids.check(sources)
    names = dict(zip(map(masked, sources), unique, strict=True))
    shared = SinkOptions(
        draw,
        crops,
        draw_fps,
        sound=sound,
        multiple_sources=len(sources) > 1,
        token=token,
        replace=overwrite,
        image_id_of=ids,
        notice=complain,
        names=names,
    )
    for spec in specs or [DEFAULT_OUTPUT]:
        if "{stem}" in spec:
            options = replace(shared, multiple_sources=False)
            # In an address, "a b#1" would end before its "#".
            stands = [quote(os.fsencode(s), safe="") for s in unique] if is_url(spec) else unique
            outputs += [
                Output(spec.replace("{stem}", name), (index,), options)
                for index, name in enumerate(stands)
            ]
        else:
            outputs.append(Output(spec, everything, shared))

    if embed and not any(holds_embeddings(output.name) for output in outputs):
        endings = [ending for ending in ENDINGS if SINKS[ending].embeddings]
        raise StreamRPNError(
            f"--embed needs an output that holds vectors, whose name ends with "
            f"{' or '.join(endings)}; name one with -o"
        )
    taken: dict[str, str] = {}
    for output in outputs:
        name = output.name
        sink_class = sink_class_of(name)
        if len(output.sources) > 1 and not sink_class.takes_several_sources:
            raise StreamRPNError(
                f"output {masked(name)!r} cannot hold the results of {len(sources)} sources; "
                "put {stem} in its name for one file each"
            )
        if name == "null":
            continue
        if name == "-" and sys.stdout is None:
            raise StreamRPNError("cannot write standard output: it is closed")
        if is_file(name):
            check_place(name, overwrite=overwrite, in_place=sink_class.writes_in_place)
        place = os.path.realpath(path_of(name)) if is_file(name) else name
        if place in taken:
            raise StreamRPNError(
                f"outputs {taken[place]!r} and {name!r} are the same"
                if taken[place] != name
                else f"output {masked(name)!r} is given twice"
            )
        taken[place] = name
        if is_file(name):
            for source in sources:
                _check_not_source(path_of(name), source)
    return outputs


def check_file(
    name: str, sources: Sequence[str], outputs: Sequence[Output], *, overwrite: bool
) -> None:
    """Checks that a file can be written beside `outputs`, by the same rules.

    Raises:
        StreamRPNError: it exists, cannot be written, or is a source or one of the outputs.
    """
    check_place(name, overwrite=overwrite, in_place=True)
    place = os.path.realpath(name)
    if any(place == os.path.realpath(path_of(o.name)) for o in outputs if is_file(o.name)):
        raise StreamRPNError(f"{name!r} is given for two different outputs")
    for source in sources:
        _check_not_source(name, source)


def _check_not_source(name: str, source: str) -> None:
    """Checks that an output is not a source, nor a file of a directory or glob that is one."""
    if source == "-" or is_url(source) or is_device(source):
        return
    path = str(local_path(source))
    files = [path] if os.path.exists(path) else glob.glob(path, recursive=True)
    if os.path.isdir(path):
        # Results may lie beside images that are a source, annotated video not beside videos.
        files += [str(p) for p in Path(path).iterdir() if p.suffix.lower() in (".mp4", ".mkv")]
    place = os.path.realpath(name)
    for file in files:
        same = os.path.exists(place) and os.path.samefile(place, file)
        if same or place == os.path.realpath(file):
            raise StreamRPNError(f"output {name!r} is also a source")


def _unique(stems: Sequence[str]) -> list[str]:
    """Returns the stems, the second "a" as "a-2" and so on, so that no two are equal."""
    unique: list[str] = []
    for name in stems:
        candidate, number = name, 2
        while candidate in unique or (candidate != name and candidate in stems):
            candidate, number = f"{name}-{number}", number + 1
        unique.append(candidate)
    return unique
