"""The newest frame of one source as others take it: for the page, and as a JPEG with its boxes."""

from __future__ import annotations

import asyncio
import struct
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace

from stream_rpn.drawing import USUAL_DRAWING, DrawSpec
from stream_rpn.frame import Color, Proposals
from stream_rpn.sinks import jpeg
from stream_rpn.sinks.canvas import Canvas
from stream_rpn.sinks.jsonl import frame_line
from stream_rpn.yuv import COLORSPACES

MAX_WIDTH = 1280
"""Wider pictures are shrunk unless more is asked for: encoding is paid by the pixel."""

SMALL_WIDTH = 480
"""Pixels across of the pictures in the grid."""

_SMALL_BOXES = 60  # more of them cannot be told apart in the grid, and each is bytes on the way
_QUALITY = 4
_KEPT_FORMS = 8

Form = tuple[str, int, int]


class Pictures:
    """Encodes the newest result of one source: each form of it once, however many ask for it.

    No picture is encoded before somebody asks, and of one source only one at a time.

    Args:
        drawing: how boxes are drawn for others than the page.
        source: which of the sources it is of, from 0, for its colour.
    """

    def __init__(self, drawing: DrawSpec = USUAL_DRAWING, source: int = 0) -> None:
        self._drawing, self._source = drawing, source
        self._newest: tuple[int, Proposals, Color] | None = None
        self._encoded: OrderedDict[Form, tuple[int, bytes]] = OrderedDict()
        self._encoding = asyncio.Lock()

    def put(self, number: int, proposals: Proposals, color: Color) -> None:
        """Replaces the newest result; called by the pipeline, which does not wait."""
        self._newest = (number, proposals, color)

    def forget(self) -> None:
        """Lets the newest picture go, with its memory."""
        self._newest = None
        self._encoded = OrderedDict()

    @property
    def exist(self) -> bool:
        """Whether there is a picture to be had."""
        return self._newest is not None

    async def packet(self, small: bool) -> tuple[int, bytes] | None:
        """Returns the newest result's number, and the result as the page takes it; None for none.

        That is the length of its line as four bytes (big-endian), the line, and the picture as a
        JPEG file, for the page draws the boxes. A small one has fewer pixels and boxes.
        """
        form = ("small", SMALL_WIDTH, _SMALL_BOXES) if small else ("large", MAX_WIDTH, -1)
        return await self._of(form, _packet)

    async def still(self, width: int, boxes: int) -> tuple[int, bytes] | None:
        """Returns the newest result's number, and its picture as a JPEG file; None for none.

        Args:
            width: pixels across at most; smaller pictures stay as they are.
            boxes: how many of the best are drawn.
        """
        return await self._of(("still", width, boxes), self._still)

    def _still(self, proposals: Proposals, color: Color, width: int, boxes: int) -> bytes:
        canvas = Canvas.of_result(proposals, color)
        replace(self._drawing, top=boxes).draw(canvas, proposals, self._source)
        return _encoded(canvas, width)

    async def _of(
        self, form: Form, encode: Callable[[Proposals, Color, int, int], bytes]
    ) -> tuple[int, bytes] | None:
        async with self._encoding:
            newest = self._newest
            if newest is None:
                return None
            number, proposals, color = newest
            known = self._encoded.pop(form, None)
            if known is None or known[0] != number:
                work: Awaitable[bytes] = asyncio.to_thread(encode, proposals, color, *form[1:])
                known = (number, await work)
            self._encoded[form] = known
            if len(self._encoded) > _KEPT_FORMS:
                self._encoded.popitem(last=False)
            return known


def _packet(proposals: Proposals, color: Color, width: int, boxes: int) -> bytes:
    shown = proposals if boxes < 0 else proposals[:boxes]
    line = frame_line(shown, source=proposals.source)
    picture = _encoded(Canvas.of_result(proposals, color), width)
    return struct.pack(">I", len(line)) + line + picture


def _encoded(canvas: Canvas, width: int) -> bytes:
    scale = min(1.0, width / canvas.width)
    return jpeg.encode(
        canvas.frame(),
        size=(max(2, round(canvas.width * scale)), max(2, round(canvas.height * scale))),
        colorspace=COLORSPACES[canvas.color.matrix],
        full_range=canvas.color.full_range,
        quality=_QUALITY,
    )
