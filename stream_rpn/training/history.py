"""What is kept of a training run: metrics.jsonl, its curves, and TensorBoard's events."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from stream_rpn.frame import StreamRPNError
from stream_rpn.measure.plot import encoded, new_figure
from stream_rpn.sinks.place import put_whole

METRICS = "metrics.jsonl"
LOSSES = ("objectness_loss", "box_loss")
RECALLS = ("AR@100", "AR@1000", "R50@300", "R50@1000")
# Losses are drawn as means of a tenth of the run, of so many steps at most.
SMOOTHING_STEPS = 50


class History:
    """Writes the rows of a run to metrics.jsonl and, where it is installed, to TensorBoard.

    Args:
        folder: exists.
        kept: the last step of an earlier run to go on from, whose rows behind it will be written
            again; None to begin anew.
    """

    def __init__(self, folder: Path, kept: int | None) -> None:
        self._path = folder / METRICS
        rows = read_rows(folder) if kept is not None else []
        text = "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= (kept or 0))
        put_whole(str(self._path), text.encode())
        self._board: Any = None
        if find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            purge = None if kept is None else kept + 1
            self._board = SummaryWriter(str(folder), purge_step=purge)

    def write(self, row: dict[str, Any]) -> None:
        """Writes a row: of a step, or of a measurement."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._board is not None:
            group = "recall" if "AR@100" in row else "training"
            for name, value in row.items():
                if isinstance(value, int | float) and name not in ("step", "epoch"):
                    self._board.add_scalar(f"{group}/{name}", value, row["step"])
            self._board.flush()

    def close(self) -> None:
        """Ends TensorBoard's file."""
        if self._board is not None:
            self._board.close()


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's metrics.jsonl, without one that was cut off.

    Raises:
        StreamRPNError: it is not what a run wrote.
    """
    path = folder / METRICS
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        if not all(isinstance(row["step"], int) for row in rows):
            raise TypeError
    except (ValueError, KeyError, TypeError) as error:
        raise StreamRPNError(
            f"'{path}' is not what a run wrote; move it away, or --overwrite begins anew"
        ) from error
    return rows


def draw_history(folder: Path) -> None:
    """Writes curves.png from metrics.jsonl: losses, and recall where it was measured.

    Without matplotlib, which is optional, there is no picture.
    """
    if not find_spec("matplotlib"):
        return
    rows = read_rows(folder)
    steps = [row for row in rows if LOSSES[0] in row]
    measured = [row for row in rows if RECALLS[0] in row]
    figure = new_figure(11, 4.5)
    losses, recall = figure.subplots(1, 2)
    window = smoothing(len(steps))
    epochs = moving_mean([row["epoch"] for row in steps], window)
    for name in LOSSES:
        means = moving_mean([row[name] for row in steps], window)
        losses.plot(epochs, means, ".-" if len(means) < 2 * SMOOTHING_STEPS else "-", label=name)
    for name in RECALLS:
        points = [(row["epoch"], row[name]) for row in measured]
        recall.plot(*zip(*points, strict=True), ".-", label=name) if points else None
    mean = f", mean of {window} steps" if window > 1 else ""
    losses.set(xlabel="epoch", title=f"Losses{mean}")
    recall.set(xlabel="epoch", title="Recall of the averaged weights", ylim=(0, 1))
    for axes in (losses, recall):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    put_whole(str(folder / "curves.png"), encoded(figure, "png", dpi=110))


def smoothing(steps: int) -> int:
    """Returns how many steps are averaged in the curve of a run of `steps`."""
    return max(1, min(SMOOTHING_STEPS, steps // 10))


def moving_mean(values: list[float], window: int) -> np.ndarray:
    """Returns the means [N - window + 1] of every `window` values [N] in a row."""
    if not values:
        return np.zeros(0)
    return np.convolve(values, np.full(window, 1 / window), mode="valid")
