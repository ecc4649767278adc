"""The figures of an explanation as pictures of their own: what the page draws, and its charts."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from stream_rpn.explanation import charts, pictures
from stream_rpn.explanation.charts import COLOURS
from stream_rpn.explanation.facts import Explanation
from stream_rpn.kernels import boxes as box_ops

ACCENT, GOOD, BAD, TRUTH, WHITE = "#12b5ff", "#45d483", "#ff5a50", "#ffc53d", "#ffffff"
DPI = 130
# Inches above each panel.
TITLE = 0.3
# Boxes drawn in one picture.
BEST, FEW = 30, 15
# Panels of heat maps.
PANELS = 15


def pngs(facts: Explanation) -> dict[str, bytes]:
    """Returns every figure as a PNG file, by name, in the order of the page.

    Raises:
        StreamRPNError: matplotlib is not installed.
    """
    rgb = pictures.frame_rgb(facts.look)
    with charts.matplotlib().rc_context(charts.STYLE):
        drawn = {name: draw(facts, rgb) for name, draw in _FIGURES.items()}
    drawn |= charts.draw_charts(facts)
    found: dict[str, bytes] = {}
    for name in _ORDER:
        figure = drawn.get(name)
        if figure is not None:
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=DPI)
            found[f"{len(found) + 1:02}-{name.replace('_', '-')}.png"] = file.getvalue()
    return found


def _panels(titles: Sequence[str], shape: tuple[int, int], columns: int = 2) -> tuple[Any, Any]:
    """Returns a figure with a panel for each title, and its axes in a row."""
    from matplotlib.figure import Figure

    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    wide = 11.0 / columns
    high = min(wide * shape[0] / shape[1], 30.0 / rows)
    figure = Figure(figsize=(wide * columns, (high + TITLE) * rows))
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    # Margins are given, as finding them out draws everything twice.
    figure.subplots_adjust(0, 0, 1, 1 - TITLE / figure.get_figheight(), 0.02, TITLE / high)
    for place, title in zip(axes, titles, strict=False):
        place.set(title=title)
    for place in axes:
        place.set_axis_off()
    return figure, axes


def _show(axes: Any, rgb: np.ndarray, strength: float = 0.55) -> None:
    height, width = rgb.shape[:2]
    axes.imshow((rgb * strength).astype(np.uint8), extent=(0, width, height, 0))
    axes.set(xlim=(0, width), ylim=(height, 0))


def _box(axes: Any, box: Sequence[float], colour: Any, **options: Any) -> None:
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = (float(v) for v in box)
    axes.add_patch(
        Rectangle(
            (x1, y1),
            x2 - x1,
            y2 - y1,
            fill=False,
            edgecolor=colour,
            **{"linewidth": 1.5, **options},
        )
    )


def _in_frame(facts: Explanation, boxes: torch.Tensor) -> np.ndarray:
    found: np.ndarray = facts.look.to_frame(boxes.reshape(-1, 4)).numpy()
    return found


def _by_score(score: float) -> Any:
    from stream_rpn.drawing import GRADIENT

    place = np.linspace(0, 1, len(GRADIENT))
    return [
        float(np.interp(score, place, channel)) / 255 for channel in zip(*GRADIENT, strict=True)
    ]


def _input(facts: Explanation, rgb: np.ndarray) -> Any:
    seen = pictures.input_rgb(facts.look)
    height, width = facts.look.image_size
    titles = [
        f"the frame, {rgb.shape[1]}×{rgb.shape[0]}",
        f"the network's input, {width}×{height} in {seen.shape[1]}×{seen.shape[0]}",
    ]
    figure, axes = _panels(titles, rgb.shape[:2])
    _show(axes[0], rgb, 1.0)
    _show(axes[1], seen, 1.0)
    return figure


def _cells(facts: Explanation, rgb: np.ndarray) -> Any:
    titles = [
        f"{level.name}: {level.size[0]}×{level.size[1]}×{level.channels}, stride {level.stride[1]}"
        for level in facts.levels
    ]
    figure, axes = _panels(titles, rgb.shape[:2])
    scale_y, scale_x = (outer / inner for outer, inner in zip(rgb.shape, facts.look.image_size,
                                                              strict=False))  # fmt: skip
    for place, level, (row, column) in zip(axes, facts.levels, facts.point.cells, strict=False):
        _show(place, rgb, 0.8)
        (stride_y, stride_x), (rows, columns) = level.stride, level.size
        place.vlines(np.arange(columns + 1) * stride_x * scale_x, 0, rgb.shape[0], WHITE, lw=0.3)
        place.hlines(np.arange(rows + 1) * stride_y * scale_y, 0, rgb.shape[1], WHITE, lw=0.3)
        x, y = column * stride_x * scale_x, row * stride_y * scale_y
        _box(place, (x, y, x + stride_x * scale_x, y + stride_y * scale_y), ACCENT, linewidth=2)
    return figure


def _anchors(facts: Explanation, rgb: np.ndarray) -> Any:
    titles = [f"{level.name}: anchors, window, and where it looks" for level in facts.levels]
    figure, axes = _panels(titles, rgb.shape[:2])
    height, width = rgb.shape[:2]
    for index, (place, cell) in enumerate(zip(axes, facts.cells, strict=False)):
        _show(place, rgb)
        place.imshow(pictures.heat_rgba(facts, index), extent=(0, width, height, 0))
        window = torch.tensor(cell.window, dtype=torch.float32)
        _box(place, _in_frame(facts, window)[0], "#ff9a4d", linestyle="--")
        for box in _in_frame(facts, facts.every.anchors[facts.point.numbers[index]]):
            _box(place, box, COLOURS[index % len(COLOURS)])
        place.plot(*facts.point.at, "+", color=WHITE, markersize=11, markeredgewidth=2)
        place.set(xlim=(0, width), ylim=(height, 0))
    return figure


def _objectness(facts: Explanation, rgb: np.ndarray) -> Any:
    per_cell = len(facts.levels[0].base_anchors)
    panels = [(level, a) for level in range(len(facts.levels)) for a in range(per_cell)]
    panels = panels[:: max(1, -(-len(panels) // PANELS))]
    maps = []
    for index, a in panels:
        level = facts.levels[index]
        logits = torch.from_numpy(level.logits).reshape(*level.size, per_cell)[..., a]
        maps.append(box_ops.sigmoid(logits).numpy())
    titles = [
        f"{facts.levels[index].name}, anchor {a + 1}: up to {scores.max():.2f}"
        for (index, a), scores in zip(panels, maps, strict=True)
    ]
    figure, axes = _panels(titles, rgb.shape[:2], columns=2 if len(panels) <= 4 else 3)
    for place, (index, a), scores in zip(axes, panels, maps, strict=False):
        level = facts.levels[index]
        _show(place, rgb)
        (stride_y, stride_x), (rows, columns) = level.stride, level.size
        x1, y1, x2, y2 = level.base_anchors[a]
        left, top = (x1 + x2 - stride_x) / 2, (y1 + y2 - stride_y) / 2
        corners = torch.tensor([left, top, left + columns * stride_x, top + rows * stride_y])
        x1, y1, x2, y2 = _in_frame(facts, corners)[0]
        place.imshow(scores, cmap="turbo", alpha=0.6, extent=(x1, x2, y2, y1), vmin=0)
        place.set(xlim=(0, rgb.shape[1]), ylim=(rgb.shape[0], 0))
    return figure


def _follow(facts: Explanation, rgb: np.ndarray) -> Any:
    number = facts.point.answer.contender
    anchor, moved, box = (
        _in_frame(facts, boxes[number])[0]
        for boxes in (facts.every.anchors, facts.every.unclipped, facts.every.boxes)
    )
    deltas = ", ".join(f"{value:.3f}" for value in facts.every.deltas[number].tolist())
    title = f"anchor (dashed) → deltas {deltas} → box (white) → clipped (blue)"
    figure, axes = _panels([title], rgb.shape[:2], columns=1)
    _show(axes[0], rgb)
    _box(axes[0], anchor, COLOURS[facts.level_of_best % len(COLOURS)], linestyle="--")
    _box(axes[0], moved, WHITE)
    _box(axes[0], box, ACCENT, linewidth=2.5)
    axes[0].plot(*facts.point.at, "+", color=WHITE, markersize=12, markeredgewidth=2)
    return figure


def _nms(facts: Explanation, rgb: np.ndarray) -> Any:
    own = facts.look.spec.nms_thresh
    run = next(s for s in facts.suppressions if s.threshold == own)
    titles = [f"the best {BEST} before suppression", f"the best {BEST} after, IoU above {own:g}"]
    figure, axes = _panels(titles, rgb.shape[:2])
    boxes = _in_frame(facts, facts.every.boxes[facts.candidates])
    scores = box_ops.sigmoid(facts.every.logits[facts.candidates]).tolist()
    for place, shown in zip(
        axes, (list(range(min(BEST, len(boxes)))), run.kept[:BEST].tolist()), strict=True
    ):
        _show(place, rgb)
        for index in reversed(shown):
            _box(place, boxes[index], _by_score(scores[index]))
    return figure


def _truth(facts: Explanation, rgb: np.ndarray) -> Any:
    truth = facts.truth
    if truth is None:
        return None
    titles = ["objects, the anchors that are labelled so, and the best of each (blue)",
              "the minibatch: objects (green) and background"]  # fmt: skip
    figure, axes = _panels(titles, rgb.shape[:2])
    for place in axes:
        _show(place, rgb)
    for box in _in_frame(facts, facts.every.anchors[np.flatnonzero(truth.labels >= 0)]):
        _box(axes[0], box, GOOD, linewidth=0.6)
    for box in _in_frame(facts, facts.every.anchors[truth.best_anchors]):
        _box(axes[0], box, ACCENT)
    for place in axes:
        for box in truth.objects:
            _box(place, box, TRUTH, linewidth=2)
    for numbers, colour in ((truth.negatives, "#9fb3c5"), (truth.positives, GOOD)):
        anchors = _in_frame(facts, facts.every.anchors[numbers])
        x, y = (anchors[:, [0, 2]].mean(1), anchors[:, [1, 3]].mean(1))
        axes[1].plot(x, y, "o", color=colour, markersize=3)
    return figure


def _shift(facts: Explanation, rgb: np.ndarray) -> Any:
    titles = [
        f"the picture moved by {shift.expected:.1f} px: {shift.found} of {shift.compared} found"
        for shift in facts.shifts
    ]
    figure, axes = _panels(titles, rgb.shape[:2])
    for place, shift in zip(axes, facts.shifts, strict=False):
        _show(place, rgb)
        for before, after in zip(shift.boxes[:FEW], shift.after[:FEW], strict=True):
            _box(place, before, WHITE, linestyle="--", linewidth=0.8)
            _box(place, after, ACCENT)
    return figure


_FIGURES: dict[str, Callable[[Explanation, np.ndarray], Any]] = {
    "input": _input,
    "cells": _cells,
    "anchors": _anchors,
    "objectness": _objectness,
    "follow": _follow,
    "nms": _nms,
    "truth": _truth,
    "shift": _shift,
}
_ORDER = ("input", "cells", "anchors", "dot", "objectness", "follow", "logits", "other_k", "nms",
          "truth", "regression", "moved", "shift", "cost")  # fmt: skip
