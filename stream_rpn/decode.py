"""Packets to frames: one video stream decoded in presentation order, past whatever is damaged.

The loop decodes packet by packet. `container.decode()` is a generator that is dead after the first
damaged packet; this one counts the packet, goes on, and tells the next frame what was lost.

Pixels stay as they were coded (4:2:0, 8 or 10 bit, or a CUDA surface): uploading and converting YUV
costs less than converting here. Everything else goes through one conversion to yuv420p.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av
import av.error
import av.filter
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.format import VideoFormat
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from stream_rpn.clock import PresentationOrder, bitstream_rate, has_timestamps
from stream_rpn.drops import DropReason
from stream_rpn.frame import Color, Frame, StreamRPNError
from stream_rpn.tally import Tally
from stream_rpn.yuv import COLORSPACES, PIXEL_FORMATS

if TYPE_CHECKING:
    from stream_rpn.sources.promise import Promise

# AVColorSpace → the matrix of a Color. FCC is BT.601 and SMPTE 240M is BT.709 within two hundredths
# of a coefficient. 2 (unspecified), RGB and the exotic ones count as untagged.
_MATRICES = {
    1: "bt709",
    4: "bt601",
    5: "bt601",
    6: "bt601",
    7: "bt709",
    9: "bt2020",
    10: "bt2020",
}

_LIMITED, _FULL = 1, 2

_GRAY = ("gray", "ya8", "ya16", "mono")

# AVColorTransferCharacteristic by FFmpeg's name.
_TRANSFERS = {
    1: "bt709",
    4: "gamma22",
    5: "gamma28",
    6: "smpte170m",
    7: "smpte240m",
    8: "linear",
    9: "log100",
    10: "log316",
    11: "iec61966-2-4",
    12: "bt1361e",
    13: "iec61966-2-1",
    14: "bt2020-10",
    15: "bt2020-12",
    16: "smpte2084",
    17: "smpte428",
    18: "arib-std-b67",
}


class Decoder:
    """Iterates once over the frames of one video stream; from one thread only.

    Args:
        container: where packets are read from.
        stream: the stream to decode, its decoding threads set.
        tally: what to count in.
        reopen: opens the same stream again for decoding on one thread; None where that cannot be
            done, or is what is done already.
        packets: decode these instead of those read from the container; `opaque` of each is when it
            arrived.
        promise: what the container says of its length, to be compared with what comes.
        stopped: tells that it ends because nobody wants any more.

    Attributes:
        reordered: whether times come from the order of decoding; known with the first frame.
    """

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        tally: Tally,
        reopen: Callable[[], tuple[InputContainer, VideoStream]] | None = None,
        packets: Iterator[Packet[VideoStream]] | None = None,
        promise: Promise | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._container = container
        self._stream = stream
        self._tally = tally
        self._reopen = reopen
        self._given = packets
        self._promise = promise
        self._stopped = stopped
        # FFmpeg hands what stands in a packet's `opaque` over to the frame.
        stream.codec_context.copy_opaque = packets is not None
        self._time_base = stream.time_base.as_integer_ratio() if stream.time_base else None
        self._planes = PlaneConverter()
        self._packets_read = 0
        # Timestamps of the packets before the first key frame; None once frames have come.
        self._headless: list[int | None] | None = []
        self._key_came = False
        self._last_pts: int | None = None
        self._went_back = False
        # Times that FFmpeg counts by a rate are none where it only supposes the rate, and where
        # frames may be left out.
        self._timed = has_timestamps(container) or (
            packets is None and bitstream_rate(stream) is not None
        )
        self._order: PresentationOrder | None = None
        self.reordered = False
        # Timestamps of the last packets, one a thread: frame threads report an error that late.
        self._in_flight: deque[int | None] = deque(maxlen=max(stream.thread_count, 1))

    def __iter__(self) -> Generator[Frame, None, None]:
        for packet in self._packets():
            if self._packets_read == 1 and packet.pts is None and packet.dts is not None:
                self._order, self.reordered = PresentationOrder(), True
            try:
                images = self._decode(self._stream, packet)
            except av.error.FFmpegError:
                self._lose(self._in_flight[0])
                continue
            for image in images:
                yield self._frame(image)
        hidden = 0  # packets of which at least one is damaged
        try:
            images = self._decode(self._stream, None)
        except av.error.FFmpegError:
            images = []
            hidden = 1 if self._reopen is None else len(self._in_flight)
        for image in images:
            yield self._frame(image)
        accounted = self._accounted
        yield from self._tail()
        if hidden and self._accounted == accounted:
            # It could not look again, as in raw streams.
            missing = self._packets_read - accounted
            self._tally.lose(DropReason.DAMAGED_PACKET, min(max(missing, 1), hidden))
        if self._promise is not None and not self._stopped():
            for broken in self._promise.broken():
                self._tally.lack(broken)

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        packets = self._given or self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError:
                self._packets_read += 1
                self._tally.lose(DropReason.DAMAGED_PACKET)
                return
            # PyAV's last packet is empty and has no time. Any empty one would end the decoding.
            self._packets_read += packet.size > 0 or packet.dts is not None
            if packet.size:
                if self._promise is not None:
                    self._promise.saw(packet)
                yield packet

    def _decode(
        self, stream: VideoStream, packet: Packet[VideoStream] | None
    ) -> list[av.VideoFrame]:
        """Returns the next pictures as they are shown, their `pts` made right."""
        order = self._order
        if packet is not None:
            if order is not None:
                order.send(packet)
            self._in_flight.append(packet.pts)
            if self._headless is not None and not self._key_came:
                self._key_came = packet.is_keyframe
                if not (packet.is_keyframe or packet.is_discard):
                    self._headless.append(packet.pts)
        images = stream.codec_context.decode(packet)
        if order is not None:
            for image in images:
                order.show(image)
        return images

    def _lose(self, pts: int | None) -> None:
        """Counts a packet that could not be decoded."""
        if self._order is not None:
            self._order.lose(pts)
        if self._headless and pts in self._headless:
            self._headless.remove(pts)
        self._tally.lose(DropReason.DAMAGED_PACKET, 1, pts)

    def _begin(self, first: av.VideoFrame, pts: int | None) -> None:
        """Counts the packets before the first key frame, of which FFmpeg says nothing, as lost.

        None of them gave a picture where the first one is a key frame's: what is decoded before a
        key frame is shown before it. Some demuxers mark no packet as a key frame's, or not the
        first one; then nothing is known.
        """
        headless, self._headless = self._headless, None
        if headless and self._key_came and first.key_frame and (pts is None or pts not in headless):
            self._tally.lose(DropReason.NO_KEY_FRAME, len(headless), headless[0])

    def _tail(self) -> Generator[Frame, None, None]:
        """Yields the frames behind a damaged packet that was in flight when the packets ended.

        PyAV empties a decoder in one call, which ends at the first error and hides it. With frame
        threads that loses up to a frame per thread, so the last of them are decoded once more,
        where timestamps tell which are new.
        """
        complete = self._accounted >= self._packets_read
        last_pts = self._last_pts
        if complete or self._reopen is None or last_pts is None or self._went_back:
            return
        unreported = list(self._in_flight)[1:]
        try:
            container, stream = self._reopen()
        except StreamRPNError:
            return
        # Raw streams cannot seek; then what there is must do.
        with container, suppress(av.error.FFmpegError):
            container.seek(last_pts, stream=stream)
            if self._order is not None:
                self._order = PresentationOrder()
            for packet in container.demux(stream):
                try:
                    images = self._decode(stream, packet if packet.size else None)
                except av.error.FFmpegError:
                    if packet.pts in unreported:
                        self._lose(packet.pts)
                    continue
                for image in images:
                    if image.pts is not None and image.pts > last_pts:
                        yield self._frame(image)

    @property
    def _accounted(self) -> int:
        """Packets that gave a frame, or were found damaged."""
        return self._tally.frames_decoded + self._tally.damaged_packets

    def _frame(self, image: av.VideoFrame) -> Frame:
        tally = self._tally
        if self._headless is not None:
            self._begin(image, image.pts)
        index = tally.frames_decoded
        tally.frames_decoded += 1
        tally.corrupt_frames += image.is_corrupt
        pts = image.pts if self._timed else None
        if pts is not None and self._last_pts is not None and pts < self._last_pts:
            self._went_back = True
        self._last_pts = pts
        arrived = None if self._given is None else cast("float | None", image.opaque)
        seconds = None
        if pts is not None and self._time_base is not None:
            seconds = pts * self._time_base[0] / self._time_base[1]
        frame = self._planes.frame(image, index, pts, seconds)
        frame.drops, frame.arrived = tally.take_drops(), arrived
        return frame


class PlaneConverter:
    """Brings decoded images into a format that the network's input is made from, and says how.

    One instance serves a whole stream: swscale's context and the colours seen are kept.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._mirror = _Mirror()
        self._colors: dict[tuple[str, int, int, int, bool], Color] = {}

    def frame(
        self,
        image: av.VideoFrame,
        index: int,
        pts: int | None = None,
        pts_seconds: float | None = None,
    ) -> Frame:
        """Returns the record of a decoded image: how it is displayed, and its planes converted.

        Raises:
            StreamRPNError: FFmpeg has no conversion from the image's pixel format.
        """
        rotation, mirrored = orientation(image)
        width, height = displayed_size(image, rotation)
        image, color = self.convert(image)
        if mirrored:
            image = self._mirror(image)
        return Frame(
            index=index,
            pts=pts,
            pts_seconds=pts_seconds,
            width=width,
            height=height,
            rotation=rotation,
            color=color,
            image=image,
            mirrored=mirrored,
        )

    def convert(self, image: av.VideoFrame) -> tuple[av.VideoFrame, Color]:
        """Returns an image of `PIXEL_FORMATS`, or on the GPU, and the colour of its planes.

        Raises:
            StreamRPNError: FFmpeg has no conversion from the image's pixel format.
        """
        pixel_format = image.sw_format or image.format
        name = pixel_format.name
        key = (name, image.colorspace, image.color_range, image.color_trc, image.height >= 720)
        color = self._colors.get(key)
        if color is None:
            color = self._colors[key] = color_of(image, pixel_format)
        if name in PIXEL_FORMATS:
            return image, color
        matrix = COLORSPACES[color.matrix]
        # swscale takes gray as full range whatever the tag says: "full to full" copies the values.
        value_range = _FULL if color.full_range or name.startswith(_GRAY) else _LIMITED
        try:
            converted = self._reformatter.reformat(
                image,
                format="yuv420p",
                src_colorspace=matrix,
                dst_colorspace=matrix,
                src_color_range=value_range,
                dst_color_range=value_range,
                threads=1,
            )
        except av.error.FFmpegError as error:
            raise StreamRPNError(
                f"the pixel format {name} cannot be converted to yuv420p: {error.strerror}"
            ) from error
        return converted, color


def color_of(image: av.VideoFrame, pixel_format: VideoFormat) -> Color:
    """Returns the colour that the planes of `image` have once they are YUV.

    A stream that does not say its matrix is taken as BT.709 from 720 coded lines up and as BT.601
    below. RGB is converted to full range; gray is full range unless it is tagged otherwise.
    """
    name = pixel_format.name
    matrix = _MATRICES.get(image.colorspace)
    full_range = (
        image.color_range == _FULL
        or pixel_format.is_rgb
        or name.startswith(("yuvj", "pal"))
        or (name.startswith(_GRAY) and image.color_range != _LIMITED)
    )
    return Color(
        matrix=matrix or ("bt709" if image.height >= 720 else "bt601"),
        full_range=full_range,
        tagged=matrix is not None,
        transfer=_TRANSFERS.get(image.color_trc, "unknown"),
    )


def orientation(image: av.VideoFrame) -> tuple[int, bool]:
    """Returns how the image must be displayed: (degrees clockwise, mirrored).

    The degrees are 0, 90, 180 or 270; angles between go to the nearest. A mirrored image is to be
    mirrored left to right as it is stored, before it is turned. That is all that a display matrix,
    and the eight orientations of EXIF that FFmpeg makes into one, can ask for besides scaling.
    """
    # Not `image.side_data`: it and the image would hold each other until the garbage is collected.
    side_data = SideDataContainer.__new__(SideDataContainer, image)  # type: ignore[call-arg]
    # PyAV 18.1 raises at what it has no name for, such as EXIF, behind which nothing stands.
    with suppress(ValueError):
        side_data.__init__(image)  # type: ignore[misc]
    for item in side_data:
        with suppress(ValueError):
            if item.type is SideDataType.DISPLAYMATRIX:
                a, b, _, c, d, *_ = struct.unpack("=9i", item)
                sign = -1 if a * d < b * c else 1
                return round(math.degrees(math.atan2(sign * b, sign * a)) / 90) % 4 * 90, sign < 0
    return 0, False


class _Mirror:
    """Mirrors images left to right; a graph of FFmpeg is kept for images of one kind in a row."""

    def __init__(self) -> None:
        self._kind: tuple[str, int, int] | None = None
        self._graph = av.filter.Graph()

    def __call__(self, image: av.VideoFrame) -> av.VideoFrame:
        if image.sw_format is not None:
            raise StreamRPNError(
                "the picture is mirrored for display, which is done on the CPU only"
            )
        kind = image.format.name, image.width, image.height
        if kind != self._kind:
            self._kind, self._graph = kind, av.filter.Graph()
            source = self._graph.add_buffer(
                width=image.width,
                height=image.height,
                format=image.format,
                time_base=Fraction(1, 1000),
            )
            mirror, sink = self._graph.add("hflip"), self._graph.add("buffersink")
            self._graph.link_nodes(source, mirror, sink).configure()
        self._graph.push(image)
        mirrored = self._graph.pull()
        assert isinstance(mirrored, av.VideoFrame)
        return mirrored


def displayed_size(image: av.VideoFrame, rotation: int) -> tuple[int, int]:
    """Returns (width, height) of the image once it is turned."""
    if rotation in (90, 270):
        return image.height, image.width
    return image.width, image.height
