"""Sinks receive the results, and readers read them back: formats by the name of a file.

Nothing here imports a sink or a reader before it is used: results are read without torch and PyAV.
"""

from __future__ import annotations

import os
import stat
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from stream_rpn.frame import StreamRPNError
from stream_rpn.sinks.place import HIDDEN_FOLDER
from stream_rpn.sinks.record import make_header
from stream_rpn.sinks.sink import ReaderGone, Sink, SinkOptions

__all__ = [
    "READABLE",
    "SCHEMES",
    "SINKS",
    "ReaderGone",
    "Sink",
    "SinkOptions",
    "check_place",
    "is_file",
    "load_member",
    "make_header",
    "open_sink",
    "sink_class_of",
]


class Format(NamedTuple):
    """Who writes and who reads a format, as "module:name" within this package.

    Attributes:
        sink: the class of its sink.
        reader: the function that reads it, see `record.Reader`; "" for what is not read back.
        source_names: a function that returns the names of all sources in a file without reading
            its results; "" where the first step of a reader knows them.
    """

    sink: str
    reader: str = ""
    source_names: str = ""


_PARQUET = Format("parquet:ParquetSink", "parquet:read_parquet")

# By the end of the name, the longest that fits; "-" and "null" are whole names.
SINKS: dict[str, Format] = {
    "-": Format("jsonl:JSONLinesSink"),
    "null": Format("null:NullSink"),
    ".jsonl": Format("jsonl:JSONLinesSink", "jsonl:read_json_lines", "jsonl:source_names"),
    ".jsonl.gz": Format("jsonl:GzipJSONLinesSink", "jsonl:read_json_lines", "jsonl:source_names"),
    ".parquet": _PARQUET,
    ".parquet/": _PARQUET._replace(reader=""),
    ".npz": Format("npz:NPZSink", "npz:read_npz"),
    ".coco.json": Format("coco:COCOSink", "coco:read_coco"),
    ".mot.txt": Format("mot:MOTSink", "mot:read_mot_detections"),
    ".mp4": Format("video:MP4Sink"),
    ".mkv": Format("video:MatroskaSink"),
    "/": Format("crops:CropsSink"),
}

READABLE = {ending: form for ending, form in SINKS.items() if form.reader}

# By the beginning of the name: what is no file.
SCHEMES: dict[str, str] = {
    "serve:": "web.sink:WebSink",
    "zmq:": "zeromq:ZeroMQSink",
    "rtsp://": "stream:StreamSink",
    "rtsps://": "stream:StreamSink",
    "rtmp://": "stream:StreamSink",
    "rtmps://": "stream:StreamSink",
    "udp://": "stream:StreamSink",
}


def load_member(name: str) -> Any:
    """Returns the class or function that "module:name" within this package stands for."""
    module, _, member = name.partition(":")
    return getattr(import_module(f"stream_rpn.sinks.{module}"), member)


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
    return sink_class(spec, SinkOptions(draw, crops, multiple_sources, replace=overwrite)).open()


def is_file(spec: str) -> bool:
    """Tells whether an output is a file or a directory by its name."""
    return spec not in ("-", "null") and not spec.startswith(tuple(SCHEMES))


def sink_class_of(spec: str) -> type[Sink]:
    """Returns the class of sink that an output's name stands for.

    Raises:
        StreamRPNError: none has such a name.
    """
    if spec in ("-", "null"):
        return _loaded(SINKS[spec].sink)
    for scheme, sink in SCHEMES.items():
        if spec.startswith(scheme):
            return _loaded(sink)
    endings = [ending for ending in SINKS if ending not in ("-", "null")]
    fitting = [ending for ending in endings if spec.lower().endswith(ending)]
    if not fitting:
        hint = f"; for crops end it in '/', as in {spec + '/'!r}" if os.path.isdir(spec) else ""
        raise StreamRPNError(
            f"output {spec!r} has an unknown extension; "
            f"known are {', '.join(endings)}, '-', 'null' and what begins with "
            f"{', '.join(SCHEMES)}{hint}"
        )
    return _loaded(SINKS[max(fitting, key=len)].sink)


def _loaded(sink: str) -> type[Sink]:
    sink_class: type[Sink] = load_member(sink)
    return sink_class


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
    if path.is_file() and not os.access(os.path.dirname(os.path.realpath(path)), os.W_OK | os.X_OK):
        # The new file is written beside the old one.
        raise StreamRPNError(f"cannot write {name!r}: no permission to write in its directory")
    if path.is_dir():
        if not is_directory_sink:
            raise StreamRPNError(f"cannot write {name!r}: it is a directory")
        if any(item.name != HIDDEN_FOLDER for item in path.iterdir()) and not overwrite:
            raise StreamRPNError(f"output {name!r} is not empty; --overwrite replaces its results")
    elif is_directory_sink and path.is_file():
        raise StreamRPNError(f"cannot write {name!r}: a file of that name exists")
    elif not stat.S_ISREG(path.stat().st_mode):
        # A named pipe or a device has nothing that could be lost, and must not be renamed over.
        if not in_place:
            raise StreamRPNError(f"cannot write {name!r}: it is not a regular file")
    elif not overwrite:
        raise StreamRPNError(f"output {name!r} exists; --overwrite replaces it")
