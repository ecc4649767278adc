"""The table of formats: which output a name stands for, and who writes and reads it.

The one list of endings, beginnings and schemes; sentences of errors, readers and tests follow it.
"""

from __future__ import annotations

import difflib
import os
from importlib import import_module
from typing import Any, NamedTuple


class Format(NamedTuple):
    """Who writes and who reads a format, as "module:name" within this package.

    Attributes:
        sink: the class of its sink.
        reader: the function that reads it, see `record.Reader`; "" for what is not read back.
        source_names: a function that returns the names of all sources in a file without reading
            its results; "" where the first step of a reader knows them.
        embeddings: whether it holds vectors of boxes, or at least takes them.
    """

    sink: str
    reader: str = ""
    source_names: str = ""
    embeddings: bool = False


# By the end of the name, the longest that fits; "-" and "null" are whole names.
SINKS: dict[str, Format] = {
    "-": Format("jsonl:JSONLinesSink"),
    "null": Format("null:NullSink", embeddings=True),
    ".jsonl": Format("jsonl:JSONLinesSink", "jsonl:read_json_lines", "jsonl:source_names"),
    ".jsonl.gz": Format("jsonl:GzipJSONLinesSink", "jsonl:read_json_lines", "jsonl:source_names"),
    ".parquet": Format("parquet:ParquetSink", "parquet:read_parquet", embeddings=True),
    ".csv": Format("csv_rows:CSVSink", "csv_rows:read_csv"),
    ".npz": Format("npz:NPZSink", "npz:read_npz", embeddings=True),
    ".coco.json": Format("coco:COCOSink", "coco:read_coco"),
    ".coco-results.json": Format("coco:COCOResultsSink", "coco:read_coco"),
    ".labelstudio.json": Format("labelstudio:LabelStudioSink"),
    ".d2.pkl": Format("d2:Detectron2Sink", "d2:read_detectron2"),
    ".mot.txt": Format("mot:MOTSink", "mot:read_mot_detections"),
    ".mp4": Format("video:MP4Sink"),
    ".mkv": Format("video:MatroskaSink"),
    "/": Format("crops:CropsSink"),
}

READABLE = {ending: form for ending, form in SINKS.items() if form.reader}

# By the beginning of the name: directories that are no crops; the name of the directory follows.
FOLDERS: dict[str, Format] = {
    "yolo:": Format("yolo:YOLOSink"),
    "annotated:": Format("annotated:AnnotatedSink"),
}

# By the beginning of the name: what is no file.
SCHEMES: dict[str, str] = {
    "serve:": "web.sink:WebSink",
    "zmq:": "zeromq:ZeroMQSink",
    "mqtt://": "mqtt:MQTTSink",
    "mqtts://": "mqtt:MQTTSink",
    "rtsp://": "stream:StreamSink",
    "rtsps://": "stream:StreamSink",
    "rtmp://": "stream:StreamSink",
    "rtmps://": "stream:StreamSink",
    "udp://": "stream:StreamSink",
}

ENDINGS = [ending for ending in SINKS if ending not in ("-", "null")]


def load_member(name: str) -> Any:
    """Returns the class or function that "module:name" within this package stands for."""
    module, _, member = name.partition(":")
    return getattr(import_module(f"stream_rpn.sinks.{module}"), member)


def is_file(spec: str) -> bool:
    """Tells whether an output is a file or a directory by its name."""
    return spec not in ("-", "null") and not spec.startswith(tuple(SCHEMES))


def path_of(spec: str) -> str:
    """Returns the path of an output that is a file or a directory."""
    for prefix in FOLDERS:
        if spec.startswith(prefix):
            return spec.removeprefix(prefix)
    return spec


def is_directory(spec: str) -> bool:
    """Tells whether an output is a directory by its name."""
    named = spec.startswith(tuple(FOLDERS)) or spec.endswith("/")
    return named or ending_of(spec) == ".parquet"


def ending_of(name: str) -> str:
    """Returns the ending that says which format a file is of; "" where none does."""
    name = name.lower()
    if name.endswith(".parquet/"):  # a directory, which may be named as one
        return ".parquet"
    fitting = [ending for ending in ENDINGS if name.endswith(ending)]
    return max(fitting, key=len, default="")


def sink_of(spec: str) -> str:
    """Returns the sink that an output's name stands for, as "module:name"; "" for none."""
    if spec in ("-", "null"):
        return SINKS[spec].sink
    for scheme, sink in SCHEMES.items():
        if spec.startswith(scheme):
            return sink
    for prefix, form in FOLDERS.items():
        if spec.startswith(prefix):
            return form.sink
    ending = ending_of(spec)
    return SINKS[ending].sink if ending else ""


def holds_embeddings(spec: str) -> bool:
    """Tells whether an output takes vectors of boxes, by its name."""
    return any(form.embeddings for form in SINKS.values() if form.sink == sink_of(spec))


# What other programs are given for what has a name of its own here.
_DEVICES = {"/dev/null": "null", "/dev/stdout": "-"}


def near_misses(spec: str) -> list[str]:
    """Returns outputs that a name of no known format may have meant, the likeliest first."""
    scheme, address, rest = spec.partition("://")
    if address:
        known = f"{scheme.lower()}://" in SCHEMES
        return [f"{scheme.lower()}://{rest}"] if known else []
    if spec in _DEVICES:
        return [_DEVICES[spec]]
    stem, extension = os.path.splitext(spec)
    if os.path.isdir(spec) or (spec and not extension and not os.path.exists(spec)):
        return [f"{spec}/", *(f"{prefix}{spec}/" for prefix in FOLDERS)]
    if not extension:
        return []
    longer = [ending for ending in ENDINGS if ending.endswith(extension.lower())]
    near = difflib.get_close_matches(extension.lower(), ENDINGS, n=2, cutoff=0.6)
    return [f"{stem}{ending}" for ending in longer or near]
