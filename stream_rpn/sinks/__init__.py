"""Where results go: `open_sink` chooses by name, `resolve_outputs` checks beforehand."""

from __future__ import annotations

import glob
import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stream_rpn.frame import StreamRPNError
from stream_rpn.results import make_header
from stream_rpn.sinks import stream, zeromq
from stream_rpn.sinks.coco import COCOSink
from stream_rpn.sinks.crops import CropsSink
from stream_rpn.sinks.jsonl import GzipJSONLinesSink, JSONLinesSink
from stream_rpn.sinks.mot import MOTSink
from stream_rpn.sinks.npz import NPZSink
from stream_rpn.sinks.null import NullSink
from stream_rpn.sinks.parquet import ParquetSink
from stream_rpn.sinks.sink import ReaderGone, Sink, SinkOptions
from stream_rpn.sinks.stream import StreamSink
from stream_rpn.sinks.video import MatroskaSink, MP4Sink
from stream_rpn.sinks.web.sink import PREFIX as WEB_PREFIX
from stream_rpn.sinks.web.sink import WebSink
from stream_rpn.sinks.zeromq import ZeroMQSink
from stream_rpn.sources.address import is_device, is_url, local_path, masked, stem

__all__ = [
    "SCHEMES",
    "SINKS",
    "Output",
    "ReaderGone",
    "Sink",
    "SinkOptions",
    "WebSink",
    "check_file",
    "make_header",
    "open_sink",
    "resolve_outputs",
]

DEFAULT_OUTPUT = "{stem}.proposals.jsonl"

# By the end of the name, the longest that fits; "-" and "null" are whole names.
SINKS: dict[str, type[Sink]] = {
    "-": JSONLinesSink,
    "null": NullSink,
    ".jsonl": JSONLinesSink,
    ".jsonl.gz": GzipJSONLinesSink,
    ".parquet": ParquetSink,
    ".parquet/": ParquetSink,
    ".coco.json": COCOSink,
    ".mot.txt": MOTSink,
    ".npz": NPZSink,
    ".mp4": MP4Sink,
    ".mkv": MatroskaSink,
    "/": CropsSink,
}

# By the beginning of the name: what is no file.
SCHEMES: dict[str, type[Sink]] = {
    WEB_PREFIX: WebSink,
    zeromq.PREFIX: ZeroMQSink,
    **{f"{scheme}://": StreamSink for scheme in stream.FORMATS},
}


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
        return _sink_class(self.name).needs_image

    @property
    def opens_at_once(self) -> bool:
        """Whether it is opened before there are results."""
        return _sink_class(self.name).opens_at_once

    def open(self) -> Sink:
        """Opens the sink; the checks were done by `resolve_outputs`."""
        return _sink_class(self.name)(self.name, self.options)


def open_sink(
    spec: str,
    *,
    overwrite: bool = False,
    draw: int = 20,
    crops: int = 10,
    multiple_sources: bool = False,
) -> Sink:
    """Returns the sink for an output, chosen by the end of its name, or the scheme of its address.

    Args:
        spec: a file name ending as one of `SINKS`, a directory ending in "/", "-" or "null", or an
            address beginning as one of `SCHEMES`.
        overwrite: whether an existing file may be replaced.
        draw: how many of the best boxes an annotated video shows per frame.
        crops: how many of the best boxes are cut out per frame.
        multiple_sources: True where several sources follow one another into this output.

    Raises:
        StreamRPNError: for an unknown ending, an existing file, or a place that can't be written.
    """
    sink_class = _sink_class(spec)
    if _is_file(spec):
        _check_place(spec, overwrite=overwrite, in_place=sink_class.writes_in_place)
    return sink_class(spec, SinkOptions(draw, crops, multiple_sources))


def resolve_outputs(
    specs: Sequence[str],
    sources: Sequence[str],
    *,
    stems: Sequence[str] | None = None,
    overwrite: bool = False,
    draw: int = 20,
    crops: int = 10,
    token: str = "",
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
        token: passed to the sinks.

    Raises:
        StreamRPNError: for an output that exists, cannot be written, is a source, occurs twice, or
            cannot hold several sources.
    """
    unique = _unique(stems if stems is not None else [stem(source) for source in sources])
    everything = tuple(range(len(sources)))
    outputs: list[Output] = []
    for spec in specs or [DEFAULT_OUTPUT]:
        if "{stem}" in spec:
            options = SinkOptions(draw, crops, token=token)
            outputs += [
                Output(spec.replace("{stem}", unique_stem), (index,), options)
                for index, unique_stem in enumerate(unique)
            ]
        else:
            options = SinkOptions(draw, crops, len(sources) > 1, token)
            outputs.append(Output(spec, everything, options))

    taken: dict[str, str] = {}
    for output in outputs:
        name = output.name
        sink_class = _sink_class(name)
        if len(output.sources) > 1 and not sink_class.takes_several_sources:
            raise StreamRPNError(
                f"output {masked(name)!r} cannot hold the results of {len(sources)} sources; "
                "put {stem} in its name for one file each"
            )
        if name == "null":
            continue
        if name == "-" and sys.stdout is None:
            raise StreamRPNError("cannot write standard output: it is closed")
        if _is_file(name):
            _check_place(name, overwrite=overwrite, in_place=sink_class.writes_in_place)
        place = os.path.realpath(name) if _is_file(name) else name
        if place in taken:
            raise StreamRPNError(
                f"outputs {taken[place]!r} and {name!r} are the same"
                if taken[place] != name
                else f"output {masked(name)!r} is given twice"
            )
        taken[place] = name
        if _is_file(name):
            for source in sources:
                _check_not_source(name, source)
    return outputs


def check_file(
    name: str, sources: Sequence[str], outputs: Sequence[Output], *, overwrite: bool
) -> None:
    """Checks that a file can be written beside `outputs`, by the same rules.

    Raises:
        StreamRPNError: it exists, cannot be written, or is a source or one of the outputs.
    """
    _check_place(name, overwrite=overwrite, in_place=True)
    place = os.path.realpath(name)
    if any(place == os.path.realpath(o.name) for o in outputs if _is_file(o.name)):
        raise StreamRPNError(f"{name!r} is given for two different outputs")
    for source in sources:
        _check_not_source(name, source)


def _is_file(spec: str) -> bool:
    return spec not in ("-", "null") and not spec.startswith(tuple(SCHEMES))


def _sink_class(spec: str) -> type[Sink]:
    if spec in ("-", "null"):
        return SINKS[spec]
    for scheme, sink_class in SCHEMES.items():
        if spec.startswith(scheme):
            return sink_class
    endings = [ending for ending in SINKS if ending not in ("-", "null")]
    fitting = [ending for ending in endings if spec.lower().endswith(ending)]
    if not fitting:
        hint = f"; for crops end it in '/', as in {spec + '/'!r}" if os.path.isdir(spec) else ""
        raise StreamRPNError(
            f"output {spec!r} has an unknown extension; "
            f"known are {', '.join(endings)}, '-', 'null' and what begins with "
            f"{', '.join(SCHEMES)}{hint}"
        )
    return SINKS[max(fitting, key=len)]


def _check_place(name: str, *, overwrite: bool, in_place: bool) -> None:
    """Checks that something can be created or replaced under this name."""
    path = Path(name)
    parent = path.parent
    # Unlike Path's, the functions of os.path answer False where a name is too long.
    if not os.path.isdir(parent):
        raise StreamRPNError(f"cannot write {name!r}: the directory {str(parent)!r} does not exist")
    is_directory_sink = name.endswith("/") or name.lower().endswith(".parquet")
    if not os.path.exists(path):
        if not os.access(parent, os.W_OK | os.X_OK):
            raise StreamRPNError(
                f"cannot write {name!r}: no permission to write in {str(parent)!r}"
            )
        return
    if not os.access(path, os.W_OK):
        raise StreamRPNError(f"cannot write {name!r}: no permission to write")
    if path.is_dir():
        if not is_directory_sink:
            raise StreamRPNError(f"cannot write {name!r}: it is a directory")
        if any(path.iterdir()) and not overwrite:
            raise StreamRPNError(f"output {name!r} is not empty; --overwrite replaces its results")
    elif name.endswith("/"):
        raise StreamRPNError(f"cannot write {name!r}: a file of that name exists")
    elif not stat.S_ISREG(path.stat().st_mode):
        # A named pipe or a device has nothing that could be lost, and must not be renamed over.
        if not in_place:
            raise StreamRPNError(f"cannot write {name!r}: it is not a regular file")
    elif not overwrite:
        raise StreamRPNError(f"output {name!r} exists; --overwrite replaces it")


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
