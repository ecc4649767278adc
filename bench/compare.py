"""Compares this checkout with another commit: the same benchmark on both, in turns.

The other commit is checked out to a temporary folder and measured by this checkout's benchmark: its
`bench/` and `stream_rpn/measure/` are replaced. So it must have the functions they call.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import report

ROOT = Path(__file__).resolve().parents[1]
INSTRUMENT = ("bench", "stream_rpn/measure")
ROUNDS = 3


def add_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base", metavar="REF", help="compare our own rows with another commit's, in turns"
    )


@contextmanager
def checked_out(ref: str) -> Iterator[Path]:
    """Gives a folder with the commit `ref` and this checkout's instrument in it."""
    with tempfile.TemporaryDirectory(prefix="stream-rpn-base-") as name:
        tree = Path(name) / "tree"
        added = _git("worktree", "add", "--detach", str(tree), ref)
        if added.returncode:
            sys.exit(f"--base {ref}: {added.stderr.strip().splitlines()[-1]}")
        try:
            for folder in INSTRUMENT:
                shutil.rmtree(tree / folder, ignore_errors=True)
                ignored = shutil.ignore_patterns("__pycache__", "results")
                shutil.copytree(ROOT / folder, tree / folder, ignore=ignored)
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def compare_with(
    ref: str, module: str, options: Sequence[str], keys: Sequence[str], metric: str
) -> int:
    """Runs `module` here and at `ref` in turns, prints the ratios, and returns an exit code.

    Args:
        ref: a commit.
        module: a benchmark that takes `--json PATH`.
        options: further arguments for it.
        keys: the columns that together name a row.
        metric: the column to compare; milliseconds where it ends in "_ms", else more is better.
    """
    print(report.describe_machine(report.machine()))
    values: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    with checked_out(ref) as tree:
        places = [("base", tree), ("here", ROOT)]
        for index in range(ROUNDS):
            # The other one first every other time: who runs second finds a warmer machine.
            for where, place in places if index % 2 == 0 else reversed(places):
                for row in _rows(module, options, place):
                    if metric in row:
                        of_row = values.setdefault(tuple(row[key] for key in keys), {})
                        of_row.setdefault(where, []).append(row[metric])
    rows = []
    for names, found in values.items():
        row = dict(zip(keys, names, strict=True))
        if len(found) == 2:
            pairs = zip(found["here"], found["base"], strict=True)
            ratios = [b / h if metric.endswith("_ms") else h / b for h, b in pairs]
            row |= {
                f"{metric} at {ref}": statistics.median(found["base"]),
                f"{metric} here": statistics.median(found["here"]),
                "times as fast": round(statistics.median(ratios), 3),
                "min": round(min(ratios), 3),
                "max": round(max(ratios), 3),
            }
        rows.append(row)
    report.print_table(rows)
    return 0


def _rows(module: str, options: Sequence[str], place: Path) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [sys.executable, "-m", module, *options, "--json", str(path)]
        environment = {**os.environ, "PYTHONPATH": str(place)}
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            sys.exit(f"{module} failed in {place}: {last[0]}")
        rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
        return rows


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
