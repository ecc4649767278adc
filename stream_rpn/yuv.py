"""The planes of a decoded frame: their samples, their colour, and small copies of them.

On a CPU, FFmpeg's swscale makes the small copies: compiled code for every processor, which reads
each sample once. Its bilinear filter is widened where an axis shrinks, as `antialias` asks for. The
planes stay what they are, luma and chroma, at one size: colour is converted where there are the
fewest pixels, by whoever takes them.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from stream_rpn.frame import Frame, StreamRPNError

if TYPE_CHECKING:
    import av


@dataclass(frozen=True)
class PixelFormat:
    """How the samples of a plane are stored.

    Attributes:
        bits: of a value.
        shift: zero bits below the value in its sample.
        interleaved: U and V alternate in one plane.
    """

    bits: int
    shift: int = 0
    interleaved: bool = False

    @property
    def sample_bytes(self) -> int:
        """Bytes of a sample."""
        return 1 if self.bits == 8 else 2

    @property
    def white(self) -> int:
        """The highest value of a sample."""
        return ((1 << self.bits) - 1) << self.shift


PIXEL_FORMATS = {
    "yuv420p": PixelFormat(bits=8),
    "yuvj420p": PixelFormat(bits=8),  # of full range, which `frame.color` says
    "nv12": PixelFormat(bits=8, interleaved=True),
    "yuv420p10le": PixelFormat(bits=10),
    "p010le": PixelFormat(bits=10, shift=6, interleaved=True),
}
"""Decoding leaves these as they are and converts everything else to yuv420p."""

LUMA_WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
"""(Kr, Kb): the shares of red and blue in luma (ITU-R BT.601-7, BT.709-6, BT.2020-2)."""

COLORSPACES = {"bt709": 1, "bt601": 5, "bt2020": 9}
"""AVColorSpace numbers of the matrices, as swscale and encoders take them."""


def pixel_format(frame: Frame) -> PixelFormat:
    """Returns how the frame's samples are stored.

    Raises:
        StreamRPNError: in a way that decoding does not hand over.
    """
    name = (frame.image.sw_format or frame.image.format).name
    if name not in PIXEL_FORMATS:
        raise StreamRPNError(
            f"frame {frame.index} has the pixel format {name}; decoding hands over "
            f"{', '.join(PIXEL_FORMATS)} only"
        )
    return PIXEL_FORMATS[name]


@cache
def color_matrix(matrix: str, full_range: bool, bits: int = 8, shift: int = 0) -> np.ndarray:
    """Returns [3, 4] float32 that takes samples (y, u, v, 1) to R'G'B' in [0, 1].

    Args:
        matrix: "bt601", "bt709" or "bt2020" (non-constant luminance).
        full_range: True for 0–255 luma, False for 16–235 (8-bit numbers).
        bits: of a value: 8 or more.
        shift: zero bits below the value in its sample; 6 for p010le.

    Raises:
        ValueError: the matrix is unknown.
    """
    if matrix not in LUMA_WEIGHTS:
        raise ValueError(f"matrix must be one of {', '.join(LUMA_WEIGHTS)}, got {matrix!r}")
    kr, kb = LUMA_WEIGHTS[matrix]
    kg = 1 - kr - kb
    weights = np.array(
        [
            [1, 0, 2 * (1 - kr)],
            [1, -2 * kb * (1 - kb) / kg, -2 * kr * (1 - kr) / kg],
            [1, 2 * (1 - kb), 0],
        ]
    )
    step = 2 ** (bits - 8)
    if full_range:
        offsets, spans = np.array([0, 128 * step, 128 * step]), np.full(3, 256 * step - 1)
    else:
        offsets, spans = np.array([16, 128, 128]) * step, np.array([219, 224, 224]) * step
    scaled = weights / spans
    return np.column_stack((scaled / 2**shift, -scaled @ offsets)).astype(np.float32)


def shrink(frame: Frame, size: tuple[int, int], out: np.ndarray) -> np.ndarray:
    """Writes the frame's planes, resized and turned as displayed, into the upper left of `out`.

    Args:
        frame: in the host's memory.
        size: (height, width) of the resized frame after rotation.
        out: [3, H, W] uint8, H and W at least `size`: y, u and v; the rest of it stays as it is.

    Returns:
        [3, 4] float32: what `color_matrix` says of these samples.

    Raises:
        StreamRPNError: a pixel format that decoding does not hand over.
    """
    pixel_format(frame)
    height, width = size
    rows, columns = size if frame.rotation % 180 == 0 else (width, height)
    small = _resized(frame.image, rows, columns)
    for plane, slot in zip(small.planes, out, strict=True):
        samples = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
            :rows, :columns
        ]
        slot[:height, :width] = np.rot90(samples, -frame.rotation // 90)
    return color_matrix(frame.color.matrix, frame.color.full_range)


_threads = threading.local()


def _resized(image: av.VideoFrame, rows: int, columns: int) -> av.VideoFrame:
    # Whoever gives frames has PyAV; the arithmetic above does without.
    from av.error import FFmpegError
    from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

    # One a thread: it keeps the tables of the filter from frame to frame.
    if not hasattr(_threads, "reformatter"):
        _threads.reformatter = VideoReformatter()
    # One name for both sides, whichever it is, leaves the values alone.
    try:
        small: av.VideoFrame = _threads.reformatter.reformat(
            image,
            columns,
            rows,
            "yuvj444p" if image.format.name == "yuvj420p" else "yuv444p",
            src_colorspace=Colorspace.ITU709,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.MPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND,
            threads=1,
        )
    except FFmpegError as error:
        raise StreamRPNError(
            f"a frame of {image.width}x{image.height} cannot be resized to {columns}x{rows} "
            f"({error.strerror}); use another size"
        ) from error
    return small
