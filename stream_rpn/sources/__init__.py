"""Sources that can be opened: video files, URLs, cameras, pipes, images, synthetic video.

Nothing here imports PyAV or torch before a source is opened.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import urllib.parse
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stream_rpn.frame import StreamRPNError
from stream_rpn.limits import MAX_PIXELS
from stream_rpn.log import log
from stream_rpn.sources import address
from stream_rpn.sources.address import (
    is_device,
    is_page,
    is_pipe,
    is_streaming,
    is_url,
    local_file,
    local_path,
    masked,
    of_page,
    scheme,
)

if TYPE_CHECKING:
    from stream_rpn.sources.source import Source

__all__ = [
    "OPENERS",
    "expand",
    "holds_images",
    "is_cut_to_one",
    "is_live",
    "left_out",
    "loops",
    "masked",
    "open_source",
    "stem",
]

# By the beginning of the name, "module:function" within this package; it takes the name and the
# keywords of `open_source`. What begins otherwise is a file, a URL, a device, or still images.
OPENERS = {"synthetic:": "synthetic:open_synthetic"}

VIDEOS = {
    ".3gp", ".asf", ".avi", ".flv", ".gif", ".h264", ".264", ".h265", ".265", ".hevc",
    ".ivf", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf",
    ".nut", ".obu", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
}  # fmt: skip
_IMAGES = {
    ".avif", ".bmp", ".dpx", ".exr", ".heic", ".heif", ".hif", ".j2k", ".jfif", ".jp2",
    ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif",
    ".tiff", ".webp",
}  # fmt: skip


def expand(uris: Sequence[str]) -> list[str]:
    """Returns one name per source: directories and patterns of videos become their files.

    A directory or pattern of images stays one name, as its images are one source. "@FILE" stands
    for the sources that a text file lists, one a line; there no process list shows passwords. "0"
    is the first camera.

    Raises:
        StreamRPNError: a path does not exist, or holds neither, or both videos and images.
    """
    sources = []
    for uri in itertools.chain.from_iterable(map(_listed, uris)):
        files = members_of(uri)
        if files is None or files[0].suffix.lower() in _IMAGES:
            sources.append(uri)
        else:
            sources.extend(map(str, files))
    return sources


def _listed(uri: str) -> list[str]:
    """Returns the sources that "@FILE" stands for, blank lines and those after "#" left out.

    A number that is no file is a camera's.
    """
    if is_page(uri):
        raise StreamRPNError(f"{masked(uri)} is a web page, not a video; {of_page(uri)}")
    if uri.isdecimal() and not os.path.exists(uri):
        return [f"webcam:{int(uri)}"]
    if not uri.startswith("@"):
        try:
            urllib.parse.urlsplit(uri if is_url(uri) else "")
        except ValueError as error:
            raise StreamRPNError(f"{masked(uri)} is no address: {error}") from None
        return [uri]
    try:
        text = Path(uri[1:]).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise StreamRPNError(
            f"the list of sources {masked(uri[1:])!r} cannot be read: {why}"
        ) from error
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise StreamRPNError(f"the list of sources {masked(uri[1:])!r} is empty")
    return found


def open_source(
    uri: str,
    *,
    decoder: Literal["auto", "cpu", "nvdec"] = "auto",
    video_stream: int | None = None,
    threads: int = 0,
    device: str | None = None,
    max_pixels: int = MAX_PIXELS,
    open_timeout: float = 30.0,
    stopped: Callable[[], bool] = lambda: False,
    notice: Callable[[str], None] = log.warning,
) -> Source:
    """Opens one source, as `expand` names them, and decodes its first frame.

    Args:
        uri: a file, a URL, "-" for standard input, "synthetic:[WxH@FPS,N]", an image, or a
            directory or pattern of images.
        decoder: "auto" uses NVDEC where it can decode this stream and never fails for lack of it.
        video_stream: number of the video stream within a file, from 0; None for the best one.
        threads: decoding threads; 0 for half the cores, at most 8.
        device: the device that the frames are meant for, e.g. "cuda:0" or "cpu"; None for any.
        max_pixels: larger frames and images are refused.
        open_timeout: seconds for a URL or a pipe on standard input to open.
        stopped: tells that no more is wanted of a pipe on standard input, which then ends.
        notice: told in a sentence where much of such a pipe is kept before its first frame.

    Raises:
        StreamRPNError: it cannot be opened, holds no video, or not by the decoder asked for.
    """
    opener = next((o for prefix, o in OPENERS.items() if uri.startswith(prefix)), "")
    if not opener:
        opener = "images:open_images" if holds_images(uri) else "file:FileSource"
        if opener == "file:FileSource" and members_of(uri) is not None:
            raise StreamRPNError(f"{uri} holds several videos; open them one by one")
    module, _, function = opener.partition(":")
    source: Source = getattr(import_module(f"stream_rpn.sources.{module}"), function)(
        uri,
        decoder=decoder,
        video_stream=video_stream,
        threads=threads,
        device=device,
        max_pixels=max_pixels,
        open_timeout=open_timeout,
        stopped=stopped,
        notice=notice,
    )
    return source


def is_live(uri: str) -> bool:
    """Tells whether `uri` is to be treated as having a clock of its own.

    An http address with the name of a video file is a file. With another name it may be either,
    which the source finds out when it is opened.
    """
    if is_url(uri) and not is_streaming(uri):
        path = urllib.parse.urlsplit(uri).path
        return scheme(uri) in ("http", "https") and Path(path).suffix.lower() not in VIDEOS
    return is_url(uri) or is_device(uri) or is_pipe(uri)


def loops(uri: str) -> bool:
    """Tells whether `uri`, as `expand` names it, can begin again at its end, or has none."""
    return uri != "-" and not is_pipe(uri) and not holds_images(uri)


def holds_images(uri: str) -> bool:
    """Tells whether `uri`, as `expand` names it, stands for still images."""
    files = members_of(uri)
    first = files[0] if files else local_path(uri)
    if is_url(uri) or first.suffix.lower() not in _IMAGES:
        return False
    return bool(files) or not _is_animated(first)


def _is_animated(path: Path) -> bool:
    """Tells whether a picture by its name is a PNG that moves, which is read as a video."""
    if path.suffix.lower() != ".png":
        return False
    try:
        with path.open("rb") as file:
            before_the_picture = file.read(1 << 16).partition(b"IDAT")[0]
    except OSError:
        return False
    return before_the_picture.startswith(b"\x89PNG") and b"acTL" in before_the_picture


def is_cut_to_one(uri: str) -> bool:
    """Tells whether this is an animation of which only one picture is read: a WebP or AVIF.

    FFmpeg reads animated WebP not at all, and of AVIF the still picture.
    """
    path = local_file(uri)
    if path is None or path.suffix.lower() not in (".webp", ".avif"):
        return False
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return False
    webp = head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) > 20 and head[20] & 2
    return bool(webp or (head[4:8] == b"ftyp" and b"avis" in head))


def stem(uri: str) -> str:
    """Returns a short name for output files: of a file, or of the folder that holds the images."""
    files = members_of(uri)
    return address.stem(uri) if files is None else files[0].resolve().parent.name or "images"


def left_out(uri: str) -> list[str]:
    """Returns the names of the files in a directory that `expand` takes for no video or image."""
    if uri == "-" or is_url(uri) or is_device(uri) or not os.path.isdir(local_path(uri)):
        return []
    paths = [p for p in local_path(uri).iterdir() if not p.name.startswith(".") and p.is_file()]
    return sorted(p.name for p in paths if p.suffix.lower() not in VIDEOS | _IMAGES)


def picture_names(files: Sequence[Path]) -> list[str]:
    """Returns what results call the pictures of a source: of several folders, with their folder."""
    folder = os.path.commonpath([file.parent for file in files])
    return [file.relative_to(folder).as_posix() for file in files]


def members_of(uri: str) -> list[Path] | None:
    """Returns the files of a directory or pattern: all videos or all images; None for the rest."""
    if uri == "-" or uri.startswith(tuple(OPENERS)) or is_url(uri) or is_device(uri):
        return None
    if not uri:
        raise StreamRPNError("a source is an empty name; name a video")
    path, name = local_path(uri), masked(uri)
    # Unlike Path's, these answer False where a name is too long or its folder closed to us.
    if os.path.isdir(path):
        try:
            paths = [p for p in path.iterdir() if not p.name.startswith(".")]
        except OSError as error:
            raise StreamRPNError(f"{name} cannot be read: {error.strerror}") from error
        what = f"{name} is a directory"
        empty = f"{what} without videos or images"
        if any(p.is_dir() for p in paths):
            empty += f"; '{path}/**/*' takes those in its folders"
    elif os.path.exists(path):
        return None
    elif glob.has_magic(uri):
        paths = [Path(p) for p in glob.glob(uri, recursive=True)]
        what = f"{name} is a pattern"
        empty = f"{name} matches no videos or images"
    else:
        raise StreamRPNError(f"{name}: no such file or directory")
    wanted = (p for p in paths if p.suffix.lower() in VIDEOS | _IMAGES and p.is_file())
    files = sorted(wanted, key=_by_number)
    if not files:
        raise StreamRPNError(empty)
    kinds = {p.suffix.lower() in _IMAGES for p in files}
    if len(kinds) > 1:
        raise StreamRPNError(f"{what} of both videos and images; name one kind, e.g. '*.mp4'")
    return files


def _by_number(path: Path) -> tuple[list[str | int], Path]:
    """Returns what puts img2 before img10, and names that count alike in the order of letters."""
    parts: list[str | int] = list(re.split(r"([0-9]+)", str(path)))
    parts[1::2] = map(int, parts[1::2])
    return parts, path
