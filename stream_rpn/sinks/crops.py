"""A directory of crops: the best boxes of every frame as JPEG files, with an index."""

from __future__ import annotations

import io
import json
import os
import re
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import av
import numpy as np

from stream_rpn.frame import Proposals, StreamInfo
from stream_rpn.sinks import jpeg
from stream_rpn.sinks.canvas import Canvas
from stream_rpn.sinks.place import Folder
from stream_rpn.sinks.sink import Sink

INDEX_FILE = "index.jsonl"


class CropsSink(Sink):
    """Cuts the best boxes out of each frame, as displayed, into `{frame:08d}_{rank:03d}.jpg`.

    `index.jsonl` has a line per crop: file, frame, pts_seconds, box, score, level. Of a frame that
    was held the lines name the files of the frame that was looked at, as `held` does: its crops
    would be the same. Of several sources each gets a directory of its own, and its `source` stands
    in the index. The lines of a frame are written before its crops: a killed run may leave a frame
    whose crops are not all there, and no crop that is not in the index.
    """

    needs_image: ClassVar[bool] = True
    takes_several_sources: ClassVar[bool] = True

    def _claim(self) -> Folder:
        return Folder(self.name, replace=self.options.replace, record=INDEX_FILE, members=_crops_in)

    def _open(self) -> None:
        self._directory = self._place.path
        self._index = io.FileIO(self._directory / INDEX_FILE, "xb")
        self._index_bytes = 0
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
        source = self._source_of(proposals)
        folder = self._folders.get(source, "")
        looked = proposals.frame if proposals.held is None else proposals.held
        files = [os.path.join(folder, f"{looked:08d}_{rank:03d}.jpg") for rank in range(count)]
        lines: list[bytes] = []
        for rank, file in enumerate(files):
            line: dict[str, Any] = {
                "file": file,
                "frame": proposals.frame,
                "pts_seconds": proposals.pts_seconds,
                "box": [round(value, 2) for value in proposals.boxes[rank].tolist()],
                "score": float(f"{proposals.scores[rank]:.6g}"),
                "level": int(proposals.levels[rank]),
            }
            if proposals.held is not None:
                line["held"] = proposals.held
            if self.options.multiple_sources:
                line["source"] = source
            lines.append(json.dumps(line).encode() + b"\n")
        crops: list[bytes | None] = [None] * count
        if proposals.held is None:
            crops = self._crops(proposals, count)
        self._put(lines, files, crops)

    def _crops(self, proposals: Proposals, count: int) -> list[bytes | None]:
        """Returns the best boxes of a frame as JPEG files."""
        if proposals.image is None:
            raise ValueError(
                f"{self.name!r} needs the images of the proposals, which were not kept"
            )
        canvas = Canvas.of(
            proposals.image, proposals.color or self._info.color, rotation=proposals.rotation
        )
        picture = canvas.rgb()
        crops: list[bytes | None] = []
        for box in proposals.boxes[:count]:
            x1, y1, x2, y2 = _pixels(box, proposals.width, proposals.height)
            crop = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[y1:y2, x1:x2]))
            crops.append(jpeg.encode(crop))
        return crops

    def _put(self, lines: list[bytes], files: list[str], crops: list[bytes | None]) -> None:
        """Writes the crops of a frame with their lines; of a crop that fails no line stays.

        None stands for one that is there already.
        """
        place = cast(Folder, self._place)
        written = self._index_bytes
        try:
            left = memoryview(b"".join(lines))
            while left:
                left = left[self._index.write(left) :]
            for line, file, encoded in zip(lines, files, crops, strict=True):
                if encoded is not None:
                    place.put(file, partial(Path.write_bytes, data=encoded), sync=False)
                written += len(line)
        finally:
            self._index.truncate(written)
            self._index.seek(written)
        self._index_bytes = written

    def _close(self) -> None:
        self._index.close()

    def _abort(self) -> None:
        self._index.close()


def _crops_in(directory: Path) -> list[str]:
    """Returns the names of the crops that the index of a directory tells of."""
    files: dict[str, None] = {}  # in order; frames that were held name those of others
    with open(directory / INDEX_FILE, "rb") as index:
        for line in index:
            if not line.endswith(b"\n"):  # its writer was killed there
                break
            file = json.loads(line)["file"]
            folder, _, name = file.rpartition("/")
            if not re.fullmatch(r"\d{8,}_\d{3,}\.jpg", name) or folder == ".." or "/" in folder:
                raise ValueError("not a name of ours")
            files[file] = None
    return list(files)


def _pixels(box: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    """Returns the pixels a box touches, one at least in each direction."""
    x1, y1, x2, y2 = box.tolist()
    left = min(max(int(np.floor(x1)), 0), width - 1)
    top = min(max(int(np.floor(y1)), 0), height - 1)
    right = min(max(int(np.ceil(x2)), left + 1), width)
    bottom = min(max(int(np.ceil(y2)), top + 1), height)
    return left, top, right, bottom
