"""Pictures come out upright and with the right values, in stream, eval and train."""

import io
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from stream_rpn.cli import main
from stream_rpn.decode import PlaneConverter, orientation
from stream_rpn.frame import StreamRPNError
from stream_rpn.sinks.canvas import Canvas
from stream_rpn.sources import is_cut_to_one, left_out, open_source
from stream_rpn.sources.picture import decode, decode_rgb
from tests.test_decode import quarters, read, write_clip

EXIF_ORIENTATION = 0x112

# The display matrices [a b; c d] that take a stored picture to what EXIF's orientations ask for.
MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


def scene(width: int = 96, height: int = 64) -> np.ndarray:
    """Smooth and unlike itself in every turn and mirror image."""
    y, x = np.mgrid[0:height, 0:width]
    planes = (x * 255 // width, y * 255 // height, (x * y) * 255 // (width * height))
    return np.stack(planes, -1).astype(np.uint8)


def gray_scene() -> np.ndarray:
    return scene().mean(-1).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def as_streamed(data: bytes) -> np.ndarray:
    """The upright RGB that the planes of a frame stand for."""
    frame = PlaneConverter().frame(decode(data).image, 0)
    rgb = Canvas.of(frame.image, frame.color, rotation=frame.rotation).rgb()
    return rgb[: frame.height, : frame.width]


def displayed(stored: np.ndarray, number: int) -> np.ndarray:
    image = Image.fromarray(stored)
    image.getexif()[EXIF_ORIENTATION] = number
    return np.asarray(ImageOps.exif_transpose(image))


def distance(got: np.ndarray, wanted: np.ndarray) -> float:
    assert got.shape == wanted.shape
    return float(np.abs(got.astype(float) - wanted).mean())


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_orientation_of_exif_is_undone(kind: str, number: int):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = number
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    data = encoded(Image.fromarray(scene()), kind, exif=exif, **options)
    wanted = displayed(scene(), number)
    assert distance(as_streamed(data), wanted) < 6
    assert distance(decode_rgb(data), wanted) < 6


def write_turned_clip(path: Path, number: int, **options: object) -> Path:
    """A clip whose track header asks for an orientation by EXIF's number."""
    write_clip(path, rotation=90, **options)  # so that there is a matrix to replace
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in MATRICES[number])
    struct.pack_into(">9i", data, start, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("number", range(1, 9))
def test_every_orientation_of_a_video_is_undone(tmp_path: Path, number: int):
    path = write_turned_clip(tmp_path / "turned.mp4", number)
    source, frames = read(path)
    wanted = displayed(quarters(64, 48), number)
    for frame in frames:
        assert (frame.width, frame.height) == wanted.shape[1::-1]
        rgb = Canvas.of(frame.image, frame.color, rotation=frame.rotation).rgb()
        assert distance(rgb, wanted) < 6
    assert (source.info.width, source.info.height) == wanted.shape[1::-1]
    assert source.info.mirrored == frames[0].mirrored == (number in (2, 4, 5, 7))
    assert [frame.pts_seconds for frame in frames] == pytest.approx([0, 0.04, 0.08, 0.12])


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv420p10le", "yuv422p"])
def test_a_mirrored_frame_has_the_samples_of_the_stored_one(tmp_path: Path, pixel_format: str):
    stored = write_turned_clip(tmp_path / "a.mp4", 1, pixel_format=pixel_format)
    mirrored = write_turned_clip(tmp_path / "b.mp4", 2, pixel_format=pixel_format)
    for one, other in zip(read(stored)[1], read(mirrored)[1], strict=True):
        assert one.image.format.name == other.image.format.name
        assert (one.color, one.image.color_range) == (other.color, other.image.color_range)
        for plane, flipped in zip(one.image.planes, other.image.planes, strict=True):
            kind = np.uint16 if "10" in one.image.format.name else np.uint8
            rows, others = (
                np.frombuffer(p, kind).reshape(p.height, -1)[:, : p.width] for p in (plane, flipped)
            )
            np.testing.assert_array_equal(rows[:, ::-1], others)


def test_looking_for_the_orientation_does_not_keep_the_frame_alive():
    image = av.VideoFrame(64, 48, "yuv420p")
    before = sys.getrefcount(image)
    assert orientation(image) == (0, False)
    assert sys.getrefcount(image) == before


def test_a_mirrored_surface_of_the_gpu_is_left_to_the_cpu():
    surface = SimpleNamespace(sw_format="nv12")
    with pytest.raises(StreamRPNError, match="mirrored for display, which is done on the CPU"):
        PlaneConverter()._mirror(surface)


def gray(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values)


DEEP = {
    "16-bit PNG": lambda g: encoded(gray(g.astype(np.uint16) * 257), "PNG"),
    "16-bit TIFF": lambda g: encoded(gray(g.astype(np.uint16) * 257), "TIFF"),
    "big-endian 16-bit TIFF": lambda g: encoded(
        Image.frombytes("I;16B", g.shape[::-1], (g.astype(">u2") * 257).tobytes()), "TIFF"
    ),
    "32-bit TIFF of 8 bits": lambda g: encoded(gray(g.astype(np.int32)), "TIFF"),
    "32-bit TIFF of 16 bits": lambda g: encoded(gray(g.astype(np.int32) * 257), "TIFF"),
    "float TIFF up to 1": lambda g: encoded(gray((g / 255).astype(np.float32)), "TIFF"),
    "float TIFF up to 255": lambda g: encoded(gray(g.astype(np.float32)), "TIFF"),
    "float TIFF up to 65535": lambda g: encoded(gray(g.astype(np.float32) * 257), "TIFF"),
    "8-bit PNG": lambda g: encoded(gray(g), "PNG"),
}


@pytest.mark.parametrize("kind", DEEP)
def test_gray_of_any_depth_is_the_same_gray(kind: str):
    wanted = gray_scene()
    data = DEEP[kind](wanted)
    wanted = np.repeat(wanted[..., None], 3, -1)
    assert distance(as_streamed(data), wanted) < 2
    assert distance(decode_rgb(data), wanted) < 1


COLOURED = {
    "RGB JPEG": ("RGB", "JPEG", {"subsampling": 0}),
    "CMYK JPEG": ("CMYK", "JPEG", {}),
    "gray JPEG": ("L", "JPEG", {}),
    "progressive JPEG": ("RGB", "JPEG", {"progressive": True}),
    "CMYK TIFF": ("CMYK", "TIFF", {}),
    "YCbCr TIFF": ("YCbCr", "TIFF", {}),
    "JPEG in TIFF": ("RGB", "TIFF", {"compression": "jpeg"}),
    "LZW in TIFF": ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    "Zstandard in TIFF": ("RGB", "TIFF", {"compression": "zstd"}),
    "TGA": ("RGB", "TGA", {}),
    "palette PNG": ("P", "PNG", {}),
    "PNG with alpha": ("RGBA", "PNG", {}),
    "AVIF": ("RGB", "AVIF", {}),
    "WebP": ("RGB", "WEBP", {}),
    "BMP": ("RGB", "BMP", {}),
    "PPM": ("RGB", "PPM", {}),
    "QOI": ("RGB", "QOI", {}),
    "JPEG 2000": ("RGB", "JPEG2000", {}),
}


@pytest.mark.parametrize("kind", COLOURED)
def test_stream_and_eval_see_the_picture_that_was_saved(kind: str):
    mode, name, options = COLOURED[kind]
    image = Image.fromarray(scene()).convert(mode, palette=Image.Palette.ADAPTIVE)
    data = encoded(image, name, **options)
    wanted = np.asarray(image.convert("RGB"))
    assert distance(decode_rgb(data), wanted) < 6
    assert distance(as_streamed(data), wanted) < 6


def test_what_only_ffmpeg_reads_is_read_for_eval_too():
    encoder = av.CodecContext.create("dpx", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.framerate = 96, 64, "rgb24", 25
    frame = av.VideoFrame.from_ndarray(scene(), format="rgb24")
    data = b"".join(bytes(packet) for packet in encoder.encode(frame))
    np.testing.assert_array_equal(decode_rgb(data), scene())
    assert distance(as_streamed(data), scene()) < 6


@pytest.mark.parametrize("lowest", [-430.0, float("nan")])
def test_a_map_of_heights_is_no_picture(lowest: float):
    values = np.linspace(0, 8848, 64 * 96, dtype=np.float32).reshape(64, 96)
    values[0, 0] = lowest
    for reader in (decode, decode_rgb):
        with pytest.raises(StreamRPNError, match="no gray levels; scale them"):
            reader(encoded(gray(values), "TIFF"))


@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "jpeg"}),
        ("BMP", {}),
        ("QOI", {}),
        ("TGA", {}),
        ("AVIF", {}),
    ],
)
def test_a_picture_that_is_cut_off_is_not_passed_on(kind: str, options: dict, share: float):
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind, **options)
    for reader in (decode, decode_rgb):
        with pytest.raises(StreamRPNError, match=r"cut off|cannot be decoded|not an image"):
            reader(data[: int(len(data) * share)])


def test_what_stands_behind_a_jpeg_does_not_matter():
    data = encoded(Image.fromarray(scene()), "JPEG")
    wanted = decode_rgb(data)
    # A thumbnail has an end of its own, which does not count.
    exif = b"\xff\xe1" + struct.pack(">H", 2 + len(data)) + data
    for trailer in (b"\0" * 1000, b"motion photo \xff\xda\x00\x04ab", data[: len(data) // 2]):
        assert distance(as_streamed(data + trailer), wanted) < 6
    whole = data[:2] + exif + data[2:]
    assert distance(as_streamed(whole), wanted) < 6
    with pytest.raises(StreamRPNError, match="cut off"):
        decode(whole[:-40])


def test_a_cut_off_image_is_named_and_counted(tmp_path: Path):
    data = encoded(Image.fromarray(scene()), "JPEG")
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(StreamRPNError, match=r"a\.jpg is cut off: the end of the JPEG"):
        open_source(str(tmp_path / "a.jpg"))
    (tmp_path / "b.jpg").write_bytes(data)
    with open_source(str(tmp_path)) as source:
        (frame,) = source
        assert (frame.name, source.damaged_packets) == ("b.jpg", 1)


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "b.heif", "c.jfif", "d.tga", "e.JPE"])
def test_pictures_by_whatever_name(tmp_path: Path, name: str):
    kind = {".heic": "AVIF", ".heif": "AVIF", ".tga": "TGA"}.get(Path(name).suffix.lower(), "JPEG")
    (tmp_path / name).write_bytes(encoded(Image.fromarray(scene()), kind))
    Image.fromarray(scene()).save(tmp_path / "0.jpg")
    with open_source(str(tmp_path)) as source:
        assert sorted(frame.name for frame in source) == sorted(["0.jpg", name])


def test_what_is_left_out_of_a_folder_is_named(tmp_path: Path):
    for name in ("a.jpg", "b.MP4", "notes.txt", "IMG_2", ".hidden"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder").mkdir()
    assert left_out(str(tmp_path)) == ["IMG_2", "notes.txt"]
    assert left_out("-") == left_out(str(tmp_path / "a.jpg")) == left_out("http://a/b") == []


def test_pictures_of_several_folders_are_named_with_them(tmp_path: Path):
    for folder in ("camA", "camB/night"):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(scene()).save(tmp_path / folder / "1.png")
    with open_source(str(tmp_path / "**" / "*.png")) as source:
        assert [frame.name for frame in source] == ["camA/1.png", "camB/night/1.png"]
    with open_source(str(tmp_path / "camA" / "*.png")) as source:
        assert [frame.name for frame in source] == ["1.png"]


@pytest.mark.parametrize("kind", ["webp", "avif"])
def test_an_animation_of_which_one_picture_is_read_says_so(tmp_path, capsys, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    pictures = [Image.new("RGB", (64, 48), (level, 0, 0)) for level in (0, 120, 250)]
    pictures[0].save(f"still.{kind}")
    pictures[0].save(f"moving.{kind}", save_all=True, append_images=pictures[1:], duration=100)
    assert not is_cut_to_one(f"still.{kind}")
    assert is_cut_to_one(f"moving.{kind}")
    assert not is_cut_to_one(".")
    assert main([f"moving.{kind}", "-o", "no/folder.jsonl"]) == 2
    assert "of this animation one picture is read" in capsys.readouterr().err
