"""Where in a picture objects are looked for: inside of polygons, and where a mask is white.

Whatever says it becomes one array of the frame's size, true where it is looked at: a proposal lies
in a region where the pixel at its centre does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stream_rpn.frame import StreamRPNError

Polygon = tuple[tuple[float, float], ...]

# How much of its width over height a mask may differ from the frame, as sizes are rounded.
MOST_STRETCH = 0.02


@dataclass(frozen=True, eq=False)
class Region:
    """Polygons, all of which are looked at, and a mask that is white where it is looked.

    With both, only what lies in a polygon and where the mask is white is looked at.

    Attributes:
        polygons: of points (x, y): in pixels of the displayed frame, or in shares of its width and
            height where no number of a polygon is above 1.
        mask: [H, W] bool of any size with the frame's proportions, or None.
        mask_name: the file that it came from.
    """

    polygons: tuple[Polygon, ...] = ()
    mask: np.ndarray | None = None
    mask_name: str = ""
    _last: list[tuple[tuple[int, int], np.ndarray]] = field(default_factory=list, repr=False)

    @classmethod
    def parse(cls, region: Any = None, mask: Any = None) -> Region | None:
        """Returns what is asked for; None where nothing is.

        Args:
            region: "x,y,x,y,…", the name of a file with such lines, numbers x, y, x, y, …, points
                (x, y), or several of all these.
            mask: the name of a picture, or an array [H, W] of which is looked at what is true, or
                128 and more where it is of bytes.

        Raises:
            StreamRPNError: a file cannot be read, or something is no polygon or no mask.
        """
        polygons = () if region is None else tuple(_polygons(region))
        if mask is None:
            return cls(polygons) if polygons else None
        if isinstance(mask, str | Path):
            return cls(polygons, _read_mask(Path(mask)), str(mask))
        white = np.asarray(mask)
        if white.ndim != 2 or not white.size or white.dtype not in (bool, np.uint8):
            raise StreamRPNError(
                f"a mask must be an array [H, W] of bool or uint8, got {list(white.shape)} of "
                f"{white.dtype}"
            )
        return cls(polygons, white if white.dtype == bool else white >= 128, "array")

    def inside(self, width: int, height: int) -> np.ndarray:
        """Returns [height, width] bool, true where a displayed frame of this size is looked at.

        Raises:
            StreamRPNError: a polygon does not lie in such a frame, the mask has other proportions,
                or nothing is left to look at.
        """
        for size, found in self._last:
            if size == (width, height):
                return found
        found = np.ones((height, width), bool)
        if self.polygons:
            found = self._drawn(width, height)
        if self.mask is not None:
            found = found & self._fitted(self.mask, width, height)
        if not found.any():
            raise StreamRPNError(
                "nothing of the picture lies in the region and in the mask's white"
            )
        # Of folders of pictures there are many sizes.
        self._last[:] = [((width, height), found)]
        return found

    def record(self) -> dict[str, Any]:
        """Returns what stands in result files."""
        drawn = {"polygons": [[list(p) for p in polygon] for polygon in self.polygons]}
        return {
            **(drawn if self.polygons else {}),
            **({"mask": self.mask_name} if self.mask_name else {}),
        }

    def _drawn(self, width: int, height: int) -> np.ndarray:
        found = np.zeros((height, width), bool)
        for polygon in self.polygons:
            points = np.array(polygon)
            if points.max() <= 1:
                points *= (width, height)
            if points.min() < 0 or (points > (width, height)).any():
                raise StreamRPNError(
                    f"the region {_told(polygon)} reaches beyond the picture of {width}x{height} "
                    "pixels; shares of 0 to 1 fit every size"
                )
            found |= _filled(points, width, height)
        return found

    @staticmethod
    def _fitted(mask: np.ndarray, width: int, height: int) -> np.ndarray:
        rows, columns = mask.shape
        if abs(math.log(columns * height / (rows * width))) > MOST_STRETCH:
            raise StreamRPNError(
                f"the mask of {columns}x{rows} has other proportions than the picture of "
                f"{width}x{height} pixels"
            )
        y = (np.arange(height) + 0.5) * rows / height
        x = (np.arange(width) + 0.5) * columns / width
        fitted: np.ndarray = mask[np.ix_(y.astype(int), x.astype(int))]
        return fitted


def _filled(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """Returns [height, width] bool, true where the centre of a pixel lies in a polygon [N, 2]."""
    found = np.zeros((height, width), bool)
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, axis=0), strict=True):
        # To the right of each edge that a row meets, inside and outside change places.
        rows = np.flatnonzero((y1 <= y) != (y2 <= y))
        found[rows] ^= x > (x1 + (y[rows] - y1) * (x2 - x1) / (y2 - y1))[:, None]
    return found


def _polygons(region: Any) -> Iterator[Polygon]:
    if isinstance(region, str | Path):
        yield from _of_text(str(region))
        return
    try:
        items: Sequence[Any] = list(region)
    except TypeError:
        items = ()
    if not items:
        raise StreamRPNError(f"a region is x,y,x,y,…, points (x, y), or a file, got {region!r}")
    if all(isinstance(one, int | float | np.number) for one in items):
        yield _polygon(items, ",".join(f"{one:g}" for one in items))
    elif all(map(_is_point, items)):
        numbers = [number for point in items for number in point]
        yield _polygon(numbers, ",".join(f"{one:g}" for one in numbers))
    else:
        for one in items:
            yield from _polygons(one)


def _is_point(value: Any) -> bool:
    return (
        isinstance(value, Sequence | np.ndarray)
        and len(value) == 2
        and all(isinstance(one, int | float | np.number) for one in value)
    )


def _of_text(text: str) -> Iterator[Polygon]:
    """Yields the polygon that a text is, or those of the file that it names."""
    numbers = _numbers(text)
    if numbers is not None:
        yield _polygon(numbers, text)
        return
    try:
        lines = Path(text).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise StreamRPNError(
            f"the region {text!r} is neither x,y,x,y,… nor a file that can be read: {why}"
        ) from error
    found = False
    for number, line in enumerate(lines, start=1):
        content = line.partition("#")[0].strip()
        if content:
            found = True
            yield _polygon(_numbers(content) or (), content, f"{text}, line {number}: ")
    if not found:
        raise StreamRPNError(f"the file {text!r} of a region has no line x,y,x,y,…")


def _numbers(text: str) -> list[float] | None:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return None


def _polygon(numbers: Iterable[Any], told: str, where: str = "") -> Polygon:
    values = [float(number) for number in numbers]
    if len(values) < 6 or len(values) % 2 or not all(map(math.isfinite, values)):
        raise StreamRPNError(
            f"{where}a region is x,y,x,y,… of three points and more, in pixels or in shares of 0 "
            f"to 1, got {told!r}"
        )
    return tuple(zip(values[::2], values[1::2], strict=True))


def _told(polygon: Polygon) -> str:
    return ",".join(f"{number:g}" for point in polygon for number in point)


def _read_mask(path: Path) -> np.ndarray:
    from stream_rpn.sources.picture import decode_rgb

    try:
        rgb = decode_rgb(path.read_bytes())
    except OSError as error:
        raise StreamRPNError(f"the mask {str(path)!r} cannot be read: {error.strerror}") from error
    except StreamRPNError as error:
        raise StreamRPNError(f"the mask {str(path)!r} {error}") from error
    white: np.ndarray = rgb.mean(axis=2) >= 128
    if not white.any():
        raise StreamRPNError(f"the mask {str(path)!r} is black; what is white is looked at")
    return white
