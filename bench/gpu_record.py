"""The record of a GPU proof: rows by section, the predictions, the verdict on the targets."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench import report
from bench.gpu_timer import Timer
from stream_rpn.kernels import dispatch

SECONDS = 480.0

# Median microseconds, float32 heads, from graph replays; predicted for an H200.
PREDICTED_US = {
    ("fpn1000", 1): 70, ("fpn1000", 8): 120, ("fpn1000", 32): 270,
    ("fpn2000", 1): 95, ("fpn2000", 8): 200, ("fpn2000", 32): 650,
    ("vgg6000", 1): 80, ("vgg6000", 8): 150, ("vgg6000", 32): 420,
    ("vgg12000", 1): 400, ("vgg12000", 8): 600, ("vgg12000", 32): 1700,
    ("preprocess 1080p", 1): 11, ("preprocess 1080p", 8): 50,
    ("preprocess 2160p", 1): 13, ("preprocess 2160p", 8): 60,
}  # fmt: skip
PREDICTED_SPEEDUP = {("fpn1000", 8): 110}
PREDICTED_SHARE = 0.5


class Proof:
    """Collects rows section by section, and writes them as they come."""

    def __init__(self, path: Path, device: torch.device, seconds: float = SECONDS) -> None:
        self.path = path
        self.device = device
        self.dry = device.type == "cpu"
        self.timer = Timer(device, 0.02 if self.dry else 0.25)
        self.started = time.monotonic()
        self._seconds = seconds
        self.machine = report.machine()
        self.rows: list[dict[str, Any]] = []
        self.sections: dict[str, str] = {}
        self.bandwidth = 0.0

    def left(self) -> float:
        """Seconds before the command should be done."""
        return self._seconds - (time.monotonic() - self.started)

    def add(self, section: str, **row: Any) -> None:
        """Keeps one row."""
        self.rows.append({"section": section, **row})

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Runs a section; what goes wrong in it is recorded."""
        before = time.monotonic()
        print(f"\n== {name}", flush=True)
        # A kernel that fails would be replaced by its reference, which always agrees with itself:
        # here it ends the section.
        dispatch._broken.clear()
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="the Triton kernel of")
                yield
            self.sections[name] = "done"
        except Exception as error:
            traceback.print_exc()
            self.sections[name] = f"failed: {type(error).__name__}: {error}"
        seconds = time.monotonic() - before
        self.sections[name] += f" ({seconds:.0f} s)"
        self.write()
        rows = [
            {k: v for k, v in row.items() if k not in ("section", "runs")}
            for row in self.rows
            if row["section"] == name
        ]
        if rows:
            report.print_table(rows)
        print(f"-- {self.sections[name]}", flush=True)

    def write(self) -> None:
        """Writes what there is so far."""
        report.write_json(
            self.path,
            "gpu_proof",
            self.rows,
            machine=self.machine,
            dry_run=self.dry,
            copy_gb_per_second=round(self.bandwidth / 1e9, 1),
            sections=self.sections,
            elapsed_seconds=round(time.monotonic() - self.started, 1),
        )

    def share(self, num_bytes: int, median_ms: float) -> float:
        """Returns the share of the measured copy bandwidth that `num_bytes` in that time are."""
        return round(num_bytes / (median_ms / 1e3) / self.bandwidth, 4) if self.bandwidth else 0.0


def verdict(proof: Proof) -> list[dict[str, Any]]:
    """Returns the targets next to what was predicted and measured."""
    found = {(r.get("name"), r.get("what")): r for r in proof.rows}
    stage = found.get(("fpn1000 b8", "stage"), {}).get("us")
    peer = found.get(("fpn1000 b8", "torchvision eager"), {}).get("ours_is_faster_by")
    share = found.get(("1080p NV12 → 768×1344 bf16 b8", None), {}).get("of_copy")
    equal = [r for r in proof.rows if r["section"] == "kernels against references"]
    same = all(r["same_bits_again"] and r["same_bits_alone"] for r in equal) if equal else None
    return [
        {"target": target, "predicted": predicted, "measured": measured}
        for target, predicted, measured in (
            ("proposal stage, fpn1000 b8: at most 150 µs", PREDICTED_US["fpn1000", 8], stage),
            ("against torchvision eager: at least 50 ×", PREDICTED_SPEEDUP["fpn1000", 8], peer),
            ("preprocess 1080p b8: at least 0.7 of copy bandwidth", PREDICTED_SHARE, share),
            ("same bits from run to run and in any batch", True, same),
        )
    ]
