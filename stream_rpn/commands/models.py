"""`stream-rpn models`: the table of models."""

from __future__ import annotations

import argparse

from rich.table import Table

from stream_rpn.commands.tables import print_table
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
        weights = f"{entry.weights}, {entry.megabytes:g} MB" if entry.weights else "none: untrained"
        table.add_row("  weights", weights)
        table.add_row("  licence", entry.licence)
    print_table(table)
    return 0
