"""A directory of crops: the best boxes of every frame as JPEG files, with an index."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import av
import numpy as np

from stream_rpn.frame import Proposals
from stream_rpn.sinks import jpeg
from stream_rpn.sinks.canvas import Canvas
from stream_rpn.sinks.indexed import Entry, IndexedFolderSink


class CropsSink(IndexedFolderSink):
    """Cuts the best boxes out of each frame, as displayed, into `{frame:08d}_{rank:03d}.jpg`.

    A line of the index is of a crop: file, frame, pts_seconds, box, score, level, and `name` where
    the frame is a picture that has one. Of a frame that was held the lines name the files of the
    frame that was looked at, as `held` does: its crops would be the same.
    """

    needs_image: ClassVar[bool] = True
    members: ClassVar[tuple[str, ...]] = (".jpg",)

    def _entries(self, proposals: Proposals, folder: str) -> list[Entry]:
        count = min(self.options.crops, len(proposals))
        looked = proposals.frame if proposals.held is None else proposals.held
        crops: list[bytes | None] = [None] * count
        if proposals.held is None and count:
            crops = self._crops(proposals, count)
        entries = []
        for rank, crop in enumerate(crops):
            line: dict[str, Any] = {
                "file": os.path.join(folder, f"{looked:08d}_{rank:03d}.jpg"),
                "frame": proposals.frame,
                "pts_seconds": proposals.pts_seconds,
                "box": [round(value, 2) for value in proposals.boxes[rank].tolist()],
                "score": float(f"{proposals.scores[rank]:.6g}"),
                "level": int(proposals.levels[rank]),
            }
            if proposals.name is not None:
                line["name"] = proposals.name
            if proposals.held is not None:
                line["held"] = proposals.held
            entries.append(Entry(line, crop))
        return entries

    def _crops(self, proposals: Proposals, count: int) -> list[bytes | None]:
        """Returns the best boxes of a frame as JPEG files."""
        picture = Canvas.of_result(proposals, self._info.color).rgb()
        crops: list[bytes | None] = []
        for box in proposals.boxes[:count]:
            x1, y1, x2, y2 = _pixels(box, proposals.width, proposals.height)
            crop = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[y1:y2, x1:x2]))
            crops.append(jpeg.encode(crop))
        return crops


def _pixels(box: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    """Returns the pixels a box touches, one at least in each direction."""
    x1, y1, x2, y2 = box.tolist()
    left = min(max(int(np.floor(x1)), 0), width - 1)
    top = min(max(int(np.floor(y1)), 0), height - 1)
    right = min(max(int(np.ceil(x2)), left + 1), width)
    bottom = min(max(int(np.ceil(y2)), top + 1), height)
    return left, top, right, bottom
