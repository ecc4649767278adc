"""Decoding: frames, timestamps, colour, rotation and damage, against PyAV and known pixels."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from stream_rpn import yuv
from stream_rpn.decode import PlaneConverter
from stream_rpn.drops import Drop
from stream_rpn.frame import Frame, StreamRPNError
from stream_rpn.sources import open_source
from stream_rpn.sources.source import Source

RED, GREEN, BLUE, WHITE = (220, 40, 40), (40, 200, 50), (50, 40, 210), (235, 235, 235)


def quarters(width: int, height: int) -> np.ndarray:
    """Four colours, so that turns, flips and wrong colours all show."""
    image = np.empty((height, width, 3), np.uint8)
    x, y = width // 2, height // 2
    image[:y, :x], image[:y, x:], image[y:, :x], image[y:, x:] = RED, GREEN, BLUE, WHITE
    return image


def write_clip(
    path: Path,
    *,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    num_frames: int = 4,
    pts: list[int] | None = None,
    matrix: Colorspace | None = None,
    color_range: ColorRange | None = None,
    tags: dict[str, int] | None = None,
    rotation: float = 0,
    options: dict[str, str] | None = None,
    image: np.ndarray | None = None,
    container_format: str | None = None,
) -> Path:
    """Encodes `image` (four coloured quarters) `num_frames` times; pts count milliseconds."""
    width, height = size
    rgb = quarters(width, height) if image is None else image
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.time_base = Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.options = options or ({"crf": "4"} if codec == "libx264" else {})
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        if rotation:
            stream.set_display_rotation(rotation)
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
                format=pixel_format, dst_colorspace=matrix, dst_color_range=color_range
            )
            frame.pts = pts[index] if pts else index * 40
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read(path: Path | str, **options: object) -> tuple[Source, list[Frame]]:
    with open_source(str(path), decoder="cpu", **options) as source:
        return source, list(source)


def rgb_of(frame: Frame) -> np.ndarray:
    """Converts the planes by the frame's own colour record, and turns them for display."""
    pixels = frame.image.reformat(
        format="rgb24",
        src_colorspace={"bt601": Colorspace.ITU601, "bt709": Colorspace.ITU709}.get(
            frame.color.matrix, Colorspace.BT2020
        ),
        src_color_range=ColorRange.JPEG if frame.color.full_range else ColorRange.MPEG,
    ).to_ndarray()
    return np.rot90(pixels, -frame.rotation // 90)


def corners(pixels: np.ndarray) -> np.ndarray:
    """The colours in the middle of the four quarters: [4, 3], row by row."""
    height, width = pixels.shape[:2]
    return np.array(
        [pixels[height * y // 4, width * x // 4] for y in (1, 3) for x in (1, 3)], dtype=int
    )


def decoded_by_pyav(path: Path) -> list[tuple[int | None, int, int]]:
    """(pts, width, height) of every frame of the best video stream, by the plainest loop."""
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.thread_count = 1
        for packet in container.demux(stream):
            try:
                frames += [(f.pts, f.width, f.height) for f in packet.decode()]
            except av.error.InvalidDataError:
                continue
    return frames


# name: frames, displayed width, height, pixel format, damaged packets
REAL_VIDEOS = {
    "intel-bottle-detection.mp4": (1189, 640, 360, "yuv420p", 0),
    "intel-car-detection.mp4": (377, 768, 432, "yuv420p", 0),
    "pets09-s2l1-part1.mp4": (160, 768, 576, "yuv420p", 0),
    "tud-campus.mp4": (71, 640, 480, "yuv420p", 0),
    "vpf-test.mp4": (96, 848, 464, "yuv420p", 0),
    "odd/av1_video.mkv": (125, 640, 360, "yuv420p", 0),
    "odd/corrupted.mp4": (49, 1280, 720, "yuv420p", 1),
    "odd/h264_10bits.mp4": (30, 200, 200, "yuv420p10le", 0),
    "odd/h265_video.mp4": (10, 128, 128, "yuv420p", 0),
    "odd/nasa_13013.mp4": (390, 480, 270, "yuv420p", 0),
    "odd/pets-322x242.mp4": (20, 322, 242, "yuv420p", 0),
    "odd/pets-truncated-faststart.mp4": (24, 768, 576, "yuv420p", 16),
    "odd/pets-vfr.mkv": (40, 768, 576, "yuv420p", 0),
    "odd/rot_video_0.mov": (3, 568, 320, "yuv420p", 0),
    "odd/rot_video_90.mov": (3, 320, 568, "yuv420p", 0),
}


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("name", REAL_VIDEOS)
def test_real_video_gives_every_frame_and_timestamp(shared_data: Path, name: str, threads: int):
    num_frames, width, height, pixel_format, damaged = REAL_VIDEOS[name]
    path = shared_data / "video" / name
    with open_source(str(path), decoder="cpu", threads=threads) as source:
        expected = iter(decoded_by_pyav(path))
        for index, frame in enumerate(source):
            pts, coded_width, coded_height = next(expected)
            assert (frame.index, frame.pts) == (index, pts)
            assert (frame.image.width, frame.image.height) == (coded_width, coded_height)
            assert (frame.width, frame.height) == (width, height)
            assert frame.image.format.name == pixel_format
            assert frame.drops == () or damaged
        assert next(expected, None) is None
    assert source.frames_decoded == num_frames
    assert source.damaged_packets == damaged
    assert (source.info.width, source.info.height) == (width, height)
    assert source.info.decoder == f"{source.info.codec} (software)"


def test_variable_frame_rate_is_kept(shared_data: Path):
    _, frames = read(shared_data / "video" / "odd" / "pets-vfr.mkv")
    steps = np.diff([round(1000 * frame.pts_seconds) for frame in frames])
    assert steps.tolist() == ([33, 40, 120, 33, 500, 17] * 7)[:39]


def test_both_video_streams_can_be_chosen(shared_data: Path):
    path = shared_data / "video" / "odd" / "nasa_13013.mp4"
    sizes = []
    for number in (0, 1):
        source, frames = read(path, video_stream=number)
        sizes.append((source.info.width, source.info.height, len(frames)))
    assert sizes == [(320, 180, 325), (480, 270, 390)]


@pytest.mark.parametrize("clockwise", [0, 90, 180, 270])
def test_rotation_is_clockwise_for_display(tmp_path: Path, clockwise: int):
    upright = quarters(48, 64) if clockwise % 180 else quarters(64, 48)
    stored = np.ascontiguousarray(np.rot90(upright, clockwise // 90))
    path = write_clip(tmp_path / "turned.mov", image=stored, rotation=-clockwise)
    source, frames = read(path)
    assert source.info.rotation == frames[0].rotation == clockwise
    height, width = upright.shape[:2]
    assert (frames[0].width, frames[0].height) == (width, height)
    np.testing.assert_allclose(corners(rgb_of(frames[0])), corners(upright), atol=4)


PIXEL_FORMATS = [
    ("libx264", "yuv420p", "yuv420p"),
    ("libx264", "yuv422p", "yuv420p"),
    ("libx264", "yuv444p", "yuv420p"),
    ("libx264", "yuv420p10le", "yuv420p10le"),
    ("libx264", "yuv422p10le", "yuv420p"),
    ("libx264", "yuvj420p", "yuvj420p"),
    ("libx264rgb", "rgb24", "yuv420p"),
    ("ffv1", "gbrp10le", "yuv420p"),
    ("ffv1", "bgr0", "yuv420p"),
    ("ffv1", "yuva420p", "yuv420p"),
    ("ffv1", "yuv420p12le", "yuv420p"),
    ("ffv1", "yuv444p16le", "yuv420p"),
    ("rawvideo", "nv12", "nv12"),
    ("rawvideo", "uyvy422", "yuv420p"),
    ("qtrle", "argb", "yuv420p"),
]


@pytest.mark.parametrize(
    ("codec", "coded", "kept"), PIXEL_FORMATS, ids=[f"{c}-{f}" for c, f, _ in PIXEL_FORMATS]
)
def test_every_pixel_format_keeps_its_colours(tmp_path: Path, codec: str, coded: str, kept: str):
    suffix = {"rawvideo": ".nut", "qtrle": ".mov"}.get(codec, ".mkv")
    path = write_clip(
        tmp_path / f"clip{suffix}",
        codec=codec,
        pixel_format=coded,
        color_range=ColorRange.JPEG if coded == "yuvj420p" else None,
        options={"qp": "0"} if codec == "libx264rgb" else None,
    )
    source, frames = read(path)
    assert len(frames) == 4
    assert frames[0].image.format.name == kept
    # x264 decodes RGB as planes.
    assert source.info.pixel_format == {"rgb24": "gbrp"}.get(coded, coded)
    np.testing.assert_allclose(corners(rgb_of(frames[0])), corners(quarters(64, 48)), atol=5)


@pytest.mark.parametrize("pixel_format", sorted(yuv.PIXEL_FORMATS))
def test_what_the_network_reads_passes_untouched(pixel_format: str):
    image = av.VideoFrame(64, 48, pixel_format)
    assert PlaneConverter().convert(image)[0] is image


@pytest.mark.parametrize("coded", ["gray", "gray10le", "gray16le"])
@pytest.mark.parametrize("full_range", [True, False], ids=["full", "limited"])
def test_gray_values_are_copied_and_their_range_recorded(tmp_path, coded: str, full_range: bool):
    with av.open(str(tmp_path / "gray.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, coded
        stream.codec_context.color_range = ColorRange.JPEG if full_range else ColorRange.MPEG
        bits = {"gray": 8, "gray10le": 10, "gray16le": 16}[coded]
        values = np.full((48, 64), 150 << (bits - 8), np.uint8 if bits == 8 else np.uint16)
        frame = av.VideoFrame.from_ndarray(values, format=coded)
        frame.color_range = ColorRange.JPEG if full_range else ColorRange.MPEG
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    _, (frame,) = read(tmp_path / "gray.mkv")
    assert frame.color.full_range is full_range
    luma, *chroma = (np.frombuffer(plane, np.uint8) for plane in frame.image.planes)
    assert abs(int(luma[0]) - 150) <= 1
    assert all(plane[0] == 128 for plane in chroma)


@pytest.mark.parametrize(
    ("height", "tagged", "full_range", "matrix"),
    [
        (48, None, False, "bt601"),
        (718, None, False, "bt601"),
        (720, None, False, "bt709"),
        (48, Colorspace.ITU709, False, "bt709"),
        (720, Colorspace.SMPTE170M, True, "bt601"),
        (48, Colorspace.BT2020, False, "bt2020"),
    ],
)
def test_colour_is_as_tagged_or_by_height(tmp_path, height, tagged, full_range, matrix):
    written = {"bt601": Colorspace.ITU601, "bt709": Colorspace.ITU709, "bt2020": Colorspace.BT2020}
    value_range = ColorRange.JPEG if full_range else ColorRange.MPEG
    avcol = {Colorspace.ITU709: 1, Colorspace.SMPTE170M: 6, Colorspace.BT2020: 9}
    path = write_clip(
        tmp_path / "clip.mp4",
        size=(64, height),
        num_frames=1,
        matrix=written[matrix],
        color_range=value_range,
        tags={"colorspace": avcol[tagged], "color_range": value_range} if tagged else None,
    )
    source, (frame,) = read(path)
    assert frame.color == source.info.color
    assert (frame.color.matrix, frame.color.full_range) == (matrix, full_range)
    assert frame.color.tagged is (tagged is not None)
    np.testing.assert_allclose(corners(rgb_of(frame)), corners(quarters(64, height)), atol=5)


def test_hdr_transfer_is_recorded(tmp_path: Path):
    tags = {"colorspace": 9, "color_trc": 16, "color_primaries": 9}
    path = write_clip(tmp_path / "hdr.mp4", pixel_format="yuv420p10le", tags=tags)
    source, frames = read(path)
    assert source.info.color.transfer == "smpte2084"
    assert source.info.color.matrix == "bt2020"
    assert frames[0].image.format.name == "yuv420p10le"


def test_interlacing_is_recorded(tmp_path: Path):
    path = write_clip(tmp_path / "i.mp4", options={"x264-params": "interlaced=1:tff=1"})
    source, frames = read(path)
    assert source.info.interlaced
    assert len(frames) == 4
    assert not read(write_clip(tmp_path / "p.mp4"))[0].info.interlaced


@pytest.mark.parametrize("size", [(65, 49), (33, 32), (2, 2), (1, 1)], ids=str)
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]):
    source, frames = read(
        write_clip(tmp_path / "odd.mkv", size=size, codec="ffv1", pixel_format="yuv444p")
    )
    assert (source.info.width, source.info.height) == (frames[-1].width, frames[-1].height) == size
    assert frames[0].image.format.name == "yuv420p"


def test_size_change_in_mid_stream(tmp_path: Path):
    small = write_clip(tmp_path / "a.h264", size=(64, 48), num_frames=5)
    large = write_clip(tmp_path / "b.h264", size=(128, 96), num_frames=7)
    joined = tmp_path / "joined.h264"
    joined.write_bytes(small.read_bytes() + large.read_bytes() + small.read_bytes())
    source, frames = read(joined)
    sizes = [(frame.width, frame.height) for frame in frames]
    assert sizes == [(64, 48)] * 5 + [(128, 96)] * 7 + [(64, 48)] * 5
    assert [(f.image.width, f.image.height) for f in frames] == sizes
    assert (source.info.width, source.info.height) == (64, 48)
    assert source.damaged_packets == 0


def test_sample_aspect_ratio_and_rate_stand_in_the_info(tmp_path: Path):
    path = write_clip(tmp_path / "wide.mp4", options={"x264-params": "sar=4/3"})
    info = read(path)[0].info
    assert info.sample_aspect_ratio == pytest.approx(4 / 3)
    assert info.fps == pytest.approx(25)
    assert info.num_frames == 4
    assert info.duration_seconds == pytest.approx(0.16)
    assert (info.codec, info.pixel_format, info.stem) == ("h264", "yuv420p", "wide")


def packets_of(path: Path) -> list[tuple[int, int, int]]:
    """(position, size, pts) of every packet, in the order of the file."""
    with av.open(str(path)) as container:
        return [(p.pos, p.size, p.pts) for p in container.demux(video=0) if p.size]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames in three groups of pictures, with B-frames."""
    return write_clip(
        tmp_path_factory.mktemp("damage") / "clip.mp4", num_frames=60, options={"g": "20"}
    )


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("broken", [[30], [30, 31, 32], [58], [59], [55, 57], [10, 50]], ids=str)
def test_damage_loses_no_more_than_the_damaged_packets(
    tmp_path: Path, clip: Path, broken: list[int], threads: int
):
    packets = packets_of(clip)
    data = bytearray(clip.read_bytes())
    for number in broken:
        position, size, _ = packets[number]
        data[position : position + size] = b"\xff" * size
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(data)
    source, frames = read(damaged, threads=threads)
    lost = {packets[number][2] for number in broken}
    assert [f.pts for f in frames] == sorted({pts for *_, pts in packets} - lost)
    assert [f.index for f in frames] == list(range(60 - len(broken)))
    assert source.damaged_packets == len(broken)
    drops = [drop for frame in frames for drop in frame.drops] + list(source.trailing_drops)
    assert sum(drop.count for drop in drops) == len(broken)
    assert drops[0] == Drop("damaged packet", drops[0].count, packets[broken[0]][2])


@pytest.mark.parametrize("suffix", [".h264", ".ts", ".mkv"])
def test_damage_near_the_end_of_other_containers(tmp_path: Path, suffix: str):
    path = write_clip(tmp_path / f"clip{suffix}", num_frames=30, options={"bf": "0", "g": "10"})
    data = bytearray(path.read_bytes())
    for offset in range(len(data) * 9 // 10, len(data) * 19 // 20):
        data[offset] ^= 0x55
    path.write_bytes(data)
    _, frames = read(path, threads=1)
    _, threaded = read(path, threads=8)
    assert len(frames) >= 20
    if suffix == ".h264":
        # Without timestamps nothing tells which frames of the tail are new.
        assert len(frames) - 8 < len(threaded) <= len(frames)
    else:
        assert [frame.pts for frame in threaded] == [frame.pts for frame in frames]


def test_a_damaged_start_is_told_to_the_first_frame(tmp_path: Path, clip: Path):
    (position, size, pts), *_ = packets_of(clip)
    data = bytearray(clip.read_bytes())
    data[position : position + size] = b"\xff" * size
    (tmp_path / "damaged.mp4").write_bytes(data)
    source, frames = read(tmp_path / "damaged.mp4")
    # Nothing came of those that needed it, either.
    assert len(frames) == 40
    assert source.damaged_packets == 20
    assert frames[0].drops[0] == Drop("damaged packet", 1, pts)
    assert [(str(drop.reason), drop.count) for drop in frames[0].drops[1:]] == [
        ("no key frame", 19)
    ]


@pytest.mark.parametrize("threads", [1, 8])
def test_a_cut_file_gives_what_is_there_and_counts_what_is_not(tmp_path: Path, threads: int):
    whole = write_clip(
        tmp_path / "whole.mp4", num_frames=60, options={"bf": "0", "movflags": "faststart"}
    )
    with (
        av.open(str(whole)) as container,
        av.open(str(tmp_path / "front.mp4"), "w", options={"movflags": "faststart"}) as front,
    ):
        stream = front.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = stream
                front.mux(packet)
    packets = packets_of(tmp_path / "front.mp4")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes((tmp_path / "front.mp4").read_bytes()[: packets[40][0]])
    source, frames = read(cut, threads=threads)
    assert len(frames) == 40
    assert source.damaged_packets == 20
    assert source.trailing_drops == (Drop("missing packet", 20, None),)


def test_a_stream_of_nothing_but_damage_is_refused(tmp_path: Path, clip: Path):
    data = bytearray(clip.read_bytes())
    for position, size, _ in packets_of(clip):
        data[position : position + size] = b"\xff" * size
    (tmp_path / "noise.mp4").write_bytes(data)
    with pytest.raises(StreamRPNError, match=r"noise\.mp4 holds no frame that can be decoded"):
        open_source(str(tmp_path / "noise.mp4"))


def test_frames_outlive_their_source(clip: Path):
    _, frames = read(clip)
    np.testing.assert_allclose(corners(rgb_of(frames[-1])), corners(quarters(64, 48)), atol=8)


def test_planes_are_those_of_the_decoder(clip: Path):
    _, frames = read(clip)
    with av.open(str(clip)) as container:
        for frame, image in zip(frames, container.decode(video=0), strict=True):
            for ours, theirs in zip(frame.image.planes, image.planes, strict=True):
                assert bytes(ours) == bytes(theirs)
