"""A long video cut at key frames into pieces that overlap nowhere and lose nothing.

Packets are counted once, without decoding: only so is it known which frame a piece begins with. A
piece is what is *shown* from one key frame up to the next cut. Frames that are decoded after that
key frame and shown before it (an open GOP) belong to the piece before, which therefore decodes past
its end. Whatever may make the sum of pieces differ from the whole leaves it whole, and is told.
"""

from __future__ import annotations

import bisect
import itertools
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, BinaryIO, cast

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from stream_rpn.batch.restart import Start, look_of
from stream_rpn.clock import Clock, clock_of, has_timestamps
from stream_rpn.frame import Frame
from stream_rpn.sources.address import local_file
from stream_rpn.sources.container import open_container
from stream_rpn.sources.file import choose_stream
from stream_rpn.sources.promise import Promise
from stream_rpn.sources.select import Selection

LEAST_CUT = 1.5
"""A video that is not longer than so many pieces' worth stays whole, and its packets uncounted."""

# Frames share a packet there and its time; FFmpeg makes up those of others from what it read before
# them, so that they depend on where reading begins.
_PROGRAM_STREAM = "mpeg"


@dataclass(frozen=True)
class Cut:
    """Where a piece begins and ends, in the time base of its stream.

    Attributes:
        key: (pts, dts) of the packet to begin with; None from the first one on.
        num_packets: how many to decode, in decoding order.
        start: pts of the first frame.
        end: pts that all its frames are below; None for the last piece.
        first_frame: number of its first frame in the video.
        num_frames: frames shown in it.
        times: CRC-32 of their pts as little-endian int64, in order.
        chosen: numbers of the frames that are used; None for all.
    """

    key: tuple[int, int | None] | None
    num_packets: int
    start: int
    end: int | None
    first_frame: int
    num_frames: int
    times: int
    chosen: list[int] | None = None


@dataclass(frozen=True)
class Piece:
    """A video, or a part of one: the unit of work.

    Attributes:
        source: its address.
        version: what told the source's content when it was planned, see `storage.version`.
        number: which piece, from 0.
        count: of how many.
        cut: where it lies in the video; None for all of it.
        seconds: how long the piece is shown, None where unknown.
        whole_because: why a longer video was not cut; "" where it was, or need not be.
    """

    source: str
    version: str = ""
    number: int = 0
    count: int = 1
    cut: Cut | None = None
    seconds: float | None = None
    whole_because: str = ""

    def to_json(self) -> str:
        """Returns it as a line of text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Piece:
        """Returns the piece that `to_json` made the text of."""
        fields = json.loads(text)
        if fields["cut"] is not None:
            cut = Cut(**fields["cut"])
            fields["cut"] = replace(cut, key=cut.key and (cut.key[0], cut.key[1]))
        return cls(**fields)


class Uncuttable(Exception):
    """Why a video stays whole, as the end of a sentence."""


def pieces_of(
    source: str,
    selection: Selection,
    chunk: float | None,
    *,
    version: str = "",
    file: BinaryIO | None = None,
) -> list[Piece]:
    """Returns the pieces of a video, in order; one where it is not, or cannot be, cut.

    Args:
        source: its address.
        selection: which frames are used; pieces without any are left out.
        chunk: seconds that a piece has at least; None never cuts.
        version: see `Piece`.
        file: read from this instead of the file that the address names.

    Raises:
        StreamRPNError: it cannot be opened.
    """
    whole = Piece(source, version)
    if chunk is None or (file is None and local_file(source) is None):
        return [whole]
    with open_container(source, file, max_pixels=selection.max_pixels) as container:
        stream = choose_stream(container, source, selection.video_stream, selection.max_pixels)
        seconds = _declared_seconds(container, stream)
        whole = replace(whole, seconds=seconds)
        if seconds is not None and seconds <= LEAST_CUT * chunk:
            return [whole]
        try:
            packets = _Packets(container, stream, source if file is None else None)
            cuts = packets.cuts(chunk)
            if len(cuts) < 2:
                raise Uncuttable("no later frame is known to begin anew exactly")
            cuts = _chosen(cuts, packets, selection)
        except Uncuttable as error:
            return [replace(whole, whole_because=str(error))]
    # Where no frame is wanted, the whole video says so in the words of a single run.
    return [
        replace(whole, number=i, count=len(cuts), cut=cut, seconds=packets.seconds(cut))
        for i, cut in enumerate(cuts)
    ] or [whole]


def _declared_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / av.time_base


class _Packets:
    """All packets of a stream, as far as they matter for cutting.

    Raises:
        Uncuttable: numbers or times of frames would not be sure.
    """

    def __init__(self, container: InputContainer, stream: VideoStream, path: str | None) -> None:
        look = look_of(stream)
        if look is None:
            codec = stream.codec_context.codec.canonical_name
            raise Uncuttable(f"{codec} is not known to begin anew exactly")
        if not has_timestamps(container) or stream.time_base is None:
            raise Uncuttable("it has no times of its own")
        if container.format.name == _PROGRAM_STREAM:
            raise Uncuttable("some frames have no time of their own")
        self._ratio = stream.time_base.as_integer_ratio()
        self._keys: list[tuple[int, Start, int | None]] = []  # index, what is in it, dts
        self._sets_within = False
        pts: list[int] = []
        discarded: list[bool] = []
        promise = Promise(container, stream, local_file(path) if path else None)
        demuxed = container.demux(stream)
        while True:
            try:
                packet = next(demuxed)
            except StopIteration:
                break
            except av.error.FFmpegError:
                raise Uncuttable("it is damaged") from None
            if not packet.size:
                continue
            promise.saw(packet)
            if packet.pts is None:
                raise Uncuttable("some frames have no time of their own")
            if packet.is_corrupt:
                raise Uncuttable("it is damaged")
            if packet.has_sidedata("new_extradata") and pts:
                raise Uncuttable("its coding changes on the way")
            start = look(packet)
            self._sets_within |= start.sets
            if start.restarts and not packet.is_discard:
                self._keys.append((len(pts), start, packet.dts))
            pts.append(packet.pts)
            discarded.append(packet.is_discard)
        if next(promise.broken(), None) is not None:
            raise Uncuttable("it is cut off")
        self._pts = np.array(pts, np.int64)
        self._shown = ~np.array(discarded, bool)
        self.times = np.sort(self._pts[self._shown])
        self._check(clock_of(container, stream))

    def _check(self, clock: Clock) -> None:
        shown = np.flatnonzero(self._shown)
        if not len(shown):
            raise Uncuttable("it holds no frame that is shown")
        if not self._shown[shown[0] :].all():
            raise Uncuttable("its edit list leaves out frames on the way")
        steps = np.diff(self.times)
        if len(steps) and not steps.min() > 0:
            raise Uncuttable("some frames have the same time")
        seconds = [self.time_of(pts) for pts in self.times.tolist()]
        if any(clock.place(time) != time for time in seconds):
            raise Uncuttable("its clock jumps")
        before_shown = shown[0] > 0
        begins_well = self._keys and (before_shown or self._keys[0][0] == 0)
        if not begins_well or (not before_shown and self._pts[0] != self.times[0]):
            raise Uncuttable("it does not begin with a key frame")

    @property
    def _unit(self) -> float:
        return self._ratio[0] / self._ratio[1]

    def time_of(self, pts: int) -> float:
        """Returns the seconds of a pts, as decoding computes them."""
        return pts * self._ratio[0] / self._ratio[1]

    def seconds(self, cut: Cut) -> float:
        """Returns how long a piece is shown; the last frame of all counts for nothing."""
        end = int(self.times[-1]) if cut.end is None else cut.end
        return round((end - cut.start) * self._unit, 6)

    def cuts(self, chunk: float) -> list[Cut]:
        """Returns the pieces, each at least `chunk` seconds long."""
        highest = np.maximum.accumulate(self._pts)
        bounds = [(0, int(self.times[0]), cast("int | None", None))]
        for index, start, dts in self._keys:
            pts = int(self._pts[index])
            far = (pts - bounds[-1][1]) * self._unit >= chunk
            # All that is decoded before it must be shown before it.
            parted = index > 0 and highest[index - 1] < pts
            if far and parted and (start.whole_sets or not self._sets_within):
                bounds.append((index, pts, dts))
        ends = [*(pts for _, pts, _ in bounds[1:]), None]
        return [self._cut(*bound, end) for bound, end in zip(bounds, ends, strict=True)]

    def up_to(self, cut: Cut, chosen: list[int]) -> Cut:
        """Returns a piece of which only these frames are used, without what follows them."""
        last = chosen[-1] + 1
        if last < cut.first_frame + cut.num_frames:
            cut = replace(
                cut,
                end=int(self.times[last]),
                num_frames=last - cut.first_frame,
                times=checksum(self.times[cut.first_frame : last]),
            )
        return replace(cut, chosen=chosen)

    def _cut(self, index: int, start: int, dts: int | None, end: int | None) -> Cut:
        first = bisect.bisect_left(self.times, start)
        last = len(self.times) if end is None else bisect.bisect_left(self.times, end)
        stop = len(self._pts)
        if end is not None:
            stop = int(np.flatnonzero(self._pts < end)[-1]) + 1
        return Cut(
            key=None if index == 0 else (start, dts),
            num_packets=stop - index,
            start=start,
            end=end,
            first_frame=first,
            num_frames=last - first,
            times=checksum(self.times[first:last]),
        )


def checksum(times: Sequence[int] | np.ndarray) -> int:
    """Returns `Cut.times` of these pts."""
    return zlib.crc32(np.asarray(times, "<i8").tobytes())


@dataclass(slots=True)
class _Shown:
    """What the choice of frames wants to know of one."""

    index: int
    pts_seconds: float
    drops: tuple[Any, ...] = ()


def _chosen(cuts: list[Cut], packets: _Packets, selection: Selection) -> list[Cut]:
    """Returns the pieces that have frames that are used, with the numbers of these."""
    if replace(selection, video_stream=None, decoder="auto") == Selection(
        max_pixels=selection.max_pixels
    ):
        return cuts
    every: Iterator[_Shown] = (
        _Shown(index, packets.time_of(int(pts))) for index, pts in enumerate(packets.times)
    )
    found = selection.frames(cast("Iterator[Frame]", every))
    numbers = [frame.index for frame in itertools.islice(found, selection.max_frames)]
    used = []
    for cut in cuts:
        first = bisect.bisect_left(numbers, cut.first_frame)
        last = bisect.bisect_left(numbers, cut.first_frame + cut.num_frames)
        if first < last:
            used.append(packets.up_to(cut, numbers[first:last]))
    return used
