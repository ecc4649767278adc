"""The clips on which `bench.gate` measures: real people and made-up ones, with noise and low rates.

From the annotated videos there are, beside these as they are, two kinds that stand still most of
the time, as cameras do: *paused*, where each picture is shown for a while, and *one walker*, where
one of the people crosses the scene without the others (the median of all pictures), stops and goes
on. Each has people where the annotations say, and noise that is new in every frame.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from stream_rpn.evaluation.files import read_mot
from stream_rpn.sources import open_source
from stream_rpn.sources.synthetic import SyntheticVideo

ANNOTATED = {"PETS09-S2L1": "pets09-s2l1-part1.mp4", "TUD-Campus": "tud-campus.mp4"}
UNANNOTATED = {
    "Intel bottle-detection": "intel-bottle-detection.mp4",
    "Intel car-detection": "intel-car-detection.mp4",
}
# Frames of a clip at most, frames that a paused one shows each picture for, and how many pictures.
MOST_FRAMES, PAUSE, PAUSED = 100, 6, 20
RATE = 25

Boxes = dict[int, np.ndarray]
Pictures = list[av.VideoFrame]


@dataclass(frozen=True)
class Camera:
    """What a camera does to a picture.

    Attributes:
        name: of the row.
        sigma: standard deviation of the noise of a pixel's luma, in grey levels.
        kbits: thousand bits a second; None is as good as before.
    """

    name: str
    sigma: float = 0.0
    kbits: int | None = None


CAMERAS = (
    Camera("as it is"),
    Camera("sensor noise", sigma=6.0),
    Camera("noise, low bitrate", sigma=6.0, kbits=150),
)


@dataclass
class Scene:
    """A clip, and the boxes of its objects by frame; none where nobody annotated them.

    Attributes:
        name: of the row.
        path: of the clip.
        truth: boxes [G, 4] by frame.
    """

    name: str
    path: Path
    truth: Boxes = field(default_factory=dict)


def scenes(folder: Path, data: Path) -> Iterator[tuple[Scene, Camera]]:
    """Yields the clips by every camera, made in `folder` one by one.

    Args:
        folder: for the clips, of which one is there at a time.
        data: holds the annotated videos; where it does not exist, made-up scenes are all.
    """
    for name, make in _makers(data):
        pictures, truth = make()
        for camera in CAMERAS:
            path = folder / "clip.mkv"
            encode(path, pictures, camera)
            print(f"{name}, {camera.name}", file=sys.stderr)
            yield Scene(name, path, truth), camera
            path.unlink()


def _makers(data: Path) -> Iterator[tuple[str, Callable[[], tuple[Pictures, Boxes]]]]:
    for name, file in ANNOTATED.items():
        path = data / file
        if not path.is_file():
            continue
        yield name, lambda path=path: _annotated(path)
        yield f"{name}, paused", lambda path=path: _paused(*_annotated(path))
        if name.startswith("PETS"):
            yield f"{name}, one walker", lambda path=path: _one_walker(path)
    for name, file in UNANNOTATED.items():
        path = data / file
        if path.is_file():
            yield name, lambda path=path: (_pictures(path), {})
    yield "made up, mostly still", _made_up


def _pictures(path: Path) -> Pictures:
    with open_source(str(path), decoder="cpu") as source:
        return [frame.image for frame in itertools.islice(source, MOST_FRAMES)]


def _annotated(path: Path) -> tuple[Pictures, Boxes]:
    pictures = _pictures(path)
    return pictures, read_mot(path.with_suffix(".gt.txt"), pictures[0].width, pictures[0].height)


def _paused(pictures: Pictures, truth: Boxes) -> tuple[Pictures, Boxes]:
    chosen = range(0, len(pictures), max(1, len(pictures) // PAUSED))[:PAUSED]
    shown = [index for index in chosen for _ in range(PAUSE)]
    return [pictures[i] for i in shown], {n: truth[i] for n, i in enumerate(shown) if i in truth}


def _one_walker(path: Path) -> tuple[Pictures, Boxes]:
    """Returns a scene that is empty, then crossed by one of its people, who stops, then empty."""
    pictures = [picture.to_ndarray(format="yuv420p") for picture in _pictures(path)]
    height, width = pictures[0].shape[0] * 2 // 3, pictures[0].shape[1]
    empty = np.median(np.stack(pictures[::4]), axis=0).astype(np.uint8)
    walker = _longest_track(path.with_suffix(".gt.txt"), len(pictures))
    steps = sorted(walker)
    half = len(steps) // 2
    # Frames without the walker, then its steps, each shown twice, with a rest in the middle.
    walk = [step for step in steps for _ in range(2)]
    walk[2 * half : 2 * half] = [steps[half]] * 40
    shown: list[int | None] = [*[None] * 40, *walk, *[None] * 40]
    scene, truth = [], {}
    for number, step in enumerate(shown):
        picture = empty.copy()
        truth[number] = np.zeros((0, 4))
        if step is not None:
            box = walker[step].clip(0, [width, height, width, height])
            _paste(picture, pictures[step], box, height)
            truth[number] = box[None]
        scene.append(av.VideoFrame.from_ndarray(picture, format="yuv420p"))
    return scene, truth


def _longest_track(path: Path, num_frames: int) -> Boxes:
    tracks: dict[int, Boxes] = {}
    for line in path.read_text().splitlines():
        frame, number, left, top, width, height, confidence, *_ = map(float, line.split(","))
        if confidence and frame <= num_frames:
            box = np.array([left - 1, top - 1, left - 1 + width, top - 1 + height])
            tracks.setdefault(int(number), {})[int(frame) - 1] = box
    return max(tracks.values(), key=len)


def _paste(picture: np.ndarray, other: np.ndarray, box: np.ndarray, height: int) -> None:
    """Copies what lies in a box, on even pixels, from one picture to another (yuv420p)."""
    x1, y1 = (int(v) // 2 * 2 for v in box[:2])
    x2, y2 = (-(-int(v) // 2) * 2 for v in box[2:])
    picture[y1:y2, x1:x2] = other[y1:y2, x1:x2]
    width = picture.shape[1]
    for plane in range(2):
        start = height + plane * height // 4
        mine, its = (
            planes[start : start + height // 4].reshape(height // 2, width // 2)
            for planes in (picture, other)
        )
        mine[y1 // 2 : y2 // 2, x1 // 2 : x2 // 2] = its[y1 // 2 : y2 // 2, x1 // 2 : x2 // 2]


def _made_up() -> tuple[Pictures, Boxes]:
    """Returns a scene that is still but for two objects that come for a while, twice."""
    still, passing = (SyntheticVideo(1280, 720, Fraction(RATE), num_objects=n) for n in (0, 2))
    pictures, truth = [], {}
    nothing = still.image(0)
    for index in range(MOST_FRAMES):
        there = index % 50 >= 35
        image = passing.image(index) if there else nothing
        rgb = av.VideoFrame.from_ndarray(image[..., :3].copy(), format="rgb24")
        pictures.append(rgb.reformat(format="yuv420p"))
        truth[index] = passing.boxes(index) if there else np.zeros((0, 4))
    return pictures, truth


def encode(path: Path, pictures: Pictures, camera: Camera) -> None:
    """Writes a clip as a camera gives it: H.264, a key frame every two seconds."""
    rng = np.random.default_rng(0)
    height, width = pictures[0].height, pictures[0].width
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 2
        stream.options = {"preset": "veryfast", "g": str(2 * RATE)} | (
            {"b": f"{camera.kbits}k", "maxrate": f"{camera.kbits}k", "bufsize": f"{camera.kbits}k"}
            if camera.kbits
            else {"crf": "20"}
        )
        fields: list[np.ndarray] = []
        for index, picture in enumerate(pictures):
            planes = picture.to_ndarray(format="yuv420p")
            if camera.sigma:
                if not fields:
                    shape = (height + 64, width + 64)
                    fields = [rng.normal(0, camera.sigma, shape) for _ in range(4)]
                y, x = rng.integers(0, 64, 2)
                noise = fields[index % 4][y : y + height, x : x + width]
                planes[:height] = (planes[:height] + noise).round().clip(0, 255)
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
