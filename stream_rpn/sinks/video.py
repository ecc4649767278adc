"""Annotated video: the best boxes drawn on the frames, H.264 that a browser plays."""

from __future__ import annotations

import contextlib
import json
import math
import mmap
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

import av
import av.codec
import av.error
from av.container import OutputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from stream_rpn.frame import Color, Proposals, StreamInfo, StreamRPNError
from stream_rpn.sinks.canvas import Canvas
from stream_rpn.sinks.place import Place, WholeFile, growing_file
from stream_rpn.sinks.sink import Sink, SinkOptions
from stream_rpn.sinks.sound import Sound
from stream_rpn.sources.address import local_file, masked
from stream_rpn.yuv import COLORSPACES

TIME_BASE = Fraction(1, 90_000)
"""Holds the usual frame rates exactly and others to 0.01 ms."""

# In ticks, fifty minutes. MP4 has no room for hours between frames that are stored out of order,
# and where a clock jumps nobody wants to wait.
_LONGEST_GAP = 1 << 28

_LONGEST_SIDE = 16_384  # of what encodes H.264

_ROOM_FOR_TOTALS = 2000

# AVColorPrimaries that go with a matrix, for streams that do not say.
_PRIMARIES = {"bt709": 1, "bt601": 6, "bt2020": 9}
_UNSPECIFIED = 2


class VideoSink(Sink):
    """Encodes every frame with its best boxes at the time it is shown in the source.

    The first frame is at time zero. Frames of another size than the first one are scaled to fit it.
    A file has the header of the results as JSON in its tag `comment`, with the totals as `end`, and
    the sound of the source where that is a file here.
    """

    needs_image: ClassVar[bool] = True
    tagged: ClassVar[bool] = False
    sounds: ClassVar[bool] = False
    container_format: ClassVar[str]
    container_options: ClassVar[dict[str, str]] = {}
    low_delay: ClassVar[bool] = False

    def __init__(self, name: str, options: SinkOptions) -> None:
        self._container: OutputContainer | None = None
        self._sound: Sound | None = None
        super().__init__(name, options)

    def _path(self) -> str | BinaryIO:
        raise NotImplementedError

    def _begin(self, header: dict[str, Any], info: StreamInfo) -> None:
        self._info = info
        self._header = header
        self._totals: dict[str, Any] | None = None

    def _end(self, end: dict[str, Any]) -> None:
        self._totals = end

    def _write(self, proposals: Proposals) -> None:
        if self._container is None:
            self._size = (proposals.width, proposals.height)
        canvas = Canvas.of_result(proposals, self._info.color, self._size)
        self._draw(canvas, proposals)
        if self._container is None:
            assert proposals.image is not None
            self._start(canvas, proposals.image, proposals.pts_seconds)
        frame = canvas.frame()
        frame.pts, frame.time_base = self._pts(proposals), TIME_BASE
        self._encode(frame)
        if self._sound is not None and proposals.pts_seconds is not None:
            self._seconds = proposals.pts_seconds
            self._copy_sound(self._sound, self._seconds)

    def _start(self, canvas: Canvas, image: av.VideoFrame, seconds: float | None) -> None:
        if max(canvas.width, canvas.height) > _LONGEST_SIDE:
            raise StreamRPNError(
                f"cannot write {masked(self.name)!r}: the picture is "
                f"{canvas.width}x{canvas.height}, "
                f"and no side may be longer than {_LONGEST_SIDE:,} in H.264; write annotated:DIR/"
            )
        fps = self._info.fps or self.options.draw_fps or 25.0
        rate = max(Fraction(fps).limit_denominator(1001), Fraction(1, 1000))
        self._period = round(1 / (rate * TIME_BASE))
        self._last_pts = -self._period
        self._first_pts: int | None = None
        self._container = self._opened(canvas, image, rate)
        path = local_file(self._info.source) if self.sounds and self.options.sound else None
        sound = None if path is None or seconds is None else Sound.of(path, self.notes)
        if sound is not None and seconds is not None:
            sound.add_to(self._container)
            try:
                self._container.start_encoding()
            except av.error.FFmpegError:
                # Some containers find out only now what they do not hold.
                sound.close()
                self.notes.append(f"its sound is left out: {self.container_format} refuses it")
                with contextlib.suppress(av.error.FFmpegError):
                    self._container.close()
                self._container = self._opened(canvas, image, rate)
                return
            sound.begin(seconds)
            self._sound = sound

    def _opened(self, canvas: Canvas, image: av.VideoFrame, rate: Fraction) -> OutputContainer:
        """Returns the container with its stream of pictures, which is encoded from now on."""
        container = av.open(
            self._path(), "w", format=self.container_format, options=self.container_options
        )
        if self.tagged:
            container.metadata["comment"] = _comment(self._header, None)
        codec, options = _encoder(low_delay=self.low_delay)
        self._stream = cast(VideoStream, container.add_stream(codec, rate, options))
        self._stream.width, self._stream.height = canvas.width, canvas.height
        self._stream.pix_fmt = "yuv420p"
        self._stream.time_base = TIME_BASE
        context = self._stream.codec_context
        context.time_base = TIME_BASE
        context.gop_size = max(12, min(300, round(2 * rate)))  # two seconds
        # The shape of a pixel is known as coded; a frame that was turned has it turned.
        aspect = Fraction(self._info.sample_aspect_ratio).limit_denominator(1000)
        context.sample_aspect_ratio = 1 / aspect if self._info.rotation in (90, 270) else aspect
        self._tag_colors(context, image, canvas.color)
        return container

    def _tag_colors(self, context: VideoCodecContext, image: av.VideoFrame, color: Color) -> None:
        context.colorspace = COLORSPACES[color.matrix]
        context.color_range = 2 if color.full_range else 1
        primaries, transfer = image.color_primaries, image.color_trc
        default = _PRIMARIES[color.matrix]
        context.color_primaries = default if primaries == _UNSPECIFIED else primaries
        context.color_trc = default if transfer == _UNSPECIFIED else transfer

    def _pts(self, proposals: Proposals) -> int:
        """Returns the time since the first frame, always later than that of the frame before."""
        if proposals.pts_seconds is None:
            pts = self._last_pts + self._period
        else:
            ticks = round(proposals.pts_seconds / TIME_BASE)
            if self._first_pts is None:
                self._first_pts = ticks
            excess = ticks - self._first_pts - self._last_pts - _LONGEST_GAP
            self._first_pts += max(excess, 0)
            pts = max(ticks - self._first_pts, self._last_pts + 1)
        self._last_pts = pts
        return pts

    def _copy_sound(self, sound: Sound, until: float) -> None:
        assert self._container is not None
        assert self._first_pts is not None
        sound.copy(self._container, until, float(self._first_pts * TIME_BASE))

    def _encode(self, frame: av.VideoFrame | None) -> None:
        assert self._container is not None
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def _finish(self) -> None:
        if self._container is None:
            raise StreamRPNError(f"cannot write {masked(self.name)!r}: there was no frame to show")
        if self._sound is not None:
            self._copy_sound(self._sound, self._end_of_sound())
        self._close_sound()
        self._encode(None)
        self._container.close()
        if self.tagged and self._totals is not None and Path(str(self._path())).is_file():
            self._tell_the_end(Path(str(self._path())))

    def _close_sound(self) -> None:
        if self._sound is not None:
            self._sound.close()
            self._sound = None

    def _end_of_sound(self) -> float:
        """Returns until when sound is wanted: to its end, or to that of the pictures asked for."""
        chosen = self._header["parameters"].get("selection", {})
        whole = chosen.get("end") is None and chosen.get("max_frames") is None
        if whole and self._totals is not None and "stopped" not in self._totals:
            return math.inf
        return self._seconds + float(self._period * TIME_BASE)

    def _tell_the_end(self, path: Path) -> None:
        """Writes the totals where room was left for them: containers take tags at the start."""
        before = _comment(self._header, None).encode()
        after = _comment(self._header, self._totals).encode()
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as data:
            at = data.find(before)
            if at >= 0 and len(after) == len(before):
                data[at : at + len(after)] = after


class MP4Sink(VideoSink):
    """An MP4 with its index in front; it appears under its name when whole."""

    tagged: ClassVar[bool] = True
    sounds: ClassVar[bool] = True
    container_format: ClassVar[str] = "mp4"
    container_options: ClassVar[dict[str, str]] = {"movflags": "+faststart"}

    def _claim(self) -> Place:
        return WholeFile(self.name, replace=self.options.replace)

    def _path(self) -> str:
        return str(self._place.path)

    def _close(self) -> None:
        self._finish()

    def _abort(self) -> None:
        self._close_sound()
        if self._container is not None:
            self._container.close()


class MatroskaSink(VideoSink):
    """A Matroska file, readable while it grows: a killed run leaves what was shown until then."""

    writes_in_place: ClassVar[bool] = True
    tagged: ClassVar[bool] = True
    sounds: ClassVar[bool] = True
    container_format: ClassVar[str] = "matroska"
    container_options: ClassVar[dict[str, str]] = {
        "write_crc32": "0",  # which would not fit the tags any more
        "flush_packets": "1",
        "cluster_time_limit": "1000",
    }

    def _claim(self) -> Place:
        return growing_file(self.name, replace=self.options.replace)

    def _path(self) -> str:
        return str(self._place.path)

    def _close(self) -> None:
        self._finish()

    def _abort(self) -> None:
        self._close_sound()
        if self._container is None:
            return
        try:
            self._encode(None)
        finally:
            self._container.close()


def _comment(header: dict[str, Any], totals: dict[str, Any] | None) -> str:
    """Returns header and totals as JSON, as long without totals as with them."""
    end = json.dumps(totals)
    if len(end) > _ROOM_FOR_TOTALS and totals is not None:
        end = json.dumps(
            {k: v for k, v in totals.items() if k in ("frames", "complete", "stopped")}
        )
    return f'{json.dumps(header)[:-1]}, "end": {end.ljust(_ROOM_FOR_TOTALS)}}}'


def _encoder(*, low_delay: bool) -> tuple[str, dict[str, str]]:
    """Returns the H.264 encoder that FFmpeg was built with, and options; MPEG-4 for want of one."""
    tune = {"tune": "zerolatency"} if low_delay else {}
    for name, options in (
        ("libx264", {"preset": "superfast", "crf": "22", **tune}),
        ("libopenh264", {}),
        ("h264_videotoolbox", {}),
        ("h264_mf", {}),
    ):
        if name in av.codec.codecs_available:
            return name, options
    return "mpeg4", {"qscale": "3"}
