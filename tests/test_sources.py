"""What can be opened, what cannot and how that is said, which frames are chosen."""

import functools
import http.server
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stream_rpn.drops import Drop
from stream_rpn.frame import Color, Frame, StreamRPNError
from stream_rpn.preprocess import planes
from stream_rpn.sources import expand, open_source, promise
from stream_rpn.sources.images import images_source
from stream_rpn.sources.select import parse_time, select
from stream_rpn.sources.synthetic import SyntheticVideo
from stream_rpn.yuv import PIXEL_FORMATS


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames, 64x48, 25 frames a second."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    path.write_bytes(SyntheticVideo(width=64, height=48, num_frames=12).encoded().read())
    return path


def write_image(path: Path, size: tuple[int, int] = (40, 30), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 60, 30)).save(path, **options)
    return path


# Expanding names


def test_directory_of_videos_becomes_its_files_in_order(tmp_path: Path, video: Path):
    for name in ("b.mp4", "a.MKV", ".hidden.mp4", "notes.txt"):
        (tmp_path / name).write_bytes(video.read_bytes())
    assert expand([str(tmp_path)]) == [str(tmp_path / "a.MKV"), str(tmp_path / "b.mp4")]
    assert expand([str(tmp_path / "*.mp4")]) == [str(tmp_path / "b.mp4")]


def test_directory_or_pattern_of_images_is_one_source(tmp_path: Path):
    for name in ("2.png", "1.jpg", "3.bmp"):
        write_image(tmp_path / name)
    pattern = str(tmp_path / "[12].*")
    assert expand([str(tmp_path), pattern]) == [str(tmp_path), pattern]
    with open_source(str(tmp_path)) as source:
        assert [frame.name for frame in source] == ["1.jpg", "2.png", "3.bmp"]
        assert (source.info.stem, source.info.num_frames) == (tmp_path.name, 3)
    with open_source(pattern) as source:
        assert [(frame.index, frame.pts, frame.name) for frame in source] == [
            (0, None, "1.jpg"),
            (1, None, "2.png"),
        ]
        assert source.info.stem == tmp_path.name


def test_a_file_may_list_sources(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("b.mp4").touch()
    listed = "\ufeff# the yard\nrtsp://bob:secret@cam/1\n\n  b.mp4  \r\n"
    Path("cameras.txt").write_text(listed, encoding="utf-8")
    assert expand(["@cameras.txt", "webcam"]) == ["rtsp://bob:secret@cam/1", "b.mp4", "webcam"]
    Path("empty.txt").write_text("# none\n")
    Path("binary").write_bytes(b"\xff\xfe\xfd")
    for name, said in (("empty.txt", "is empty"), ("binary", "no text"), ("x", "No such file")):
        with pytest.raises(StreamRPNError, match=f"the list of sources '{name}' .*{said}"):
            expand([f"@{name}"])


@pytest.mark.parametrize("name", ["a[1].mp4", "what?.mp4", "12:30.mp4", "100%d.mp4", "ü .mp4"])
def test_a_path_that_exists_is_never_a_pattern(tmp_path: Path, video: Path, name: str):
    path = tmp_path / name
    path.write_bytes(video.read_bytes())
    assert expand([str(path)]) == [str(path)]
    with open_source(str(path), decoder="cpu") as source:
        assert len(list(source)) == 12
    with open_source(path.as_uri(), decoder="cpu") as source:
        assert source.info.stem == path.stem


def test_an_image_named_like_a_sequence_is_one_image(tmp_path: Path):
    with open_source(str(write_image(tmp_path / "%03d.png"))) as source:
        assert [frame.name for frame in source] == ["%03d.png"]


def test_other_names_pass_unchanged():
    names = ["-", "synthetic:64x48@25,3", "http://localhost/a.mp4", "rtsp://camera/1?x=[1]"]
    assert expand(names) == names


def test_what_cannot_be_expanded_is_said_in_a_sentence(tmp_path: Path, video: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "folders" / "one").mkdir(parents=True)
    write_image(tmp_path / "mixed" / "a.png")
    (tmp_path / "mixed" / "b.mp4").write_bytes(video.read_bytes())
    for uri, sentence in {
        "empty": "is a directory without videos or images",
        "missing.mp4": "no such file or directory",
        "*.mp4": "matches no videos or images",
        "folders": r"without videos or images; '.*folders/\*\*/\*' takes those in its folders",
        "mixed": "is a directory of both videos and images",
        "mixed/*": "is a pattern of both videos and images",
        "x" * 300: "no such file or directory",
    }.items():
        with pytest.raises(StreamRPNError, match=sentence) as error:
            expand([str(tmp_path / uri)])
        assert str(tmp_path / uri) in str(error.value)


# What bad input gets


def bad_files(folder: Path, video: Path) -> dict[str, str]:
    """Writes files that are no video; returns what is to be said of each."""
    whole = video.read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video\n" * 200)
    (folder / "text.txt").write_text("not a video\n" * 200)
    (folder / "noise.mkv").write_bytes(np.random.default_rng(0).bytes(20_000))
    (folder / "cut.mp4").write_bytes(whole[:24] + b"\0\0\xff\xffmdat" + whole[2000:])
    with av.open(str(folder / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    return {
        "empty.mp4": "is empty",
        "text.mp4": "is not a video that PyAV can read",
        "text.txt": "is not a video that PyAV can read",
        "noise.mkv": "is not a video that PyAV can read",
        "cut.mp4": r"is cut off: its index \(moov\) is missing",
        "sound.wav": r"has no video stream \(audio only\)",
        "missing.mp4": "no such file",
    }


def test_bad_files_get_one_sentence_each(tmp_path: Path, video: Path):
    for name, sentence in bad_files(tmp_path, video).items():
        with pytest.raises(StreamRPNError, match=sentence) as error:
            open_source(str(tmp_path / name))
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("pets-truncated-no-moov.mp4", "cut off"), ("sine_mono_s16.wav", "audio only")],
)
def test_odd_files_that_cannot_be_decoded(shared_data: Path, name: str, sentence: str):
    with pytest.raises(StreamRPNError, match=sentence):
        open_source(str(shared_data / "video" / "odd" / name))


def test_cover_art_is_not_video(tmp_path: Path):
    cover = io.BytesIO()
    Image.new("RGB", (32, 32), (255, 0, 0)).save(cover, "png")
    path = tmp_path / "song.mp3"
    frame = (
        b"\x00image/png\x00\x03\x00" + cover.getvalue()
    )  # encoding, type, front cover, description
    tag = b"APIC" + len(frame).to_bytes(4, "big") + b"\0\0" + frame
    size = len(tag)
    header = b"ID3\x03\x00\x00" + bytes((size >> shift) & 0x7F for shift in (21, 14, 7, 0))
    with av.open(str(tmp_path / "plain.mp3"), "w") as container:
        stream = container.add_stream("libmp3lame", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 11520), np.int16), "s16p", "mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    path.write_bytes(header + tag + (tmp_path / "plain.mp3").read_bytes())
    with av.open(str(path)) as container:
        assert container.streams.video, "the test needs a file with a cover"
    with pytest.raises(StreamRPNError, match="audio only"):
        open_source(str(path))


def test_a_stream_that_is_not_there_is_named_with_those_that_are(video: Path):
    with pytest.raises(StreamRPNError, match=r"no video stream 3; it has 0 \(64x48\)"):
        open_source(str(video), video_stream=3)


def test_titles_in_another_encoding_do_not_matter(tmp_path: Path, video: Path):
    with av.open(str(tmp_path / "titled.mkv"), "w") as output, av.open(str(video)) as container:
        output.metadata["title"] = "caf@@"
        copy = output.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = copy
                output.mux(packet)
    data = (tmp_path / "titled.mkv").read_bytes()
    assert b"caf@@" in data
    (tmp_path / "titled.mkv").write_bytes(data.replace(b"caf@@", b"caf\xe9\xff"))
    with open_source(str(tmp_path / "titled.mkv"), decoder="cpu") as source:
        assert len(list(source)) == 12


# Decoders


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_auto_falls_back_and_nvdec_says_why(video: Path):
    with open_source(str(video)) as source:
        assert source.info.decoder == "h264 (software)"
        assert source.info.decoder_note == "torch sees no CUDA device"
        assert len(list(source)) == 12
    with pytest.raises(StreamRPNError, match="cannot be decoded by NVDEC: torch sees no CUDA"):
        open_source(str(video), decoder="nvdec")


def test_hardware_that_fails_leaves_the_reason_and_the_software_decoder(video: Path, monkeypatch):
    # A CUDA device that torch claims to see and that cannot be used, as with a broken driver.
    if torch.cuda.is_available():
        pytest.skip("here the device can be used")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("stream_rpn.sources.file._NVDEC_MIN_PIXELS", 0)
    with open_source(str(video), device="cuda") as source:
        assert source.info.decoder == "h264 (software)"
        assert source.info.decoder_note
        assert len(list(source)) == 12
    with pytest.raises(StreamRPNError, match="cannot be decoded by NVDEC"):
        open_source(str(video), device="cuda", decoder="nvdec")


def test_frames_wanted_on_the_cpu_are_decoded_there(video: Path):
    with open_source(str(video), device="cpu") as source:
        assert source.info.decoder == "h264 (software)"
        assert source.info.decoder_note == ""


@pytest.mark.needs_cuda
def test_nvdec_gives_the_pixels_of_the_software_decoder(tmp_path: Path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(SyntheticVideo(width=640, height=360, num_frames=40).encoded().read())
    with (
        open_source(str(path), decoder="nvdec", device="cuda") as hardware,
        open_source(str(path), decoder="cpu") as software,
    ):
        assert hardware.info.decoder == "h264 (nvdec)"
        for ours, theirs in zip(hardware, software, strict=True):
            assert ours.image.sw_format.name == "nv12"
            assert (ours.index, ours.pts, ours.color) == (theirs.index, theirs.pts, theirs.color)
            # Not through swscale: it makes another gray of NV12 than of planar YUV.
            for plane, expected in zip(planes(ours), planes(theirs), strict=True):
                assert torch.equal(plane.cpu(), expected)


@pytest.mark.needs_cuda
def test_nvdec_decodes_in_a_thread_that_has_not_used_the_gpu(tmp_path: Path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(SyntheticVideo(width=640, height=360, num_frames=5).encoded().read())

    def decode() -> tuple[str, int]:
        with open_source(str(path), decoder="nvdec", device="cuda") as source:
            return source.info.decoder, len(list(source))

    # What the allocator has left over would spare the thread its first call.
    torch.empty(1, device="cuda")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(decode).result() == ("h264 (nvdec)", 5)


# Standard input and the network

COUNT = """
import json, sys
from stream_rpn.frame import StreamRPNError
from stream_rpn.sources import open_source
try:
    with open_source("-", decoder="cpu") as source:
        print(json.dumps([len(list(source)), source.info.stem, source.info.width]))
except StreamRPNError as error:
    print(json.dumps(str(error)))
"""


def count_of(**standard_input: Any) -> Any:
    """Returns what another process finds in its standard input, given as to `subprocess.run`."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT],
        **standard_input,
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.stderr == b""
    return json.loads(done.stdout)


@pytest.mark.parametrize("readable", [True, False], ids=["video", "text"])
def test_standard_input(video: Path, readable: bool):
    data = video.read_bytes() if readable else b"no video " * 100
    answer = count_of(input=data)
    if readable:
        assert answer == [12, "stdin", 64]
    else:
        assert answer.startswith("standard input is not a video that PyAV can read")


def test_a_playlist_on_standard_input_reaches_no_file(video: Path, monkeypatch):
    monkeypatch.chdir(video.parent)
    playlist = video.parent / "list.ffconcat"
    playlist.write_text(f"ffconcat version 1.0\nfile {video.name}\n")
    with open_source(str(playlist), decoder="cpu") as source:
        assert len(list(source)) == 12
    for stdin in (playlist.open("rb"), subprocess.Popen(["cat", playlist], stdout=-1).stdout):
        with stdin:
            assert "standard input" in count_of(stdin=stdin)


@pytest.fixture
def server(tmp_path: Path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


@pytest.mark.parametrize(
    "uri", ["https://youtu.be/x", "https://www.youtube.com/watch?v=x", "http://m.youtube.com/x"]
)
def test_of_a_page_it_is_told_what_reads_its_video(uri: str):
    with pytest.raises(
        StreamRPNError, match=r"is a web page, not a video; `yt-dlp .* \| stream-rpn"
    ):
        expand([uri])


@pytest.mark.parametrize("uri", ["https://example.com/youtu.be", "rtsp://youtube.com/x"])
def test_what_is_no_page_is_none(uri: str):
    assert expand([uri]) == [uri]


def test_of_a_page_elsewhere_it_is_told_once_it_is_read(tmp_path: Path, server: str):
    (tmp_path / "page.html").write_text("<!doctype html><title>a video</title>" * 50)
    with pytest.raises(StreamRPNError, match=r"is not a video that PyAV can read; `yt-dlp"):
        open_source(f"{server}/page.html", decoder="cpu")


def test_a_url_is_opened_like_a_file(tmp_path: Path, video: Path, server: str):
    (tmp_path / "clip.mp4").write_bytes(video.read_bytes())
    with open_source(f"{server}/clip.mp4", decoder="cpu") as source:
        assert (len(list(source)), source.info.stem) == (12, "clip")
    with pytest.raises(StreamRPNError, match=r"missing\.mp4 cannot be opened: .*404"):
        open_source(f"{server}/missing.mp4")


def test_a_playlist_from_the_network_does_not_open_files_here(
    tmp_path: Path, video: Path, server: str
):
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
    stream = tmp_path / "clip.ts"
    with av.open(str(video)) as container, av.open(str(stream), "w") as output:
        copy = output.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = copy
                output.mux(packet)
    (tmp_path / "good.m3u8").write_text(playlist.format("clip.ts"))
    (tmp_path / "bad.m3u8").write_text(playlist.format(stream.as_uri()))
    with open_source(f"{server}/good.m3u8", decoder="cpu") as source:
        assert len(list(source)) == 12
    with pytest.raises(StreamRPNError):
        open_source(f"{server}/bad.m3u8", decoder="cpu")


def test_nobody_answers():
    with pytest.raises(StreamRPNError, match="cannot be opened: Connection refused"):
        open_source("http://127.0.0.1:9/clip.mp4")


# Images

EXIF_ORIENTATION = 0x112


@pytest.mark.parametrize(("orientation", "clockwise"), [(1, 0), (3, 180), (6, 90), (8, 270)])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_orientation(tmp_path: Path, orientation: int, clockwise: int, suffix: str):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    path = write_image(tmp_path / f"photo.{suffix}", size=(40, 30), exif=exif.tobytes())
    with open_source(str(path)) as source:
        (frame,) = source
    assert frame.rotation == source.info.rotation == clockwise
    assert (frame.width, frame.height) == ((30, 40) if clockwise % 180 else (40, 30))
    assert (frame.image.width, frame.image.height) == (40, 30)


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        *itertools.product(["png"], ["RGB", "RGBA", "L", "LA", "P", "I;16"]),
        *itertools.product(["jpg"], ["RGB", "L", "CMYK"]),
        *itertools.product(["tif"], ["RGB", "RGBA", "L", "P", "I;16"]),
        *itertools.product(["webp"], ["RGB", "RGBA"]),
        *itertools.product(["bmp"], ["RGB", "L", "P"]),
    ],
)
def test_kinds_of_images(tmp_path: Path, mode: str, suffix: str):
    path = tmp_path / f"image.{suffix}"
    pixels = Image.new("RGB", (41, 31), (200, 60, 30))
    # An adaptive palette has the colour itself; the standard one would have to dither.
    image = pixels.convert(mode, palette=Image.Palette.ADAPTIVE)
    if mode == "I;16":
        image = Image.new("I;16", (41, 31), 200 * 257)
    image.save(path)
    with open_source(str(path)) as source:
        (frame,) = source
    assert (frame.width, frame.height) == (41, 31)
    assert frame.image.format.name in PIXEL_FORMATS
    matrix = {"bt601": 5, "bt709": 1}[frame.color.matrix]
    value_range = 2 if frame.color.full_range else 1
    got = frame.image.reformat(
        format="rgb24", src_colorspace=matrix, src_color_range=value_range
    ).to_ndarray()[15, 20]
    expected = (200, 200, 200)
    if mode != "I;16":
        expected = Image.open(path).convert("RGB").getpixel((20, 15))
    np.testing.assert_allclose(got.astype(int), expected, atol=8)


def test_annotated_images_from_files_and_tars(tmp_path: Path):
    first = write_image(tmp_path / "first.jpg", size=(40, 30))
    second = write_image(tmp_path / "second.png", size=(20, 50))
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(second, arcname="second.png")
    with tarfile.open(tmp_path / "images.tar") as archive:
        data = archive.extractfile("second.png").read()
    with images_source([(first, 17), (("second.png", data), 4)], uri="val", stem="val") as source:
        frames = [(f.index, f.image_id, f.name, f.width, f.height) for f in source]
    assert frames == [(0, 17, "first.jpg", 40, 30), (1, 4, "second.png", 20, 50)]
    assert (source.info.source, source.info.num_frames) == ("val", 2)


def test_images_are_read_one_at_a_time(tmp_path: Path):
    path = write_image(tmp_path / "a.png")
    read = itertools.count()
    with images_source((path, next(read)) for _ in range(5)) as source:
        assert next(read) == 1
        assert source.info.num_frames is None
        assert len(list(source)) == 5


def test_damaged_images_are_counted_and_keep_their_index(tmp_path: Path):
    good = write_image(tmp_path / "good.png")
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:40])
    items = [(bad, 0), (good, 1), (bad, 2), (tmp_path / "missing.png", 3), (good, 4), (bad, 5)]
    with images_source(items) as source:
        frames = list(source)
    assert [(frame.index, frame.image_id) for frame in frames] == [(1, 1), (4, 4)]
    assert [frame.drops for frame in frames] == [
        (Drop("damaged image", 1, None),),
        (Drop("damaged image", 2, None),),
    ]
    assert source.trailing_drops == (Drop("damaged image", 1, None),)
    assert (source.frames_decoded, source.damaged_packets) == (2, 4)
    with pytest.raises(StreamRPNError, match=r"bad\.png is not an image that can be read"):
        open_source(str(bad))
    with pytest.raises(StreamRPNError, match=r"val: none of the 2 .* decoded; bad\.png is not"):
        images_source([(bad, 0), (bad, 1)], uri="val")


def test_stems_of_images(tmp_path: Path, monkeypatch):
    write_image(tmp_path / "shots.day" / "a.b.png")
    write_image(tmp_path / "shots.day" / "c.png")
    monkeypatch.chdir(tmp_path / "shots.day")
    stems = []
    for uri in (".", "*.png", "../*/*.png", "a.b.png"):
        with open_source(uri) as source:
            stems.append(source.info.stem)
    assert stems == ["shots.day", "shots.day", "shots.day", "a.b"]


def test_coco_images_have_their_annotated_sizes(shared_data: Path):
    annotations = json.loads((shared_data / "coco" / "annotations_val.json").read_text())
    images = {image["file_name"]: image for image in annotations["images"][:40]}
    with tarfile.open(shared_data / "coco" / "val.tar") as archive:
        names = {Path(member.name).name: member for member in archive if member.isfile()}
        items = [
            ((name, archive.extractfile(names[Path(name).name]).read()), image["id"])
            for name, image in images.items()
        ]
    with images_source(items) as source:
        for frame in source:
            image = images[frame.name]
            assert (frame.width, frame.height) == (image["width"], image["height"])
            assert frame.image_id == image["id"]
    assert source.frames_decoded == 40


# Synthetic video


def test_synthetic_video_is_decoded_like_a_file():
    with open_source("synthetic:128x96@30,20", decoder="cpu") as source:
        frames = list(source)
        info = source.info
    assert [frame.index for frame in frames] == list(range(20))
    np.testing.assert_allclose(np.diff([f.pts_seconds for f in frames]), 1 / 30, atol=1e-4)
    assert (info.width, info.height, info.fps, info.num_frames) == (128, 96, 30, 20)
    assert (info.stem, info.codec, info.color) == ("synthetic", "h264", frames[0].color)


@pytest.mark.parametrize(
    ("uri", "video"),
    [
        ("synthetic:", SyntheticVideo()),
        ("synthetic:64x48", SyntheticVideo(64, 48)),
        ("synthetic:,7", SyntheticVideo(num_frames=7)),
        ("synthetic:@10", SyntheticVideo(fps=10)),
        ("synthetic:64x48@30000/1001,5", SyntheticVideo(64, 48, 30000 / 1001, 5)),
    ],
)
def test_every_part_of_a_synthetic_name_is_optional(uri: str, video: SyntheticVideo):
    parsed = SyntheticVideo.parse(uri)
    assert (parsed.width, parsed.height) == (video.width, video.height)
    assert (float(parsed.fps), parsed.num_frames) == (float(video.fps), video.num_frames)


@pytest.mark.parametrize(
    "uri", ["65x48", "64x48,0", "nonsense", "8x8", "64x48@0", "64x48@1/0", "64x48@2000"]
)
def test_synthetic_names_that_mean_nothing(uri: str):
    with pytest.raises(StreamRPNError, match="synthetic:"):
        open_source(f"synthetic:{uri}")


def test_synthetic_boxes_are_where_the_objects_are():
    """What differs from the background, in a scene of one object, is exactly its box."""
    for seed_index in (0, 13, 250):
        video = SyntheticVideo(width=160, height=120, num_objects=1)
        ((x1, y1, x2, y2),) = video.boxes(seed_index)
        differs = (video.image(seed_index) != SyntheticVideo(160, 120, num_objects=0).image(0)).any(
            axis=2
        )
        rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
        assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == (x1, y1, x2, y2)


def test_synthetic_objects_move_and_stay_inside():
    video = SyntheticVideo(width=320, height=180)
    boxes = np.stack([video.boxes(index) for index in range(500)])
    assert boxes.dtype == np.float32
    assert (boxes[..., :2] >= 0).all()
    assert (boxes[..., 2:] <= [320, 180]).all()
    assert (np.ptp(boxes[..., 0], axis=0) > 20).all()


def test_synthetic_video_is_the_same_every_time():
    video = SyntheticVideo(width=64, height=48, num_frames=9)
    assert video.encoded().read() == video.encoded().read()


def test_decoded_synthetic_frames_look_like_the_drawn_ones():
    video = SyntheticVideo.parse("synthetic:160x120@25,10")
    with open_source("synthetic:160x120@25,10", decoder="cpu") as source:
        for frame in source:
            assert (frame.color.matrix, frame.color.tagged) == ("bt709", True)
            decoded = frame.image.reformat(format="rgb24", src_colorspace=1).to_ndarray()
            error = np.abs(decoded.astype(int) - video.image(frame.index)[:, :, :3])
            assert error.mean() < 6


# Choosing frames


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("12.5", 12.5),
        (" 90 ", 90),
        ("01:30", 90),
        ("00:00:01.250", 1.25),
        ("1:02:03", 3723),
        ("100:00:00", 360000),
        ("90:00", 5400),
    ],
)
def test_times(text: str, seconds: float):
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "abc", "-1", "1:60", "1:61:00", "1:2:3:4", "nan", "inf", "1e999", "::", "12s"]
)
def test_what_is_not_a_time(text: str):
    with pytest.raises(StreamRPNError, match="is not a time"):
        parse_time(text)


def frames_at(times: list[float | None]) -> list[Frame]:
    color = Color("bt709", full_range=False, tagged=True)
    image = av.VideoFrame(16, 16, "yuv420p")
    return [
        Frame(index, None if t is None else round(t * 1000), t, 16, 16, 0, color, image)
        for index, t in enumerate(times)
    ]


def chosen(times: list[float | None], **options: object) -> list[int]:
    return [frame.index for frame in select(frames_at(times), **options)]


def test_times_count_from_the_first_timestamp_and_exclude_the_end():
    times = [10.0, 10.5, 11.0, 11.5, 12.0]
    assert chosen(times, start=0.5, end=1.5) == [1, 2]
    assert chosen(times, start=0.6) == [2, 3, 4]
    assert chosen(times, end=0) == []


def test_nothing_is_read_past_the_end():
    frames = iter(frames_at([0.0, 1.0, 2.0, 3.0, 4.0]))
    assert len(list(select(frames, end=2.0))) == 2
    assert next(frames).index == 3


def test_stride_counts_by_index():
    assert chosen([None] * 10, stride=3) == [0, 3, 6, 9]
    assert chosen([0.1 * i for i in range(10)], start=0.35, stride=3) == [6, 9]


@pytest.mark.parametrize(
    ("times", "fps", "expected"),
    [
        ([i / 25 for i in range(10)], 25, list(range(10))),
        ([round(i / 30, 3) for i in range(30)], 30, list(range(30))),
        ([i / 30 for i in range(12)], 10, [0, 3, 6, 9]),
        ([i / 30 for i in range(12)], 15, [0, 2, 4, 6, 8, 10]),
        ([i / 10 for i in range(5)], 60, [0, 1, 2, 3, 4]),
        ([0.0, 0.03, 0.07, 0.5, 0.51, 0.6, 1.0], 10, [0, 3, 5, 6]),
    ],
    ids=["same", "rounded-by-container", "third", "half", "slower-source", "variable"],
)
def test_rate_takes_the_first_frame_at_or_after_each_tick(times, fps, expected):
    assert chosen(times, fps=fps) == expected


@given(
    steps=st.lists(st.integers(1, 400), min_size=1, max_size=60),
    fps=st.sampled_from([1, 5, 7.5, 10, 25]),
)
def test_rate_against_counting_the_ticks_exactly(steps, fps):
    # 0.3 ms beside every tick, so that rounding cannot decide.
    times = [0.0, *(t / 1000 + 3e-4 for t in itertools.accumulate(steps))]
    slack = min(Fraction(1, 1000), 1 / (10 * Fraction(fps)))
    expected, tick = [], 0
    for index, time in enumerate(map(Fraction, times)):
        if time + slack >= tick / Fraction(fps):
            expected.append(index)
            while time + slack >= tick / Fraction(fps):
                tick += 1
    assert chosen(times, fps=fps) == expected


def test_frames_without_timestamps():
    assert chosen([0.0, None, 1.0, None, 2.0], start=1.0, end=2.0) == [2, 3]
    assert chosen([None, None], stride=2) == [0]
    for options in ({"start": 1.0}, {"end": 1.0}, {"fps": 5.0}):
        with pytest.raises(StreamRPNError, match="no timestamps"):
            chosen([None, None], **options)


@pytest.mark.parametrize("options", [{"stride": 0}, {"fps": 0.0}, {"fps": float("nan")}])
def test_choices_that_mean_nothing(options):
    with pytest.raises(StreamRPNError):
        chosen([0.0], **options)


def test_drops_of_skipped_frames_go_to_the_next_chosen_one():
    frames = frames_at([0.0, 0.1, 0.2, 0.3, 0.4])
    frames[1].drops = (Drop("damaged packet", 1, 100),)
    frames[2].drops = (Drop("damaged packet", 2, 150),)
    first, second = select(frames, stride=3)
    assert first.drops == ()
    assert second.drops == (Drop("damaged packet", 1, 100), Drop("damaged packet", 2, 150))


# What stays behind


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts in /proc")
def test_opening_and_closing_leaves_no_file_and_no_thread(video: Path, tmp_path: Path):
    bad = [tmp_path / name for name in bad_files(tmp_path, video)]

    def open_all() -> tuple[int, int]:
        for number in range(50):
            with open_source(str(video), decoder="cpu", threads=1 + number % 3) as source:
                if number % 2:
                    next(iter(source))
            with pytest.raises(StreamRPNError):
                open_source(str(bad[number % len(bad)]), decoder="cpu")
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    before = open_all()
    for _ in range(3):
        assert open_all() <= before


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_video():
    def resident() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    with open_source("synthetic:96x64@25,3000", decoder="cpu") as source:
        sizes = [resident() for frame in source if frame.index in (500, 2999)]
    assert sizes[1] - sizes[0] < 4


def test_a_closed_source_gives_no_more_frames(video: Path):
    source = open_source(str(video), decoder="cpu")
    frames = iter(source)
    next(frames)
    source.close()
    source.close()
    assert list(frames) == []
    assert source.frames_decoded == 1


def test_numbers_in_names_count(tmp_path: Path):
    for name in ("img10.png", "img2.png", "img1.png", "img02.png"):
        write_image(tmp_path / name)
    with open_source(str(tmp_path)) as source:
        names = [frame.name for frame in source]
    assert names == ["img1.png", "img02.png", "img2.png", "img10.png"]


def test_a_png_that_moves_is_a_video(tmp_path: Path):
    path = tmp_path / "moving.png"
    pictures = [Image.new("RGB", (40, 30), (level, 0, 0)) for level in (0, 90, 180)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    with open_source(str(path), decoder="cpu") as source:
        assert [frame.pts_seconds for frame in source] == pytest.approx([0, 0.1, 0.2])


def test_a_file_of_empty_boxes_is_not_walked_to_its_end(tmp_path: Path, monkeypatch):
    path = tmp_path / "boxes.mp4"
    path.write_bytes(b"\x00\x00\x00\x08ftyp" + b"\x00\x00\x00\x08free" * 100)
    monkeypatch.setattr(promise, "_MOST_BOXES", 10)
    with path.open("rb") as file:
        seen = [name for name, _ in promise.boxes(file, path.stat().st_size)]
        assert promise.lacks_index(file)
    assert seen == [b"ftyp"] + 9 * [b"free"]
