"""YOLO labels: a text file a picture, and the `data.yaml` that tells their classes."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import Any, ClassVar

import numpy as np

from stream_rpn.frame import Proposals, StreamInfo, StreamRPNError
from stream_rpn.sinks.indexed import Entry, IndexedFolderSink
from stream_rpn.sinks.record import picture_name

# The pictures are looked for beside the labels: Ultralytics puts "images" where "labels" stands.
_DATA = """\
train: images
val: images
nc: 1
names:
  0: object
"""


class YOLOSink(IndexedFolderSink):
    """Writes `labels/NAME.txt` with `0 x y width height` a box, as shares of the picture's sides.

    x and y are of the middle. The layout has no room for scores: leave out weak boxes by
    `--score-thresh`. A picture without boxes has an empty file. A line of the index tells the
    picture: file, frame, pts_seconds, name.
    """

    members: ClassVar[tuple[str, ...]] = (".txt", ".yaml")

    def _begin(self, header: dict[str, Any], info: StreamInfo) -> None:
        super()._begin(header, info)
        if not hasattr(self, "_pictures"):
            self._pictures: dict[str, str] = {}  # by the file of its labels
            self._put([Entry({"file": "data.yaml"}, _DATA.encode())])

    def _entries(self, proposals: Proposals, folder: str) -> list[Entry]:
        picture = picture_name(proposals.frame, proposals.name)
        labels = str(PurePosixPath(picture).with_suffix(".txt"))
        file = os.path.join("labels", folder, labels)
        if self._pictures.setdefault(file, picture) != picture:
            raise StreamRPNError(
                f"cannot write {self.name!r}: the labels of {picture!r} and of "
                f"{self._pictures[file]!r} would have one name; rename a picture"
            )
        sides = np.array([proposals.width, proposals.height] * 2)
        shares = np.clip(proposals.boxes / sides, 0, 1)
        low, high = shares[:, :2], shares[:, 2:]
        rows = np.concatenate([(low + high) / 2, high - low], axis=1)
        text = "0 %.6f %.6f %.6f %.6f\n" * len(rows) % tuple(rows.ravel().tolist())
        line = {"file": file, "frame": proposals.frame, "pts_seconds": proposals.pts_seconds}
        return [Entry({**line, "name": picture}, text.encode())]
