"""Still images as a source: a sequence of frames that have names and no timestamps.

They are turned upright as their EXIF orientation says. Of the four orientations that mirror, too,
only the turn is undone: PyAV 18.1 raises on reading the matrix of an image with EXIF data.
"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import av
import av.error

from stream_rpn.decode import PlaneConverter, Tally, display_rotation, displayed_size
from stream_rpn.frame import DropReason, Frame, StreamInfo, StreamRPNError
from stream_rpn.sources.source import Source

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
    ) -> None:
        self.tally = Tally()
        self._planes = PlaneConverter()
        self._codec = self._pixel_format = ""
        self._frames = self._decode_all(iter(items))
        self._first = next(self._frames, None)
        if self._first is None:
            count = self.tally.damaged_packets
            if count == 1:
                raise StreamRPNError(f"{uri} is not an image that PyAV can read")
            raise StreamRPNError(f"{uri}: none of the {count} images can be decoded")
        self.info = StreamInfo(
            source=uri,
            stem=stem,
            width=self._first.width,
            height=self._first.height,
            rotation=self._first.rotation,
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
        yield from self._frames

    def _decode_all(
        self, items: Iterator[tuple[Image, int | None]]
    ) -> Generator[Frame, None, None]:
        tally = self.tally
        for index, (item, image_id) in enumerate(items):
            name, data = (item.name, item) if isinstance(item, Path) else item
            image = self._decode(data)
            if image is None:
                tally.lose(DropReason.DAMAGED_IMAGE)
                continue
            tally.frames_decoded += 1
            rotation = display_rotation(image)
            width, height = displayed_size(image, rotation)
            image, color = self._planes.convert(image)
            yield Frame(
                index=index,
                pts=None,
                pts_seconds=None,
                width=width,
                height=height,
                rotation=rotation,
                color=color,
                image=image,
                drops=tally.take_drops(),
                image_id=image_id,
                name=name,
            )

    def _decode(self, data: Path | bytes) -> av.VideoFrame | None:
        try:
            # Not by name: FFmpeg takes a "%" in the name of an image for a numbered sequence.
            content = data.read_bytes() if isinstance(data, Path) else data
            with av.open(io.BytesIO(content), "r", metadata_errors="replace") as container:
                stream = container.streams.video[0]
                stream.thread_count = 1
                for packet in container.demux(stream):
                    for image in packet.decode():
                        if not self._codec:
                            self._codec = stream.codec_context.codec.canonical_name
                            self._pixel_format = image.format.name
                        return image
        except (av.error.FFmpegError, OSError, IndexError):
            pass
        return None

    def close(self) -> None:  # noqa: D102
        self._first = None
        self._frames.close()
