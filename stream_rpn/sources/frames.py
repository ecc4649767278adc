"""Frames that a program makes itself, as a source: arrays, tensors, images, frames of PyAV."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sized
from pathlib import Path

import av

from stream_rpn.clock import Clock
from stream_rpn.decode import PlaneConverter
from stream_rpn.frame import Frame, StreamInfo, StreamRPNError
from stream_rpn.pictures import Picture, frame_of, rgb_of_any
from stream_rpn.sources.source import Source
from stream_rpn.tally import Tally


class FramesSource(Source):
    """What an iterable gives, one picture after another; each may have its own size.

    A frame of PyAV keeps its own time. Other pictures have no time, or follow by a rate.

    Args:
        pictures: frames of PyAV, arrays [H, W, 3] and tensors [3, H, W] (RGB, uint8 or float in
            [0, 1]), images of Pillow, paths. They stay as they are, and are read one at a time.
        fps: of pictures without times of their own.
        live: they do not wait: what is too late is dropped.
        name: what results call the source.

    Raises:
        StreamRPNError: there are none, or a file cannot be read.
        TypeError: one is no picture, or of other numbers.
        ValueError: one has another shape, or is not in [0, 1].
    """

    def __init__(
        self,
        pictures: Iterable[Picture | av.VideoFrame],
        *,
        fps: float | None = None,
        live: bool = False,
        name: str,
    ) -> None:
        self.tally = Tally()
        self.clock = Clock()
        self._pictures = pictures
        self._fps, self._live = fps, live
        self._planes = PlaneConverter()
        self._frames = self._numbered()
        self._first = next(self._frames, None)
        if self._first is None:
            raise StreamRPNError(f"{name}: there is none; give at least one")
        first = self._first
        clock = "none"
        if first.pts_seconds is not None:
            clock = "timestamps" if first.pts is not None else "frame rate"
        self.info = StreamInfo(
            source=name,
            stem=name,
            width=first.width,
            height=first.height,
            rotation=first.rotation,
            mirrored=first.mirrored,
            fps=fps,
            num_frames=len(pictures) if isinstance(pictures, Sized) else None,
            color=first.color,
            codec="rawvideo",
            pixel_format=first.image.format.name,
            decoder="given",
            live=live,
            clock=clock,
        )

    def __iter__(self) -> Iterator[Frame]:
        first, self._first = self._first, None
        if first is not None:
            yield first
            del first
        yield from self._frames

    def _numbered(self) -> Generator[Frame, None, None]:
        for index, picture in enumerate(self._pictures):
            arrived = time.monotonic() if self._live else None
            pts, seconds = None, None
            if isinstance(picture, av.VideoFrame):
                image = picture
                if picture.pts is not None and picture.time_base:
                    pts, seconds = picture.pts, float(picture.pts * picture.time_base)
            else:
                image = frame_of(rgb_of_any(picture, index))
            if seconds is None and self._fps is not None:
                seconds = index / self._fps
            frame = self._planes.frame(image, index, pts, self.clock.place(seconds))
            frame.arrived = arrived
            if isinstance(picture, str | Path):
                frame.name = Path(picture).name
            self.tally.frames_decoded += 1
            yield frame
            del frame

    def close(self) -> None:  # noqa: D102
        self._first = None
        # What was given is its owner's to close.
        self._frames.close()
