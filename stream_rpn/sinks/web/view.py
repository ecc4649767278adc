"""The view of one source: the newest result, and the summary so far."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from typing import Any

from stream_rpn.frame import Color, Proposals
from stream_rpn.sinks import jpeg
from stream_rpn.sinks.canvas import COLORSPACES, Canvas
from stream_rpn.sinks.jsonl import frame_line

# Wider pictures are shrunk: a browser shows them no larger, and encoding is paid by the pixel.
_MAX_WIDTH = 1280
_QUALITY = 4

Status = Callable[[], dict[str, Any]]


class View:
    """One source. The pipeline's thread writes it, the server's reads it; neither waits.

    Attributes:
        header: the header of the source's results.
        number: counts the results; 0 before the first one.
        ended: whether the source has come to its end.
    """

    def __init__(self, header: dict[str, Any], color: Color, status: Status) -> None:
        self.header = header
        self.number = 0
        self.ended = False
        self._color = color
        self._status = status
        self._newest: tuple[int, Proposals] | None = None
        self._put_at = time.monotonic()
        self._packet: tuple[int, bytes] = (0, b"")
        self._encoding = asyncio.Lock()

    def put(self, proposals: Proposals) -> None:
        """Replaces the newest result; called by the pipeline."""
        self._newest = (self.number + 1, proposals)
        self.number += 1
        self._put_at = time.monotonic()

    @property
    def silent_seconds(self) -> float:
        """Seconds since the last result came, or the source began."""
        return time.monotonic() - self._put_at

    def status(self) -> dict[str, Any]:
        """Returns what `--json-summary` would say now, and whether the source has ended."""
        return {**self._status(), "ended": self.ended}

    async def packet(self) -> tuple[int, bytes]:
        """Returns the newest result's number, and the result for the page.

        It is encoded once, however many ask: the length of the line as four bytes (big-endian), the
        line, and the picture as a JPEG file.
        """
        async with self._encoding:
            newest = self._newest
            assert newest is not None, "there is a result once number is above 0"
            if newest[0] != self._packet[0]:
                data = await asyncio.to_thread(self._encode, newest[1])
                self._packet = (newest[0], data)
            return self._packet

    def _encode(self, proposals: Proposals) -> bytes:
        line = frame_line(proposals, source=proposals.source)
        return struct.pack(">I", len(line)) + line + self._picture(proposals)

    def _picture(self, proposals: Proposals) -> bytes:
        if proposals.image is None:
            raise ValueError("the page needs the images of the proposals, which were not kept")
        color = proposals.color or self._color
        canvas = Canvas.of(proposals.image, color, rotation=proposals.rotation)
        scale = min(1.0, _MAX_WIDTH / canvas.width)
        size = (max(2, round(canvas.width * scale)), max(2, round(canvas.height * scale)))
        return jpeg.encode(
            canvas.frame(),
            size=size,
            colorspace=COLORSPACES[color.matrix],
            full_range=color.full_range,
            quality=_QUALITY,
        )
