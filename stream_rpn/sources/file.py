"""Video files, URLs, cameras and standard input, opened by PyAV."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, cast

import av
import av.error
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from stream_rpn.clock import clock_of, rate_of, time_keeping, trust_no_guess
from stream_rpn.cores import available_cores
from stream_rpn.decode import Decoder
from stream_rpn.frame import Frame, StreamInfo, StreamRPNError
from stream_rpn.sources.address import (
    device_input,
    is_device,
    is_streaming,
    is_url,
    local_file,
    local_path,
    masked,
    scheme,
    stem,
)
from stream_rpn.sources.packet_queue import PacketQueue
from stream_rpn.sources.promise import Promise, lacks_index
from stream_rpn.sources.source import Source
from stream_rpn.tally import Tally

# A playlist from the network must not reach files of this machine: `file` is not among these.
_NETWORK_PROTOCOLS = (
    "http,https,httpproxy,tls,tcp,udp,udplite,rtp,srtp,rtsp,rtmp,rtmps,rtmpt,rtmpte,rtmpts,"
    "mmsh,mmst,ftp,sftp,srt,rist,gopher,gophers,hls,crypto,data"
)

_PIPE_HINT = "an MP4 whose index stands at its end has to be given as a file"

_OPEN_SECONDS, _READ_SECONDS = 15.0, 30.0

# TCP where the server can: lost packets of UDP smear the picture until the next key frame. Two
# seconds are enough to learn what is in a stream; FFmpeg's own five would all be waited for.
_STREAMING_OPTIONS = {
    "analyzeduration": "2000000",
    "max_delay": "200000",
    "rtsp_flags": "prefer_tcp",
    "buffer_size": "1048576",
    "overrun_nonfatal": "1",
}

# FFmpeg shows plain text and ANSI art as video; nobody means that.
_TEXT_FORMATS = {"tty", "bin", "xbin", "adf", "idf"}

# Below this, starting and feeding the hardware costs more than a CPU needs for the decoding.
_NVDEC_MIN_PIXELS = 1280 * 720


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
        file: read from this instead, if given.
        decoder: "cpu", "nvdec", or "auto": NVDEC where there is one that decodes this stream.
        video_stream: number of the video stream within the file, from 0; None for the best one.
        threads: decoding threads; 0 for half the cores, at most 8.
        device: the device that the frames are meant for, e.g. "cuda:1"; None for any.
        num_frames: the number of frames, where the container cannot know it.
        reception: how packets are read from a live source.

    Raises:
        StreamRPNError: it cannot be opened, holds no video that can be decoded, or not by the
            decoder asked for.
    """

    def __init__(
        self,
        uri: str,
        file: BinaryIO | None = None,
        *,
        decoder: str = "auto",
        video_stream: int | None = None,
        threads: int = 0,
        device: str | None = None,
        num_frames: int | None = None,
        reception: Reception | None = None,
    ) -> None:
        self.tally = reception.tally if reception else Tally()
        reopenable = file is None and uri != "-"
        timeout = reception.timeout if reception else (_OPEN_SECONDS, _READ_SECONDS)
        container = _open_container(uri, file, timeout=timeout)
        self._container = container
        self._packets: PacketQueue | None = None
        try:
            stream = _choose_stream(container, uri, video_stream)
            packets = self._packets = reception.packets(container, stream) if reception else None
            note = ""
            first = None
            wanted_on_gpu = device is None or device.startswith("cuda")
            if decoder == "nvdec" or (decoder == "auto" and wanted_on_gpu):
                note = _why_not_nvdec(stream, device, decoder == "nvdec", reopenable)
                if not note:
                    first, note = self._start_on_gpu(uri, stream.index, device)
                if note and decoder == "nvdec":
                    raise StreamRPNError(f"{_name(uri)} cannot be decoded by NVDEC: {note}")
            if first is None:
                stream.thread_count = threads or _default_threads()
                # Frame threads would keep a frame each back.
                stream.thread_type = "AUTO" if packets is None else "SLICE"
                reopen = None
                if reopenable and packets is None and stream.thread_count > 1:
                    reopen = partial(_open_single_threaded, uri, stream.index)
                promise = None
                if packets is None:
                    promise = Promise(container, stream, local_file(uri) if file is None else None)
                decoding = Decoder(container, stream, self.tally, reopen, packets, promise)
                self._decoder, self._frames = decoding, iter(decoding)
                first = next(self._frames, None)
            if first is None:
                hint = f" ({_PIPE_HINT})" if uri == "-" else ""
                if is_url(uri):
                    hint = " (an MP4 whose index stands at its end needs a server that can seek)"
                raise StreamRPNError(f"{_name(uri)} holds no frame that can be decoded{hint}")
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
                container = _open_container(uri, hwaccel=hwaccel)
            stream = _only_stream(container, stream_index)
            # Each thread would hold surfaces of NVDEC's small pool, and gain nothing.
            stream.thread_count = 1
            promise = Promise(container, stream, local_file(uri))
            decoding = Decoder(container, stream, tally, promise=promise)
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

    def close(self) -> None:  # noqa: D102
        self._first = None
        self._frames.close()
        self._close_container()

    def _close_container(self) -> None:
        # A thread that still waits for a packet closes it when it is done.
        if self._packets is None or self._packets.close():
            self._container.close()


def _open_container(
    uri: str,
    file: BinaryIO | None = None,
    hwaccel: HWAccel | None = None,
    timeout: tuple[float, float] = (_OPEN_SECONDS, _READ_SECONDS),
) -> InputContainer:
    """Opens for reading; whatever goes wrong becomes a sentence."""
    target: str | BinaryIO
    format_name: str | None = None
    options: dict[str, str] = {}
    if file is not None:
        target = file
    elif is_url(uri):
        target = uri
        options = {"protocol_whitelist": _NETWORK_PROTOCOLS}
        if is_streaming(uri):
            options |= _STREAMING_OPTIONS
    elif is_device(uri):
        target, format_name, options = device_input(uri)
    elif uri == "-":
        # A file that was redirected to it can be read in any order, unlike a pipe.
        seekable = sys.stdin is not None and sys.stdin.seekable()
        target = sys.stdin.buffer if seekable else "pipe:0"
        # Nor may a playlist that somebody sends.
        options = {"protocol_whitelist": "pipe"}
    else:
        # With its protocol in front, a name such as "12:30.mp4" is not taken for a protocol.
        target = f"file:{local_path(uri)}"
    try:
        return av.open(
            target,
            "r",
            format=format_name,
            container_options=options,
            # Titles in another encoding than UTF-8 are no reason not to open.
            metadata_errors="replace",
            timeout=timeout if is_url(uri) or is_device(uri) else None,
            hwaccel=hwaccel,
        )
    except av.error.FFmpegError as error:
        why = _why_not_opened(uri, error, timeout[0])
        if file is not None:  # whose name need not be a path
            why = f"{_name(uri)} is not a video that PyAV can read"
        raise StreamRPNError(why) from error


def _why_not_opened(uri: str, error: av.error.FFmpegError, open_seconds: float) -> str:
    name = _name(uri)
    if is_url(uri):
        if isinstance(error, av.error.ExitError):
            return f"{name} did not answer within {open_seconds:g} seconds"
        if isinstance(error, av.error.ProtocolNotFoundError):
            return (
                f"{name} cannot be opened: the FFmpeg inside PyAV does not speak {scheme(uri)}; "
                "have another ffmpeg pass it on as udp:// or through a pipe"
            )
        return f"{name} cannot be opened: {error.strerror}"
    if is_device(uri):
        hint = "" if uri.startswith("lavfi:") else "; `stream-rpn devices` lists the cameras"
        return f"{name} cannot be opened: {error.strerror}{hint}"
    if uri == "-":
        return f"{name} is not a video that can be read from a pipe ({_PIPE_HINT})"
    path = local_path(uri)
    if not path.exists():
        return f"{name}: no such file"
    if path.is_dir():
        return f"{name} is a directory, not a video"
    if isinstance(error, av.error.PermissionError):
        return f"{name} cannot be read: permission denied"
    if path.is_file() and path.stat().st_size == 0:
        return f"{name} is empty"
    if path.is_file() and lacks_index(path):
        return f"{name} is cut off: its index (moov) is missing"
    return f"{name} is not a video that PyAV can read"


def _choose_stream(container: InputContainer, uri: str, number: int | None) -> VideoStream:
    if container.format.name in _TEXT_FORMATS:
        raise StreamRPNError(f"{_name(uri)} is not a video that PyAV can read")
    # Cover art of a music file is a video stream to FFmpeg.
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        only = " (audio only)" if container.streams.audio else ""
        raise StreamRPNError(f"{_name(uri)} has no video stream{only}")
    if number is None:
        best = container.streams.best("video")
        stream = next((s for s in streams if s is best), streams[0])
    elif 0 <= number < len(streams):
        stream = streams[number]
    else:
        sizes = ", ".join(f"{i} ({s.width}x{s.height})" for i, s in enumerate(streams))
        raise StreamRPNError(f"{_name(uri)} has no video stream {number}; it has {sizes}")
    if stream.codec_context is None:
        raise StreamRPNError(f"{_name(uri)}: FFmpeg here has no decoder for its video")
    return _only_stream(container, stream.index)


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


def _open_single_threaded(uri: str, stream_index: int) -> tuple[InputContainer, VideoStream]:
    container = _open_container(uri)
    stream = _only_stream(container, stream_index)
    stream.thread_count = 1
    return container, stream


def _only_stream(container: InputContainer, index: int) -> VideoStream:
    """Returns the stream and has the demuxer skip all others."""
    stream = cast(VideoStream, container.streams[index])
    trust_no_guess(container, stream)
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


def _name(uri: str) -> str:
    return "standard input" if uri == "-" else masked(uri)
