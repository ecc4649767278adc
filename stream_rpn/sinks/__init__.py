"""Sinks receive the results, and readers read them back: formats by the name of a file.

Nothing here imports a sink or a reader before it is used: results are read without torch and PyAV.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from stream_rpn.drawing import USUAL_DRAWING, DrawSpec
from stream_rpn.frame import StreamRPNError
from stream_rpn.sinks.folder import HIDDEN_FOLDER
from stream_rpn.sinks.formats import (
    ENDINGS,
    FOLDERS,
    READABLE,
    SCHEMES,
    SINKS,
    holds_embeddings,
    is_directory,
    is_file,
    load_member,
    near_misses,
    path_of,
    sink_of,
)
from stream_rpn.sinks.record import make_header
from stream_rpn.sinks.sink import ReaderGone, Sink, SinkOptions
from stream_rpn.sources.address import masked

__all__ = [
    "ENDINGS",
    "FOLDERS",
    "READABLE",
    "SCHEMES",
    "SINKS",
    "ReaderGone",
    "Sink",
    "SinkOptions",
    "check_name",
    "check_place",
    "holds_embeddings",
    "is_file",
    "load_member",
    "make_header",
    "open_sink",
    "path_of",
    "sink_class_of",
]


def open_sink(
    spec: str,
    *,
    overwrite: bool = False,
    draw: DrawSpec = USUAL_DRAWING,
    crops: int = 10,
    multiple_sources: bool = False,
) -> Sink:
    """Returns the sink for an output, chosen by the end of its name, or the scheme of its address.

    Args:
        spec: a file name ending as one of `SINKS`, a directory ending in "/" or beginning as one
            of `FOLDERS`, "-" or "null", or an address beginning as one of `SCHEMES`.
        overwrite: whether an existing file may be replaced.
        draw: how annotated video and pictures show boxes.
        crops: how many of the best boxes are cut out per frame.
        multiple_sources: True where several sources follow one another into this output.

    Raises:
        StreamRPNError: for an unknown ending, an existing file, or a place that can't be written.
    """
    sink_class = sink_class_of(spec)
    if is_file(spec):
        check_place(spec, overwrite=overwrite, in_place=sink_class.writes_in_place)
    options = SinkOptions(
        draw=draw, crops=crops, multiple_sources=multiple_sources, replace=overwrite
    )
    return sink_class(path_of(spec), options).open()


def sink_class_of(spec: str) -> type[Sink]:
    """Returns the class of sink that an output's name stands for.

    Raises:
        StreamRPNError: none has such a name.
    """
    sink_class: type[Sink] = load_member(check_name(spec))
    return sink_class


def check_name(spec: str) -> str:
    """Returns the sink that an output's name stands for, as "module:name".

    Raises:
        StreamRPNError: none has such a name.
    """
    sink = sink_of(spec)
    if not sink:
        meant = " or ".join(repr(masked(name)) for name in near_misses(spec))
        raise StreamRPNError(
            f"output {masked(spec)!r} has an unknown extension; "
            + (f"did you mean {meant}? Known" if meant else "known")
            + f" are {', '.join(ENDINGS)}, '-', 'null' and what begins with "
            f"{', '.join([*FOLDERS, *(scheme for scheme in SCHEMES if scheme != 'serve:')])}"
        )
    return sink


def check_place(name: str, *, overwrite: bool, in_place: bool) -> None:
    """Checks that something can be created or replaced under this name."""
    if "\0" in name:
        raise StreamRPNError(f"cannot write {name!r}: no name of a file holds a NUL character")
    is_directory_sink = is_directory(name)
    if not path_of(name):
        raise StreamRPNError(f"output {name!r} names no directory; name one, as in '{name}DIR/'")
    name = path_of(name)
    path = Path(name)
    parent = path.parent
    # Unlike Path's, the functions of os.path answer False where a name is too long.
    if not os.path.isdir(parent):
        raise StreamRPNError(f"cannot write {name!r}: the directory {str(parent)!r} does not exist")
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
