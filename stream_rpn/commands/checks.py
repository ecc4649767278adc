"""What can be seen wrong with a command line before anything heavy is imported, within a blink.

The rest is checked where it is used, in the same words.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterable

from stream_rpn import models
from stream_rpn.commands import COMMANDS
from stream_rpn.commands.arguments import load_options
from stream_rpn.engines import INT8, choose_engine
from stream_rpn.frame import StreamRPNError
from stream_rpn.sinks import check_name
from stream_rpn.sources import expand


def check_stream(arguments: argparse.Namespace) -> None:
    """Checks the sources, outputs and model of a run, as `config.completed` has them.

    Raises:
        StreamRPNError: one of them does not exist, or they do not go together.
    """
    try:
        check_sources(arguments.sources)
    except StreamRPNError as error:
        # A command that is mistyped is taken for a source.
        near = difflib.get_close_matches(arguments.sources[0], COMMANDS, n=1, cutoff=0.7)
        raise StreamRPNError(
            f"{error}; did you mean `stream-rpn {near[0]}`?" if near else str(error)
        ) from error
    for asked in arguments.asked:
        with asked.telling_where():
            if asked.where:
                check_sources([asked.address])
            _check_times(asked.arguments)
    for name in arguments.output:
        check_name(name)
    check_model(arguments)


def _check_times(arguments: argparse.Namespace) -> None:
    start, end = arguments.start or 0.0, arguments.end
    if end is not None and end <= start:
        raise StreamRPNError(f"--end {end:g} is not after --start {start:g} (in seconds)")


def check_sources(names: Iterable[str]) -> None:
    """Checks that sources are there, those that are here.

    Raises:
        StreamRPNError: one is not.
    """
    names = list(names)
    # A list may be a pipe, of which each line can be read once.
    expand([name for name in names if not name.startswith("@")])
    if "-" in names and sys.stdin is not None and sys.stdin.isatty():
        raise StreamRPNError(
            "standard input is a terminal; pipe a video into it: cat video.mp4 | stream-rpn -"
        )


def check_model(arguments: argparse.Namespace) -> None:
    """Checks what the options of `arguments.add_model_arguments` name, and what they ask for.

    Raises:
        StreamRPNError: there is no such model or file, or the engine cannot do what is asked for.
    """
    names = arguments.model if isinstance(arguments.model, list) else [arguments.model]
    for name in names:
        models.check(name, getattr(arguments, "weights", None))
    load_options(arguments)
    engine, dtype = getattr(arguments, "engine", "auto"), getattr(arguments, "dtype", "auto")
    if dtype == INT8:
        for name in names:
            models.check_int8(name, arguments.weights)
    if engine == "openvino" or dtype == INT8:
        choose_engine(engine, device=arguments.device, dtype=dtype)


def check_readable(path: str | None, option: str) -> None:
    """Checks that the file of an option is there and may be read; None stands for none.

    Raises:
        StreamRPNError: it is not.
    """
    if path is None:
        return
    if not os.path.exists(path):
        raise StreamRPNError(f"{option} {path}: no such file")
    if not os.access(path, os.R_OK):
        raise StreamRPNError(f"{option} {path} cannot be read: permission denied")
