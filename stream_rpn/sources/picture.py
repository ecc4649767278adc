"""One still picture from the bytes of its file: as coded for `stream`, as RGB for eval and train.

Two libraries share the formats. FFmpeg leaves planes as they are coded, which is what the pipeline
wants, and knows HEIC, EXR and DPX; Pillow gives the RGB that detectors are trained on. Where one of
them is wrong, the other one reads for both: FFmpeg makes TIFF files with JPEG inside black, fills
up what a QOI file lacks and cannot tell TGA; Pillow clips what has more than eight bits.
"""

from __future__ import annotations

import io
import re
from typing import NamedTuple

import av
import av.error
import numpy as np
from av.stream import Disposition
from PIL import Image, ImageOps, UnidentifiedImageError

from stream_rpn.decode import color_of, orientation
from stream_rpn.frame import StreamRPNError
from stream_rpn.limits import MAX_PIXELS, check_pixels
from stream_rpn.yuv import COLORSPACES

# Of Pillow's formats those that are pictures of pixels, without those that run other programs.
# TGA has no signature and comes last.
_FORMATS = (
    "JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "QOI", "DDS", "PCX",
    "SGI", "ICO", "TGA",
)  # fmt: skip

_JPEG = b"\xff\xd8"
_FOR_PILLOW = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"qoif")

# What ends a run of coded data: not a stuffed zero, a restart marker or a filling byte.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_START_OF_IMAGE, _END_OF_IMAGE, _TEMPORARY = 0xD8, 0xD9, 0x01


class Picture(NamedTuple):
    """A decoded picture.

    Attributes:
        image: its pixels in any format, with the matrix that says how to display them.
        codec: e.g. "mjpeg".
    """

    image: av.VideoFrame
    codec: str


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Returns a picture as it is coded, one of at most so many pixels.

    Raises:
        StreamRPNError: it cannot be read, or is cut off; the sentence goes on from its name.
    """
    if data.startswith(_JPEG) and not _is_whole_jpeg(data):
        # FFmpeg would fill up what is missing, and not say so.
        raise StreamRPNError("is cut off: the end of the JPEG data is missing")
    if not data.startswith(_FOR_PILLOW):
        try:
            return _decode_by_ffmpeg(data, max_pixels)
        except (av.error.FFmpegError, IndexError):
            pass
    pixels, name = _decode_by_pillow(data, max_pixels)
    return Picture(av.VideoFrame.from_ndarray(pixels, format="rgb24"), name)


def decode_rgb(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Returns a picture of at most so many pixels as [H, W, 3] uint8 RGB, upright.

    Raises:
        StreamRPNError: it cannot be read, or is cut off; the sentence goes on from its name.
    """
    try:
        return _decode_by_pillow(data, max_pixels)[0]
    except _UnknownToPillowError as unknown:
        try:
            image = _decode_by_ffmpeg(data, max_pixels).image
        except (av.error.FFmpegError, IndexError):
            raise unknown from None
    color = color_of(image, image.format)
    rgb = image.reformat(
        format="rgb24",
        src_colorspace=COLORSPACES[color.matrix],
        src_color_range=2 if color.full_range else 1,
    ).to_ndarray()
    rotation, mirrored = orientation(image)
    return np.ascontiguousarray(np.rot90(rgb[:, ::-1] if mirrored else rgb, -rotation // 90))


class _UnknownToPillowError(StreamRPNError):
    """It may still be a format of FFmpeg."""


def _decode_by_ffmpeg(data: bytes, max_pixels: int) -> Picture:
    # Not by name: FFmpeg takes a "%" in the name of an image for a numbered sequence.
    options = {"max_pixels": str(max_pixels)}
    with av.open(io.BytesIO(data), "r", metadata_errors="replace", options=options) as container:
        streams = container.streams.video
        whole = [stream for stream in streams if not stream.disposition & Disposition.dependent]
        if streams and not whole:
            raise StreamRPNError(
                f"is made of {len(streams)} tiles, as telephones write HEIC, which are not put "
                "together here; convert it to JPEG"
            )
        stream = whole[0]
        stream.codec_context.options = options
        stream.thread_count = 1
        for packet in container.demux(stream):
            for image in packet.decode():
                return Picture(image, stream.codec_context.codec.canonical_name)
    raise IndexError("no picture in it")


def _decode_by_pillow(data: bytes, max_pixels: int) -> tuple[np.ndarray, str]:
    """Returns [H, W, 3] uint8 RGB, upright, and the name of the format."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            name = str(image.format).lower()
            check_pixels(*image.size, max_pixels)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return rgb_of(image), name
    except UnidentifiedImageError:
        raise _UnknownToPillowError("is not an image that can be read") from None
    except Image.DecompressionBombError:
        # Pillow's limit, which is of its own; FFmpeg may read it.
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise _UnknownToPillowError(
            f"has over {most:,} pixels; scale it down, or allow more by --max-pixels, which only "
            "helps with formats that FFmpeg reads"
        ) from None
    except StreamRPNError:
        raise
    except Exception as error:  # a plugin for a damaged file raises anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StreamRPNError(f"cannot be decoded as an image ({reason:.200})") from error


def rgb_of(image: Image.Image) -> np.ndarray:
    """Returns an image of Pillow as [H, W, 3] uint8 RGB, as it lies.

    Raises:
        StreamRPNError: its values are no gray levels.
    """
    if image.mode.startswith(("I", "F")):
        return np.repeat(_gray_levels(np.asarray(image))[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


def _gray_levels(values: np.ndarray) -> np.ndarray:
    """Returns gray values of more than eight bits as uint8 of the same shape.

    uint16 goes up to 65535. Of 32 bits the values tell what is white: 1, 255 or 65535.

    Raises:
        StreamRPNError: the values are no gray levels, as those of a map of heights.
    """
    lowest, highest = float(values.min()), float(values.max())
    if not (lowest >= 0 and highest <= 65535):  # nor are those that are not a number
        raise StreamRPNError(
            f"holds values from {lowest:g} to {highest:g}, which are no gray levels; scale them to "
            "0…255 (8 bits) or 0…65535 (16 bits)"
        )
    white = 65535 if values.dtype.itemsize == 2 or highest > 255 else 255
    if values.dtype.kind == "f" and highest <= 1:
        white = 1
    levels: np.ndarray = np.rint(values * (255 / white)).astype(np.uint8)
    return levels


def _is_whole_jpeg(data: bytes) -> bool:
    """Tells whether the picture's end marker is there, whatever stands behind it."""
    if data.endswith(b"\xff\xd9"):
        return True
    position = 0
    while found := _MARKER.search(data, position):
        position = found.end()
        marker = data[position - 1]
        if marker == _END_OF_IMAGE:
            return True
        if marker not in (_START_OF_IMAGE, _TEMPORARY):
            # The length of a segment counts its own two bytes.
            position += max(int.from_bytes(data[position : position + 2], "big"), 2)
    return False
