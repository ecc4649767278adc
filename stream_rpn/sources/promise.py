"""What a container says of its own length, against what came of it.

A file that was cut off decodes without an error to where it ends. Only the container can tell that
there was to be more, each kind in its own way, and each way has whole files that seem to break it:
durations are rounded, sound goes on after the picture, a recorder that was killed leaves a length
of zero. So a file counts as cut off where

- its index names packets that did not come (MP4, MOV), or
- its own structure ends beyond the end of the file, or its last packet does, unless all the time
  that it promises has come, or
- its structure cannot be looked at (a pipe, a URL), and clearly less time came than was promised.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from stream_rpn.drops import Drop, DropReason

# Formats that write their duration at the head. Of the others FFmpeg's is what it finds at the end.
_DURATION_AT_HEAD = {"matroska,webm", "avi", "flv", "asf", "ivf", "mxf", "rm"}

# Of these a packet is one unit of the time base, so missing time is missing packets.
_COUNTED = {"avi"}


# A file of nothing but empty boxes would be walked for very long; of fragments of a frame each this
# is hours.
_MOST_BOXES = 1 << 20
_ASF_HEAD = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_FLV_HEAD = re.compile(rb"FLV\x01[\x00\x01\x04\x05]\x00\x00\x00\x09")


class Promise:
    """Compares what came of one video stream with what its container promised.

    Args:
        container: opened for reading.
        stream: the one that is read.
        path: of the file, where it is one.
    """

    def __init__(
        self, container: InputContainer, stream: VideoStream, path: Path | None = None
    ) -> None:
        self._format = container.format.name
        self._stream = stream
        self._path = path
        self._unit = float(stream.time_base or 0)
        self._promised = self._promised_seconds(container)
        self._packets = 0
        self._first_size = 0
        self._last: Packet[VideoStream] | None = None
        # In units: the end of what came, the last time, the longest step between two.
        self._end = -math.inf
        self._time: int | None = None
        self._longest = 0
        self._reordered = False

    def _promised_seconds(self, container: InputContainer) -> float | None:
        if self._format not in _DURATION_AT_HEAD:
            return None
        stream = self._stream
        if self._format in _COUNTED and stream.frames:
            # The duration becomes what FFmpeg finds.
            return stream.frames * self._unit
        if stream.duration is not None:
            return stream.duration * self._unit
        told = _parsed(stream.metadata.get("DURATION", ""))
        if told is not None:
            return told
        # The whole file's may be that of its sound.
        others = [s for s in container.streams if s is not stream and s.type in ("audio", "video")]
        if container.duration is None or others:
            return None
        return container.duration / 1e6

    def saw(self, packet: Packet[VideoStream]) -> None:
        """Notes a packet that came."""
        self._packets += 1
        self._first_size = self._first_size or packet.size
        self._last = packet
        time = packet.pts if packet.pts is not None else packet.dts
        if time is not None:
            duration = packet.duration or 0
            self._end = max(self._end, time + max(duration, 1))
            if self._time is not None:
                self._reordered = self._reordered or time < self._time
                self._longest = max(self._longest, abs(time - self._time), duration)
            self._time = time

    def broken(self) -> Iterator[Drop]:
        """Yields what did not come; nothing where the promise was kept, or was none."""
        if (missing := self._missing()) is not None:
            yield missing
        try:
            if self._path is not None and self._another_follows(self._path):
                yield Drop(DropReason.UNREAD, 0, None)
        except OSError:
            return

    def _missing(self) -> Drop | None:
        index = len(self._stream.index_entries)
        if "mp4" in self._format and index > self._packets:
            return Drop(DropReason.MISSING_PACKET, index - self._packets, None)
        missing = self._missing_seconds()
        if not self._is_broken(missing):
            return None
        if self._format in _COUNTED and missing is not None and missing > self._unit / 2:
            return Drop(DropReason.MISSING_PACKET, round(missing / self._unit), None)
        seconds = round(missing, 3) if missing is not None and missing > 0 else None
        return Drop(DropReason.CUT_OFF, 0, None, seconds)

    def _is_broken(self, missing: float | None) -> bool:
        cut = self._is_cut()
        if self._last is not None and self._last.is_corrupt:
            return True
        if cut is None:
            # A last frame may be shown for as long as any before it, and durations are rounded.
            return missing is not None and missing > (self._longest + 2) * self._unit
        # Behind the last packet there may be an index; but of packets in another order than that in
        # which they are shown, one that is shown before the last may be missing.
        complete = missing is not None and missing <= self._unit and not self._reordered
        return cut and not complete

    def _another_follows(self, path: Path) -> bool:
        """Tells whether FFmpeg stopped at the end of a recording that another was appended to."""
        with path.open("rb") as file:
            if "mp4" in self._format:
                size = file.seek(0, 2)
                return sum(name == b"moov" for name, _ in boxes(file, size)) > 1
            if self._format == "flv" and self._last is not None and self._last.pos is not None:
                file.seek(self._last.pos + self._last.size)
                return _FLV_HEAD.search(file.read(1 << 20)) is not None
            if self._format == "asf" and (length := _asf_size(file)):
                file.seek(length)
                return file.read(16) == _ASF_HEAD
        return False

    def _missing_seconds(self) -> float | None:
        if not self._promised or not math.isfinite(self._end):
            return None
        # A duration may count from zero or from the first timestamp; a promise is broken by both.
        start = min(self._stream.start_time or 0, 0)
        return self._promised - (self._end - start) * self._unit

    def _is_cut(self) -> bool | None:
        """Tells whether the file ends before its own structure does; None where nothing tells."""
        if self._path is None:
            return None
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, 2)
                if self._format in ("yuv4mpegpipe", "dv"):
                    return self._has_rest(size)
                check = _CHECKS.get(self._format)
                return check(file, size) if check is not None else None
        except OSError:
            return None

    def _has_rest(self, size: int) -> bool:
        """Tells it of a file of packets of one size, to the last byte."""
        last = self._last
        if last is None or last.pos is None:
            return False
        return last.pos + last.size != size or last.size != self._first_size


def _parsed(duration: str) -> float | None:
    """Returns the seconds of Matroska's "00:01:30.250000000"."""
    hours, _, rest = duration.partition(":")
    minutes, _, seconds = rest.partition(":")
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def _matroska(file: BinaryIO, size: int) -> bool | None:
    position = 0
    while position + 12 <= size:
        file.seek(position)
        head = file.read(12)
        identity = head[:4]
        if identity not in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):
            break
        length = 9 - head[4].bit_length() if head[4] else 0
        value = int.from_bytes(head[4 : 4 + length], "big") & ((1 << 7 * length) - 1)
        if not length or value == (1 << 7 * length) - 1:
            return None  # a stream without end, or one that was never ended
        position += 4 + length + value
    return position > size


def _riff(file: BinaryIO, size: int) -> bool | None:
    position = 0
    while position + 8 <= size:
        file.seek(position)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] != b"RIFF":
            break
        if not length:
            return None
        position += 8 + length + length % 2
    return position > size + 1


def _flv(file: BinaryIO, size: int) -> bool | None:
    file.seek(max(size - 4, 0))
    length = int.from_bytes(file.read(4), "big")
    if not 11 <= length <= size - 17:
        return True
    file.seek(size - 4 - length)
    head = file.read(4)
    return head[0] & 0x1F not in (8, 9, 18) or int.from_bytes(head[1:], "big") + 11 != length


def _ogg(file: BinaryIO, size: int) -> bool | None:
    longest = 27 + 255 + 255 * 255
    file.seek(max(size - 2 * longest, 0))
    tail = file.read()
    start = tail.rfind(b"OggS\0")
    if start < 0:
        return None
    page = tail[start:]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return True
    whole = len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
    return not (whole and page[5] & 4)


def _asf_size(file: BinaryIO) -> int | None:
    """Returns the size that an ASF file has by its head; None for what was broadcast."""
    file.seek(0)
    head = file.read(1 << 16)
    at = head.find(_ASF_PROPERTIES)
    if at < 0 or len(head) < at + 92 or head[at + 88] & 1:
        return None
    return int.from_bytes(head[at + 40 : at + 48], "little") or None


def _asf(file: BinaryIO, size: int) -> bool | None:
    promised = _asf_size(file)
    return None if promised is None else promised > size


def _mxf(file: BinaryIO, size: int) -> bool | None:
    file.seek(0)
    head = file.read(1 << 16)
    at = head.find(bytes.fromhex("060e2b34020501010d01020101"))
    if at < 0 or len(head) <= at + 16:
        return None
    length = head[at + 16]
    at += 17 + (length & 0x7F if length & 0x80 else 0)
    footer = int.from_bytes(head[at + 24 : at + 32], "big")
    return footer >= size if footer else None


def _gif(file: BinaryIO, size: int) -> bool | None:
    file.seek(max(size - 1024, 0))
    return not file.read().rstrip(b"\0").endswith(b";")


def _mjpeg(file: BinaryIO, size: int) -> bool | None:
    file.seek(max(size - 1024, 0))
    return not file.read().rstrip(b"\0\xff\r\n").endswith(b"\xff\xd9")


def _swf(file: BinaryIO, size: int) -> bool | None:
    file.seek(0)
    head = file.read(8)
    return int.from_bytes(head[4:], "little") > size if head[:3] == b"FWS" else None


def _mpegts(file: BinaryIO, size: int) -> bool | None:
    """Packets of one length, each begun by the same byte: is the last one whole?"""
    file.seek(max(size - 16 * 204, 0))
    tail = file.read()
    for length, before in ((188, 0), (192, 4), (204, 0)):
        for phase in range(before, min(length + before, len(tail))):
            starts = range(phase, len(tail), length)
            if len(starts) >= 8 and all(tail[start] == 0x47 for start in starts):
                return (len(tail) - phase + before) % length != 0
    return None


def lacks_index(file: BinaryIO) -> bool:
    """Tells whether a file is an MP4 or MOV without a whole index (`moov`)."""
    size = file.seek(0, 2)
    is_mp4 = False
    for name, end in boxes(file, size):
        if name == b"moov" and end <= size:
            return False
        is_mp4 = is_mp4 or name in (b"ftyp", b"mdat")
    return is_mp4


def boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """Yields name and end of the outer boxes of an MP4 or MOV, up to what is none."""
    position = 0
    for _ in range(_MOST_BOXES):
        if position + 8 > size:
            return
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        elif length == 0:
            length = size - position  # up to the end
        if length < 8:
            return
        position += length
        yield head[4:8], position


def _mp4(file: BinaryIO, size: int) -> bool | None:
    """The last outer box of a file in fragments, whose index tells of those only that came."""
    names, end = set(), 0
    for name, end in boxes(file, size):  # noqa: B007
        names.add(name)
    return end > size or 0 < size - end < 8 if b"moof" in names else None


_CHECKS: dict[str, Callable[[BinaryIO, int], bool | None]] = {
    "matroska,webm": _matroska,
    "avi": _riff,
    "flv": _flv,
    "ogg": _ogg,
    "asf": _asf,
    "mxf": _mxf,
    "gif": _gif,
    "mjpeg": _mjpeg,
    "swf": _swf,
    "mpegts": _mpegts,
    "mov,mp4,m4a,3gp,3g2,mj2": _mp4,
}
