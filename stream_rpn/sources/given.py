"""What `stream` takes from a program as a source: names, cameras by number, files, frames.

A `Given` is a source that is no name but an object of the caller's; whoever opens sources by name
opens it as well.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np

from stream_rpn.frame import StreamRPNError
from stream_rpn.limits import MAX_PIXELS
from stream_rpn.pictures import Picture, is_tensor
from stream_rpn.sources import expand, masked

if TYPE_CHECKING:
    import av

    from stream_rpn.sources.source import Source

One: TypeAlias = "str | Path | int | BinaryIO | Iterable[Picture | av.VideoFrame]"
"""A name, the number of a camera, a file that is open, or frames."""


@dataclass(frozen=True)
class Given:
    """A source that is an object.

    Attributes:
        name: what results call it.
        what: a file that can be read, or frames.
        fps: of frames without times of their own.
    """

    name: str
    what: Any
    fps: float | None = None

    def open(
        self,
        *,
        realtime: bool = False,
        decoder: str = "auto",
        video_stream: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> Source:
        """Opens it and takes its first frame.

        Args:
            realtime: frames do not wait: what is too late is dropped.
            decoder: "auto" or "cpu"; NVDEC needs a file's name.
            video_stream: number of the video stream within a file, from 0; None for the best one.
            max_pixels: larger frames of a file are refused.

        Raises:
            StreamRPNError: it cannot be read, or holds no frames.
            TypeError: its frames are none, see `FramesSource`.
            ValueError: see `FramesSource`.
        """
        if decoder == "nvdec":
            raise StreamRPNError(
                f"{self.name} cannot be decoded by NVDEC, which needs a file's name"
            )
        if not _is_file(self.what):
            from stream_rpn.sources.frames import FramesSource

            return FramesSource(self.what, fps=self.fps, live=realtime, name=self.name)
        from stream_rpn.sources.file import FileSource

        if realtime:
            raise StreamRPNError(
                f"{self.name} is an open file, which has no pace of its own; give its path"
            )
        return FileSource(
            self.name,
            self.what,
            keep_file=True,
            decoder="cpu",
            video_stream=video_stream,
            max_pixels=max_pixels,
        )


def name_of(source: str | Given) -> str:
    """Returns what results call a source, without passwords."""
    return source.name if isinstance(source, Given) else masked(source)


def resolve(source: One | Sequence[Any], fps: float | None) -> list[str | Given]:
    """Returns the sources that a value stands for.

    A list or tuple is several sources, unless it begins with a picture in memory: then it is
    frames, as is any other iterable. Names are expanded as on the command line.

    Args:
        source: as `stream_rpn.stream` takes it.
        fps: of frames without times of their own.

    Raises:
        StreamRPNError: a path does not exist, or there is no source.
        TypeError: it is no source.
    """
    if isinstance(source, list | tuple) and not (source and _is_picture(source[0])):
        if not source:
            raise StreamRPNError("there is no source in the list; name a video")
        found = [one for item in source for one in _resolve_one(item, fps)]
        names = [name_of(one) for one in found]
        return [
            replace(one, name=f"{one.name}-{index}")
            if isinstance(one, Given) and names.count(one.name) > 1
            else one
            for index, one in enumerate(found)
        ]
    return _resolve_one(source, fps)


def _resolve_one(source: Any, fps: float | None) -> list[str | Given]:
    if isinstance(source, str | Path):
        return list(expand([str(source)]))
    if isinstance(source, int) and not isinstance(source, bool):
        if source < 0:
            raise StreamRPNError(f"there is no camera {source}; they are counted from 0")
        return [f"webcam:{source}"]
    if isinstance(source, io.TextIOBase):
        raise TypeError("a file must be opened for reading bytes: open(path, 'rb')")
    if _is_file(source):
        name = getattr(source, "name", None)
        return [Given(name if isinstance(name, str) else "file", source)]
    if _is_picture(source) and len(getattr(source, "shape", ())) < 4:
        raise TypeError("a single picture is for `propose`; `stream` takes a list of them")
    if isinstance(source, Iterable):
        return [Given("frames", source, fps)]
    raise TypeError(
        "a source is a name, a path, the number of a camera, an open file, frames, or a list of "
        f"these; got {type(source).__name__}"
    )


def _is_file(value: Any) -> bool:
    return callable(getattr(value, "read", None))


def _is_picture(value: Any) -> bool:
    """Tells whether a value is a picture in memory, or an array or tensor of any shape."""
    if isinstance(value, np.ndarray) or is_tensor(value):
        return True
    return any(
        f"{c.__module__}.{c.__name__}" in ("PIL.Image.Image", "av.video.frame.VideoFrame")
        for c in type(value).__mro__
    )
