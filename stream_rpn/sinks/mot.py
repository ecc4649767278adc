"""MOTChallenge detection text (det.txt)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from stream_rpn.frame import Proposals, StreamRPNError
from stream_rpn.sinks.record import DAMAGE, Contents, saved_proposals
from stream_rpn.sinks.sink import WholeFileSink


class MOTSink(WholeFileSink):
    """Writes `frame,id,left,top,width,height,conf,class,visibility` lines as trackers read them.

    As in MOTChallenge frames count from 1, and so do pixels: `left` is x1 + 1, `top` is y1 + 1.
    The id is −1 (a detection, not a track); class and visibility are 1: to whom the world
    coordinates of old files stand there, these say nothing, and CVAT wants a class.
    """

    def _write(self, proposals: Proposals) -> None:
        boxes = np.asarray(proposals.boxes, dtype=np.float64)
        rows = np.column_stack([boxes[:, :2] + 1, boxes[:, 2:] - boxes[:, :2], proposals.scores])
        line = f"{proposals.frame + 1},-1,%.2f,%.2f,%.2f,%.2f,%.6g,1,1\n"
        self._file.write((line * len(rows) % tuple(rows.ravel().tolist())).encode())


def read_mot_detections(path: Path, contents: Contents) -> Iterator[Proposals]:
    """Yields the frames of MOTChallenge detections that have boxes."""
    # Bytes that are no text become what is no number.
    with open(path, encoding="utf-8", errors="replace") as file:
        for frame, group in itertools.groupby(_rows(path, file), key=lambda row: row[0]):
            rows = np.array([row[:7] for row in group])
            boxes = rows[:, 2:6].copy()
            boxes[:, :2] -= 1
            boxes[:, 2:] += boxes[:, :2]
            try:
                yield saved_proposals(int(frame) - 1, boxes, rows[:, 6])
            except DAMAGE as error:
                raise StreamRPNError(
                    f"{str(path)!r}, frame {frame:g}: not MOTChallenge detections"
                ) from error
    contents.complete = True


def _rows(path: Path, lines: Iterable[str]) -> Iterator[list[float]]:
    for number, line in enumerate(lines, 1):
        try:
            row = [float(field) for field in line.split(",")]
        except ValueError:
            row = []
        if len(row) < 7 or not row[0].is_integer():
            raise StreamRPNError(
                f"{str(path)!r}, line {number}: not a line of MOTChallenge detections"
            )
        yield row
