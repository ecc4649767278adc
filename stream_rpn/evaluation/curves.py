"""Recall against IoU and against the number of proposals, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stream_rpn.evaluation.recall import Recall
from stream_rpn.measure.plot import new_figure, save


def draw_curves(recalls: Mapping[str, Recall], path: str | Path) -> None:
    """Writes recall against IoU and recall against the number of proposals as a picture.

    Args:
        recalls: by name; their limits are the points of the second curve.
        path: a file name that matplotlib knows the ending of.

    Raises:
        StreamRPNError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure(11, 4.5)
    by_iou, by_count = figure.subplots(1, 2)
    thresholds = np.linspace(0.5, 1.0, 51)
    for name, recall in recalls.items():
        for limit in sorted({100, 300, recall.limits[-1]} & set(recall.limits)):
            values = [recall.at(t, limit) for t in thresholds]
            by_iou.plot(thresholds, values, label=f"{name}, {limit} proposals")
        by_iou_thresh = {f"IoU {t}": [recall.at(t, k) for k in recall.limits] for t in (0.5, 0.7)}
        average = [recall.average(k) for k in recall.limits]
        for label, values in (*by_iou_thresh.items(), ("average 0.5–0.95", average)):
            by_count.plot(recall.limits, values, ".-", label=f"{name}, {label}")
    by_iou.set(xlabel="IoU", ylabel="recall", ylim=(0, 1), title="Recall against IoU")
    by_count.set(
        xlabel="proposals per image", xscale="log", ylim=(0, 1), title="Recall against proposals"
    )
    for axes in (by_iou, by_count):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    save(figure, path)
