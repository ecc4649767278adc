"""The facts of an explanation, in the order in which the data flows, and how they are found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stream_rpn import anchors as anchor_ops
from stream_rpn.explanation import head as head_facts
from stream_rpn.explanation import receptive
from stream_rpn.explanation.head import Channels
from stream_rpn.explanation.ledger import Anchors, Ledger, ledger
from stream_rpn.explanation.look import Look, look
from stream_rpn.explanation.points import Cell, Point, cells_at, points_of
from stream_rpn.explanation.selection import (
    OtherK,
    Suppression,
    best_candidates,
    other_k,
    suppressions,
)
from stream_rpn.explanation.shift import Shift, shifted
from stream_rpn.explanation.truth import Truth, read_objects, teach
from stream_rpn.frame import Frame, Proposals, StreamRPNError
from stream_rpn.rpn import RPN
from stream_rpn.sources import masked, open_source
from stream_rpn.sources.select import select
from stream_rpn.timing import StageTimes

# Of the histograms of logits.
BINS = 48


@dataclass(frozen=True)
class Level:
    """A feature map and its anchors.

    Attributes:
        name: of the map.
        stride: (y, x) input pixels per cell.
        channels: C of the map.
        size: (height, width) in cells.
        base_anchors: [A, 4] float32, those of cell (0, 0), in input pixels.
        inside: how many of its anchors do not cross the border of the picture.
        field: side of the receptive field of a cell in input pixels; None for the whole picture.
        window_field: of a cell of the head, whose window reads several cells.
        logits: [H·W·A] float32, by anchor index.
        selected: how many anchors enter suppression.
        cut: the lowest logit among these.
        counts: [BINS] anchors by logit, in the bins of `Explanation.bins`.
    """

    name: str
    stride: tuple[int, int]
    channels: int
    size: tuple[int, int]
    base_anchors: np.ndarray
    inside: int
    field: int | None
    window_field: int | None
    logits: np.ndarray
    selected: int
    cut: float
    counts: np.ndarray


@dataclass(frozen=True)
class Explanation:
    """Everything about one frame.

    Attributes:
        source: as the user named it, passwords masked.
        model: the network's name.
        trained: whether its weights mean anything.
        look: the tensors: input, maps, the head's outputs.
        proposals: what the pipeline makes of them.
        book: the fate of every anchor.
        levels: the feature maps, finest first.
        bins: [BINS + 1] the edges of the histograms of logits.
        channels: the layout of the head's output.
        point: the chosen point.
        cells: its cell on every level.
        points: it and others.
        other_k: what other `pre_nms` would have given.
        candidates: numbers of the best candidates of all levels, by logit.
        suppressions: of these, under several thresholds; the model's own is among them.
        truth: with ground truth, what it means to the anchors; None without.
        shifts: what becomes of the proposals when the picture moves.
    """

    source: str
    model: str
    trained: bool
    look: Look
    proposals: Proposals
    book: Ledger
    levels: list[Level]
    bins: np.ndarray
    channels: Channels
    point: Point
    cells: list[Cell]
    points: list[Point]
    other_k: list[OtherK]
    candidates: np.ndarray
    suppressions: list[Suppression]
    truth: Truth | None
    shifts: list[Shift]

    @property
    def every(self) -> Anchors:
        """All anchors of the frame."""
        return self.book.every

    @property
    def level_of_best(self) -> int:
        """The level of the best anchor at the chosen point."""
        return int(self.every.levels[self.point.answer.contender])

    def record(self) -> dict[str, Any]:
        """Returns the facts as what JSON can hold; boxes in pixels of the frame."""
        from stream_rpn.explanation.record import record_of

        return record_of(self)


def find_frame(source: str, number: int | None, time: float | None, times: StageTimes) -> Frame:
    """Returns a frame of a source by its number from 0, or the first one from a time on.

    Args:
        source: as `sources.open_source` takes it.
        number: of the frame; the first one where neither is given.
        time: seconds from the first timestamp.
        times: gets how long a frame took to decode.

    Raises:
        StreamRPNError: it cannot be opened, or has no such frame.
    """
    if number is not None and time is not None:
        raise StreamRPNError("a frame is chosen by its number or by its time, not by both")
    if (number or 0) < 0 or not (time or 0.0) >= 0:
        raise StreamRPNError("the number of a frame and its time must not be negative")
    last = -1
    with open_source(source, decoder="cpu") as opened:
        frames: Iterator[Frame] = times.each("decode", opened)
        if time is not None:
            frames = select(frames, start=time)
        for frame in frames:
            if frame.index >= (number or 0):
                if number is not None and frame.index != number:
                    raise StreamRPNError(f"{masked(source)}: frame {number} cannot be decoded")
                return frame
            last = frame.index
    if time is not None:
        raise StreamRPNError(f"{masked(source)} ends before {time:g} s")
    raise StreamRPNError(
        f"{masked(source)} has no frame {number}; its last one is number {last}, counted from 0"
    )


def explain_frame(
    rpn: RPN,
    source: str,
    frame: Frame,
    times: StageTimes,
    *,
    at: tuple[float, float] | None = None,
    gt: str | Path | None = None,
) -> Explanation:
    """Returns the explanation of a frame.

    Args:
        rpn: the network, on the CPU in float32, in eval mode.
        source: what the frame is of.
        frame: the frame.
        times: what decoding took.
        at: the point to look at, x and y in pixels of the frame. By default the centre of the first
            object that was not proposed, or of the best proposal, or of the frame.
        gt: ground truth: COCO instances or MOTChallenge.

    Raises:
        StreamRPNError: the point is outside, or the ground truth does not fit.
    """
    if at is not None and not (0 <= at[0] < frame.width and 0 <= at[1] < frame.height):
        raise StreamRPNError(
            f"the point {at[0]:g},{at[1]:g} is outside the frame of "
            f"{frame.width}x{frame.height} pixels"
        )
    objects = None if gt is None else read_objects(str(gt), frame, masked(source))
    seen = look(rpn, frame, times)
    every = Anchors.of(seen)
    if not len(every.logits):
        raise StreamRPNError(f"{rpn.name} has no anchor on a frame this small")
    book = ledger(seen, every, seen.spec)
    truth = None if objects is None else teach(seen, book, *objects)
    points = list(points_of(seen, book, truth, at))
    point = points[0]
    bins = _bins(every)
    level = int(every.levels[point.answer.contender])
    stride = seen.strides[level][1]
    candidates = best_candidates(seen, book)
    return Explanation(
        source=masked(source),
        model=rpn.name,
        trained=rpn.trained,
        look=seen,
        proposals=seen.proposals,
        book=book,
        levels=_levels(seen, every, bins),
        bins=bins,
        channels=head_facts.channels(seen),
        point=point,
        cells=cells_at(seen, every, point),
        points=points,
        other_k=other_k(seen, every),
        candidates=candidates.numpy(),
        suppressions=suppressions(seen, every, candidates),
        truth=truth,
        shifts=[shifted(seen, level, pixels) for pixels in (stride, max(stride // 2, 1))],
    )


def _levels(seen: Look, every: Anchors, bins: np.ndarray) -> list[Level]:
    fields, windows = receptive.nominal(seen.rpn)
    inside = anchor_ops.inside(every.anchors, seen.image_size)
    found = []
    for index, (name, level_map) in enumerate(seen.maps.items()):
        of_level = every.levels == index
        logits = every.logits[of_level].numpy()
        selected = min(seen.spec.pre_nms_top_n, len(logits))
        cut = np.partition(logits, -selected)[-selected] if selected else -np.inf
        height, width = level_map.shape[-2:]
        found.append(
            Level(
                name=name,
                stride=seen.strides[index],
                channels=level_map.shape[1],
                size=(height, width),
                base_anchors=seen.heads.base_anchors[index].numpy(),
                inside=int(inside[of_level].sum()),
                field=fields[index],
                window_field=windows[index],
                logits=logits,
                selected=selected,
                cut=float(cut),
                counts=np.histogram(logits[np.isfinite(logits)], bins)[0],
            )
        )
    return found


def _bins(every: Anchors) -> np.ndarray:
    logits = every.logits[every.logits.isfinite()]
    low, high = (float(logits.min()), float(logits.max())) if len(logits) else (0.0, 0.0)
    # All in one place, as of a head that is not trained, they still need a width.
    return np.linspace(low, max(high, low + 1e-3), BINS + 1)
