"""Synthetic video: textured objects that move over a textured background, with known boxes.

It is encoded to H.264 in memory and decoded like any file, so it exercises the whole pipeline where
no video is at hand, and its boxes are right by construction.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import BinaryIO, cast

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from stream_rpn.frame import StreamRPNError
from stream_rpn.limits import MAX_PIXELS
from stream_rpn.log import log
from stream_rpn.sources.file import FileSource
from stream_rpn.sources.source import Source

_SPEC = re.compile(r"synthetic:(?:(\d+)x(\d+))?(?:@(\d+(?:\.\d+)?(?:/\d+)?))?(?:,(\d+))?")


@dataclass(frozen=True)
class SyntheticVideo:
    """A deterministic scene: the same numbers give the same pixels.

    Attributes:
        width: pixels, even, at least 32.
        height: pixels, even, at least 32.
        fps: frames per second.
        num_frames: how many frames.
        num_objects: how many objects; later ones lie in front.
    """

    width: int = 640
    height: int = 360
    fps: Fraction = field(default=Fraction(25))
    num_frames: int = 100
    num_objects: int = 6

    @classmethod
    def parse(cls, uri: str) -> SyntheticVideo:
        """Returns the video that "synthetic:[WxH@FPS,N]" describes; every part may be left out.

        Raises:
            StreamRPNError: `uri` is not of that form, or H.264 has no such size.
        """
        spec = _SPEC.fullmatch(uri)
        if spec is None:
            raise StreamRPNError(
                f"{uri!r} is not of the form synthetic:[WxH@FPS,N], e.g. synthetic:640x360@25,100"
            )
        width, height, fps, num_frames = spec.groups()
        try:
            video = cls(
                width=int(width or cls.width),
                height=int(height or cls.height),
                fps=Fraction(fps or 25),
                num_frames=int(num_frames or cls.num_frames),
            )
        except ZeroDivisionError:
            raise StreamRPNError(f"{uri!r}: the frame rate divides by zero") from None
        if min(video.width, video.height) < 32 or video.width % 2 or video.height % 2:
            raise StreamRPNError(f"{uri!r}: width and height must be even and at least 32")
        if max(video.width, video.height) > 8192 or not 0 < video.fps <= 1000:
            raise StreamRPNError(f"{uri!r}: at most 8192 pixels a side and 1000 frames a second")
        if video.num_frames < 1:
            raise StreamRPNError(f"{uri!r}: there must be at least one frame")
        return video

    def boxes(self, index: int) -> np.ndarray:
        """Returns the objects' boxes in frame `index`, [num_objects, 4] float32, x1, y1, x2, y2.

        They lie whole within the frame and are given whole where another object is in front.
        """
        room = np.array([self.width, self.height]) - self._sizes
        # A reflected straight line: from 0 to `room` and back, without end.
        travelled = self._starts + index * self._velocities
        corners = np.abs((travelled + room) % (2 * room) - room).astype(np.int64)
        return np.concatenate([corners, corners + self._sizes], axis=1).astype(np.float32)

    def image(self, index: int) -> np.ndarray:
        """Returns frame `index` before encoding, [height, width, 4] uint8 RGBX."""
        image = self._background.copy()
        for (x1, y1, x2, y2), (texture, mask) in zip(
            self.boxes(index).astype(int), self._objects, strict=True
        ):
            np.copyto(image[y1:y2, x1:x2], texture, where=mask)
        return image.view(np.uint8).reshape(self.height, self.width, 4)

    def encoded(self) -> BinaryIO:
        """Returns the video as a file that is encoded while it is read; it cannot seek."""
        return cast(BinaryIO, io.BufferedReader(_EncodedVideo(self)))

    @cached_property
    def _sizes(self) -> np.ndarray:
        """[num_objects, 2] width and height, between an eighth and two fifths of the frame."""
        share = np.random.default_rng(1).uniform(0.125, 0.4, (self.num_objects, 2))
        return np.maximum(share * [self.width, self.height], 4).astype(np.int64)

    @cached_property
    def _starts(self) -> np.ndarray:
        share = np.random.default_rng(2).uniform(0, 2, (self.num_objects, 2))
        return share * [self.width, self.height]

    @cached_property
    def _velocities(self) -> np.ndarray:
        """[num_objects, 2] pixels per frame: across the frame in 3 to 8 seconds."""
        rng = np.random.default_rng(3)
        shape = (self.num_objects, 2)
        seconds = rng.uniform(3, 8, shape) * rng.choice([-1, 1], shape)
        velocities: np.ndarray = np.array([self.width, self.height]) / (seconds * float(self.fps))
        return velocities

    @cached_property
    def _background(self) -> np.ndarray:
        noise = _smooth_noise(np.random.default_rng(4), self.height, self.width, 24)
        tint = np.array([0.9, 1.0, 0.8])
        return _pixels((70 + 60 * noise[:, :, None]) * tint)

    @cached_property
    def _objects(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per object its texture [h, w] uint32 and its shape [h, w] bool: round or square."""
        objects = []
        for number, (width, height) in enumerate(self._sizes):
            rng = np.random.default_rng([5, number])
            x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
            # One primary colour is high and one is low: no object is gray.
            color = rng.permutation([230.0, 130.0 + 60 * rng.random(), 40.0])
            stripes = 0.5 + 0.5 * np.sign(np.sin(7 * (x * rng.uniform(-1, 1) + y)))
            shade = 0.65 + 0.35 * stripes * (0.7 + 0.3 * _smooth_noise(rng, height, width, 6))
            # A superellipse: round, but wide enough at its extremes to touch every side of the box.
            mask = x**4 + y**4 <= 1.02 if number % 2 else np.ones_like(x, dtype=bool)
            objects.append((_pixels(color * shade[:, :, None]), mask))
        return objects


def _pixels(rgb: np.ndarray) -> np.ndarray:
    """Returns [h, w] uint32 for [h, w, 3]: whole pixels are copied several times as fast."""
    pixels = np.zeros((*rgb.shape[:2], 4), dtype=np.uint8)
    pixels[:, :, :3] = rgb
    packed: np.ndarray = pixels.view(np.uint32)[:, :, 0]
    return packed


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Returns [height, width] noise in [0, 1]: a random grid of `cells`, interpolated linearly."""
    grid = rng.random((cells + 1, cells + 1))
    y, x = np.linspace(0, cells, height), np.linspace(0, cells, width)
    knots = np.arange(cells + 1)
    rows = np.array([np.interp(x, knots, row) for row in grid])
    top = np.minimum(y.astype(int), cells - 1)
    weight = (y - top)[:, None]
    noise: np.ndarray = rows[top] * (1 - weight) + rows[top + 1] * weight
    return noise


class _EncodedVideo(io.RawIOBase):
    """Encodes a frame whenever the reader has used up what there was: memory stays flat."""

    def __init__(self, video: SyntheticVideo) -> None:
        self._video = video
        self._next_index = 0
        self._buffer = bytearray()
        self._reformatter = VideoReformatter()
        self._ended = False
        # Fragmented, so that nothing has to be written back into what was already read.
        self._container = av.open(
            self._Sink(self._buffer),
            "w",
            format="mp4",
            container_options={"movflags": "empty_moov+default_base_moof+frag_keyframe"},
        )
        stream = self._container.add_stream("libx264", rate=video.fps)
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "20", "g": "25"}
        stream.codec_context.colorspace = Colorspace.ITU709
        stream.codec_context.color_range = ColorRange.MPEG
        stream.codec_context.thread_count = 1
        self._stream = stream

    class _Sink:
        """The muxer's output; without seek() it takes this for a pipe."""

        def __init__(self, buffer: bytearray) -> None:
            self._buffer = buffer

        def write(self, data: bytes) -> int:
            self._buffer += data
            return len(data)

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        while not self._buffer and not self._ended:
            self._encode_next()
        count = min(len(target), len(self._buffer))
        target[:count] = self._buffer[:count]
        del self._buffer[:count]
        return count

    def _encode_next(self) -> None:
        if self._next_index < self._video.num_frames:
            rgb = av.VideoFrame.from_ndarray(self._video.image(self._next_index), format="rgba")
            image = self._reformatter.reformat(
                rgb,
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                threads=1,
            )
            image.pts = self._next_index
            self._next_index += 1
            self._container.mux(self._stream.encode(image))
        else:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._ended = True

    def close(self) -> None:
        if not self.closed and not self._ended:
            self._ended = True
            self._container.close()
        super().close()


def open_synthetic(
    uri: str,
    *,
    decoder: str = "auto",
    video_stream: int | None = None,
    threads: int = 0,
    device: str | None = None,
    max_pixels: int = MAX_PIXELS,
    open_timeout: float = 30.0,
    stopped: Callable[[], bool] = lambda: False,
    notice: Callable[[str], None] = log.warning,
) -> Source:
    """Opens a clip that is made as it is read; see `sources.open_source`."""
    video = SyntheticVideo.parse(uri)
    return FileSource(
        uri,
        video.encoded(),
        decoder=decoder,
        threads=threads,
        device=device,
        num_frames=video.num_frames,
        max_pixels=max_pixels,
    )
