"""Video files, URLs, cameras and standard input, opened by PyAV."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, TypeAlias, cast

import av
import av.error
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from stream_rpn.clock import clock_of, rate_of, time_keeping, trust_no_guess
from stream_rpn.cores import available_cores
from stream_rpn.decode import Decoder
from stream_rpn.frame import Frame, StreamInfo, StreamRPNError
from stream_rpn.limits import MAX_PIXELS, check_pixels
from stream_rpn.log import log
from stream_rpn.sources.address import (
    is_url,
    local_file,
    masked,
    stem,
)
from stream_rpn.sources.container import (
    OPEN_SECONDS,
    READ_SECONDS,
    codec_options,
    name_of,
    open_container,
)
from stream_rpn.sources.packet_queue import PacketQueue
from stream_rpn.sources.pipe import Pipe
from stream_rpn.sources.promise import Promise
from stream_rpn.sources.source import Source
from stream_rpn.sources.spool import standard_input
from stream_rpn.tally import Tally

# FFmpeg shows plain text and ANSI art as video; nobody means that.
_TEXT_FORMATS = {"tty", "bin", "xbin", "adf", "idf"}

# Below this, starting and feeding the hardware costs more than a CPU needs for the decoding.
_NVDEC_MIN_PIXELS = 1280 * 720


PacketsOf: TypeAlias = "Callable[[InputContainer, VideoStream], Iterator[Packet[VideoStream]]]"


@dataclass
class Reception:
    """The way a live source reads its packets; without it they are read as they are decoded.

    Attributes:
        tally: counts for all connections of the source, one after another.
        timeout: seconds for opening, and for each packet.
        packets: receives the opened stream and starts to read it; returns None for a finished file.
    """

    tally: Tally
    timeout: tuple[float, float]
    packets: Callable[[InputContainer, VideoStream], PacketQueue | None]


class FileSource(Source):
    """One video stream of a file, a URL, a camera or standard input ("-").

    The first frame is decoded on opening: only then is it certain that there are frames, how they
    are turned and coloured, and which decoder is in use.

    Args:
        uri: what the user named.
        file: read from this instead, if given, and close it at the end.
        keep_file: leave that open, as it is somebody else's.
        decoder: "cpu", "nvdec", or "auto": NVDEC where there is one that decodes this stream.
        video_stream: number of the video stream within the file, from 0; None for the best one.
        threads: decoding threads; 0 for half the cores, at most 8.
        device: the device that the frames are meant for, e.g. "cuda:1"; None for any.
        num_frames: the number of frames, where the container cannot know it.
        reception: how packets are read from a live source.
        max_pixels: larger frames are refused.
        open_timeout: seconds for what is no file here to open.
        stopped: tells that no more is wanted of a pipe, which then ends.
        notice: told in a sentence where much of a pipe is kept before its first frame.
        packets_of: gives the packets to decode of the opened stream, in place of all of it.

    Raises:
        StreamRPNError: it cannot be opened, holds no video that can be decoded, or not by the
            decoder asked for.
        Interrupted: it was not wanted any more before its first frame.
    """

    def __init__(
        self,
        uri: str,
        file: BinaryIO | None = None,
        *,
        keep_file: bool = False,
        decoder: str = "auto",
        video_stream: int | None = None,
        threads: int = 0,
        device: str | None = None,
        num_frames: int | None = None,
        reception: Reception | None = None,
        max_pixels: int = MAX_PIXELS,
        open_timeout: float = OPEN_SECONDS,
        stopped: Callable[[], bool] = lambda: False,
        notice: Callable[[str], None] = log.warning,
        packets_of: PacketsOf | None = None,
    ) -> None:
        self._max_pixels = max_pixels
        self._packets_of = packets_of
        self.tally = reception.tally if reception else Tally()
        reopenable = file is None and uri != "-"
        timeout = reception.timeout if reception else (open_timeout, READ_SECONDS)
        if uri == "-":
            file = standard_input(open_timeout, stopped, notice)
        self._pipe = file if isinstance(file, Pipe) else None
        self._file = None if keep_file else file
        try:
            container = open_container(uri, file, timeout=timeout, max_pixels=max_pixels)
        except BaseException:
            self._close_file()
            raise
        self._container = container
        self._packets: PacketQueue | None = None
        try:
            stream = choose_stream(container, uri, video_stream, max_pixels)
            packets = self._packets = reception.packets(container, stream) if reception else None
            note = ""
            first = None
            wanted_on_gpu = device is None or device.startswith("cuda")
            if decoder == "nvdec" or (decoder == "auto" and wanted_on_gpu):
                note = _why_not_nvdec(stream, device, decoder == "nvdec", reopenable)
                if not note:
                    first, note = self._start_on_gpu(uri, stream.index, device)
                if note and decoder == "nvdec":
                    raise StreamRPNError(f"{name_of(uri)} cannot be decoded by NVDEC: {note}")
            if first is None:
                stream.thread_count = threads or _default_threads()
                # Frame threads would keep a frame each back.
                stream.thread_type = "AUTO" if packets is None else "SLICE"
                reopen = None
                given = packets_of(container, stream) if packets_of else packets
                if reopenable and given is None and stream.thread_count > 1:
                    reopen = partial(_open_single_threaded, uri, stream.index, max_pixels)
                promise = None
                if given is None:
                    promise = Promise(container, stream, local_file(uri) if file is None else None)
                decoding = Decoder(container, stream, self.tally, reopen, given, promise, stopped)
                self._decoder, self._frames = decoding, iter(decoding)
                first = next(self._frames, None)
            if first is None:
                hint = ""
                if not stream.width * stream.height:
                    hint = f" (--max-pixels allows frames of {max_pixels:,} pixels)"
                if is_url(uri):
                    hint = " (an MP4 whose index stands at its end needs a server that can seek)"
                raise StreamRPNError(f"{name_of(uri)} holds no frame that can be decoded{hint}")
            live = packets is not None
            self.clock = clock_of(container, stream)
            self._unit = float(stream.time_base or 0)
            clock = time_keeping(container, stream, reordered=self._decoder.reordered, live=live)
            self.info = _describe(container, stream, uri, first, num_frames, note, live, clock)
            self._first: Frame | None = first
        except BaseException:
            self._close_container()
            raise
        finally:
            if self._container is not container:
                container.close()

    def _start_on_gpu(
        self, uri: str, stream_index: int, device: str | None
    ) -> tuple[Frame | None, str]:
        """Opens again with NVDEC; returns the first frame, or None and why there is none.

        PyAV raises where there is no device although it may fall back, and FFmpeg goes back to
        software by itself where the hardware lacks the profile: the first frame is the only proof.
        """
        import torch

        index = torch.device(device or "cuda").index or 0
        tally = Tally()
        container = None
        try:
            # NVDEC joins the context that is current, which has to be torch's. It cannot be told to
            # take the primary one: it would want that with flags which torch did not set. In a
            # thread that has not used the GPU yet there is none until a call needs one.
            torch.empty(1, device=f"cuda:{index}")
            torch.cuda.synchronize(index)
            with torch.cuda.device(index):
                hwaccel = HWAccel(
                    "cuda",
                    str(index),
                    allow_software_fallback=True,
                    options={"primary_ctx": "0", "current_ctx": "1"},
                    is_hw_owned=True,
                )
                container = open_container(uri, hwaccel=hwaccel)
            stream = _only_stream(container, stream_index, self._max_pixels)
            # Each thread would hold surfaces of NVDEC's small pool, and gain nothing.
            stream.thread_count = 1
            given = self._packets_of(container, stream) if self._packets_of else None
            promise = None if given else Promise(container, stream, local_file(uri))
            decoding = Decoder(container, stream, tally, packets=given, promise=promise)
            frames = iter(decoding)
            first = next(frames, None)
            if first is not None and first.image.sw_format is not None:
                self._container, self._frames, self.tally = container, frames, tally
                self._decoder = decoding
                self.on_gpu = True
                return first, ""
            reason = f"the hardware does not decode this {_codec(stream)} stream"
        except Exception as error:
            # Drivers, PyAV and torch fail here in many ways, and "auto" must survive them all.
            reason = next(iter(str(error).splitlines()), type(error).__name__)
        if container is not None:
            container.close()
        return None, reason

    def __iter__(self) -> Iterator[Frame]:
        if self._first is not None:
            first, self._first = self._first, None
            yield self._placed(first)
            # A surface of the GPU's small pool must not live on in this generator.
            del first
        for frame in self._frames:
            yield self._placed(frame)
            del frame

    def _placed(self, frame: Frame) -> Frame:
        """Makes the time of a frame one that rises; a live source does that across connections."""
        if self._packets is None:
            duration = frame.image.duration * self._unit
            frame.pts_seconds = self.clock.place(frame.pts_seconds, duration)
        return frame

    @property
    def cut_short(self) -> bool:  # noqa: D102
        return self._pipe is not None and self._pipe.cut

    def close(self) -> None:  # noqa: D102
        self._first = None
        self._frames.close()
        self._close_container()

    def _close_container(self) -> None:
        # A thread that still waits for a packet closes it when it is done.
        if self._packets is None or self._packets.close():
            self._container.close()
            self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()


def choose_stream(
    container: InputContainer, uri: str, number: int | None, max_pixels: int
) -> VideoStream:
    """Returns the video stream of that number, or the best one; all others are skipped.

    Raises:
        StreamRPNError: there is none, none can decode it here, or its frames are too large.
    """
    if container.format.name in _TEXT_FORMATS:
        raise StreamRPNError(f"{name_of(uri)} is not a video that PyAV can read")
    # Cover art of a music file is a video stream to FFmpeg.
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        only = " (audio only)" if container.streams.audio else ""
        raise StreamRPNError(f"{name_of(uri)} has no video stream{only}")
    if number is None:
        best = container.streams.best("video")
        stream = next((s for s in streams if s is best), streams[0])
    elif 0 <= number < len(streams):
        stream = streams[number]
    else:
        sizes = ", ".join(f"{i} ({s.width}x{s.height})" for i, s in enumerate(streams))
        raise StreamRPNError(f"{name_of(uri)} has no video stream {number}; it has {sizes}")
    if stream.codec_context is None:
        raise StreamRPNError(f"{name_of(uri)}: FFmpeg here has no decoder for its video")
    try:
        check_pixels(stream.width, stream.height, max_pixels)
    except StreamRPNError as error:
        raise StreamRPNError(f"{name_of(uri)} {error}") from None
    return _only_stream(container, stream.index, max_pixels)


def _why_not_nvdec(stream: VideoStream, device: str | None, asked: bool, rereadable: bool) -> str:
    """Returns why NVDEC is not even tried, or ""."""
    if device is not None and not device.startswith("cuda"):
        return f"the frames are wanted on {device}"
    import torch

    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if not rereadable:
        return "it is read from a pipe"
    if not asked and stream.width * stream.height < _NVDEC_MIN_PIXELS:
        return "a CPU decodes small video faster"
    return ""


def _default_threads() -> int:
    """Returns the number of decoding threads where nobody asked for one.

    The network needs the cores as well: on two cores a second decoding thread gains nothing beside
    it (41.6 and 41.3 ms a frame), and FFmpeg's own choice of three costs a tenth (47.0 ms).
    """
    return min(max(available_cores() // 2, 1), 8)


def _open_single_threaded(
    uri: str, stream_index: int, max_pixels: int
) -> tuple[InputContainer, VideoStream]:
    container = open_container(uri, max_pixels=max_pixels)
    stream = _only_stream(container, stream_index, max_pixels)
    stream.thread_count = 1
    return container, stream


def _only_stream(container: InputContainer, index: int, max_pixels: int) -> VideoStream:
    """Returns the stream and has the demuxer skip all others."""
    stream = cast(VideoStream, container.streams[index])
    trust_no_guess(container, stream)
    stream.codec_context.options = codec_options(max_pixels)
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all
    return stream


def _describe(
    container: InputContainer,
    stream: VideoStream,
    uri: str,
    first: Frame,
    num_frames: int | None,
    decoder_note: str,
    live: bool,
    clock: str,
) -> StreamInfo:
    rate = rate_of(container, stream)
    duration: float | None = None
    if num_frames and rate:
        duration = num_frames / float(rate)
    elif stream.duration is not None and stream.time_base is not None:
        duration = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        duration = container.duration / av.time_base
    aspect = stream.sample_aspect_ratio
    surface = first.image.sw_format
    return StreamInfo(
        source=masked(uri),
        stem=stem(uri),
        width=first.width,
        height=first.height,
        rotation=first.rotation,
        mirrored=first.mirrored,
        sample_aspect_ratio=float(aspect) if aspect else 1.0,
        fps=float(rate) if rate else None,
        num_frames=num_frames or stream.frames or None,
        duration_seconds=duration,
        color=first.color,
        codec=_codec(stream),
        pixel_format=surface.name if surface else stream.codec_context.pix_fmt or "",
        interlaced=first.image.interlaced_frame,
        decoder=f"{_codec(stream)} ({'nvdec' if surface else 'software'})",
        live=live,
        decoder_note=decoder_note,
        clock=clock,
    )


def _codec(stream: VideoStream) -> str:
    return stream.codec_context.codec.canonical_name
