"""What every benchmark says alike: the machine, medians with their spread, a table, a JSON file."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

Row = Mapping[str, Any]

_PACKAGES = ("torch", "torchvision", "triton", "av", "numpy")


def machine() -> dict[str, Any]:
    """Returns what the numbers were measured on and with: devices, driver, versions, commit."""
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": None,
        "driver": None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts["gpu"] = properties.name
        facts["gpu_multiprocessors"] = properties.multi_processor_count
        facts["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
        facts["gpu_l2_mib"] = round(properties.L2_cache_size / 2**20, 1)
        facts["driver"] = _output(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
        )
    for package in _PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = None
    return facts


def describe_machine(facts: Mapping[str, Any]) -> str:
    """Returns the first line of a report: device | driver, CUDA | versions | commit | date."""
    device = facts["gpu"] or f"{facts['cpu']}, {facts['torch_threads']} of {facts['cores']} cores"
    driver = f"driver {facts['driver']}, CUDA {facts['cuda']} | " if facts["gpu"] else ""
    versions = " ".join(f"{name} {facts[name]}" for name in _PACKAGES if facts[name])
    return f"{device} | {driver}{versions} | {facts['commit']} | {facts['date']}"


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


def _commit() -> str:
    commit = _output("git", "rev-parse", "--short", "HEAD")
    if commit is None:
        return "unknown"
    return commit + ("+changes" if _output("git", "status", "--porcelain", "-uno") else "")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _output(*command: str) -> str | None:
    """Returns what a command prints, None where it cannot be run."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
