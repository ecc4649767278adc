"""Small files that would fill the memory are refused in a sentence, before they do."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from stream_rpn.frame import StreamRPNError
from stream_rpn.models.checkpoint import read_checkpoint
from stream_rpn.sources import open_source, picture
from stream_rpn.sources.live import LivePolicy, LiveSource
from tests.test_cli import stream_rpn as run

SIDE = 64

pytestmark = pytest.mark.usefixtures("own_folder")


def write(name: str, sides: tuple[int, ...] = (SIDE,), count: int = 2) -> str:
    """Writes a picture, or a video of some frames of each size."""
    if Path(name).suffix in (".png", ".jpg", ".tif", ".tga", ".gif", ".bmp"):
        Image.fromarray(np.full((SIDE, SIDE, 3), 90, np.uint8)).save(name)
        return name
    parts = []
    for side in sides:
        file = io.BytesIO()
        with av.open(file, "w", format={".h264": "h264"}.get(Path(name).suffix, "matroska")) as c:
            stream = c.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
            for _ in range(count):
                c.mux(stream.encode(av.VideoFrame(side, side, "yuv420p")))
            c.mux(stream.encode(None))
        parts.append(file.getvalue())
    Path(name).write_bytes(b"".join(parts))
    return name


@pytest.mark.parametrize(
    "name", ["x.png", "x.jpg", "x.tif", "x.tga", "x.bmp", "x.gif", "x.mkv", "x.h264", "synthetic:"]
)
def test_larger_pictures_than_allowed_are_refused_before_they_are_decoded(name: str):
    uri = "synthetic:64x64@10,2" if name == "synthetic:" else write(name)
    with pytest.raises(StreamRPNError, match="--max-pixels allows"):
        open_source(uri, decoder="cpu", max_pixels=SIDE * SIDE - 1)
    with open_source(uri, decoder="cpu", max_pixels=SIDE * SIDE) as source:
        assert len(list(source)) >= 1


def test_so_are_those_of_live_sources():
    source = LiveSource(write("x.mkv"), LivePolicy(realtime=True), max_pixels=SIDE * SIDE - 1)
    with source, pytest.raises(StreamRPNError, match="64 × 64 pixels, and --max-pixels allows 4,0"):
        list(source)


@pytest.mark.parametrize("threads", [1, 2])
def test_frames_that_grow_beyond_it_are_told_as_lost(threads: int):
    # Longer than what is read of a file to learn what is in it.
    write("x.h264", (SIDE, 4 * SIDE), count=300)
    options = {"decoder": "cpu", "threads": threads}
    with open_source("x.h264", max_pixels=SIDE * SIDE, **options) as source:
        frames = list(source)
    assert [frame.width for frame in frames] == [SIDE] * 300
    assert source.damaged_packets == 300


def blank_png(side: int) -> bytes:
    """A picture of one bit a pixel, a thousandth of what it unpacks to."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((side // 8 + 1) * side), 9)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("side", [14_200, 40_000])
def test_a_picture_of_very_many_pixels_is_refused_unasked(side: int, capsys):
    Path("bomb.png").write_bytes(blank_png(side))
    for decode in (picture.decode, picture.decode_rgb):
        with pytest.raises(StreamRPNError, match="pixels"):
            decode(Path("bomb.png").read_bytes())
    assert run("bomb.png", "-o", "null") == 2
    assert "pixels" in capsys.readouterr().err


def test_what_is_too_large_for_pillow_alone_is_read_all_the_same(monkeypatch):
    write("x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert picture.decode_rgb(Path("x.png").read_bytes()).shape == (SIDE, SIDE, 3)


def test_a_checkpoint_that_unpacks_to_very_much_is_refused(monkeypatch):
    torch.save({"backbone.x": torch.zeros(1 << 18)}, "plain.pth")
    with zipfile.ZipFile("plain.pth") as plain, zipfile.ZipFile("bomb.pth", "w") as bomb:
        for item in plain.infolist():
            bomb.writestr(item.filename, plain.read(item), zipfile.ZIP_DEFLATED)
    monkeypatch.setattr("stream_rpn.limits.MOST_UNPACKED", 1 << 16)
    assert read_checkpoint("plain.pth")[0]["backbone.x"].shape == (1 << 18,)
    with pytest.raises(StreamRPNError, match=r"'bomb.pth' would unpack to 0.0 GB, over 100 times"):
        read_checkpoint("bomb.pth")
