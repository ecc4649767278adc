"""MOTChallenge text: detections (det.txt), or tracks where objects were followed."""

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
    The id is −1 (a detection, not a track) where objects were not followed; where they were, only
    boxes of tracks are written, each with its id, as tools that read tracks expect. Class and
    visibility are 1: to whom the world coordinates of old files stand there, these say nothing, and
    CVAT wants a class.
    """

    def _write(self, proposals: Proposals) -> None:
        boxes = np.asarray(proposals.boxes, dtype=np.float64)
        tracks = proposals.track_ids
        ids = np.full(len(boxes), -1) if tracks is None else tracks
        rows = np.column_stack(
            [ids, boxes[:, :2] + 1, boxes[:, 2:] - boxes[:, :2], proposals.scores]
        )
        if tracks is not None:
            rows = rows[tracks >= 0]
        line = f"{proposals.frame + 1},%d,%.2f,%.2f,%.2f,%.2f,%.6g,1,1\n"
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
                ids = rows[:, 1].astype(np.int64)
                yield saved_proposals(
                    int(frame) - 1, boxes, rows[:, 6], track_ids=ids if (ids >= 0).any() else None
                )
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
        known = len(row) >= 7 and row[0].is_integer() and row[1].is_integer()
        if not known or abs(row[1]) >= 1 << 53:
            raise StreamRPNError(
                f"{str(path)!r}, line {number}: not a line of MOTChallenge detections"
            )
        yield row
