"""Points of the frame: their cells on every level, and the chosen one looked into."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stream_rpn.explanation import receptive
from stream_rpn.explanation.answers import Answer, why_not_anchors
from stream_rpn.explanation.head import Dot, dot_product
from stream_rpn.explanation.ledger import Anchors, Ledger
from stream_rpn.explanation.look import Look
from stream_rpn.explanation.truth import Truth

# Points beside the chosen one: of the best proposals, of the first objects, and on a grid.
BEST, OBJECTS, GRID = 8, 24, (7, 5)


@dataclass(frozen=True)
class Point:
    """A point of the frame and the cells whose anchors are centred nearest to it.

    Attributes:
        name: why it is a point, e.g. "chosen" or "proposal 3".
        at: (x, y) in pixels of the frame.
        cells: per level (row, column).
        numbers: per level the numbers of the cell's anchors.
        answer: what became of the best of them.
    """

    name: str
    at: tuple[float, float]
    cells: list[tuple[int, int]]
    numbers: list[list[int]]
    answer: Answer


@dataclass(frozen=True)
class Cell:
    """The chosen point's cell on a level, looked into.

    Attributes:
        best: number of its anchor of the highest logit.
        window: x1, y1, x2, y2 of what the head depends on there, in input pixels.
        effective: what it looks at.
        dot: how the best anchor's score comes about; None of a head of one's own.
        channels: [A or 2A] and [4A] float32, the head's output there.
    """

    best: int
    window: tuple[int, int, int, int]
    effective: receptive.Effective
    dot: Dot | None
    channels: tuple[np.ndarray, np.ndarray]


def points_of(
    seen: Look, book: Ledger, truth: Truth | None, at: tuple[float, float] | None
) -> Iterator[Point]:
    """Yields the chosen point, then others to look at."""
    width, height = seen.frame.width, seen.frame.height
    named: list[tuple[str, tuple[float, float]]] = []
    # Where the anchors are centred that became the best proposals.
    anchors = seen.to_frame(book.every.anchors[book.proposed()[:BEST]]).numpy()
    for rank, box in enumerate(anchors, start=1):
        named.append((f"proposal {rank}", _centre(box)))
    if truth is not None:
        pairs = list(zip(truth.objects, truth.answers, strict=True))
        objects = [(f"object {i}", _centre(box)) for i, (box, _) in enumerate(pairs, start=1)]
        missed = [
            point
            for point, (_, answer) in zip(objects, pairs, strict=True)
            if answer.outcome != "proposed"
        ]
        named = [*missed[:1], *named, *objects[:OBJECTS]]
    centre = named[0][1] if named else (width / 2, height / 2)
    columns, rows = GRID
    for row in range(rows):
        for column in range(columns):
            middle = ((column + 0.5) * width / columns, (row + 0.5) * height / rows)
            named.append((f"row {row + 1}, column {column + 1}", middle))
    for name, where in [("chosen", at or centre), *named]:
        x = min(max(where[0], 0.0), width - 1e-3)
        y = min(max(where[1], 0.0), height - 1e-3)
        yield _point(seen, book, name, (x, y))


def _centre(box: np.ndarray) -> tuple[float, float]:
    x1, y1, x2, y2 = box.tolist()
    return (x1 + x2) / 2, (y1 + y2) / 2


def _point(seen: Look, book: Ledger, name: str, at: tuple[float, float]) -> Point:
    x, y = (
        place * inner / outer
        for place, inner, outer in zip(
            at, seen.image_size[::-1], (seen.frame.width, seen.frame.height), strict=True
        )
    )
    cells, numbers = [], []
    for level, base in enumerate(seen.heads.base_anchors):
        height, width = seen.heads.objectness[level].shape[-2:]
        centre_x, centre_y = ((base[:, :2] + base[:, 2:]) / 2).mean(0).tolist()
        stride_y, stride_x = seen.strides[level]
        row = min(max(round((y - centre_y) / stride_y), 0), height - 1)
        column = min(max(round((x - centre_x) / stride_x), 0), width - 1)
        first = book.every.starts[level] + (row * width + column) * len(base)
        cells.append((row, column))
        numbers.append(list(range(first, first + len(base))))
    answer = why_not_anchors(seen, book, at, [n for level in numbers for n in level])
    return Point(name, at, cells, numbers, answer)


def cells_at(seen: Look, every: Anchors, point: Point) -> list[Cell]:
    """Looks into the cells of a point, at the best anchor of each."""
    best = [numbers[int(every.logits[numbers].argmax())] for numbers in point.numbers]
    which = [
        (level, number - numbers[0], row, column)
        for level, (number, numbers, (row, column)) in enumerate(
            zip(best, point.numbers, point.cells, strict=True)
        )
    ]
    found = receptive.fields(seen.rpn, seen.images)
    return [
        Cell(
            best=number,
            window=found.box(level, row, column),
            effective=effective,
            dot=dot_product(seen, level, a, row, column),
            channels=(
                seen.heads.objectness[level][0, :, row, column].float().numpy(),
                seen.heads.deltas[level][0, :, row, column].float().numpy(),
            ),
        )
        for number, (level, a, row, column), effective in zip(
            best, which, receptive.effective(seen, which), strict=True
        )
    ]
