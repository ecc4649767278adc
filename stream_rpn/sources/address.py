"""The meaning of a source's name: a path, a URL, a camera; and the part that may be shown."""

from __future__ import annotations

import os
import re
import stat
import sys
import urllib.parse
from pathlib import Path

from stream_rpn.frame import StreamRPNError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# A URL, or what was meant as one: with other slashes and blanks, or without any where the protocol
# is one that takes passwords; behind "@" as a list has, or "yolo:" and the like as outputs have.
_ADDRESS = re.compile(
    r"\s*(?:@|\w+:)?"
    r"(?:\s*(?!file\s*:)([a-z][a-z0-9+.-]+)\s*[:;]\s*[/\\]"
    r"|\s*(https?|rt[ms]p[est]?|rtp|udp|srt|rist|mqtts?|ftps?|sftp|mms[ht]?)"
    r"\s*(?:[:;]|[/\\]{2}))[\s/\\]*",
    re.IGNORECASE,
)
_WEBCAM = re.compile(r"webcam(?::(\d+))?")
_VIDEO_DEVICE = re.compile(r"/dev/video\d+")

# What is called like a secret in a path, where some cameras have it:
# /user=admin_password=secret_channel=1.sdp.
_PATH_SECRET = re.compile(
    r"(?i)([/&;_][^/=&;]*(?:pas|pw|token|secret|key|auth|sig|credential)[^/=&;]*=)[^/&;]+"
)

# Of a query or fragment all values are masked but those of these keys, which say what picture, how
# it comes, or who is asked: a camera's maker calls its secrets as it likes.
_HARMLESS = {
    "audio", "bitrate", "camera", "channel", "channelno", "cmd", "codec", "compression", "fps", "h",
    "height", "homeassistant", "id", "latency", "listen", "loginuse", "mode", "name",
    "overrun_nonfatal", "pkt_size", "profile", "proto", "qos", "quality", "res", "resolution",
    "retain", "size", "stream", "streamtype", "sub", "subtype", "tcp", "timeout", "transport",
    "transportmode", "tunnel", "type", "udp", "unicast", "user", "username", "usr", "v", "video",
    "w", "width", "x", "y",
}  # fmt: skip
_PAIR = re.compile(r"([^&;=]*)=([^&;]*)")

# What is shown nowhere, wherever in an address it stands; shorter values are none that can be kept.
_secrets: set[str] = set()
LEAST_SECRET = 4

# These can only be played while they are sent.
_STREAMING = ("rtsp", "rtsps", "rtmp", "rtmps", "rtmpt", "rtp", "udp", "udplite", "srt", "rist")

# Sites whose addresses, with nothing or www. or m. in front, are of pages.
_PAGES = re.compile(
    r"(?:www\.|m\.)?(?:youtube\.com|youtu\.be|vimeo\.com|twitch\.tv|dailymotion\.com|tiktok\.com)"
)

# FFmpeg's device of each platform for cameras, and for the screen.
_DEVICES = {
    "linux": ("v4l2", "x11grab"),
    "darwin": ("avfoundation", "avfoundation"),
    "win32": ("dshow", "gdigrab"),
}


def is_url(uri: str) -> bool:
    """Tells whether `uri` is fetched through the network ("file://" is a path)."""
    return bool(_URL.match(uri)) and not uri.lower().startswith("file://")


def scheme(uri: str) -> str:
    """Returns the protocol of a URL in lower case, e.g. "rtsp"."""
    return uri.partition("://")[0].lower()


def is_device(uri: str) -> bool:
    """Tells whether `uri` is a camera, the screen or a graph of FFmpeg's filters ("lavfi:…")."""
    return bool(
        uri.startswith(("screen:", "lavfi:"))
        or _WEBCAM.fullmatch(uri)
        or _VIDEO_DEVICE.fullmatch(uri)
    )


def is_pipe(uri: str) -> bool:
    """Tells whether `uri` is a named pipe."""
    try:
        return not is_url(uri) and stat.S_ISFIFO(os.stat(local_path(uri)).st_mode)
    except (OSError, ValueError):
        return False


def is_streaming(uri: str) -> bool:
    """Tells whether the protocol of a URL knows no finished files."""
    return is_url(uri) and scheme(uri) in _STREAMING


def is_page(uri: str) -> bool:
    """Tells whether a URL is of a page with a video, by its host."""
    if not is_url(uri) or scheme(uri) not in ("http", "https"):
        return False
    host = _split_user(uri.split("://", 1)[1])[1]
    return bool(_PAGES.fullmatch(host.lower()))


def of_page(uri: str) -> str:
    """Returns what reads the video of a page."""
    return f"`yt-dlp -q -f bv/b -o - '{masked(uri)}' | stream-rpn -` reads the video of a page"


def masked(uri: str) -> str:
    """Returns `uri` as it may be shown and stored: with `***` in place of passwords and tokens."""
    address = _ADDRESS.match(uri)
    if address is None:
        return uri
    protocol = (address[1] or address[2]).lower()
    shown = address[0] + _masked_address(protocol, uri[address.end() :])
    for secret in sorted(_secrets, key=len, reverse=True):
        shown = shown.replace(secret, "***")
    return shown


def keep_secret(value: str) -> None:
    """Masks a value in all addresses from now on; of one that is an address what `masked` finds."""
    if len(value) >= LEAST_SECRET and not is_url(value):
        _secrets.add(value)


def _masked_address(protocol: str, rest: str) -> str:
    user, host, rest = _split_user(rest)
    rest, sharp, fragment = rest.partition("#")
    path, mark, query = rest.partition("?")
    path = _PATH_SECRET.sub(r"\1***", path)
    if protocol.startswith("rtmp") and path.count("/") > 1:
        # The name of what is published there is the key to publish it.
        path = path[: path.rindex("/") + 1] + "***"
    if query and "=" not in query and not query.isdecimal() and query.lower() not in _HARMLESS:
        query = "***"
    shown = f"{_masked_user(user)}{host}{path}{mark}{_masked_pairs(query)}"
    return f"{shown}{sharp}{_masked_pairs(fragment)}"


def _split_user(rest: str) -> tuple[str, str, str]:
    """Returns `user:password@` or "", the host with its port, and what follows, "/…" or less."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    name, colon, port = authority.rpartition(":")
    if "@" in authority:
        at = authority.rindex("@") + 1
    elif "@" in rest and (colon and name and not port.isdecimal() and not port.endswith("]")):
        # What stands where a port should is the beginning of a password with /, ? or # in it.
        at = rest.rindex("@") + 1
    else:
        at = 0
    host = re.split(r"[/?#]", rest[at:], maxsplit=1)[0]
    return rest[:at], host, rest[at + len(host) :]


def _masked_user(user: str) -> str:
    # Without a password the name may be a token.
    name, colon, _ = user.partition(":")
    return f"{name}:***@" if colon else "***@" if user else ""


def _masked_pairs(query: str) -> str:
    def mask(pair: re.Match[str]) -> str:
        harmless = pair[1].lower().lstrip("?") in _HARMLESS or not pair[2]
        return pair[0] if harmless else f"{pair[1]}=***"

    return _PAIR.sub(mask, query)


def local_path(uri: str) -> Path:
    """Returns the path of a local source, "file://" URLs included."""
    if uri.lower().startswith("file://"):
        parts = urllib.parse.urlsplit(uri)
        host = "" if parts.netloc.lower() == "localhost" else parts.netloc
        return Path(urllib.parse.unquote(host + parts.path) or "/")
    return Path(uri)


def local_file(uri: str) -> Path | None:
    """Returns the path of a source that is a regular file here; None for any other."""
    if uri == "-" or is_url(uri) or is_device(uri):
        return None
    path = local_path(uri)
    return path if os.path.isfile(path) else None


def stem(uri: str) -> str:
    """Returns a short name for output files: "video" for "/tmp/video.mp4", "stdin" for "-"."""
    if uri == "-":
        return "stdin"
    if uri.startswith(("synthetic:", "screen:", "lavfi:")):
        return uri.partition(":")[0]
    if _ADDRESS.match(uri):
        url = urllib.parse.urlsplit(masked(uri).replace("***", ""))
        return Path(urllib.parse.unquote(url.path)).stem or url.hostname or "stream"
    if _WEBCAM.fullmatch(uri):
        return uri.replace(":", "-")
    return local_path(uri).stem or "video"


def device_input(uri: str, platform: str = sys.platform) -> tuple[str, str, dict[str, str]]:
    """Returns FFmpeg's (file, format, options) for a camera, the screen or a filter graph.

    Args:
        uri: "webcam", "webcam:N", "/dev/videoN", "screen:", "screen:DISPLAY" or "lavfi:GRAPH".
        platform: as `sys.platform` says it.

    Raises:
        StreamRPNError: this platform has no such device.
    """
    if uri.startswith("lavfi:"):
        return uri.removeprefix("lavfi:"), "lavfi", {}
    if platform not in _DEVICES:
        raise StreamRPNError(f"{uri}: cameras and screens are not known on the platform {platform}")
    camera_format, screen_format = _DEVICES[platform]
    if uri.startswith("screen:"):
        display = uri.removeprefix("screen:")
        if platform == "linux":
            display = display or os.environ.get("DISPLAY", "")
            if not display:
                raise StreamRPNError(
                    f"{uri}: there is no X display (DISPLAY is not set); name one, as in screen::0"
                )
        elif platform == "darwin":
            display = f"Capture screen {display or 0}"
        else:
            display = display or "desktop"
        return display, screen_format, {"framerate": "15"}
    webcam = _WEBCAM.fullmatch(uri)
    number = int(webcam[1] or 0) if webcam else 0
    if platform == "linux":
        return (f"/dev/video{number}" if webcam else uri), camera_format, {}
    if platform == "darwin":
        return str(number), camera_format, {"framerate": "30"}
    names = [name for name, _ in cameras(platform)]
    if number >= len(names):
        raise StreamRPNError(f"{uri}: there is no such camera; `stream-rpn devices` lists them")
    return f"video={names[number]}", camera_format, {}


def cameras(platform: str = sys.platform) -> list[tuple[str, str]]:
    """Returns (FFmpeg's name, description) of each camera, in the order of `webcam:N`."""
    import av
    import av.error
    from av.device import enumerate_input_devices

    name = _DEVICES[platform][0] if platform in _DEVICES else ""
    try:
        devices = enumerate_input_devices(name)
    except (av.error.FFmpegError, ValueError):
        return []
    return [
        (device.name, device.description)
        for device in devices
        if not device.media_types or "video" in device.media_types
    ]
