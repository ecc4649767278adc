"""Opening what PyAV reads: files, URLs, cameras and pipes; whatever goes wrong is a sentence."""

from __future__ import annotations

from typing import BinaryIO

import av
import av.error
from av.codec.hwaccel import HWAccel
from av.container import InputContainer

from stream_rpn.frame import StreamRPNError
from stream_rpn.limits import MAX_PIXELS
from stream_rpn.sources.address import (
    device_input,
    is_device,
    is_streaming,
    is_url,
    local_path,
    masked,
    of_page,
    scheme,
)
from stream_rpn.sources.promise import lacks_index

# A playlist from the network must not reach files of this machine: `file` is not among these.
_NETWORK_PROTOCOLS = (
    "http,https,httpproxy,tls,tcp,udp,udplite,rtp,srtp,rtsp,rtmp,rtmps,rtmpt,rtmpte,rtmpts,"
    "mmsh,mmst,ftp,sftp,srt,rist,gopher,gophers,hls,crypto,data"
)

OPEN_SECONDS, READ_SECONDS = 30.0, 30.0

# TCP where the server can: lost packets of UDP smear the picture until the next key frame. Two
# seconds are enough to learn what is in a stream; FFmpeg's own five would all be waited for.
_STREAMING_OPTIONS = {
    "analyzeduration": "2000000",
    "max_delay": "200000",
    "rtsp_flags": "prefer_tcp",
    "buffer_size": "1048576",
    "overrun_nonfatal": "1",
}


def open_container(
    uri: str,
    file: BinaryIO | None = None,
    hwaccel: HWAccel | None = None,
    timeout: tuple[float, float] = (OPEN_SECONDS, READ_SECONDS),
    max_pixels: int = MAX_PIXELS,
) -> InputContainer:
    """Opens for reading; whatever goes wrong becomes a sentence."""
    target: str | BinaryIO
    format_name: str | None = None
    options: dict[str, str] = {}
    if file is not None:
        target = file
        if uri == "-":
            # A playlist that somebody sends may name nothing.
            options = {"protocol_whitelist": "pipe"}
    elif is_url(uri):
        target = uri
        options = {"protocol_whitelist": _NETWORK_PROTOCOLS}
        if is_streaming(uri):
            options |= _STREAMING_OPTIONS
    elif is_device(uri):
        target, format_name, options = device_input(uri)
    else:
        # With its protocol in front, a name such as "12:30.mp4" is not taken for a protocol.
        target = f"file:{local_path(uri)}"
    try:
        return av.open(
            target,
            "r",
            format=format_name,
            container_options=options,
            # Looking what is in a file decodes some of it.
            options=codec_options(max_pixels),
            # Titles in another encoding than UTF-8 are no reason not to open.
            metadata_errors="replace",
            timeout=timeout if is_url(uri) or is_device(uri) else None,
            hwaccel=hwaccel,
        )
    except av.error.FFmpegError as error:
        if file is None:
            why = _why_not_opened(uri, error, timeout[0])
        elif file.seekable() and lacks_index(file):
            why = f"{name_of(uri)} is cut off: its index (moov) is missing"
        else:  # its name need not be a path
            why = f"{name_of(uri)} is not a video that PyAV can read"
        raise StreamRPNError(why) from error


def _why_not_opened(uri: str, error: av.error.FFmpegError, open_seconds: float) -> str:
    name = name_of(uri)
    if is_url(uri):
        if isinstance(error, av.error.ExitError):
            return f"{name} did not answer within {open_seconds:g} seconds"
        if isinstance(error, av.error.ProtocolNotFoundError):
            return (
                f"{name} cannot be opened: the FFmpeg inside PyAV does not speak {scheme(uri)}; "
                "have another ffmpeg pass it on as udp:// or through a pipe"
            )
        if scheme(uri) in ("http", "https") and isinstance(error, av.error.InvalidDataError):
            return f"{name} is not a video that PyAV can read; {of_page(uri)}"
        return f"{name} cannot be opened: {error.strerror}"
    if is_device(uri):
        hint = "" if uri.startswith("lavfi:") else "; `stream-rpn devices` lists the cameras"
        return f"{name} cannot be opened: {error.strerror}{hint}"
    path = local_path(uri)
    if not path.exists():
        return f"{name}: no such file"
    if path.is_dir():
        return f"{name} is a directory, not a video"
    if isinstance(error, av.error.PermissionError):
        return f"{name} cannot be read: permission denied"
    if path.is_file() and path.stat().st_size == 0:
        return f"{name} is empty"
    if path.is_file():
        with path.open("rb") as opened:
            if lacks_index(opened):
                return f"{name} is cut off: its index (moov) is missing"
    return f"{name} is not a video that PyAV can read"


def codec_options(max_pixels: int) -> dict[str, str]:
    """Returns what has FFmpeg refuse larger frames."""
    return {"max_pixels": str(max_pixels)}


def name_of(uri: str) -> str:
    """Returns what sentences call a source."""
    return "standard input" if uri == "-" else masked(uri)
