"""COCO annotations with their images, from folders and tar files, and augmentation."""

from __future__ import annotations

import io
import json
import math
import tarfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stream_rpn.frame import StreamRPNError

# What cropping leaves of an object is still that object while this share of its area is visible and
# its sides are this long; otherwise the remainder is neither object nor background.
MIN_VISIBLE = 0.3
MIN_SIDE = 2.0
GREY = 128


@dataclass(frozen=True)
class Sample:
    """An image with its objects.

    Attributes:
        image: [H, W, 3] uint8, RGB.
        boxes: [G, 4] float32, x1 y1 x2 y2.
        crowd_boxes: [C, 4] float32, regions that are neither object nor background.
        image_id: COCO's.
        name: the image's file name.
    """

    image: np.ndarray
    boxes: np.ndarray
    crowd_boxes: np.ndarray
    image_id: int
    name: str


class ImageStore:
    """Finds images by file name in folders and uncompressed or compressed tar files.

    Args:
        roots: folders and tar files; the first that has a name wins. In tar files a name matches
            members of that path or, failing that, of that base name.
    """

    def __init__(self, roots: Iterable[str | Path]) -> None:
        self._folders: list[Path] = []
        self._members: dict[str, tuple[tarfile.TarFile, tarfile.TarInfo]] = {}
        self._lock = threading.Lock()
        self._roots = [str(root) for root in roots]
        for root in map(Path, self._roots):
            if root.is_dir():
                self._folders.append(root)
                continue
            try:
                # Stays open: members are read when they are needed.
                tar = tarfile.open(root)  # noqa: SIM115
                members = [member for member in tar.getmembers() if member.isfile()]
            except FileNotFoundError:
                raise StreamRPNError(f"{root}: no such folder or tar file of images") from None
            except (tarfile.TarError, OSError, EOFError) as error:
                raise StreamRPNError(f"{root}: not a readable tar file ({error})") from error
            for member in members:
                for name in (member.name.removeprefix("./"), Path(member.name).name):
                    self._members.setdefault(name, (tar, member))

    def read(self, file_name: str) -> np.ndarray:
        """Returns the decoded image [H, W, 3] uint8 RGB; safe to call from several threads."""
        data = self._bytes(file_name)
        try:
            with Image.open(io.BytesIO(data)) as image:
                return np.array(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise StreamRPNError(f"{file_name}: cannot be decoded as an image ({error})") from error

    def _bytes(self, file_name: str) -> bytes:
        for folder in self._folders:
            path = folder / file_name
            if path.is_file():
                return path.read_bytes()
        found = self._members.get(file_name) or self._members.get(Path(file_name).name)
        if found is None:
            raise StreamRPNError(f"{file_name}: not found in {', '.join(self._roots)}")
        tar, member = found
        with self._lock:
            stream = tar.extractfile(member)
            assert stream is not None, "only files are listed"
            return stream.read()


class CocoDataset:
    """The images of a COCO instances file with their boxes, categories ignored.

    Decoded images are kept in memory, up to `cache_bytes` of them.

    Args:
        annotations: the JSON file.
        images: folders and tar files.
        cache_bytes: decoded images beyond this are decoded again each time.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: Sequence[str | Path],
        *,
        cache_bytes: int = 4 << 30,
    ) -> None:
        self.path = Path(annotations)
        self._store = ImageStore(images)
        self._records, self._boxes, self._crowds = _read_annotations(self.path)
        self._cache: dict[int, np.ndarray] = {}
        self._cache_left = cache_bytes

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        record = self._records[index]
        image = self._cache.get(index)
        if image is None:
            image = self._store.read(record["file_name"])
            if image.nbytes <= self._cache_left:
                self._cache_left -= image.nbytes
                self._cache[index] = image
        size = (record["height"], record["width"])
        if image.shape[:2] != size:
            raise StreamRPNError(
                f"{record['file_name']}: the image is {image.shape[1]}x{image.shape[0]}, "
                f"{self.path} says {size[1]}x{size[0]}"
            )
        return Sample(
            image, self._boxes[index], self._crowds[index], record["id"], record["file_name"]
        )

    def sizes(self) -> list[tuple[int, int]]:
        """Returns the (height, width) of every image, as annotated."""
        return [(record["height"], record["width"]) for record in self._records]

    def ground_truth(self) -> dict[int, np.ndarray]:
        """Returns the boxes [G, 4] by image id, without reading an image."""
        return {r["id"]: boxes for r, boxes in zip(self._records, self._boxes, strict=True)}


def _read_annotations(
    path: Path,
) -> tuple[list[dict[str, Any]], list[np.ndarray], list[np.ndarray]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StreamRPNError(f"{path}: no such annotation file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StreamRPNError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        raise StreamRPNError(f"{path}: not COCO annotations: an object with 'images' is expected")
    position: dict[Any, int] = {}
    for i, record in enumerate(data["images"]):
        fields = {"id": int, "file_name": str, "width": int, "height": int}
        for name, kind in fields.items():
            if not isinstance(record, dict) or not isinstance(record.get(name), kind):
                raise StreamRPNError(f"{path}: images[{i}] lacks a valid '{name}'")
        if record["id"] in position:
            raise StreamRPNError(f"{path}: images[{i}] repeats the id {record['id']}")
        position[record["id"]] = i
    boxes: list[list[list[float]]] = [[] for _ in position]
    crowds: list[list[list[float]]] = [[] for _ in position]
    for i, annotation in enumerate(data.get("annotations", [])):
        where = f"{path}: annotations[{i}]"
        if not isinstance(annotation, dict):
            raise StreamRPNError(f"{where} is not an object")
        where += f" (id {annotation.get('id')})"
        image = position.get(annotation.get("image_id"))
        if image is None:
            raise StreamRPNError(
                f"{where} names the image {annotation.get('image_id')}, which is not in 'images'"
            )
        box: Any = annotation.get("bbox")
        try:
            x, y, w, h = (float(value) for value in box)
        except (TypeError, ValueError):
            raise StreamRPNError(f"{where} has the bbox {box!r}, not [x, y, w, h]") from None
        if not all(map(math.isfinite, (x, y, w, h))) or w < 0 or h < 0:
            raise StreamRPNError(f"{where} has the bbox {box!r}, which is no box")
        # A box without area outlines nothing, and its deltas would be infinite.
        if w > 0 and h > 0:
            rows = crowds if annotation.get("iscrowd") else boxes
            rows[image].append([x, y, x + w, y + h])

    def arrays(rows: list[list[list[float]]]) -> list[np.ndarray]:
        return [np.array(row, dtype=np.float32).reshape(-1, 4) for row in rows]

    return data["images"], arrays(boxes), arrays(crowds)


@dataclass(frozen=True)
class Augmentation:
    """How a training image is made.

    Attributes:
        size: side of the square training images, in pixels.
        scale: smallest and largest factor of a single image's size.
        mosaic: probability that four images share the square.
        mosaic_scale: the largest factor beyond what fills a mosaic's tile.
        flip: probability of a horizontal flip.
        photometric: largest relative change of brightness, contrast and saturation.
        aliased: probability of resampling without a filter, as video frames are when they are
            scaled down quickly.
    """

    size: int = 320
    scale: tuple[float, float] = (0.6, 1.5)
    mosaic: float = 0.5
    mosaic_scale: float = 1.6
    flip: float = 0.5
    photometric: float = 0.3
    aliased: float = 0.15

    def __post_init__(self) -> None:
        if self.size < 32:
            raise ValueError(f"size must be at least 32, got {self.size}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be two increasing positive factors, got {self.scale}")


def augment(
    dataset: CocoDataset, index: int, settings: Augmentation, rng: np.random.Generator
) -> Sample:
    """Returns a training image [size, size, 3] made of image `index` (and others, for a mosaic)."""
    size = settings.size
    canvas = np.full((size, size, 3), GREY, dtype=np.uint8)
    sample = dataset[index]
    filtered = rng.random() >= settings.aliased
    if rng.random() < settings.mosaic:
        x, y = (int(size * rng.uniform(0.3, 0.7)) for _ in range(2))
        tiles = [(0, 0, x, y), (x, 0, size, y), (0, y, x, size), (x, y, size, size)]
        others = [dataset[int(rng.integers(len(dataset)))] for _ in range(3)]
        placed = []
        for tile, source in zip(tiles, [sample, *others], strict=True):
            height, width = source.image.shape[:2]
            fill = max((tile[2] - tile[0]) / width, (tile[3] - tile[1]) / height)
            scale = fill * _log_uniform(rng, 1.0, settings.mosaic_scale)
            placed.append(_place(canvas, tile, source, scale, filtered, rng))
    else:
        scale = _log_uniform(rng, *settings.scale)
        placed = [_place(canvas, (0, 0, size, size), sample, scale, filtered, rng)]
    boxes = np.concatenate([part[0] for part in placed])
    crowd = np.concatenate([part[1] for part in placed])
    if rng.random() < settings.flip:
        canvas = canvas[:, ::-1]
        boxes, crowd = (
            np.stack((size - b[:, 2], b[:, 1], size - b[:, 0], b[:, 3]), axis=1)
            for b in (boxes, crowd)
        )
    canvas = _photometric(canvas, settings.photometric, rng)
    return replace(sample, image=np.ascontiguousarray(canvas), boxes=boxes, crowd_boxes=crowd)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def _place(
    canvas: np.ndarray,
    tile: tuple[int, int, int, int],
    sample: Sample,
    scale: float,
    filtered: bool,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a scaled image at a random offset into a tile; returns its boxes and crowd boxes there.

    A larger image is cropped, a smaller one leaves the canvas as it is around it.
    """
    left, top, right, bottom = tile
    height, width = sample.image.shape[:2]
    new_w, new_h = max(1, round(width * scale)), max(1, round(height * scale))
    dx = _offset(rng, right - left - new_w)
    dy = _offset(rng, bottom - top - new_h)
    x1, y1 = max(left + dx, left), max(top + dy, top)
    x2, y2 = min(left + dx + new_w, right), min(top + dy + new_h, bottom)
    if x1 >= x2 or y1 >= y2:
        empty = np.zeros((0, 4), dtype=np.float32)
        return empty, empty
    # The source rectangle that is visible, so that nothing outside the tile is computed.
    fx, fy = width / new_w, height / new_h
    source = (
        (x1 - left - dx) * fx,
        (y1 - top - dy) * fy,
        (x2 - left - dx) * fx,
        (y2 - top - dy) * fy,
    )
    picture = Image.fromarray(sample.image).resize(
        (x2 - x1, y2 - y1),
        Image.Resampling.BILINEAR if filtered else Image.Resampling.NEAREST,
        box=source,
    )
    canvas[y1:y2, x1:x2] = np.asarray(picture)

    factors = np.array([1 / fx, 1 / fy, 1 / fx, 1 / fy], dtype=np.float32)
    offset = np.array([left + dx, top + dy, left + dx, top + dy], dtype=np.float32)
    limit = np.array([x1, y1, x2, y2], dtype=np.float32)
    boxes, shown = _clip(sample.boxes * factors + offset, limit)
    sides = boxes[:, 2:] - boxes[:, :2]
    keep = (shown >= MIN_VISIBLE) & (sides >= MIN_SIDE).all(axis=1)
    crowd, crowd_shown = _clip(sample.crowd_boxes * factors + offset, limit)
    rest = np.concatenate((boxes[~keep & (shown > 0)], crowd[crowd_shown > 0]))
    return boxes[keep], rest


def _offset(rng: np.random.Generator, room: int) -> int:
    """Returns a random offset between 0 and `room`, which is negative where the image is larger."""
    return int(rng.integers(min(room, 0), max(room, 0) + 1))


def _clip(boxes: np.ndarray, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes clipped to a rectangle and the share of each box's area that is left."""
    clipped = np.concatenate(
        (
            np.clip(boxes[:, :2], limit[:2], limit[2:]),
            np.clip(boxes[:, 2:], limit[:2], limit[2:]),
        ),
        axis=1,
    )
    before = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    after = (clipped[:, 2:] - clipped[:, :2]).prod(axis=1)
    return clipped, after / before


def _photometric(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    if strength == 0:
        return image
    brightness, contrast, saturation = 1 + rng.uniform(-strength, strength, 3)
    pixels = image.astype(np.float32)
    grey = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    # The three linear maps in one pass: towards the pixel's grey, towards the image's mean, scaled.
    gain = brightness * contrast
    pixels *= gain * saturation
    pixels += (gain * (1 - saturation)) * grey[..., None]
    pixels += brightness * (1 - contrast) * float(grey.mean())
    result: np.ndarray = pixels.clip(0, 255).astype(np.uint8)
    return result
