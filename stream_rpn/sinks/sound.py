"""The sound of a video file, copied packet by packet into another: nothing is encoded anew.

It is read from the file a second time, as sources decode pictures and skip all else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import av
import av.error
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Discard
from av.video.stream import VideoStream

from stream_rpn.clock import Clock, clock_of

# Nearer to the beginning it is as quick to read on.
_WORTH_SEEKING = 10.0


class Sound:
    """The audio streams of a file, on their way into an annotated video.

    Times that start anew in the file go on here, as those of its frames do.

    Args:
        container: the file; it is closed here.
        notes: gets sentences about what could not be copied.
    """

    def __init__(self, container: InputContainer, notes: list[str]) -> None:
        self._container = container
        self._notes = notes
        self._copies: dict[int, AudioStream] = {}
        self._last: dict[int, int] = {}  # the time of each stream's last packet, in its unit
        self._packets: Iterator[tuple[float, Packet[AudioStream]]] = iter(())
        self._next: tuple[float, Packet[AudioStream]] | None = None

    @classmethod
    def of(cls, path: Path, notes: list[str]) -> Sound | None:
        """Returns the sound of a file, None where there is none."""
        try:
            container = av.open(f"file:{path}", metadata_errors="replace")
        except (av.error.FFmpegError, OSError):
            return None
        if container.streams.audio:
            return cls(container, notes)
        container.close()
        return None

    def add_to(self, output: OutputContainer) -> None:
        """Adds a stream for each of those that the container can hold."""
        for stream in self._container.streams.audio:
            codec = "an unknown codec"
            if stream.codec_context is not None:
                codec = stream.codec_context.codec.canonical_name
                with contextlib.suppress(ValueError, av.error.FFmpegError):
                    copy = output.add_stream_from_template(stream)
                    for key in ("language", "title"):
                        if key in stream.metadata:
                            copy.metadata[key] = stream.metadata[key]
                    self._copies[stream.index] = copy
                    continue
            self._notes.append(f"its sound in {codec} is left out: {output.format.name} holds none")

    def begin(self, start: float) -> None:
        """Goes to where the first frame is shown, in seconds of the file."""
        wanted = [s for s in self._container.streams.audio if s.index in self._copies]
        if not wanted:
            return
        for stream in self._container.streams:
            if stream not in wanted:
                stream.discard = Discard.all
        clocks = {s.index: clock_of(self._container, cast(VideoStream, s)) for s in wanted}
        # What has gone before tells where a clock that may jump stands.
        if start > _WORTH_SEEKING and not any(clock.may_jump for clock in clocks.values()):
            with contextlib.suppress(av.error.FFmpegError):
                self._container.seek(int((start - 1) * av.time_base))
        self._packets = self._timed(wanted, clocks)
        self._next = next(self._packets, None)

    def _timed(
        self, wanted: list[AudioStream], clocks: dict[int, Clock]
    ) -> Iterator[tuple[float, Packet[AudioStream]]]:
        """Yields packets with their times in seconds."""
        seconds = 0.0
        try:
            for packet in cast("Iterator[Packet[AudioStream]]", self._container.demux(wanted)):
                if not packet.size or packet.time_base is None:
                    continue
                time = packet.dts if packet.pts is None else packet.pts
                placed = clocks[packet.stream.index].place(
                    None if time is None else float(time * packet.time_base),
                    float((packet.duration or 0) * packet.time_base),
                )
                if placed is not None:
                    seconds = placed
                    yield seconds, packet
        except av.error.FFmpegError:
            self._notes.append(f"its sound cannot be read beyond {seconds:.1f} s of the source")

    def copy(self, output: OutputContainer, until: float, offset: float) -> None:
        """Copies what begins before a time.

        Args:
            output: has the streams of `add_to`.
            until: in seconds of the file.
            offset: which second of the file is 0 in the output; nothing before it is copied.
        """
        while self._next is not None and self._next[0] < until:
            seconds, packet = self._next
            self._copy(output, packet, seconds - offset)
            self._next = next(self._packets, None)

    def _copy(self, output: OutputContainer, packet: Packet[AudioStream], seconds: float) -> None:
        index = packet.stream.index
        copy = self._copies.get(index)
        assert packet.time_base is not None
        time = round(seconds / packet.time_base)
        if copy is None or time <= self._last.get(index, -1):
            return
        self._last[index] = time
        packet.pts = packet.dts = time
        packet.stream = copy
        try:
            output.mux(packet)
        except (av.error.InvalidDataError, av.error.ArgumentError):
            del self._copies[index]
            self._notes.append(f"its sound is damaged and ends at {seconds:.1f} s")

    def close(self) -> None:
        """Closes the file."""
        self._next, self._packets = None, iter(())
        self._container.close()
