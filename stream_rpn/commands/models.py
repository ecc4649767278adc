"""`stream-rpn models`: the table of models."""

from __future__ import annotations

import argparse
from typing import Any

from stream_rpn.commands.parser import examples
from stream_rpn.commands.tables import print_json, print_table
from stream_rpn.models import DEFAULT_MODEL, MODELS, ModelEntry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `models`."""
    parser.epilog = examples(
        "stream-rpn models",
        "stream-rpn models --json | jq -r '.models[] | select(.licence | test(\"Apache\")).name'",
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints the table of models on standard output, a block each: a row would be too wide."""
    if arguments.json:
        print_json({"models": [_row(name, entry) for name, entry in MODELS.items()]})
        return 0
    from rich.table import Table

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


def _row(name: str, entry: ModelEntry) -> dict[str, Any]:
    """Returns what programs are told of a model; documented in docs/terminal.md."""
    return {
        "name": name,
        "default": name == DEFAULT_MODEL,
        "summary": entry.summary,
        "input": entry.input,
        "strides": [int(stride) for stride in entry.strides.split()],
        "anchors": entry.anchors,
        "trained": bool(entry.weights) and not entry.backbone_only,
        "weights": entry.weights or None,
        "in_package": entry.weights.endswith(".safetensors"),
        "megabytes": entry.megabytes,
        "licence": entry.licence,
        "top_auto": entry.enough or None,
    }
