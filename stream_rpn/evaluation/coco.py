"""COCO annotations with their images, from folders and tar files."""

from __future__ import annotations

import json
import math
import tarfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stream_rpn.frame import StreamRPNError
from stream_rpn.sources.picture import decode_rgb


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
            return decode_rgb(data)
        except StreamRPNError as error:
            raise StreamRPNError(f"{file_name} {error}") from error

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
