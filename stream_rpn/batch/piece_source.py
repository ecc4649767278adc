"""One piece of a video as a source: decodes from its key frame, and gives its own frames only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Literal

from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from stream_rpn.batch.pieces import Cut, checksum
from stream_rpn.frame import Frame, StreamRPNError
from stream_rpn.limits import MAX_PIXELS
from stream_rpn.sources.file import FileSource
from stream_rpn.sources.source import Source
from stream_rpn.tally import Tally


class UnlikePlanError(StreamRPNError):
    """What was decoded is not what was counted: the video has to be taken whole."""


class PieceSource(Source):
    """The frames of a piece, numbered as in the whole video.

    Args:
        uri: what the user named.
        cut: which piece.
        file: read from this instead, if given.
        decoder: see `FileSource`, as the others.
        video_stream: number of the video stream within the file.
        device: the device that the frames are meant for.
        max_pixels: larger frames are refused.

    Raises:
        UnlikePlanError: it cannot be opened, or its frames are not those that were counted; on
            iteration, too.
    """

    def __init__(
        self,
        uri: str,
        cut: Cut,
        file: BinaryIO | None = None,
        *,
        decoder: Literal["auto", "cpu", "nvdec"] = "auto",
        video_stream: int | None = None,
        device: str | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._cut = cut
        self._uri = uri
        try:
            self._file = FileSource(
                uri,
                file,
                decoder=decoder,
                video_stream=video_stream,
                device=device,
                max_pixels=max_pixels,
                packets_of=self._packets,
            )
        except StreamRPNError as error:
            # What really is wrong with it, the whole video will tell.
            raise self._unlike() from error
        self.info = self._file.info
        self.clock = self._file.clock
        self.on_gpu = self._file.on_gpu
        # Not the file's: its losses are those of frames before the piece, which cannot be decoded
        # from here. Within the piece nothing may be lost at all.
        self.tally = Tally()

    def __iter__(self) -> Iterator[Frame]:
        cut = self._cut
        chosen = None if cut.chosen is None else set(cut.chosen)
        times: list[int] = []
        corrupt = 0
        for frame in self._file:
            before, corrupt = corrupt, self._file.tally.corrupt_frames
            if frame.pts is None or frame.pts < cut.start:
                continue
            if cut.end is not None and frame.pts >= cut.end:
                break
            if corrupt > before or (times and frame.pts <= times[-1]):
                raise self._unlike()
            frame.index = cut.first_frame + len(times)
            frame.drops = ()
            times.append(frame.pts)
            self.tally.frames_decoded += 1
            if chosen is None or frame.index in chosen:
                yield frame
            # A surface of NVDEC's small pool must not live on here.
            del frame
        if len(times) != cut.num_frames or checksum(times) != cut.times:
            raise self._unlike()

    def _unlike(self) -> UnlikePlanError:
        return UnlikePlanError(f"{self._uri}: a piece does not decode to the frames counted in it")

    def _packets(
        self, container: InputContainer, stream: VideoStream
    ) -> Iterator[Packet[VideoStream]]:
        """Yields the packets of the piece, from its key frame on."""
        key = self._cut.key
        if key is not None:
            container.seek(key[0] if key[1] is None else key[1], stream=stream)
        demuxed = container.demux(stream)
        first = next(demuxed, None) if key is None else _found(demuxed, key)
        if first is None and key is not None:
            # Where an index is missing or wrong, reading from the start leads there all the same.
            container.seek(0)
            demuxed = container.demux(stream)
            first = _found(demuxed, key)
        if first is None:
            raise self._unlike()
        yield first
        count = 1
        while count < self._cut.num_packets and (packet := next(demuxed, None)) is not None:
            count += packet.size > 0
            yield packet

    def close(self) -> None:  # noqa: D102
        self._file.close()


def _found(
    packets: Iterator[Packet[VideoStream]], key: tuple[int, int | None]
) -> Packet[VideoStream] | None:
    """Returns the packet of these times; None where they have passed it."""
    for packet in packets:
        if packet.size and (packet.pts, packet.dts) == key:
            return packet
        if key[1] is not None and packet.dts is not None and packet.dts > key[1]:
            return None
    return None
