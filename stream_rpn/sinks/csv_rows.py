"""CSV: one row a box, for spreadsheets."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stream_rpn.frame import Proposals, StreamInfo, StreamRPNError
from stream_rpn.sinks.lines import LinesSink
from stream_rpn.sinks.record import DAMAGE, NO_TEXT, Contents, saved_proposals

COLUMNS = ("source", "frame", "pts_seconds", "name", "x1", "y1", "x2", "y2", "score", "level")

TRACK = "track_id"
"""The last column, where objects are followed; empty for boxes of no track."""

_DAMAGE: tuple[type[Exception], ...] = (*DAMAGE, csv.Error)


class CSVSink(LinesSink):
    """Writes the columns of `COLUMNS`, and `TRACK`; frames without boxes have no row."""

    def _open(self) -> None:
        super()._open()
        self._titled = False

    def _begin(self, header: dict[str, Any], info: StreamInfo) -> None:
        if not self._titled:
            self._titled = True
            self._tracks = "tracking" in header["parameters"]
            self._put(_row((*COLUMNS, TRACK) if self._tracks else COLUMNS).encode())

    def _write(self, proposals: Proposals) -> None:
        if not len(proposals):
            return
        seconds = proposals.pts_seconds
        frame = (
            self._source_of(proposals),
            proposals.frame,
            "" if seconds is None else f"{seconds:.6f}".rstrip("0").rstrip("."),
            proposals.name or "",
        )
        begin = _row(frame).rstrip("\r\n").replace("%", "%%")
        rows = np.column_stack([proposals.boxes, proposals.scores, proposals.levels]).tolist()
        line = begin + ",%.2f,%.2f,%.2f,%.2f,%.6g,%d"
        if self._tracks:
            ids = proposals.track_ids
            known = [-1] * len(rows) if ids is None else ids.tolist()
            rows = [
                [*row, number if number >= 0 else ""]
                for row, number in zip(rows, known, strict=True)
            ]
            line += ",%s"
        numbers = tuple(itertools.chain.from_iterable(rows))
        self._put(((line + "\r\n") * len(rows) % numbers).encode(errors=NO_TEXT))


def _row(values: tuple[Any, ...]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue()


def read_csv(path: Path, contents: Contents) -> Iterator[Proposals]:
    """Yields the frames of a CSV file that have boxes."""
    number = 1
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            if not set(COLUMNS) <= set(rows.fieldnames or ()):
                raise ValueError("other columns")
            titled = TRACK in (rows.fieldnames or ())
            for (source, frame), group in itertools.groupby(
                rows, key=lambda row: (row["source"], row["frame"])
            ):
                items = list(group)
                number += len(items)
                seconds = items[0]["pts_seconds"]
                tracks = [int(item[TRACK] or -1) for item in items] if titled else None
                yield saved_proposals(
                    int(frame),
                    [[float(item[side]) for side in ("x1", "y1", "x2", "y2")] for item in items],
                    [float(item["score"]) for item in items],
                    [int(item["level"]) for item in items],
                    track_ids=tracks,
                    pts_seconds=float(seconds) if seconds else None,
                    name=items[0]["name"] or None,
                    source=source,
                )
    except _DAMAGE as error:
        raise StreamRPNError(
            f"{str(path)!r}, line {number}: not a CSV file of stream-rpn results, or damaged"
        ) from error
    contents.complete = True
