"""JPEG files of frames, by FFmpeg's own encoder: for crops, and for the picture in a browser."""

from __future__ import annotations

from fractions import Fraction

import av


def encode(
    image: av.VideoFrame,
    *,
    size: tuple[int, int] | None = None,
    colorspace: int | None = None,
    full_range: bool | None = None,
    quality: int = 2,
) -> bytes:
    """Encodes a frame as a JPEG file, which is full-range BT.601 by definition.

    Args:
        image: the frame, in RGB or any YUV format.
        size: (width, height) of the picture where it is not the frame's.
        colorspace: FFmpeg's number of the frame's matrix; None for RGB.
        full_range: whether the frame's luma goes from 0 to 255; None for RGB.
        quality: FFmpeg's scale, from 2 (best) to 31.
    """
    width, height = size or (image.width, image.height)
    frame = image.reformat(
        width,
        height,
        format="yuvj420p",
        src_colorspace=colorspace,
        src_color_range=None if full_range is None else 2 if full_range else 1,
        dst_colorspace="ITU601",
        dst_color_range="JPEG",
        threads=1,
    )
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    encoder.thread_count = 1
    encoder.options = {"qmin": str(quality), "qmax": str(quality)}
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
