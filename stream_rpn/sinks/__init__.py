"""Where results go: a sink is chosen by the name of the output."""

from __future__ import annotations

import os
import stat
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

__all__ = [
    "SCHEMES",
    "SINKS",
    "ReaderGone",
    "Sink",
    "SinkOptions",
    "WebSink",
    "check_place",
    "is_file",
    "make_header",
    "open_sink",
    "sink_class_of",
]


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
    sink_class = sink_class_of(spec)
    if is_file(spec):
        check_place(spec, overwrite=overwrite, in_place=sink_class.writes_in_place)
    return sink_class(spec, SinkOptions(draw, crops, multiple_sources))


def is_file(spec: str) -> bool:
    """Tells whether an output is a file or a directory by its name."""
    return spec not in ("-", "null") and not spec.startswith(tuple(SCHEMES))


def sink_class_of(spec: str) -> type[Sink]:
    """Returns the class of sink that an output's name stands for.

    Raises:
        StreamRPNError: none has such a name.
    """
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


def check_place(name: str, *, overwrite: bool, in_place: bool) -> None:
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
