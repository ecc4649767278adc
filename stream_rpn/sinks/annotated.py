"""A directory of annotated pictures: every frame with its best boxes drawn on it."""

from __future__ import annotations

import os
from typing import ClassVar

from stream_rpn.frame import Proposals
from stream_rpn.sinks import jpeg
from stream_rpn.sinks.canvas import Canvas
from stream_rpn.sinks.indexed import Entry, IndexedFolderSink
from stream_rpn.sinks.record import picture_name
from stream_rpn.yuv import COLORSPACES


class AnnotatedSink(IndexedFolderSink):
    """Writes a JPEG a frame, as displayed, under the name of its picture.

    That of a video's frame is `frame_000012.jpg`; a picture that is no JPEG has ".jpg" added to its
    name. A line of the index tells the file, frame, pts_seconds and how many boxes were drawn.
    """

    needs_image: ClassVar[bool] = True
    members: ClassVar[tuple[str, ...]] = (".jpg", ".jpeg", ".JPG", ".JPEG")

    def _entries(self, proposals: Proposals, folder: str) -> list[Entry]:
        canvas = Canvas.of_result(proposals, self._info.color)
        count = self._draw(canvas, proposals)
        encoded = jpeg.encode(
            canvas.frame(),
            size=(proposals.width, proposals.height),
            colorspace=COLORSPACES[canvas.color.matrix],
            full_range=canvas.color.full_range,
        )
        name = picture_name(proposals.frame, proposals.name)
        if not name.endswith(self.members):
            name += ".jpg"
        line = {
            "file": os.path.join(folder, name),
            "frame": proposals.frame,
            "pts_seconds": proposals.pts_seconds,
            "boxes": count,
        }
        return [Entry(line, encoded)]
