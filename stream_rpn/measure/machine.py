"""The machine and the versions that numbers come from; the first line of every report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from stream_rpn import __version__
from stream_rpn.cores import available_cores

PACKAGES = ("torch", "torchvision", "triton", "av", "numpy")
_CHECKOUT = Path(__file__).resolve().parents[2]


def machine() -> dict[str, Any]:
    """Returns devices, driver, versions, commit, and how busy the machine was before."""
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "stream_rpn": __version__,
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": available_cores(),
        "torch_threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
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
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = None
    return facts


def describe_machine(facts: Mapping[str, Any]) -> str:
    """Returns the first line of a report: device | driver, CUDA | versions | commit | date."""
    device = facts["gpu"] or f"{facts['cpu']}, {facts['torch_threads']} of {facts['cores']} cores"
    driver = f"driver {facts['driver']}, CUDA {facts['cuda']} | " if facts["gpu"] else ""
    versions = " ".join(f"{name} {facts[name]}" for name in PACKAGES if facts[name])
    return f"{device} | {driver}{versions} | {facts['commit']} | {facts['date']}"


def _commit() -> str:
    # Installed into an environment inside somebody's repository, the commit would be that one's.
    if not (_CHECKOUT / ".git").exists():
        return f"stream-rpn {__version__}"
    commit = _output("git", "rev-parse", "--short", "HEAD")
    if commit is None:
        return "unknown"
    # Files that benchmarks themselves write do not change the measured program.
    code = (".", ":!bench/results", ":!docs", ":!*.md")
    changed = _output("git", "status", "--porcelain", "-uno", "--", *code)
    return commit + ("+changes" if changed else "")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _output(*command: str) -> str | None:
    """Returns a command's output, None where it cannot be run."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True, cwd=_CHECKOUT
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
