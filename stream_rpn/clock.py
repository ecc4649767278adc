"""When frames are shown: the one place that makes times rise, whatever the container says.

Most containers tell the presentation time of every packet, and those pass as they are. Three kinds
do not: AVI keeps the order of decoding only (`PresentationOrder`); raw streams keep no time at all,
at best a rate in the bit stream (`bitstream_rate`); and where recordings were joined, or a camera
was set, the clock jumps (`Clock`).
"""

from __future__ import annotations

import bisect
import math
from fractions import Fraction

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

# FFmpeg makes presentation times of decoding times by the types of the pictures, which it knows of
# codecs whose every packet leads to a picture at once. Of these its answer is a guess: the next
# packet's decoding time, whatever the order. (Of MPEG-4 where a packet holds two pictures and the
# next one none, as Xvid and DivX write B-frames into AVI.)
_REORDERED_FREELY = ("h264", "hevc", "vvc", "mpeg4")

# AVFMT_FLAG_GENPTS of a context, AVFMT_NOTIMESTAMPS and AVFMT_TS_DISCONT of a format.
_GENERATE_PTS, _NO_TIMESTAMPS, _CLOCK_MAY_JUMP = 0x1, 0x80, 0x200

LONGEST_STEP = 10.0
"""Seconds: FFmpeg's own limit. Where a format's clock may start anew, a longer step says it did."""

# A clock that goes back by less has not started anew: a picture came out of turn.
_SLIGHT = 0.1

# Containers round times to a millisecond at the worst: frames this short may share one.
_SHORT = 0.002


class Clock:
    """Turns the times of a stream's frames, in the order in which they are shown, into rising ones.

    Times that rise already are returned as they are, however long the steps; so are two equal ones.

    Args:
        longest_step: seconds; a longer step forth is a clock that starts anew.
        counts: a first frame without a time is at 0, and those after it follow by their durations.

    Attributes:
        jumps: how often the clock started anew so far.
        held: frames so far that came slightly out of turn, and got the time of the one before.
        stood: frames so far at which the clock had stopped, and which follow by their durations.
    """

    def __init__(self, *, longest_step: float = math.inf, counts: bool = False) -> None:
        self.jumps = self.held = self.stood = 0
        self._longest_step = longest_step
        self._counts = counts
        self._offset = 0.0
        self._last: float | None = None
        self._due = 0.0
        self._given: float | None = None
        self._repeats = 0

    def place(
        self, seconds: float | None, duration: float = 0.0, gap: float | None = None
    ) -> float | None:
        """Returns the time of the next frame in seconds, None where nothing tells.

        Args:
            seconds: as the container has it.
            duration: how long it is shown, in seconds; 0 where unknown.
            gap: seconds that really went by since the frame before, of a live source.
        """
        last = self._last
        self._repeats = self._repeats + 1 if seconds is not None and seconds == self._given else 0
        self._given = seconds
        if last is None:
            time = seconds if seconds is not None or not self._counts else 0.0
        else:
            due = self._due if gap is None else gap
            if self._repeats > 1 and due > _SHORT:
                self.stood += 1
                seconds = None
            time = last + due if seconds is None else seconds + self._offset
            step = time - last
            if step < -_SLIGHT or step > self._longest_step + (gap or 0.0):
                assert seconds is not None
                self.jumps += 1
                time = last + due
                self._offset = time - seconds
            elif step < 0:
                self.held += 1
                time = last
            self._due = time - last or self._due
        if duration > 0:
            self._due = duration
        self._last = time
        return time

    @property
    def may_jump(self) -> bool:
        """Whether a long step is taken for a clock that starts anew."""
        return self._longest_step < math.inf

    @property
    def mended(self) -> dict[str, int]:
        """What had to be mended so far: `jumps`, `held` and `stood`, as far as there were any."""
        counts = {"jumps": self.jumps, "held": self.held, "stood": self.stood}
        return {name: count for name, count in counts.items() if count}

    def start_anew(self, seconds: float | None, gap: float) -> float | None:
        """Returns the time of a new connection's first frame, `gap` seconds after the last one."""
        if self._last is None:
            return self.place(seconds)
        time = self._last = self._last + gap
        if seconds is not None:
            self._offset = time - seconds
        return time


class PresentationOrder:
    """The times of pictures that come with decoding times only.

    Every packet is one picture, so the decoding times in their order are the times at which
    pictures are shown in theirs. To tell which packet was lost, each carries its own decoding time
    through the decoder.
    """

    def __init__(self) -> None:
        self._pending: list[int] = []

    def send(self, packet: Packet[VideoStream]) -> None:
        """Notes a packet that is about to be decoded."""
        packet.pts = packet.dts
        if packet.dts is not None:
            bisect.insort(self._pending, packet.dts)

    def lose(self, dts: int | None) -> None:
        """Notes that nothing will come of a packet."""
        if dts in self._pending:
            self._pending.remove(dts)

    def show(self, image: av.VideoFrame) -> None:
        """Sets the presentation time of the next picture in place of its packet's decoding time."""
        if image.pts is None or not self._pending:
            return
        # What was decoded before a key frame is shown before it: the rest of it never came.
        if image.key_frame:
            del self._pending[: bisect.bisect_left(self._pending, image.pts)]
        if self._pending:
            image.pts = self._pending.pop(0)


def trust_no_guess(container: InputContainer, stream: VideoStream) -> None:
    """Keeps FFmpeg from making up presentation times where it could only guess."""
    if stream.codec_context.codec.canonical_name in _REORDERED_FREELY:
        container.flags &= ~_GENERATE_PTS


def has_timestamps(container: InputContainer) -> bool:
    """Tells whether the format keeps times at all; those of others are counted by FFmpeg."""
    return not container.format.flags & _NO_TIMESTAMPS


def bitstream_rate(stream: VideoStream) -> Fraction | None:
    """Returns the frames per second that the coded stream itself names, None where it does not."""
    return stream.codec_context.framerate or None


def rate_of(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """Returns the average frames per second, None where neither container nor stream says."""
    if not has_timestamps(container):
        # What the container says is FFmpeg's own default.
        return bitstream_rate(stream)
    average = stream.average_rate
    # DV's is the inverse of its unit of time.
    return average if average and average <= 1000 else stream.guessed_rate or average


def time_keeping(
    container: InputContainer, stream: VideoStream, *, reordered: bool, live: bool
) -> str:
    """Returns what the times of frames are taken from; see `StreamInfo.clock`."""
    if has_timestamps(container):
        return "decoding order" if reordered else "timestamps"
    if live:
        return "arrival"
    return "none" if bitstream_rate(stream) is None else "frame rate"


def clock_of(container: InputContainer, stream: VideoStream) -> Clock:
    """Returns the clock for a stream that is read from its beginning."""
    may_jump = container.format.flags & _CLOCK_MAY_JUMP
    counts = not has_timestamps(container) and bitstream_rate(stream) is not None
    return Clock(longest_step=LONGEST_STEP if may_jump else math.inf, counts=counts)
