"""The video on standard input; of an MP4 with its index at the end all is kept in a file first.

Most programs write it there, and without it no picture can be read.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Callable
from typing import BinaryIO, cast

from stream_rpn.frame import StreamRPNError
from stream_rpn.sources.packet_queue import Interrupted
from stream_rpn.sources.pipe import Pipe, opened_pipe
from stream_rpn.sources.promise import boxes

# Of what stands in front of index and pictures: more than names and notes is no MP4.
_LOOK_BYTES = 1 << 20
_COPY_BYTES = 1 << 20
LARGE_BYTES = 256 << 20
MOST_BYTES = 64 << 30
_INSTEAD = "give the video as a file, or with its index in front (ffmpeg -movflags +faststart)"


def standard_input(
    timeout: float, stopped: Callable[[], bool], notice: Callable[[str], None]
) -> BinaryIO:
    """Returns the video on standard input as a file that can be read: spooled where need be.

    What is spooled has no name, and so is gone with the process, however that ends.

    Args:
        timeout: seconds until the first byte.
        stopped: tells that no more is wanted.
        notice: told in a sentence where much is spooled.

    Raises:
        StreamRPNError: nobody wrote, or nothing, or there is no room for it.
        Interrupted: it is not wanted any more.
    """
    if sys.stdin is None:
        raise StreamRPNError("standard input is closed; pipe a video into it")
    if sys.stdin.seekable():
        # A file, which can be read in any order; whoever else reads it finds it open afterwards.
        return open(sys.stdin.fileno(), "rb", closefd=False)
    what = "standard input is a pipe"
    pipe = opened_pipe(os.dup(sys.stdin.fileno()), what, timeout, stopped)
    try:
        if not pipe.look(1) and not stopped():
            raise StreamRPNError("standard input is empty: nothing came through the pipe")
        if not _index_is_last(pipe):
            return cast(BinaryIO, pipe)
        with pipe:
            return _spooled(pipe, notice)
    except BaseException:
        pipe.close()
        raise


def _index_is_last(pipe: Pipe) -> bool:
    """Tells whether this is an MP4 or MOV in which pictures come before any index."""
    begin, end = -1, 0
    while begin < end < _LOOK_BYTES:
        begin = end
        seen = pipe.look(begin + 16)
        for name, end in boxes(io.BytesIO(seen), len(seen)):  # noqa: B007
            if name in (b"moov", b"mdat"):
                return name == b"mdat"
    return False


def _spooled(pipe: Pipe, notice: Callable[[str], None]) -> BinaryIO:
    told = False
    try:
        spool = cast(BinaryIO, tempfile.TemporaryFile(prefix="stream-rpn-"))  # noqa: SIM115
        while data := pipe.read(_COPY_BYTES):
            spool.write(data)
            if spool.tell() > LARGE_BYTES and not told:
                told = True
                notice(
                    "standard input is an MP4 whose index stands at its end: all of it is kept in "
                    f"{tempfile.gettempdir()} before its first frame, {LARGE_BYTES >> 20} MB so far"
                )
            if spool.tell() > MOST_BYTES:
                raise StreamRPNError(
                    "standard input is an MP4 whose index does not come within "
                    f"{MOST_BYTES >> 30} GB; {_INSTEAD}"
                )
        spool.seek(0)
    except OSError as error:
        raise StreamRPNError(
            "standard input is an MP4 whose index stands at its end, and cannot be kept in "
            f"{tempfile.gettempdir()}: {error.strerror}; have TMPDIR name a folder with room, or "
            f"{_INSTEAD}"
        ) from error
    if pipe.stopped():
        raise Interrupted
    return spool
