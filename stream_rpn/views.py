"""What the network is shown of a frame: all of it, a part, or tiles beside it.

A view is a rectangle of the displayed frame. Cut out, it is a frame of its own on the way through
the network; `network.viewed` makes one result of those of all views.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from stream_rpn.frame import Frame, StreamRPNError
from stream_rpn.input_spec import InputSpec, input_shape
from stream_rpn.regions import Region

# Of a tile's side, that it shares with its neighbour: what is smaller is whole in one of them.
OVERLAP = 0.2
# How many times smaller `auto` lets tiles become on their way into the network.
AUTO_SHRINK = 2.0
# Of the sides of a region's rectangle, that a crop shows around it.
AROUND = 0.1
MOST_TILES = 100

_GRID = re.compile(r"(\d+)(?:[x×](\d+))?")


class View(NamedTuple):
    """A rectangle of a frame, in pixels from the left and the top.

    Attributes:
        x1: its left edge.
        y1: its upper edge.
        x2: its right edge.
        y2: its lower edge.
    """

    x1: int
    y1: int
    x2: int
    y2: int

    @property
    def width(self) -> int:
        """Pixels from left to right."""
        return self.x2 - self.x1

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return self.y2 - self.y1

    def turned(self, width: int, height: int, rotation: int) -> View:
        """Returns where it lies once the picture of `width` × `height` is turned clockwise."""
        x1, y1, x2, y2 = self
        turns = {
            0: self,
            90: View(height - y2, x1, height - y1, x2),
            180: View(width - x2, height - y2, width - x1, height - y1),
            270: View(y1, width - x2, y2, width - x1),
        }
        return turns[rotation % 360]


@dataclass(frozen=True, eq=False)
class ViewSpec:
    """What is looked at of the frames of a source.

    Attributes:
        region: where proposals are kept; None keeps all.
        crop: show the network the region's rectangle only, so that small things grow.
        tile: (columns, rows) of tiles that are shown beside the whole; "auto" has as many as make
            each tile at most `AUTO_SHRINK` times the network's size.
    """

    region: Region | None = None
    crop: bool = False
    tile: tuple[int, int] | str | None = None
    _last: list[tuple[Any, tuple[View, ...]]] = field(default_factory=list, repr=False)

    @classmethod
    def parse(
        cls, region: Any = None, mask: Any = None, crop: bool = False, tile: Any = None
    ) -> ViewSpec | None:
        """Returns what options stand for; None where nothing is asked for.

        Args:
            region: see `Region.parse`.
            mask: see `Region.parse`.
            crop: see above.
            tile: "auto", "COLUMNSxROWS", a number of both or a pair of them; None and "off" for
                none.

        Raises:
            StreamRPNError: one of them is wrong.
        """
        found = Region.parse(region, mask)
        if crop and found is None:
            raise StreamRPNError("to crop there must be a region or a mask, and none is given")
        tiles = _tiles(tile)
        return None if found is None and tiles is None else cls(found, crop, tiles)

    @property
    def cuts(self) -> bool:
        """Whether the network sees anything but whole frames."""
        return self.crop or self.tile is not None

    def check(self, width: int, height: int) -> None:
        """Checks that it fits frames of a size.

        Raises:
            StreamRPNError: the region does not.
        """
        if self.region is not None:
            self.region.inside(width, height)

    def record(self) -> dict[str, Any]:
        """Returns what stands in result files."""
        tile = self.tile if isinstance(self.tile, str | None) else "{}x{}".format(*self.tile)
        return {
            **({"region": self.region.record()} if self.region is not None else {}),
            **({"crop": True} if self.crop else {}),
            **({"tile": tile} if tile is not None else {}),
        }

    def views(self, width: int, height: int, spec: InputSpec) -> tuple[View, ...]:
        """Returns what the network is shown of a displayed frame, the whole last.

        Of tiles only those in which there is something of the region.
        """
        key = (width, height, spec)
        for known, views in self._last:
            if known == key:
                return views
        inside = None if self.region is None else self.region.inside(width, height)
        whole = View(0, 0, width, height)
        if self.crop and inside is not None:
            whole = _around(inside)
        views = (*(t for t in self._grid(whole, spec) if _meets(t, inside)), whole)
        self._last[:] = [(key, views)]
        return views

    def _grid(self, whole: View, spec: InputSpec) -> list[View]:
        if self.tile is None:
            return []
        if isinstance(self.tile, str):
            upright = whole.height > whole.width
            short, long = AUTO_SHRINK * spec.min_size, AUTO_SHRINK * spec.max_size
            limits = (short, long) if upright else (long, short)
            columns, rows = map(_count, (whole.width, whole.height), limits)
        else:
            columns, rows = self.tile
        if columns * rows == 1:
            return []
        across = _steps(whole.x1, whole.x2, columns)
        down = _steps(whole.y1, whole.y2, rows)
        return [View(x1, y1, x2, y2) for y1, y2 in down for x1, x2 in across]


def _tiles(tile: Any) -> tuple[int, int] | str | None:
    if tile in (None, "off", "auto"):
        return None if tile != "auto" else "auto"
    numbers: Any = tile
    if isinstance(tile, str | int):
        found = _GRID.fullmatch(str(tile))
        numbers = (found[1], found[2] or found[1]) if found else ()
    try:
        columns, rows = map(int, numbers)
    except (TypeError, ValueError):
        columns = rows = 0
    if not (columns >= 1 and rows >= 1 and 2 <= columns * rows <= MOST_TILES):
        raise StreamRPNError(
            f"tiles must be off, auto, a number or COLUMNSxROWS of 2 to {MOST_TILES} in all, got "
            f"{tile!r}"
        )
    return columns, rows


def _count(side: int, limit: float) -> int:
    """Returns how many tiles with an overlap make a side of so many pixels."""
    return max(1, math.ceil((side / limit - OVERLAP) / (1 - OVERLAP)))


def _steps(begin: int, end: int, count: int) -> list[tuple[int, int]]:
    """Returns (begin, end) of tiles of one size, which overlap, from edge to edge."""
    side = math.ceil((end - begin) / (count - (count - 1) * OVERLAP))
    side = min(side + side % 2, end - begin)
    room = end - begin - side
    # Even, as chroma is.
    starts = [begin + (room * i // max(1, count - 1)) // 2 * 2 for i in range(count - 1)]
    return [(start, start + side) for start in starts] + [(end - side, end)]


def _around(inside: np.ndarray) -> View:
    """Returns the rectangle of what is true, and a little more."""
    height, width = inside.shape
    x = np.flatnonzero(inside.any(axis=0))
    y = np.flatnonzero(inside.any(axis=1))
    more_x = round(AROUND * (x[-1] + 1 - x[0]))
    more_y = round(AROUND * (y[-1] + 1 - y[0]))
    return View(
        max(0, int(x[0]) - more_x),
        max(0, int(y[0]) - more_y),
        min(width, int(x[-1]) + 1 + more_x),
        min(height, int(y[-1]) + 1 + more_y),
    )


def _meets(view: View, inside: np.ndarray | None) -> bool:
    return inside is None or bool(inside[view.y1 : view.y2, view.x1 : view.x2].any())


def check_input(frame: Frame, spec: InputSpec) -> None:
    """Checks that the network has an input for all that it is shown of a frame.

    Raises:
        StreamRPNError: a part of it is too thin.
    """
    if frame.view is None or not frame.view.cuts:
        return
    for view in frame.view.views(frame.width, frame.height, spec):
        part = cut(frame, view)[0]
        try:
            input_shape(part, spec)
        except StreamRPNError as error:
            raise StreamRPNError(
                f"of its frames of {frame.width}x{frame.height} pixels a part is looked at: {error}"
            ) from None


def cut(frame: Frame, view: View) -> tuple[Frame, View]:
    """Returns a part of a frame as a frame, and what it shows: `view`, grown to even pixels.

    Its planes are copies; what was lost before the frame is not told again.

    Raises:
        StreamRPNError: the frame lies on a GPU.
    """
    if view == (0, 0, frame.width, frame.height):
        return replace(frame, drops=()), view
    from av import VideoFrame

    from stream_rpn.yuv import pixel_format

    image = frame.image
    if image.sw_format is not None:
        raise StreamRPNError(
            "frames that NVDEC decodes stay on the GPU and cannot be cut; use the decoder cpu"
        )
    layout = pixel_format(frame)
    x1, y1, x2, y2 = view.turned(frame.width, frame.height, -frame.rotation)
    x1, y1 = x1 - x1 % 2, y1 - y1 % 2
    x2, y2 = min(x2 + x2 % 2, image.width), min(y2 + y2 % 2, image.height)
    part = VideoFrame(x2 - x1, y2 - y1, image.format.name)
    for number, (plane, target) in enumerate(zip(image.planes, part.planes, strict=True)):
        # Luma has all pixels, chroma half of them; two of it may stand side by side.
        step = 2 if number else 1
        item = layout.sample_bytes * (2 if number and layout.interleaved else 1)
        rows = slice(y1 // step, -(-y2 // step))
        begin, end = x1 // step * item, -(-x2 // step) * item
        bytes_of = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        to = np.frombuffer(memoryview(target), np.uint8).reshape(-1, target.line_size)
        to[: rows.stop - rows.start, : end - begin] = bytes_of[rows, begin:end]
    shown = View(x1, y1, x2, y2).turned(image.width, image.height, frame.rotation)
    return replace(frame, image=part, width=shown.width, height=shown.height, drops=()), shown
