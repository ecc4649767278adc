"""Reading result files back, whatever their format; neither torch nor PyAV is needed for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stream_rpn.frame import Proposals, StreamRPNError
from stream_rpn.sinks import READABLE, load_member
from stream_rpn.sinks.record import Contents, Reader


def read(path: str | os.PathLike[str]) -> Results:
    """Opens a result file that stream-rpn wrote, to iterate over its `Proposals`.

    Args:
        path: of data, as its ending says: see `stream_rpn.sinks.READABLE`.

    Raises:
        StreamRPNError: it is missing, or not such a file (the sentence names the line).
    """
    return Results(path)


class Results:
    """The proposals of a result file, frame by frame; each iteration reads the file anew.

    What a format does not hold has a neutral value: `anchors` −1, `levels` −1, `input_boxes` 0,
    sizes 0, pts None. COCO and MOT files tell of frames with boxes only, `frame` is the image id
    of COCO.

    Attributes:
        path: the file or directory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._contents = Contents()
        name = str(self.path).lower()
        endings = [ending for ending in READABLE if name.endswith(ending)]
        if not endings:
            raise StreamRPNError(
                f"{str(path)!r} is not a result file by its name; known are {', '.join(READABLE)}"
            )
        if not self.path.exists():
            raise StreamRPNError(f"{str(path)!r} does not exist")
        self._format = READABLE[max(endings, key=len)]
        # One step of an iteration meets the header, and what is wrong with another kind of file.
        next(iter(self), None)

    @property
    def headers(self) -> list[dict[str, Any]]:
        """The header of each source met so far; the first one at once."""
        return self._contents.headers

    @property
    def ends(self) -> list[dict[str, Any]]:
        """The closing totals of each source, known once an iteration has come to the end."""
        return self._contents.ends

    @property
    def complete(self) -> bool:
        """Whether the last iteration came to the end of a whole file.

        False for one that was cut off when its writer was killed, or whose source was stopped
        before its end or failed. COCO and MOT files have no room for that.
        """
        return self._contents.complete

    @property
    def header(self) -> dict[str, Any]:
        """The header of the first source, empty for formats that hold none."""
        return self.headers[0] if self.headers else {}

    @property
    def sources(self) -> list[str]:
        """The names of all sources in the file, in order; none where the format holds no header."""
        if self._format.source_names:
            names: list[str] = load_member(self._format.source_names)(self.path)
            return names
        return [header["source"] for header in self.headers]

    def __iter__(self) -> Iterator[Proposals]:
        self._contents = Contents()
        read_frames: Reader = load_member(self._format.reader)
        try:
            yield from read_frames(self.path, self._contents)
        except OSError as error:
            why = error.strerror or "it is damaged"
            raise StreamRPNError(f"cannot read {str(self.path)!r}: {why}") from error
