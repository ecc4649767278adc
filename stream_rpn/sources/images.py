"""Still images as a source: a sequence of frames that have names and no timestamps.

What a picture is, and how it is displayed, `picture` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from pathlib import Path

from stream_rpn.clock import Clock
from stream_rpn.decode import PlaneConverter
from stream_rpn.drops import DropReason
from stream_rpn.frame import Frame, StreamInfo, StreamRPNError
from stream_rpn.limits import MAX_PIXELS
from stream_rpn.log import log
from stream_rpn.sources import members_of, picture, picture_names, stem
from stream_rpn.sources.address import local_path
from stream_rpn.sources.source import Source
from stream_rpn.tally import Tally

Image = Path | tuple[str, bytes]
"""A file, or the name and the bytes of one, for example a member of a tar file."""


class ImagesSource(Source):
    """Decodes images one after another; each may have its own size.

    A frame's index is the position of its image, also behind images that could not be decoded.

    Args:
        uri: what the user named.
        items: images with their ids (None where there is no annotation file), read one at a time.
        stem: short name for output files.
        num_frames: how many images there are, if known.
        name_of: what results call a file.
        max_pixels: larger images are refused.

    Raises:
        StreamRPNError: not one of them can be decoded.
    """

    def __init__(
        self,
        uri: str,
        items: Iterable[tuple[Image, int | None]],
        *,
        stem: str,
        num_frames: int | None = None,
        name_of: Callable[[Path], str] = lambda file: file.name,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._max_pixels = max_pixels
        self.tally = Tally()
        self.clock = Clock()
        self._name_of = name_of
        self._planes = PlaneConverter()
        self._codec = self._pixel_format = ""
        self._problem = ("", "")  # the last image that could not be decoded, and why
        self._frames = self._decode_all(iter(items))
        self._first = next(self._frames, None)
        if self._first is None:
            count = self.tally.damaged_packets
            name, problem = self._problem
            if count == 1 and uri.endswith(name):
                raise StreamRPNError(f"{uri} {problem}")
            raise StreamRPNError(
                f"{uri}: none of the {count} images can be decoded; {name} {problem}"
            )
        self.info = StreamInfo(
            source=uri,
            stem=stem,
            width=self._first.width,
            height=self._first.height,
            rotation=self._first.rotation,
            mirrored=self._first.mirrored,
            num_frames=num_frames,
            color=self._first.color,
            codec=self._codec,
            pixel_format=self._pixel_format,
            decoder=f"{self._codec} (software)",
        )

    def __iter__(self) -> Iterator[Frame]:
        first, self._first = self._first, None
        if first is not None:
            yield first
            # It would be kept in memory as long as there are others.
            del first
        yield from self._frames

    def _decode_all(
        self, items: Iterator[tuple[Image, int | None]]
    ) -> Generator[Frame, None, None]:
        tally = self.tally
        for index, (item, image_id) in enumerate(items):
            name, data = (self._name_of(item), item) if isinstance(item, Path) else item
            decoded = self._decode(name, data)
            if decoded is None:
                tally.lose(DropReason.DAMAGED_IMAGE)
                continue
            tally.frames_decoded += 1
            if not self._codec:
                self._codec, self._pixel_format = decoded.codec, decoded.image.format.name
            frame = self._planes.frame(decoded.image, index)
            frame.drops, frame.image_id, frame.name = tally.take_drops(), image_id, name
            yield frame

    def _decode(self, name: str, data: Path | bytes) -> picture.Picture | None:
        try:
            encoded = data.read_bytes() if isinstance(data, Path) else data
            return picture.decode(encoded, max_pixels=self._max_pixels)
        except OSError as error:
            self._problem = name, f"cannot be read ({error.strerror})"
        except StreamRPNError as error:
            self._problem = name, str(error)
        return None

    def close(self) -> None:  # noqa: D102
        self._first = None
        self._frames.close()


def open_images(
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
    """Opens an image, or the images of a directory or pattern; see `sources.open_source`."""
    if decoder == "nvdec":
        raise StreamRPNError(
            f"{uri} cannot be decoded by NVDEC: still images are decoded on the CPU"
        )
    files = members_of(uri) or [local_path(uri)]
    names = dict(zip(files, picture_names(files), strict=True))
    return ImagesSource(
        uri,
        ((file, None) for file in files),
        stem=stem(uri),
        num_frames=len(files),
        name_of=names.__getitem__,
        max_pixels=max_pixels,
    )


def images_source(
    items: Iterable[tuple[Image, int | None]], *, uri: str = "images", stem: str = "images"
) -> Source:
    """Opens images that carry the ids of an annotation file.

    Args:
        items: (image, id): the image is a path, or the name and bytes of one. Read one at a time.
        uri: what results call the source.
        stem: short name for output files.
    """
    num_frames = len(items) if isinstance(items, Sized) else None
    return ImagesSource(uri, items, stem=stem, num_frames=num_frames)
