"""A directory of crops: the best boxes of every frame as JPEG files, with an index."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np

from stream_rpn.frame import Proposals, StreamInfo
from stream_rpn.sinks import jpeg
from stream_rpn.sinks.canvas import Canvas
from stream_rpn.sinks.sink import Sink, WholeFile

INDEX_FILE = "index.jsonl"
_OURS = re.compile(r"\d{8}_\d{3}\.jpg|index\.jsonl|\.\d{8}_\d{3}\.jpg\.\d+\.part")


class CropsSink(Sink):
    """Cuts the best boxes out of each frame, as displayed, into `{frame:08d}_{rank:03d}.jpg`.

    `index.jsonl` has a line per crop: file, frame, pts_seconds, box, score, level. Of several
    sources each gets a directory of its own, and its `source` stands in the index.
    """

    needs_image: ClassVar[bool] = True
    takes_several_sources: ClassVar[bool] = True

    def _open(self) -> None:
        self._directory = Path(self.name)
        self._directory.mkdir(exist_ok=True)
        folders = [path for path in self._directory.iterdir() if path.is_dir()]
        for folder in [self._directory, *folders]:
            for path in folder.iterdir():
                if _OURS.fullmatch(path.name):
                    path.unlink()
        self._index = io.FileIO(self._directory / INDEX_FILE, "wb")
        self._folders: dict[str, str] = {}  # by source

    def _begin(self, header: dict[str, Any], info: StreamInfo) -> None:
        self._info = info
        if self.options.multiple_sources:
            folder = info.stem
            while folder in self._folders.values():
                folder += "_"
            self._folders[info.source] = folder
            (self._directory / folder).mkdir(exist_ok=True)

    def _write(self, proposals: Proposals) -> None:
        count = min(self.options.crops, len(proposals))
        if not count:
            return
        if proposals.image is None:
            raise ValueError(
                f"{self.name!r} needs the images of the proposals, which were not kept"
            )
        canvas = Canvas.of(
            proposals.image, proposals.color or self._info.color, rotation=proposals.rotation
        )
        picture = canvas.rgb()
        source = self._source_of(proposals)
        folder = self._folders.get(source, "")
        lines = []
        for rank in range(count):
            x1, y1, x2, y2 = _pixels(proposals.boxes[rank], proposals.width, proposals.height)
            file = os.path.join(folder, f"{proposals.frame:08d}_{rank:03d}.jpg")
            crop = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[y1:y2, x1:x2]))
            WholeFile(str(self._directory / file)).write(jpeg.encode(crop))
            line: dict[str, Any] = {
                "file": file,
                "frame": proposals.frame,
                "pts_seconds": proposals.pts_seconds,
                "box": [round(value, 2) for value in proposals.boxes[rank].tolist()],
                "score": float(f"{proposals.scores[rank]:.6g}"),
                "level": int(proposals.levels[rank]),
            }
            if self.options.multiple_sources:
                line["source"] = source
            lines.append(json.dumps(line) + "\n")
        self._index.write("".join(lines).encode())

    def _close(self) -> None:
        self._index.close()

    def _abort(self) -> None:
        self._index.close()


def _pixels(box: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    """Returns the pixels a box touches, one at least in each direction."""
    x1, y1, x2, y2 = box.tolist()
    left = min(max(int(np.floor(x1)), 0), width - 1)
    top = min(max(int(np.floor(y1)), 0), height - 1)
    right = min(max(int(np.ceil(x2)), left + 1), width)
    bottom = min(max(int(np.ceil(y2)), top + 1), height)
    return left, top, right, bottom
