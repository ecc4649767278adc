"""The facts as plain data, for a file and for the page; boxes are in pixels of the frame.

Boxes of the network's input have names that say so.
"""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from stream_rpn import __version__
from stream_rpn.explanation.answers import Answer
from stream_rpn.explanation.facts import Explanation
from stream_rpn.explanation.ledger import Fate
from stream_rpn.explanation.points import Cell, Point
from stream_rpn.explanation.truth import CROSSING
from stream_rpn.kernels import boxes as box_ops
from stream_rpn.training.targets import BACKGROUND, IGNORED

FATES = {
    Fate.NOT_SELECTED: "not selected",
    Fate.NOT_FINITE: "not finite",
    Fate.TOO_SMALL: "too small",
    Fate.SCORED_LOW: "scored low",
    Fate.SUPPRESSED: "suppressed",
    Fate.BEYOND_TOP: "beyond top",
    Fate.PROPOSED: "proposed",
}


def record_of(facts: Explanation) -> dict[str, Any]:
    """Returns the facts as what JSON can hold."""
    look, frame = facts.look, facts.look.frame
    return {
        "version": __version__,
        "source": facts.source,
        "model": facts.model,
        "trained": facts.trained,
        "frame": {
            "index": frame.index,
            "seconds": frame.pts_seconds,
            "name": frame.name,
            "width": frame.width,
            "height": frame.height,
            "rotation": frame.rotation,
            "matrix": frame.color.matrix,
            "full_range": frame.color.full_range,
        },
        "input": _input(facts),
        "limits": asdict(look.spec),
        "levels": _levels(facts),
        "bins": digits(facts.bins),
        "channels": asdict(facts.channels),
        "points": [_point(facts, point) for point in facts.points],
        "cells": [_cell(facts, cell) for cell in facts.cells],
        "proposals": {
            "boxes": pixels(facts.proposals.boxes),
            "scores": digits(facts.proposals.scores),
            "levels": facts.proposals.levels.tolist(),
            "anchors": facts.proposals.anchors.tolist(),
        },
        "candidates": _candidates(facts),
        "suppressions": [
            {
                "threshold": s.threshold,
                "total": s.total,
                "kept": s.kept.tolist(),
                "suppressors": s.suppressors.tolist(),
                "overlaps": digits(s.overlaps, 3),
            }
            for s in facts.suppressions
        ],
        "other_k": [asdict(other) for other in facts.other_k],
        "truth": _truth(facts),
        "shifts": [
            {
                **{name: getattr(shift, name) for name in ("pixels", "stride", "level", "compared",
                                                           "found", "expected")},
                "moved": digits(shift.moved, 4),
                "score_changes": digits(shift.score_changes, 3),
                "boxes": pixels(shift.boxes),
                "after": pixels(shift.after),
            }
            for shift in facts.shifts
        ],
        "milliseconds": {
            name: round(histogram.total_ms / max(histogram.count, 1), 2)
            for name, histogram in look.times.stages.items()
        },
    }  # fmt: skip


def digits(values: Any, significant: int = 5) -> Any:
    """Returns numbers rounded to so many significant digits, in lists as they came."""
    if isinstance(values, np.ndarray):
        return digits(values.tolist(), significant)
    if isinstance(values, list):
        return [digits(value, significant) for value in values]
    return float(f"{values:.{significant}g}") if np.isfinite(values) else None


def pixels(boxes: Any) -> list[list[float]]:
    """Returns boxes [N, 4] to a tenth of a pixel."""
    rows: list[list[float]] = np.round(np.asarray(boxes, np.float64), 1).tolist()
    return rows


def _in_frame(facts: Explanation, boxes: torch.Tensor) -> list[list[float]]:
    return pixels(facts.look.to_frame(boxes.reshape(-1, 4)).numpy())


def _input(facts: Explanation) -> dict[str, Any]:
    look, spec = facts.look, facts.look.rpn.input_spec
    height, width = look.image_size
    x, y = facts.point.at
    column = min(int(x * width / look.frame.width), width - 1)
    row = min(int(y * height / look.frame.height), height - 1)
    value = look.images[0, :, row, column]
    rgb = (value * torch.tensor(spec.std) + torch.tensor(spec.mean)) * 255
    return {
        "resized": [height, width],
        "padded": list(look.images.shape[-2:]),
        "scale": digits([width / look.frame.width, height / look.frame.height]),
        **{name: getattr(spec, name) for name in ("min_size", "max_size", "size_divisor")},
        "mean": list(spec.mean),
        "std": list(spec.std),
        "antialias": spec.antialias,
        "pixel": {
            "at": [column, row],
            "rgb": [round(v) for v in rgb.tolist()],
            "value": digits(value.tolist(), 3),
        },
    }


def _levels(facts: Explanation) -> list[dict[str, Any]]:
    found = []
    for level in facts.levels:
        sides = level.base_anchors[:, 2:] - level.base_anchors[:, :2]
        scores = box_ops.sigmoid(torch.from_numpy(level.logits)).numpy()
        found.append(
            {
                "name": level.name,
                "stride": list(level.stride),
                "channels": level.channels,
                "size": list(level.size),
                "per_cell": len(sides),
                "anchors": len(level.logits),
                "inside": level.inside,
                "field": level.field,
                "window_field": level.window_field,
                "base_anchors": pixels(level.base_anchors),
                "selected": level.selected,
                "cut": digits(level.cut),
                "counts": level.counts.tolist(),
                # [H, W, A] bytes, 0 … 255 for probabilities of 0 … 1: one number an anchor.
                "scores": base64.b64encode(
                    (scores * 255).round().astype(np.uint8).tobytes()
                ).decode(),
            }
        )
    return found


def _anchor(facts: Explanation, number: int) -> dict[str, Any]:
    """Returns an anchor followed through."""
    every, book = facts.every, facts.book
    level = int(every.levels[number])
    a = (number - every.starts[level]) % len(facts.levels[level].base_anchors)
    fate = book.fate(number)
    found: dict[str, Any] = {
        "level": level,
        "a": a,
        "anchor": _in_frame(facts, every.anchors[number])[0],
        "anchor_in_input": pixels(every.anchors[number][None])[0],
        "deltas": digits(every.deltas[number].tolist(), 4),
        "moved_in_input": pixels(every.unclipped[number][None])[0],
        "moved": _in_frame(facts, every.unclipped[number])[0],
        "box_in_input": pixels(every.boxes[number][None])[0],
        "box": _in_frame(facts, every.boxes[number])[0],
        "logit": digits(float(every.logits[number]), 4),
        "score": digits(float(box_ops.sigmoid(every.logits[number])), 4),
        "rank": int(every.ranks[number]),
        "fate": FATES[fate],
        "place": int(book.places[number]),
    }
    if fate is Fate.SUPPRESSED:
        found["by"] = _other(facts, int(book.suppressors[number]))
        found["iou"] = digits(float(book.overlaps[number]), 3)
    return found


def _other(facts: Explanation, number: int) -> dict[str, Any]:
    every = facts.every
    return {
        "box": _in_frame(facts, every.boxes[number])[0],
        "score": digits(float(box_ops.sigmoid(every.logits[number])), 4),
        "place": int(facts.book.places[number]),
    }


def _point(facts: Explanation, point: Point) -> dict[str, Any]:
    return {
        "name": point.name,
        "at": [round(value, 1) for value in point.at],
        "cells": [list(cell) for cell in point.cells],
        "anchors": [[_anchor(facts, n) for n in numbers] for numbers in point.numbers],
        "answer": _answer(facts, point.answer),
    }


def _answer(facts: Explanation, answer: Answer) -> dict[str, Any]:
    every = facts.every
    found: dict[str, Any] = {
        "target": [round(value, 1) for value in answer.target],
        "outcome": answer.outcome,
        "sentence": answer.sentence,
        "place": answer.place,
        "contender": None if answer.contender < 0 else _anchor(facts, answer.contender),
        "obstacles": [
            {
                "kind": obstacle.kind,
                "sentence": obstacle.sentence,
                "remedy": obstacle.remedy,
                "suppressors": [
                    {**_other(facts, number), "iou": digits(overlap, 3)}
                    for number, overlap in zip(obstacle.suppressors, obstacle.overlaps, strict=True)
                ],
            }
            for obstacle in answer.obstacles
        ],
    }
    if answer.best_anchor >= 0:
        found["contender_iou"] = digits(answer.contender_iou, 3)
        found["best_anchor"] = _in_frame(facts, every.anchors[answer.best_anchor])[0]
        found["best_anchor_iou"] = digits(answer.best_anchor_iou, 3)
        found["best_box_iou"] = digits(answer.best_box_iou, 3)
    return found


def _cell(facts: Explanation, cell: Cell) -> dict[str, Any]:
    dot = cell.dot
    window = torch.tensor(cell.window, dtype=torch.float32)
    return {
        "best": _anchor(facts, cell.best),
        "window_in_input": list(cell.window),
        "window": _in_frame(facts, window)[0],
        "effective": {"half": cell.effective.half, "most": cell.effective.most},
        "channels": {
            "objectness": digits(cell.channels[0], 4),
            "deltas": digits(cell.channels[1], 4),
        },
        "dot": None
        if dot is None
        else {
            "row": dot.row,
            "terms": len(dot.weights),
            "weights": digits(dot.weights, 4),
            "features": digits(dot.features, 4),
            "bias": digits(dot.bias, 4),
            "total": digits(dot.total, 4),
            "rest": digits(dot.rest, 4),
            "rest_name": dot.rest_name,
        },
    }


def _candidates(facts: Explanation) -> dict[str, Any]:
    numbers = torch.from_numpy(facts.candidates)
    every = facts.every
    return {
        "boxes": _in_frame(facts, every.boxes[numbers]),
        "scores": digits(box_ops.sigmoid(every.logits[numbers]).numpy(), 4),
        "levels": every.levels[numbers].tolist(),
    }


def _truth(facts: Explanation) -> dict[str, Any] | None:
    truth, every = facts.truth, facts.every
    if truth is None:
        return None
    named = {"background": BACKGROUND, "ignored": IGNORED, "crossing": CROSSING}
    counts = []
    for level in range(len(facts.levels)):
        labels = truth.labels[(every.levels == level).numpy()]
        counts.append(
            {
                "object": int((labels >= 0).sum()),
                **{name: int((labels == label).sum()) for name, label in named.items()},
            }
        )
    positives = np.flatnonzero(truth.labels >= 0)
    centres = (every.anchors[:, :2] + every.anchors[:, 2:]) / 2
    dots = torch.cat((centres, centres), 1)
    return {
        "objects": pixels(truth.objects),
        "answers": [_answer(facts, answer) for answer in truth.answers],
        "positives_of": [int((truth.labels == i).sum()) for i in range(len(truth.objects))],
        "counts": counts,
        "best_anchors": _in_frame(facts, every.anchors[truth.best_anchors]),
        "best_overlaps": digits(truth.best_overlaps, 3),
        "positive_anchors": _in_frame(facts, every.anchors[positives]),
        "sample": {
            "positives": [p[:2] for p in _in_frame(facts, dots[truth.positives])],
            "negatives": [p[:2] for p in _in_frame(facts, dots[truth.negatives])],
        },
        "wanted": digits(truth.wanted, 4),
        "predicted": digits(truth.predicted, 4),
        "losses": {
            name: {"objectness": digits(objectness, 4), "box": digits(box, 4)}
            for name, (objectness, box) in truth.losses.items()
        },
        "thresholds": list(truth.thresholds),
    }
