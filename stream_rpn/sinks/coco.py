"""COCO detection results (the JSON array that `COCO.loadRes` reads)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stream_rpn.frame import Proposals, StreamRPNError
from stream_rpn.sinks.record import DAMAGE, Contents, saved_proposals
from stream_rpn.sinks.sink import WholeFileSink


class COCOSink(WholeFileSink):
    """Writes `{"image_id", "category_id": 1, "bbox": [x, y, width, height], "score"}` per box.

    `image_id` is the id of the image in its annotation file, else the index of the frame, and then
    an image's `file_name` stands beside it.
    """

    def _open(self) -> None:
        super()._open()
        self._separator = b"[\n"

    def _write(self, proposals: Proposals) -> None:
        if not len(proposals):
            return
        image_id, name = proposals.image_id, ""
        if image_id is None:
            image_id = proposals.frame
            if proposals.name is not None:
                name = f'"file_name":{json.dumps(proposals.name)},'.replace("%", "%%")
        boxes = np.asarray(proposals.boxes, dtype=np.float64)
        rows = np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2], proposals.scores])
        item = (
            f'{{"image_id":{image_id},{name}"category_id":1,'
            '"bbox":[%.2f,%.2f,%.2f,%.2f],"score":%.6g},\n'
        )
        text = (item * len(rows))[:-2] % tuple(rows.ravel().tolist())
        self._file.write(self._separator + text.encode())
        self._separator = b",\n"

    def _close(self) -> None:
        self._file.write(b"[]\n" if self._separator == b"[\n" else b"\n]\n")
        super()._close()


def read_coco(path: Path, contents: Contents) -> Iterator[Proposals]:
    """Yields the images of COCO results that have boxes; `frame` is the id of the image."""
    try:
        results = json.loads(path.read_bytes())
        if not isinstance(results, list):
            raise TypeError("not an array")
        for image_id, group in itertools.groupby(results, key=lambda item: item["image_id"]):
            items = list(group)
            boxes = np.array([item["bbox"] for item in items], dtype=np.float64)
            if boxes.shape != (len(items), 4):
                raise ValueError("a box is four numbers")
            boxes[:, 2:] += boxes[:, :2]
            scores = [item["score"] for item in items]
            name = items[0].get("file_name")
            yield saved_proposals(
                image_id, boxes, scores, image_id=None if name else image_id, name=name
            )
    except DAMAGE as error:
        raise StreamRPNError(
            f"{str(path)!r} holds no COCO detection results, or is damaged"
        ) from error
    contents.complete = True
