"""Text that grows line by line: a killed run leaves every whole line readable."""

from __future__ import annotations

import contextlib
import io
import os
import select
import stat
import sys
from typing import ClassVar

from stream_rpn.sinks.place import Place, growing_file
from stream_rpn.sinks.sink import Sink


class LinesSink(Sink):
    """Writes whole lines, at once and unbuffered; so it may be a pipe, too."""

    takes_several_sources: ClassVar[bool] = True
    writes_in_place: ClassVar[bool] = True

    def _claim(self) -> Place:
        if self.name == "-":
            return super()._claim()
        return growing_file(self.name, replace=self.options.replace)

    def _open(self) -> None:
        self._file = _unbuffered(self.name if self.name == "-" else str(self._place.path))
        # The remains of a line after a failed write can be cut off in a regular file only, and must
        # not be where standard output was redirected to the end of another file.
        regular = stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)
        self._can_cut = regular and self.name != "-"
        self._whole_bytes = 0

    def _close(self) -> None:
        self._file.close()

    def _abort(self) -> None:
        self._file.close()

    def _put(self, data: bytes) -> None:
        """Writes all of `data` or, where that fails, nothing of it."""
        left = memoryview(data)
        try:
            while left:
                written = self._file.write(left)
                if written is None:  # a non-blocking pipe whose reader is slow
                    select.select([], [self._file], [])
                else:
                    left = left[written:]
        except OSError:
            if self._can_cut:
                with contextlib.suppress(OSError):
                    self._file.truncate(self._whole_bytes)
            raise
        self._whole_bytes += len(data)


def _unbuffered(name: str) -> io.FileIO:
    if name == "-":
        sys.stdout.flush()
        return io.FileIO(sys.stdout.fileno(), "wb", closefd=False)
    return io.FileIO(name, "wb")
