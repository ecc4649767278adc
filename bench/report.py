"""The report that benchmarks share: machine, medians with their spread, a table, a JSON file."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stream_rpn.measure.machine import describe_machine, machine

__all__ = ["describe_machine", "machine", "measure", "print_table", "summarize", "write_json"]

Row = Mapping[str, Any]


def measure(
    fn: Callable[[], object], *, warmup: int = 2, min_runs: int = 5, seconds: float = 1.0
) -> dict[str, float]:
    """Times `fn` on the host's clock; for what runs on a CPU.

    Args:
        fn: what to time.
        warmup: calls before the first timed one.
        min_runs: timed calls at least.
        seconds: more calls until so much time has been measured.

    Returns:
        median_ms, p10_ms, p90_ms and runs.
    """
    for _ in range(warmup):
        fn()
    samples: list[float] = []
    while len(samples) < min_runs or sum(samples) < seconds * 1e3:
        start = time.perf_counter()
        fn()
        samples.append((time.perf_counter() - start) * 1e3)
    return summarize(samples)


def summarize(samples_ms: Sequence[float]) -> dict[str, float]:
    """Returns median_ms, p10_ms, p90_ms and runs of timings in milliseconds."""
    ordered = sorted(samples_ms)
    last = len(ordered) - 1
    return {
        "median_ms": round(statistics.median(ordered), 6),
        "p10_ms": round(ordered[round(0.1 * last)], 6),
        "p90_ms": round(ordered[round(0.9 * last)], 6),
        "runs": len(ordered),
    }


def write_json(path: str | Path, name: str, rows: Sequence[Row], **meta: Any) -> None:
    """Writes a report, whole or not at all: {"name", "machine", **meta, "rows"}.

    `machine` among `meta` stands in for a new look at the machine.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = meta.pop("machine", None) or machine()
    report = {"name": name, "machine": facts, **meta, "rows": list(rows)}
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(report, indent=1) + "\n")
    beside.replace(path)


def print_table(rows: Sequence[Row], columns: Sequence[str] | None = None) -> None:
    """Prints rows aligned under `columns` (by default every key, in order of appearance)."""
    if columns is None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(c) for c in column) for column in zip(columns, *cells, strict=True)]
    for line in (list(columns), *cells):
        padded = (
            text.ljust(width) if index == 0 else text.rjust(width)
            for index, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join(padded).rstrip(), flush=True)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)
