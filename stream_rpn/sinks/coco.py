"""COCO detection results (the JSON array that `COCO.loadRes` reads)."""

from __future__ import annotations

import numpy as np

from stream_rpn.frame import Proposals
from stream_rpn.sinks.sink import WholeFileSink


class COCOSink(WholeFileSink):
    """Writes `{"image_id", "category_id": 1, "bbox": [x, y, width, height], "score"}` per box.

    `image_id` is the id of the image in its annotation file, else the index of the frame.
    """

    def _open(self) -> None:
        super()._open()
        self._separator = b"[\n"

    def _write(self, proposals: Proposals) -> None:
        if not len(proposals):
            return
        image_id = proposals.frame if proposals.image_id is None else proposals.image_id
        boxes = np.asarray(proposals.boxes, dtype=np.float64)
        rows = np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2], proposals.scores])
        item = (
            f'{{"image_id":{image_id},"category_id":1,'
            '"bbox":[%.2f,%.2f,%.2f,%.2f],"score":%.6g},\n'
        )
        text = (item * len(rows))[:-2] % tuple(rows.ravel().tolist())
        self._file.write(self._separator + text.encode())
        self._separator = b",\n"

    def _close(self) -> None:
        self._file.write(b"[]\n" if self._separator == b"[\n" else b"\n]\n")
        super()._close()
