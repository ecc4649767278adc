"""`stream-rpn models`: the table of models, and how tables are printed."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from stream_rpn.frame import StreamRPNError
from stream_rpn.models import DEFAULT_MODEL, MODELS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: the table has no options."""


def run(arguments: argparse.Namespace) -> int:
    """Prints the table of models on standard output, a block each: a row would be too wide."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, entry in MODELS.items():
        heading = f"{name} (default)" if name == DEFAULT_MODEL else name
        table.add_row(f"[bold]{heading}[/bold]", entry.summary)
        table.add_row("  input", entry.input)
        table.add_row("  strides", entry.strides)
        table.add_row("  anchors", entry.anchors)
        table.add_row("  weights", f"{entry.weights}, {entry.megabytes:g} MB")
        table.add_row("  licence", entry.licence)
    print_table(table)
    return 0


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # Not rich's exit with 1, which would say that something went wrong.
        raise BrokenPipeError


def print_table(table: Table) -> None:
    """Prints a table on standard output; a pipe has no width, so nothing is folded there.

    Raises:
        StreamRPNError: standard output cannot be written.
    """
    console = _Console()
    try:
        _Console(width=None if console.is_terminal else 320).print(table)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StreamRPNError(f"cannot write standard output: {error.strerror}") from error
