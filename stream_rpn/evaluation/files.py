"""Files that evaluation reads: MOTChallenge ground truth, and proposals saved earlier.

Saved proposals belong to the image whose id or file name they carry, never to the one at the same
position: images are counted in another order almost everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stream_rpn import results
from stream_rpn.evaluation.names import NameIndex
from stream_rpn.frame import Proposals, StreamRPNError
from stream_rpn.sinks.coco import read_coco
from stream_rpn.sinks.d2 import read_detectron2
from stream_rpn.sinks.record import Contents


def read_mot(path: str | Path, width: int, height: int) -> dict[int, np.ndarray]:
    """Returns the boxes of MOTChallenge ground truth by frame index from 0, clipped to the frame.

    Frames and pixels count from 1 in the file. Rows of confidence 0 are to be ignored. Annotators
    continue people beyond the border, where no proposal can follow; hence the clipping. Frames
    without a row are not annotated and do not appear.

    Raises:
        StreamRPNError: the file cannot be read, or a line of it.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StreamRPNError(f"{path}: cannot be read ({error})") from error
    frames: dict[int, list[list[float]]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            frame, _, left, top, w, h, confidence, *_ = map(float, line.split(","))
        except ValueError:
            raise StreamRPNError(
                f"{path}: line {number} is not 'frame,id,left,top,width,height,confidence,…'"
            ) from None
        boxes = frames.setdefault(int(frame) - 1, [])
        if confidence != 0:
            boxes.append([left - 1, top - 1, left - 1 + w, top - 1 + h])
    limit = np.array([width, height, width, height], dtype=np.float64)
    return {
        frame: np.array(rows, dtype=np.float64).reshape(-1, 4).clip(0, limit)
        for frame, rows in sorted(frames.items())
    }


class Annotated(NamedTuple):
    """What is known of an annotated image or frame.

    Attributes:
        name: the file's name, in its folder; "" for the frame of a video.
        width: pixels.
        height: pixels.
    """

    name: str
    width: int
    height: int


class _Saved(NamedTuple):
    """Proposals of one image: boxes [P, 4], best first; sizes are 0 where unknown."""

    boxes: np.ndarray
    image_id: int | None = None
    name: str | None = None
    frame: int = -1
    width: int = 0
    height: int = 0


def read_predictions(path: str | Path, images: Mapping[int, Annotated]) -> dict[int, np.ndarray]:
    """Returns saved proposals as boxes [P, 4] by image id, best first.

    Reads COCO results and datasets (.json), detectron2's box proposals (.pkl) and what stream-rpn
    itself writes.
    Pickles may hold numbers and arrays only: nothing in them is ever executed.

    Args:
        path: the file.
        images: by id the annotated images that the proposals are wanted for; or by index the
            annotated frames of a video.

    Raises:
        StreamRPNError: the file cannot be read, is none of these, or is of other images.
    """
    path = Path(path)
    if not path.exists():
        raise StreamRPNError(f"there is no results file '{path}'")
    if path.suffix == ".json":
        saved: Iterable[_Saved] = _read_coco_results(path)
    elif path.suffix in (".pkl", ".pickle"):
        saved = map(_saved, read_detectron2(path, Contents()))
    else:
        saved = _read_ours(path)
    return _match(path, saved, images)


def _match(
    path: Path, saved: Iterable[_Saved], images: Mapping[int, Annotated]
) -> dict[int, np.ndarray]:
    """Returns the boxes by id, of the images that are annotated."""
    index = _Index(images)
    found: dict[int, np.ndarray] = {}
    unknown = total = outside = 0
    for item in saved:
        total += 1
        if not np.isfinite(item.boxes).all():
            raise StreamRPNError(f"'{path}' has a box that is not a number")
        image_id = index.find(path, item)
        if image_id is None or image_id not in images:
            unknown += 1
            continue
        if image_id in found:
            raise StreamRPNError(
                f"'{path}' has proposals for image {image_id} twice; are they of several sources?"
            )
        image = images[image_id]
        if item.width and (item.width, item.height) != (image.width, image.height):
            raise StreamRPNError(
                f"'{path}' has image {image_id} as {item.width}x{item.height} pixels, which the "
                f"annotations have as {image.width}x{image.height}: they are of other images"
            )
        # Beyond the border by more than rounding explains.
        right, bottom = item.boxes[:, 2:].max(axis=0, initial=0)
        outside += bool(right > image.width + 2 or bottom > image.height + 2)
        found[image_id] = item.boxes
    if not found:
        raise StreamRPNError(
            f"'{path}' has no proposals for any annotated image; are its ids or names those of "
            "the annotations?"
        )
    # By its name a file may be one of many; ids are small numbers that mean nothing elsewhere.
    by_name = 2 * index.by_name >= total
    if not index.frames and 2 * unknown > total and not (by_name and 2 * len(found) > len(images)):
        raise StreamRPNError(
            f"'{path}' is of {total} images, {unknown} of which are not annotated; are its ids or "
            "names those of the annotations?"
        )
    if 2 * outside > len(found):
        raise StreamRPNError(
            f"'{path}' has boxes that reach beyond the image for {outside} of {len(found)} images: "
            "they are of other images"
        )
    return found


class _Index:
    """Finds annotated images by what saved proposals carry.

    Attributes:
        frames: the images are frames of a video, which have no names.
        by_name: how many were looked for by name.
    """

    def __init__(self, images: Mapping[int, Annotated]) -> None:
        self.frames = not any(image.name for image in images.values())
        self.by_name = 0
        self._ids: NameIndex[int] = NameIndex()
        for image_id, image in images.items():
            self._ids.add(image.name, image_id)

    def find(self, path: Path, item: _Saved) -> int | None:
        if self.frames:
            return item.frame if item.image_id is None else item.image_id
        if item.image_id is not None:
            return item.image_id
        if item.name is None:
            raise StreamRPNError(
                f"'{path}' holds neither ids nor names of images, only positions, and images may "
                "stand in another order; .jsonl, .parquet, .npz and .coco.json hold names"
            )
        self.by_name += 1
        try:
            return self._ids.find(item.name)
        except StreamRPNError as error:
            raise StreamRPNError(f"'{path}': {error}") from None


def _read_ours(path: Path) -> Iterator[_Saved]:
    return map(_saved, results.read(path))


def _saved(p: Proposals) -> _Saved:
    return _Saved(p.boxes, p.image_id, p.name, p.frame, p.width, p.height)


def _read_coco_results(path: Path) -> Iterator[_Saved]:
    rows = read_json(path, "results file")
    if isinstance(rows, dict):  # a dataset
        yield from map(_saved, read_coco(path, Contents()))
        return
    try:
        ids = np.array([row["image_id"] for row in rows], dtype=np.int64)
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
        scores = np.array([row["score"] for row in rows], dtype=np.float64)
        names = {row["image_id"]: row.get("file_name") for row in rows}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise StreamRPNError(
            f"'{path}' does not hold COCO results, a list of objects with image_id, bbox and score "
            f"({type(error).__name__}: {error})"
        ) from error
    boxes[:, 2:] += boxes[:, :2]
    order = np.argsort(-scores, kind="stable")
    ids, boxes = ids[order], boxes[order]
    for image_id in np.unique(ids).tolist():
        # Where a name stands beside it, the id is the position among the images of a folder.
        name = names.get(image_id)
        yield _Saved(boxes[ids == image_id], None if name else image_id, name, image_id)


def read_json(path: Path, what: str) -> Any:
    """Returns the contents of a JSON file; `what` names it where it cannot be read.

    Raises:
        StreamRPNError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise StreamRPNError(f"{path}: no such {what}") from None
    except RecursionError:
        raise StreamRPNError(f"{path}: cannot be read as JSON (it is nested too deeply)") from None
    except (OSError, ValueError) as error:
        raise StreamRPNError(f"{path}: cannot be read as JSON ({error})") from error
