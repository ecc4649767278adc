"""Reading result files back, whatever their format; neither torch nor PyAV is needed for it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from stream_rpn.frame import Proposals, StreamRPNError
from stream_rpn.printable import counted
from stream_rpn.sinks import READABLE, load_member
from stream_rpn.sinks.record import Contents, Reader

if TYPE_CHECKING:
    import pandas
    import pyarrow


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

    No more than a frame is kept in memory: `len` reads the file once, `results[i]` up to that frame
    (from the one before it where frames are asked for in order). Slices are lists.

    What a format does not hold has a neutral value: `anchors` −1, `levels` −1, `input_boxes` 0,
    sizes 0, pts None. COCO and MOT files tell of frames with boxes only, `frame` is the image id
    of COCO.

    Attributes:
        path: the file or directory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._contents = Contents()
        self._count: tuple[tuple[int, int], int] | None = None  # frames, and of which file
        self._next = 0  # the frame that `_cursor` gives next
        self._cursor: Iterator[Proposals] = iter(())
        self._cursor_of: tuple[int, int] | None = None
        name = str(self.path).lower()
        endings = [ending for ending in READABLE if name.endswith(ending)]
        if not endings:
            raise StreamRPNError(
                f"{str(path)!r} is not a result file by its name; known are {', '.join(READABLE)}"
            )
        if not os.path.exists(path):
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
        yield from self._frames(self._contents)

    def _frames(self, contents: Contents) -> Iterator[Proposals]:
        read_frames: Reader = load_member(self._format.reader)
        try:
            yield from read_frames(self.path, contents)
        except OSError as error:
            why = error.strerror or "it is damaged"
            raise StreamRPNError(f"cannot read {str(self.path)!r}: {why}") from error

    def _state(self) -> tuple[int, int]:
        """Returns what tells whether the file is still the one that was read."""
        try:
            status = self.path.stat()
        except OSError as error:
            raise StreamRPNError(f"cannot read {str(self.path)!r}: {error.strerror}") from error
        return status.st_mtime_ns, status.st_size

    def __len__(self) -> int:
        state = self._state()
        if self._count is None or self._count[0] != state:
            self._count = state, sum(1 for _ in self._frames(Contents()))
        return self._count[1]

    def __bool__(self) -> bool:
        return next(self._frames(Contents()), None) is not None

    @overload
    def __getitem__(self, key: int) -> Proposals: ...
    @overload
    def __getitem__(self, key: slice) -> list[Proposals]: ...
    def __getitem__(self, key: int | slice) -> Proposals | list[Proposals]:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            indices = range(start, stop, step)
            chosen = [self._frame(index) for index in sorted(indices)]
            return chosen if step > 0 else chosen[::-1]
        index = key + len(self) if key < 0 else key
        if index < 0:
            raise IndexError(f"there are {len(self)} frames, so none is {key}")
        return self._frame(index)

    def _frame(self, index: int) -> Proposals:
        state = self._state()
        if index < self._next or self._cursor_of != state:
            self._cursor, self._cursor_of, self._next = self._frames(Contents()), state, 0
        found = next(itertools.islice(self._cursor, index - self._next, None), None)
        self._next = index + 1
        if found is None:
            self._cursor_of = None
            raise IndexError(f"there are {len(self)} frames, so none is {index}")
        return found

    def __repr__(self) -> str:
        facts = [str(self.header.get("source", "")), str(self.header.get("model", ""))]
        if self._count is not None:
            facts.append(counted(self._count[1], "frame"))
        if self.ends:
            facts.append("complete" if self.complete else "not complete")
        return f"Results({', '.join([repr(str(self.path)), *filter(None, facts)])})"

    def to_arrow(self) -> pyarrow.Table:
        """Returns a table of all boxes, a row each; frames without any have none.

        Its columns are those of `to_pandas`; `source` and `name` are dictionaries.

        Raises:
            StreamRPNError: the file is damaged, or pyarrow is not installed.
        """
        from stream_rpn.tables import arrow_table

        return arrow_table(self)

    def to_pandas(self) -> pandas.DataFrame:
        """Returns a data frame of all boxes, a row each; frames without any have none.

        Its columns are `source`, `name`, `image_id`, `frame`, `pts`, `pts_seconds`; `x1`, `y1`,
        `x2`, `y2` in pixels of the frame; `score`, `level` and `anchor`; and of results that have
        such `track_id` (missing where a box is of no track) and `embedding`, an array [D] float16
        (in Arrow a list of fixed size). What a format does not hold is missing.

        Raises:
            StreamRPNError: the file is damaged, or pandas is not installed.
        """
        from stream_rpn.tables import data_frame

        return data_frame(self)
