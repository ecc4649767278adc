"""The curves of a training run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

SMOOTHING_STEPS = 50


def draw_history(folder: Path) -> None:
    """Writes curves.png from metrics.jsonl: losses, and recall where it was measured.

    Without matplotlib, which is optional, there is no picture.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    steps = [row for row in rows if "box_loss" in row]
    measured = [row for row in rows if "AR@100" in row]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    losses, recall = figure.subplots(1, 2)
    epochs = np.array([row["epoch"] for row in steps])
    for name in ("objectness_loss", "box_loss"):
        values = np.array([row[name] for row in steps])
        window = min(SMOOTHING_STEPS, len(values))
        if window:
            mean = np.convolve(values, np.full(window, 1 / window), mode="valid")
            losses.plot(epochs[window - 1 :], mean, label=name.replace("_", " "))
    for name in ("AR@100", "AR@1000", "R50@300", "R50@1000"):
        points = [(row["epoch"], row[name]) for row in measured]
        recall.plot(*zip(*points, strict=True), ".-", label=name) if points else None
    losses.set(xlabel="epoch", title=f"Losses, mean of {SMOOTHING_STEPS} steps")
    recall.set(xlabel="epoch", title="Recall of the averaged weights", ylim=(0, 1))
    for axes in (losses, recall):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    figure.savefig(folder / "curves.png", dpi=110)
