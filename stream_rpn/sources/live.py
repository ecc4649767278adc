"""Sources with a clock of their own: cameras, network streams, named pipes, files at their pace.

A `LiveSource` is opened in the thread that iterates over it, reads packets in a second one, and
comes back by itself when its connection is lost.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast

import av.error
from av.container import InputContainer
from av.video.stream import VideoStream

from stream_rpn.clock import LONGEST_STEP, Clock
from stream_rpn.drops import Drop, DropReason
from stream_rpn.frame import Frame, StreamRPNError
from stream_rpn.limits import MAX_PIXELS
from stream_rpn.queues import POLL_SECONDS
from stream_rpn.sources.address import is_device, is_pipe, is_streaming, is_url, local_path, masked
from stream_rpn.sources.file import FileSource, Reception
from stream_rpn.sources.packet_queue import Interrupted, PacketQueue
from stream_rpn.sources.pipe import opened_pipe
from stream_rpn.sources.source import Source
from stream_rpn.sources.synthetic import SyntheticVideo
from stream_rpn.tally import Tally
from stream_rpn.timing import StageTimes

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0

# Packets that come later than this set a new pace: those that follow are not hurried.
_LATEST = 1.0

# Formats without a pace of their own: filters run at full speed, playlists name whole seconds.
_NOT_PACED = ("lavfi", "hls", "dash")


@dataclass(frozen=True)
class LivePolicy:
    """The treatment of sources that do not wait.

    Attributes:
        max_age: seconds from the arrival of a frame's last packet by which its batch must begin;
            older frames are dropped.
        open_timeout: seconds for a source to open, and then for its first packet.
        read_timeout: seconds without a packet after which a connection counts as lost.
        reconnect: how often in a row a lost connection is tried again.
        batch_wait: seconds that a batch waits for more frames before it goes as it is.
        realtime: play files at their own pace, as if they were live.
        loop: begin such a file again when it has ended; numbers and times of frames go on.
    """

    max_age: float = 0.5
    open_timeout: float = 30.0
    read_timeout: float = 10.0
    reconnect: int = 5
    batch_wait: float = 0.02
    realtime: bool = False
    loop: bool = False


class LiveSource(Source):
    """A source that is opened when it is iterated over, and opened again when it is lost.

    Frames carry the time at which they arrived; the index goes on over all connections. The first
    frame after a loss says so in a `Drop` with the seconds in between. An http address may serve
    a finished file: its frames then carry no time of arrival, and nothing is left out.

    Args:
        uri: as the user named it.
        policy: time limits.
        video_stream: number of the video stream, from 0; None for the best one.
        max_pixels: larger frames are refused.
        stopped: tells that no more is wanted; what waits then ends soon.
        notice: told in a sentence when the connection is lost and when it is back.
        times: gets how long decoding took per frame.

    Attributes:
        info: of the first connection; there is none before the first frame.
        reconnects: how often the connection was lost and came back.
        lost_at: `time.monotonic()` at which the connection was lost, None while there is one.
    """

    def __init__(
        self,
        uri: str,
        policy: LivePolicy,
        *,
        video_stream: int | None = None,
        max_pixels: int = MAX_PIXELS,
        stopped: Callable[[], bool] = lambda: False,
        notice: Callable[[str], None] = lambda sentence: None,
        times: StageTimes | None = None,
    ) -> None:
        self.tally = Tally()
        self.reconnects = 0
        self.lost_at: float | None = None
        self._uri = uri
        self._name = masked(uri)
        self._policy = policy
        self._video_stream = video_stream
        self._max_pixels = max_pixels
        self._stopped = stopped
        self._notice = notice
        self._times = times or StageTimes()
        self._packets: PacketQueue | None = None
        self._connection: FileSource | None = None
        self._pipe: BinaryIO | None = None
        self._last: Frame | None = None
        self._comes_back = False
        self.clock = Clock(longest_step=LONGEST_STEP)

    def __iter__(self) -> Iterator[Frame]:
        """Yields frames until the source ends.

        Raises:
            StreamRPNError: it never came, or was lost and did not come back.
        """
        tries = 0
        started = time.monotonic()
        while not self._stopped():
            try:
                connection = self._connection = self._open()
            except Interrupted:
                return
            except StreamRPNError as error:
                if self._last is None:
                    if not self._may_come(error, time.monotonic() - started):
                        raise
                    if not tries:
                        self._notice(f"{error}; trying for {self._policy.open_timeout:g} seconds")
                elif tries >= self._policy.reconnect:
                    raise StreamRPNError(
                        f"{self._name}: the connection was lost and did not come back in "
                        f"{tries} tries ({error})"
                    ) from error
                tries += 1
            else:
                if self._last is None:
                    self.info = connection.info
                    if self._begins_again:
                        self.info = replace(self.info, num_frames=None, duration_seconds=None)
                    if not connection.info.live:
                        self.clock = connection.clock
                    elif self.info.clock == "arrival":
                        self.clock = Clock(counts=True)
                elif self.lost_at is not None:
                    self.reconnects += 1
                    self.lost_at = None
                    self._notice(f"{self._name} is back")
                tries = 0
                before = self._last
                yield from self._frames(connection)
                connection.close()
                if self._stopped():
                    return
                if not self._comes_back and self._packets is not None and self._packets.error:
                    raise StreamRPNError(
                        f"{self._name} could not be read to its end ({self._why()})"
                    )
                if self._begins_again and self._last is not before:
                    continue
                if not self._comes_back:
                    return
                self.lost_at = time.monotonic()
                if not self._policy.reconnect:
                    raise StreamRPNError(f"{self._name}: the connection was lost ({self._why()})")
                self._notice(f"{self._name}: the connection was lost ({self._why()}); trying again")
            # Beyond ten doublings the longest is long reached, and a float's range not far away.
            self._pause(min(_FIRST_PAUSE * 2 ** min(tries, 10), _LONGEST_PAUSE))

    @property
    def _begins_again(self) -> bool:
        """Whether its end is no loss, but where it starts again."""
        return self._policy.loop and not self._comes_back

    def _may_come(self, error: StreamRPNError, waited: float) -> bool:
        """Tells whether a source that nobody serves so far is worth another try."""
        refused = isinstance(error.__cause__, (ConnectionError, TimeoutError))
        return refused and waited < self._policy.open_timeout

    def _open(self) -> FileSource:
        num_frames = None
        file: BinaryIO | None = None
        if is_pipe(self._uri):
            file = _opened_pipe(self._uri, self._policy.open_timeout, self._stopped)
            self._pipe = file
        if self._uri.startswith("synthetic:"):
            video = SyntheticVideo.parse(self._uri)
            file, num_frames = video.encoded(), video.num_frames
        reception = Reception(
            self.tally, (self._policy.open_timeout, self._policy.read_timeout), self._receive
        )
        try:
            return FileSource(
                self._uri,
                file,
                decoder="cpu",
                video_stream=self._video_stream,
                num_frames=num_frames,
                reception=reception,
                max_pixels=self._max_pixels,
                stopped=self._stopped,
                notice=self._notice,
            )
        except StreamRPNError as error:
            if self._packets is not None and isinstance(self._packets.error, TimeoutError):
                raise StreamRPNError(
                    f"{self._name} is there but sent no video ({self._packets.error})"
                ) from error
            raise

    def _receive(self, container: InputContainer, stream: VideoStream) -> PacketQueue | None:
        """Starts reading; returns None where this is a finished file after all."""
        self._packets = None
        if is_url(self._uri):
            is_file = not is_streaming(self._uri) and _is_finished_file(container)
        else:
            is_file = not is_device(self._uri) and not is_pipe(self._uri)
        if is_file and not self._policy.realtime:
            return None
        # A file, a graph of filters and a pipe whose writer leaves have an end.
        filters = self._uri.startswith("lavfi:")
        self._comes_back = not is_file and not filters and not is_pipe(self._uri)
        codec = stream.codec_context.codec
        packets: Generator[Any, None, None] = container.demux(stream)  # type: ignore[assignment]
        timeout: tuple[float | None, float | None] = (None, None)
        if self._comes_back:
            timeout = (self._policy.open_timeout, self._policy.read_timeout)
        if is_file or container.format.name in _NOT_PACED:
            packets = self._paced(packets)
        self._packets = PacketQueue(
            packets,
            # The frame needs the rest of its time for the way to the network.
            max_age=self._policy.max_age / 2,
            timeout=timeout,
            # FFmpeg's filters wrap their frames in packets without any flags.
            intra_only=codec.intra_only or codec.name == "wrapped_avframe",
            stopped=self._stopped,
            skip=self.tally.lose,
            release=container.close,
        )
        return self._packets

    def _paced(self, packets: Generator[Any, None, None]) -> Generator[Any, None, None]:
        """Gives each packet when its time has come, by a clock set anew where it is far off."""
        started = math.inf
        for packet in packets:
            if packet.dts is not None:
                due = float(packet.dts * packet.time_base)
                if not -_LATEST < started + due - time.monotonic() < LONGEST_STEP:
                    started = time.monotonic() - due
                while (early := started + due - time.monotonic()) > 0 and not self._stopped():
                    time.sleep(min(early, POLL_SECONDS))
            if self._stopped():
                return
            yield packet

    def _frames(self, connection: FileSource) -> Iterator[Frame]:
        packets = self._packets
        iterator = iter(connection)
        waited = 0.0
        first = True
        while True:
            started = time.perf_counter()
            try:
                frame = next(iterator, None)
            except Interrupted:
                return
            if frame is None:
                return
            seconds = time.perf_counter() - started
            if packets is not None:
                seconds -= packets.waited_seconds - waited
                waited = packets.waited_seconds
            self._times.add("decode", max(seconds, 0.0) * 1e3)
            self._place(frame, first)
            first = False
            yield frame
            del frame

    def _place(self, frame: Frame, first: bool) -> None:
        """Continues the time of the frame before, and notes the gap before a new connection."""
        last = self._last
        if frame.arrived is not None and last is not None and last.arrived is not None:
            gap = frame.arrived - last.arrived
            if first:
                if not self._begins_again:
                    lost = Drop(DropReason.CONNECTION_LOST, 0, None, seconds=round(gap, 3))
                    frame.drops = (*frame.drops, lost)
                frame.pts_seconds = self.clock.start_anew(frame.pts_seconds, gap)
            else:
                frame.pts_seconds = self.clock.place(frame.pts_seconds, gap=gap)
        elif frame.arrived is not None:
            frame.pts_seconds = self.clock.place(frame.pts_seconds)
        # The picture is not kept: it may be large.
        self._last = replace(frame, image=None, drops=())  # type: ignore[arg-type]

    def _why(self) -> str:
        error = self._packets.error if self._packets is not None else None
        if error is None:
            return "the sender ended it"
        if isinstance(error, av.error.ExitError):
            return f"nothing came for {self._policy.read_timeout:g} seconds"
        return error.strerror if isinstance(error, OSError) and error.strerror else str(error)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._stopped():
            time.sleep(min(left, POLL_SECONDS))

    def close(self) -> None:  # noqa: D102
        if self._connection is not None:
            self._connection.close()
        if self._pipe is not None:
            self._pipe.close()


def _is_finished_file(container: InputContainer) -> bool:
    """Tells whether what http serves has an end: a length in bytes, or for playlists in seconds."""
    if container.duration is not None:
        return True
    return "hls" not in container.format.name and container.size > 0


def _opened_pipe(uri: str, timeout: float, stopped: Callable[[], bool]) -> BinaryIO:
    """Opens a named pipe and waits until somebody writes to it."""
    try:
        number = os.open(local_path(uri), os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise StreamRPNError(f"{uri} cannot be read: {error.strerror}") from error
    pipe = opened_pipe(number, f"{uri} is a named pipe", timeout, stopped)
    return cast(BinaryIO, pipe)
