"""COCO annotations with their images, from folders and tar files."""

from __future__ import annotations

import math
import re
import tarfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stream_rpn.evaluation.files import Annotated, read_json
from stream_rpn.evaluation.names import NameIndex
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
        roots: folders and tar files; the first that has a name wins. Names match as in `NameIndex`:
            annotation tools put folders in front, or leave them out.
    """

    def __init__(self, roots: Iterable[str | Path]) -> None:
        self._folders: dict[Path, NameIndex[Path] | None] = {}
        self._tars: list[tuple[tarfile.TarFile, NameIndex[tarfile.TarInfo]]] = []
        self._lock = threading.Lock()
        self._roots = [str(root) for root in roots]
        for root in map(Path, self._roots):
            if root.is_dir():
                self._folders[root] = None
                continue
            try:
                # Stays open: members are read when they are needed.
                tar = tarfile.open(root)  # noqa: SIM115
                members = [member for member in tar.getmembers() if member.isfile()]
            except FileNotFoundError:
                raise StreamRPNError(f"{root}: no such folder or tar file of images") from None
            except (tarfile.TarError, OSError, EOFError) as error:
                raise StreamRPNError(f"{root}: not a readable tar file ({error})") from error
            index: NameIndex[tarfile.TarInfo] = NameIndex()
            for member in members:
                index.add(member.name, member)
            self._tars.append((tar, index))

    def read(self, file_name: str) -> np.ndarray:
        """Returns the decoded image [H, W, 3] uint8 RGB; safe to call from several threads."""
        data = self._bytes(file_name)
        try:
            return decode_rgb(data)
        except StreamRPNError as error:
            raise StreamRPNError(f"{file_name} {error}") from error

    def _bytes(self, file_name: str) -> bytes:
        # Windows has other slashes; elsewhere a name that holds them is tried as it is, too.
        names = dict.fromkeys((file_name, file_name.replace("\\", "/")))
        try:
            for name in names:
                for folder in self._folders:
                    path = folder / name
                    if path.is_file():
                        return path.read_bytes()
            for name in names:
                for folder in self._folders:
                    found = self._indexed(folder).find(name)
                    if found is not None:
                        return found.read_bytes()
        except (OSError, ValueError) as error:  # the second of a name that no file can have
            raise StreamRPNError(f"{file_name}: cannot be read ({error})") from error
        for tar, index in self._tars:
            member = next(filter(None, map(index.find, names)), None)
            if member is not None:
                with self._lock:
                    stream = tar.extractfile(member)
                    assert stream is not None, "only files are listed"
                    return stream.read()
        raise StreamRPNError(f"{file_name}: not found in {', '.join(self._roots)}")

    def _indexed(self, folder: Path) -> NameIndex[Path]:
        """Returns the files of a folder and those below it, listed when first asked for."""
        with self._lock:
            index = self._folders[folder]
            if index is None:
                index = self._folders[folder] = NameIndex()
                for path in sorted(folder.rglob("*")):
                    if path.is_file():
                        index.add(path.relative_to(folder).as_posix(), path)
            return index


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
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        """Returns an image with its objects; safe to call from several threads."""
        record = self._records[index]
        image = self._cache.get(index)
        if image is None:
            image = self._store.read(record["file_name"])
            with self._lock:
                if index not in self._cache and image.nbytes <= self._cache_left:
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

    def check(self, workers: int) -> Iterator[str]:
        """Reads every image and yields for each what is wrong with it, "" for nothing.

        Args:
            workers: threads that read.
        """

        def fault(index: int) -> str:
            try:
                self[index]
            except StreamRPNError as error:
                return str(error)
            return ""

        with ThreadPoolExecutor(workers, thread_name_prefix="check") as executor:
            try:
                yield from executor.map(fault, range(len(self)))
            finally:
                executor.shutdown(cancel_futures=True)

    def split(self, share: float, seed: int) -> tuple[CocoDataset, CocoDataset]:
        """Returns the data set without some of its images, and these alone.

        Args:
            share: of the images that have objects, as others tell nothing of recall; one at least
                is taken, and one left, where there are two.
            seed: of the choice.
        """
        annotated = [index for index, boxes in enumerate(self._boxes) if len(boxes)]
        count = min(max(round(share * len(annotated)), 1), len(annotated) - 1)
        order = np.random.default_rng(seed).permutation(len(annotated))[: max(count, 0)]
        taken = {annotated[index] for index in order}
        left = [index for index in range(len(self)) if index not in taken]
        return self._subset(left), self._subset(sorted(taken))

    def _subset(self, indices: Sequence[int]) -> CocoDataset:
        subset = copy(self)
        subset._records = [self._records[index] for index in indices]
        subset._boxes = [self._boxes[index] for index in indices]
        subset._crowds = [self._crowds[index] for index in indices]
        subset._cache = {}
        subset._cache_left = self._cache_left * len(indices) // max(len(self), 1)
        subset._lock = threading.Lock()
        return subset

    def images(self) -> dict[int, Annotated]:
        """Returns name and size of every image by its id, as annotated."""
        return {r["id"]: Annotated(r["file_name"], r["width"], r["height"]) for r in self._records}

    def sizes(self) -> list[tuple[int, int]]:
        """Returns the (height, width) of every image, as annotated."""
        return [(record["height"], record["width"]) for record in self._records]

    def objects_in(self, name: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the boxes [G, 4] and the crowd regions [C, 4] of the image of a file's name.

        Args:
            name: the file's name; folders in front of it may be left out, here or there.
            size: its (height, width), which must be as annotated.

        Raises:
            StreamRPNError: no image has that name, or several, or its size is another.
        """
        names: NameIndex[int] = NameIndex()
        for position, record in enumerate(self._records):
            names.add(record["file_name"], position)
        found = names.find(name)
        if found is None:
            raise StreamRPNError(f"{self.path} has no image '{name}'")
        record = self._records[found]
        if (record["height"], record["width"]) != size:
            raise StreamRPNError(
                f"{name}: the image is {size[1]}x{size[0]}, {self.path} says "
                f"{record['width']}x{record['height']}"
            )
        return self._boxes[found], self._crowds[found]

    def ground_truth(self) -> dict[int, np.ndarray]:
        """Returns the boxes [G, 4] by image id, without reading an image."""
        return {r["id"]: boxes for r, boxes in zip(self._records, self._boxes, strict=True)}


def read_image_ids(path: str | Path) -> NameIndex[int]:
    """Returns the ids of the images of a COCO annotation file, by the names of their files.

    Raises:
        StreamRPNError: it cannot be read.
    """
    ids: NameIndex[int] = NameIndex()
    for record in _image_records(Path(path), read_json(Path(path), "annotation file")):
        ids.add(record["file_name"], record["id"])
    return ids


def _read_annotations(
    path: Path,
) -> tuple[list[dict[str, Any]], list[np.ndarray], list[np.ndarray]]:
    data = read_json(path, "annotation file")
    records = _image_records(path, data)
    position = {record["id"]: i for i, record in enumerate(records)}
    annotations = data.get("annotations")
    if not isinstance(annotations, list):
        what = "no list" if "annotations" in data else "missing; of images without objects it is []"
        raise StreamRPNError(f"{path}: 'annotations' is {what}")
    boxes: list[list[list[float]]] = [[] for _ in position]
    crowds: list[list[list[float]]] = [[] for _ in position]
    for i, annotation in enumerate(annotations):
        where = f"{path}: annotations[{i}]"
        if not isinstance(annotation, dict):
            raise StreamRPNError(f"{where} is not an object")
        where += f" (id {annotation.get('id')})"
        named = _whole_number(annotation.get("image_id"))
        if named not in position:
            raise StreamRPNError(
                f"{where} names the image {annotation.get('image_id')}, which is not in 'images'"
            )
        # A box without area outlines nothing, and its deltas would be infinite.
        x, y, w, h = _box(annotation.get("bbox"), where)
        if w > 0 and h > 0:
            rows = crowds if _is_crowd(annotation.get("iscrowd"), where) else boxes
            rows[position[named]].append([x, y, x + w, y + h])

    def arrays(rows: list[list[list[float]]]) -> list[np.ndarray]:
        return [np.array(row, dtype=np.float32).reshape(-1, 4) for row in rows]

    return records, arrays(boxes), arrays(crowds)


def _image_records(path: Path, data: Any) -> list[dict[str, Any]]:
    """Returns id, file_name, width and height of the images of COCO annotations."""
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        raise StreamRPNError(f"{path}: not COCO annotations: an object with 'images' is expected")
    ids: set[int] = set()
    records = []
    for i, image in enumerate(data["images"]):
        record = _image_record(image, f"{path}: images[{i}]")
        if record["id"] in ids:
            raise StreamRPNError(f"{path}: images[{i}] repeats the id {record['id']}")
        ids.add(record["id"])
        records.append(record)
    return records


def _image_record(image: Any, where: str) -> dict[str, Any]:
    """Returns id, file_name, width and height of an image."""
    if not isinstance(image, dict):
        raise StreamRPNError(f"{where} is not an object")
    record: dict[str, Any] = {
        name: _whole_number(image.get(name)) for name in ("id", "width", "height")
    }
    for name in ("width", "height"):
        if record[name] is not None and record[name] < 1:
            record[name] = None
    file_name = image.get("file_name")
    record["file_name"] = file_name if isinstance(file_name, str) and file_name else None
    for name in ("id", "file_name", "width", "height"):
        if record[name] is None:
            raise StreamRPNError(f"{where} lacks a valid '{name}'")
    return record


def _whole_number(value: Any) -> int | None:
    """Returns 7 for 7, 7.0 and "7", as exporters write it; None for what is no whole number."""
    if isinstance(value, str):
        value = value.strip()
        return int(value) if re.fullmatch(r"-?\d{1,18}", value, re.ASCII) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not (abs(value) < 1 << 63 and value == int(value)):
        return None
    return int(value)


def _is_crowd(value: Any, where: str) -> bool:
    """Returns whether an annotation is of a crowd: 0 or 1, as a number, a word or a string."""
    known = {0: False, 1: True, "0": False, "1": True, "false": False, "true": True}
    if value is None:
        return False
    crowd = known.get(value.lower() if isinstance(value, str) else value) if _plain(value) else None
    if crowd is None:
        raise StreamRPNError(f"{where} has the iscrowd {value!r}, which must be 0 or 1")
    return crowd


def _plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _box(box: Any, where: str) -> tuple[float, float, float, float]:
    """Returns x, y, width and height; strings that are numbers count as them."""
    try:
        if not isinstance(box, list | tuple):
            raise TypeError
        if not all(map(_plain, box)) or any(isinstance(value, bool) for value in box):
            raise TypeError
        x, y, w, h = map(float, box)
    except (TypeError, ValueError, OverflowError):
        raise StreamRPNError(f"{where} has the bbox {box!r:.80}, not [x, y, w, h]") from None
    if not all(map(math.isfinite, (x, y, w, h))) or w < 0 or h < 0:
        raise StreamRPNError(f"{where} has the bbox {box!r}, which is no box")
    return x, y, w, h
