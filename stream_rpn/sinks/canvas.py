"""Drawing boxes on video frames, directly on their YUV planes.

A decoded frame is drawn on as it is: no conversion to RGB and back, so that every pixel beside the
lines stays what it was, and 20 boxes on a 1080p frame take well under a millisecond.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stream_rpn.frame import Color, Proposals
from stream_rpn.yuv import COLORSPACES, LUMA_WEIGHTS

# Of writing, in pixels: where it can still be read.
_SMALLEST_TEXT = 13

# Luma above which writing is dark.
_MIDDLE = 120


class Canvas:
    """An upright 4:2:0 picture of even size to draw on.

    Attributes:
        width: pixels, even.
        height: pixels, even.
        color: how its planes encode colour.
        y: [height, width] uint8 luma.
        u: [height / 2, width / 2] uint8 blue difference.
        v: [height / 2, width / 2] uint8 red difference.
    """

    def __init__(self, width: int, height: int, color: Color) -> None:
        self.width, self.height = width + width % 2, height + height % 2
        self.color = color
        self._scale = 1.0
        self._offset = np.zeros(4)
        # Laid out as PyAV takes yuv420p: the rows of y, then those of u and v two by two.
        self._planes = np.empty((self.height * 3 // 2, self.width), np.uint8)
        flat, luma = self._planes.reshape(-1), self.width * self.height
        self.y = flat[:luma].reshape(self.height, self.width)
        self.u, self.v = flat[luma:].reshape(2, self.height // 2, self.width // 2)

    @classmethod
    def of(
        cls,
        image: av.VideoFrame,
        color: Color,
        *,
        rotation: int = 0,
        size: tuple[int, int] | None = None,
    ) -> Canvas:
        """Returns a canvas that shows a frame upright.

        Args:
            image: the frame as decoded.
            color: how its planes encode colour.
            rotation: degrees clockwise to turn it by: 0, 90, 180 or 270.
            size: (width, height) of the canvas where it is not the frame's; the frame is then
                scaled to fit and has black bars around it.
        """
        canvas = cls._upright(image, color, rotation)
        if size is None or (size[0] + size[0] % 2, size[1] + size[1] % 2) == (
            canvas.width,
            canvas.height,
        ):
            return canvas
        return canvas._letterboxed(*size)

    @classmethod
    def of_result(
        cls, proposals: Proposals, color: Color, size: tuple[int, int] | None = None
    ) -> Canvas:
        """Returns a canvas that shows the frame of a result upright.

        Args:
            proposals: of the frame.
            color: how its planes encode colour where they do not say.
            size: see `of`.

        Raises:
            ValueError: its picture was not kept.
        """
        if proposals.image is None:
            raise ValueError(f"the picture of frame {proposals.frame} was not kept")
        color = proposals.color or color
        return cls.of(proposals.image, color, rotation=proposals.rotation, size=size)

    @classmethod
    def _upright(cls, image: av.VideoFrame, color: Color, rotation: int) -> Canvas:
        if image.format.name not in ("yuv420p", "yuvj420p"):
            number = COLORSPACES[color.matrix]
            image = image.reformat(
                format="yuv420p",
                src_colorspace=number,
                dst_colorspace=number,
                src_color_range=2 if color.full_range else 1,
                dst_color_range=2 if color.full_range else 1,
            )
        sideways = rotation in (90, 270)
        canvas = cls(
            image.height if sideways else image.width,
            image.width if sideways else image.height,
            color,
        )
        for plane, target in zip(image.planes, (canvas.y, canvas.u, canvas.v), strict=True):
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            turned = np.rot90(rows[: plane.height, : plane.width], -rotation // 90)
            height, width = turned.shape
            target[:height, :width] = turned
            # An odd side of luma is made even by repeating its last line.
            target[height:] = target[height - 1 : height]
            target[:, width:] = target[:, width - 1 : width]
        return canvas

    def _letterboxed(self, width: int, height: int) -> Canvas:
        canvas = Canvas(width, height, self.color)
        canvas.y[:] = 0 if self.color.full_range else 16
        canvas.u[:] = canvas.v[:] = 128
        scale = min(canvas.width / self.width, canvas.height / self.height)
        inner_width = max(2, int(self.width * scale) // 2 * 2)
        inner_height = max(2, int(self.height * scale) // 2 * 2)
        scaled = Canvas._upright(
            self.frame().reformat(inner_width, inner_height, format="yuv420p"), self.color, 0
        )
        left = (canvas.width - inner_width) // 4 * 2
        top = (canvas.height - inner_height) // 4 * 2
        canvas.y[top : top + inner_height, left : left + inner_width] = scaled.y
        inner = np.s_[top // 2 : (top + inner_height) // 2, left // 2 : (left + inner_width) // 2]
        canvas.u[inner], canvas.v[inner] = scaled.u, scaled.v
        canvas._scale, canvas._offset = scale, np.array([left, top, left, top])
        return canvas

    def draw(
        self,
        boxes: np.ndarray,
        colors: np.ndarray,
        texts: Sequence[str] = (),
        thickness: int | None = None,
        stamp: str = "",
    ) -> None:
        """Draws boxes, the last first, so that the best lie on top, and then what is written.

        Lines begin on even pixels, where chroma is sharp; a thin dark rim sets them off from any
        background. Labels overprint neither each other nor the stamp: where there is no room at any
        corner of its box, one is left out.

        Args:
            boxes: [N, 4] x1, y1, x2, y2 in pixels of the frame, best first.
            colors: [N, 3] red, green and blue from 0 to 255.
            texts: N labels, or none.
            thickness: of lines in pixels; None for 2 up to 720p, 4 at 1080p and so on.
            stamp: written in the upper left corner.
        """
        thickness = thickness or 2 * max(1, round(min(self.width, self.height) / 540))
        black = 0 if self.color.full_range else 16
        sides = (self.width, self.height, self.width, self.height)
        even = np.rint((boxes * self._scale + self._offset) / 2) * 2
        corners = np.clip(even, 0, sides).astype(int)
        corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2] + 2)
        shades = self._shades(colors)
        for (x1, y1, x2, y2), (luma, blue, red) in zip(
            corners.tolist()[::-1], shades[::-1], strict=True
        ):
            _outline(self.y, x1 - 1, y1 - 1, x2 + 1, y2 + 1, thickness + 2, black)
            _outline(self.y, x1, y1, x2, y2, thickness, luma)
            half = (x1 // 2, y1 // 2, x2 // 2, y2 // 2, (thickness + 1) // 2)
            _outline(self.u, *half, blue)
            _outline(self.v, *half, red)
        self._write(corners.tolist(), shades, texts, stamp)

    def _shades(self, colors: np.ndarray) -> list[tuple[int, int, int]]:
        """Returns colours [N, 3] from 0 to 255 as (y, u, v)."""
        red, green, blue = colors.T / 255
        red_weight, blue_weight = LUMA_WEIGHTS[self.color.matrix]
        luma = red_weight * red + (1 - red_weight - blue_weight) * green + blue_weight * blue
        u, v = (blue - luma) / (2 - 2 * blue_weight), (red - luma) / (2 - 2 * red_weight)
        luma_scale, chroma_scale, base = (255, 255, 0) if self.color.full_range else (219, 224, 16)
        planes = (base + luma_scale * luma, 128 + chroma_scale * u, 128 + chroma_scale * v)
        rows = np.clip(np.rint(np.stack(planes, axis=1)), 0, 255).astype(int).tolist()
        return [(y, u, v) for y, u, v in rows]

    def _write(
        self,
        corners: list[list[int]],
        shades: list[tuple[int, int, int]],
        texts: Sequence[str],
        stamp: str,
    ) -> None:
        """Writes the stamp, then the label of each box on a tab of its colour, the best first."""
        size = max(_SMALLEST_TEXT, round(min(self.width, self.height) / 38))
        taken: list[tuple[int, int, int, int]] = []
        tabs = [([0, 0, 0, 0], self._shades(np.zeros((1, 3)))[0], stamp)] if stamp else []
        for box, shade, text in [*tabs, *zip(corners, shades, texts, strict=False)]:
            dark, light = (0, 255) if self.color.full_range else (16, 235)
            tab = _tab(text, size, shade[0], dark if shade[0] > _MIDDLE else light)
            height, width = tab.shape
            place = next((p for p in self._places(box, width, height) if _is_free(p, taken)), None)
            if place is not None:
                taken.append(place)
                left, top, right, bottom = place
                self.y[top:bottom, left:right] = tab
                half = np.s_[top // 2 : bottom // 2, left // 2 : right // 2]
                self.u[half], self.v[half] = shade[1:]

    def _places(
        self, box: list[int], width: int, height: int
    ) -> Iterator[tuple[int, int, int, int]]:
        """Yields where in the picture a label may stand at a box, from the best place on."""
        x1, y1, x2, y2 = box
        for top in (y1 - height, y1, y2, y2 - height):
            for left in (x1, x2 - width):
                left = max(0, min(left, self.width - width))
                if left + width <= self.width and 0 <= top <= self.height - height:
                    yield left, top, left + width, top + height

    def rgb(self) -> np.ndarray:
        """Returns the picture as a [height, width, 3] uint8 array of full-range RGB."""
        return self.frame().to_ndarray(
            format="rgb24", src_colorspace=COLORSPACES[self.color.matrix]
        )

    def frame(self) -> av.VideoFrame:
        """Returns the picture as a yuv420p frame with the colour tags of its source."""
        frame = av.VideoFrame.from_ndarray(self._planes, format="yuv420p")
        frame.colorspace = COLORSPACES[self.color.matrix]
        frame.color_range = 2 if self.color.full_range else 1
        return frame


def _outline(
    plane: np.ndarray, x1: int, y1: int, x2: int, y2: int, thickness: int, value: int
) -> None:
    x1, y1 = max(x1, 0), max(y1, 0)
    plane[y1 : y1 + thickness, x1:x2] = value
    plane[max(y2 - thickness, y1) : y2, x1:x2] = value
    plane[y1:y2, x1 : x1 + thickness] = value
    plane[y1:y2, max(x2 - thickness, x1) : x2] = value


def _is_free(place: tuple[int, int, int, int], taken: list[tuple[int, int, int, int]]) -> bool:
    left, top, right, bottom = place
    for x1, y1, x2, y2 in taken:
        if x1 < right and left < x2 and y1 < bottom and top < y2:
            return False
    return True


@functools.lru_cache(maxsize=4096)
def _tab(text: str, size: int, luma: int, ink: int) -> np.ndarray:
    """Returns the luma of a label: writing on a ground, with a margin around it.

    Returns:
        [height, width] uint8, both even; the height goes with the size alone.
    """
    font = _font(size)
    left, _, right, _ = font.getbbox(text)
    _, top, _, bottom = font.getbbox("#0%")
    margin = max(2, size // 6)
    width, height = (round(side + 2 * margin + 1) // 2 * 2 for side in (right - left, bottom - top))
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).text((margin - left, margin - top), text, fill=255, font=font)
    covered = np.asarray(image, np.float32) / 255
    return (luma + (ink - luma) * covered).astype(np.uint8)


@functools.lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # as it is where a size is asked for
    return font
