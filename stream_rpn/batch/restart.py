"""Where decoding may begin in mid-stream, and give the same pixels as decoding from the start.

A container's mark of a key frame is not enough: FFmpeg puts it on frames from which a picture
recovers little by little, and leaves parameter sets where they stood. So the coded stream itself is
asked, codec by codec; of those that are not named here nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from av.packet import Packet
from av.video.stream import VideoStream


@dataclass(frozen=True)
class Start:
    """What a packet holds that matters for beginning with it.

    Attributes:
        restarts: what is shown from it on needs nothing before it but parameter sets.
        sets: parameter sets stand in it.
        whole_sets: all that it needs.
    """

    restarts: bool
    sets: bool = False
    whole_sets: bool = False


Look: TypeAlias = "Callable[[Packet[VideoStream]], Start]"


def look_of(stream: VideoStream) -> Look | None:
    """Returns what looks at the packets of a stream; None where its codec is not known well."""
    context = stream.codec_context
    name = context.codec.canonical_name
    if name in ("h264", "hevc"):
        return _NALUnits(name, context.extradata)
    if name in _LOOKS:
        return _LOOKS[name]
    # Such as MJPEG, ProRes and FFV1 with key frames alone: no frame needs another.
    return (lambda packet: Start(packet.is_keyframe)) if name in _INTRA_ONLY else None


_INTRA_ONLY = {"mjpeg", "prores", "dnxhd", "rawvideo", "huffyuv", "dvvideo", "jpeg2000", "v210"}


class _NALUnits:
    """H.264 and HEVC, whose packets are units behind start codes, or behind their lengths."""

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        self._is_hevc = codec == "hevc"
        # The configuration records of MP4 and Matroska begin with a version, others with zeros.
        self._length_size = 0
        if extradata and extradata[0] == 1:
            self._length_size = (extradata[21 if self._is_hevc else 4] & 3) + 1

    def __call__(self, packet: Packet[VideoStream]) -> Start:
        data = bytes(packet)
        restarts, kinds = False, set()
        for start, end in self._units(data):
            kind = data[start] >> 1 & 0x3F if self._is_hevc else data[start] & 0x1F
            kinds.add(kind)
            if self._is_hevc:
                # Of any IRAP picture the leading ones may need others, the trailing ones may not.
                restarts |= 16 <= kind <= 21
            else:
                restarts |= kind == 5 or (kind == 6 and _recovers_exactly(data[start + 1 : end]))
        wanted = {32, 33, 34} if self._is_hevc else {7, 8}
        return Start(restarts and packet.is_keyframe, bool(kinds & wanted), wanted <= kinds)

    def _units(self, data: bytes) -> Iterator[tuple[int, int]]:
        """Yields where units begin and end."""
        if self._length_size:
            at = 0
            while at + self._length_size < len(data):
                start = at + self._length_size
                at = start + int.from_bytes(data[at:start], "big")
                yield start, at
            return
        code = b"\0\0\1"
        at = data.find(code)
        while 0 <= at < len(data) - 3:
            following = data.find(code, at + 3)
            yield at + 3, len(data) if following < 0 else following
            at = following


def _recovers_exactly(sei: bytes) -> bool:
    """Tells whether a unit of H.264's messages says that from here on all is exact, and at once."""
    message = sei.replace(b"\0\0\3", b"\0\0")
    at = 0
    while at + 2 < len(message):
        kind, size = 0, 0
        while at < len(message) and message[at] == 0xFF:
            kind, at = kind + 255, at + 1
        kind, at = kind + message[at], at + 1
        while at < len(message) and message[at] == 0xFF:
            size, at = size + 255, at + 1
        if at >= len(message):
            return False
        size, at = size + message[at], at + 1
        # recovery_frame_cnt is 0 (a single bit), and exact_match_flag is set.
        if kind == 6 and at < len(message):
            return message[at] & 0xC0 == 0xC0
        at += size
    return False


def _mpeg2(packet: Packet[VideoStream]) -> Start:
    # The sequence header has the quantisation matrices.
    return Start(packet.is_keyframe and b"\0\0\1\xb3" in bytes(packet))


def _vp8(packet: Packet[VideoStream]) -> Start:
    first = bytes(packet)[0]
    return Start(packet.is_keyframe and not first & 1 and bool(first >> 4 & 1))


def _vp9(packet: Packet[VideoStream]) -> Start:
    # Marker, profile, show_existing_frame, frame_type (0: a key frame), show_frame.
    return Start(packet.is_keyframe and bytes(packet)[0] & 0b11001110 == 0b10000010)


def _av1(packet: Packet[VideoStream]) -> Start:
    """A key frame that is shown later restarts nothing at once."""
    data, at, sequence = bytes(packet), 0, False
    while packet.is_keyframe and at < len(data):
        head, at = data[at], at + 1
        kind = head >> 3 & 0xF
        at += head >> 2 & 1
        if not head & 2 or at >= len(data):
            break
        size, shift = 0, 0
        while at < len(data):
            byte, at = data[at], at + 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
        sequence |= kind == 1
        if kind in (3, 6) and at < len(data):
            # show_existing_frame, frame_type in two bits (0: a key frame), show_frame.
            return Start(data[at] & 0xF0 == 0x10, sequence, sequence)
        at += size
    return Start(False, sequence, sequence)


_LOOKS: dict[str, Look] = {
    "mpeg1video": _mpeg2,
    "mpeg2video": _mpeg2,
    "vp8": _vp8,
    "vp9": _vp9,
    "av1": _av1,
}
