"""Graphs that OpenVINO has compiled for this processor, kept on disk for the next start."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stream_rpn import signals

MAX_FILES = 24
DAY = 24 * 3600
_GRAPHS = "*.blob"


@contextmanager
def compiled_graphs(kept: Path) -> Iterator[Path]:
    """Lends a folder with the kept graphs, and keeps those that were made there.

    OpenVINO writes a graph under its final name, piece by piece, and maps what it reads into its
    memory. Were that in one folder for all, a process that starts beside others would cut off what
    they read, which kills them (SIGBUS). So each has links in a folder of its own, and what is new
    gets its place among the kept ones when it is whole, at once.

    Args:
        kept: the latest graphs of all processes.

    Raises:
        OSError: there can be no such folder, or no links in it.
    """
    kept.mkdir(exist_ok=True)
    _tidy(kept)
    with signals.temporary_folder(within=kept) as own:
        for path in kept.glob(_GRAPHS):
            with suppress(FileNotFoundError):  # another process has tidied since
                os.link(path, own / path.name)
        before = {path.name: path.stat().st_ino for path in own.glob(_GRAPHS)}
        yield own
        for path in own.glob(_GRAPHS):
            if path.stat().st_ino != before.get(path.name):
                path.replace(kept / path.name)


def _tidy(kept: Path) -> None:
    """Leaves the latest graphs only, as each has some megabytes, and no folder of others."""
    with suppress(OSError):
        files = sorted(kept.glob(_GRAPHS), key=lambda path: path.stat().st_mtime)
        for path in files[:-MAX_FILES]:
            path.unlink()
        for path in kept.iterdir():  # of processes that were killed
            if path.is_dir() and path.stat().st_mtime < time.time() - DAY:
                shutil.rmtree(path, ignore_errors=True)
