"""COCO: a dataset of pictures with their boxes, or the bare list of detection results."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from stream_rpn.drops import Drop
from stream_rpn.frame import Proposals, StreamInfo, StreamRPNError
from stream_rpn.sinks.place import WholeFile
from stream_rpn.sinks.record import (
    DAMAGE,
    Contents,
    check_end,
    check_header,
    picture_name,
    saved_proposals,
)
from stream_rpn.sinks.sink import WholeFileSink

CATEGORIES = [{"id": 1, "name": "object", "supercategory": ""}]


class COCOResultsSink(WholeFileSink):
    """Writes `{"image_id", "category_id": 1, "bbox": [x, y, width, height], "score"}` per box.

    That is the array which `COCO.loadRes` reads. `image_id` is the id of the image in its
    annotation file, else the index of the frame, and then an image's `file_name` stands beside it.
    """

    def _open(self) -> None:
        super()._open()
        self._separator = b"[\n"

    def _write(self, proposals: Proposals) -> None:
        if not len(proposals):
            return
        image_id, name = proposals.image_id, ""
        if image_id is None:
            image_id = proposals.frame
            if proposals.name is not None:
                name = f'"file_name":{json.dumps(proposals.name)},'
        self._put(proposals, f'"image_id":{image_id},{name}')

    def _put(self, proposals: Proposals, begin: str) -> None:
        """Writes an object a box, whose first entries are given as text."""
        boxes = np.asarray(proposals.boxes, dtype=np.float64)
        rows = np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2], proposals.scores])
        item = (
            f"{{{begin.replace('%', '%%')}"
            '"category_id":1,"bbox":[%.2f,%.2f,%.2f,%.2f],"score":%.6g},\n'
        )
        text = (item * len(rows))[:-2] % tuple(rows.ravel().tolist())
        self._file.write(self._separator + text.encode())
        self._separator = b",\n"

    def _close(self) -> None:
        self._file.write(b"[]\n" if self._separator == b"[\n" else b"\n]\n")
        super()._close()


class COCOSink(WholeFileSink):
    """Writes a dataset: `images`, `categories` (one, "object") and `annotations` with a `score`.

    An image has its `file_name` (of a video `frame_000012.jpg`), size and `id`: that of its
    annotation file, and then the `frame` beside it, else the index of the frame. Times of a video's
    frames stand there as `pts` and `pts_seconds`, losses as `drops`. Under `info` are our header
    and end.
    """

    def _open(self) -> None:
        super()._open()
        # Images come last in the file: what is known of them grows beside it.
        self._images = open(  # noqa: SIM115 (open until close or abort)
            cast(WholeFile, self._place).folder / "images", "w+b"
        )
        self._file.write(b'{"annotations":[')
        self._num_boxes = self._num_images = 0
        self._about: dict[str, Any] = {"header": {}, "end": None}

    def _begin(self, header: dict[str, Any], info: StreamInfo) -> None:
        self._about["header"] = header

    def _write(self, proposals: Proposals) -> None:
        image: dict[str, Any] = {
            "id": proposals.frame if proposals.image_id is None else proposals.image_id,
            "file_name": picture_name(proposals.frame, proposals.name),
            "width": proposals.width,
            "height": proposals.height,
        }
        if proposals.image_id is not None:
            image["frame"] = proposals.frame
        if proposals.name is None or proposals.pts_seconds is not None:
            image |= {"pts": proposals.pts, "pts_seconds": proposals.pts_seconds}
        if proposals.drops:
            image["drops"] = [drop.record() for drop in proposals.drops]
        separator = b",\n" if self._num_images else b"\n"
        self._images.write(separator + json.dumps(image).encode())
        self._num_images += 1
        self._put(proposals, image["id"])

    def _put(self, proposals: Proposals, image_id: int) -> None:
        boxes = np.asarray(proposals.boxes, dtype=np.float64)
        sides = boxes[:, 2:] - boxes[:, :2]
        numbers = np.arange(self._num_boxes, self._num_boxes + len(boxes)) + 1
        columns = (numbers, boxes[:, :2], sides, sides.prod(axis=1), proposals.scores)
        item = (
            f'{{"id":%d,"image_id":{image_id},"category_id":1,"bbox":[%.2f,%.2f,%.2f,%.2f],'
            '"area":%.2f,"iscrowd":0,"segmentation":[],"score":%.6g},\n'
        )
        text = (item * len(boxes))[:-2] % tuple(np.column_stack(columns).ravel().tolist())
        if text:
            self._file.write((",\n" if self._num_boxes else "\n").encode() + text.encode())
        self._num_boxes += len(boxes)

    def _end(self, end: dict[str, Any]) -> None:
        self._about["end"] = end

    def _close(self) -> None:
        header = self._about["header"]
        info = {
            "description": "Region proposals of stream-rpn",
            "version": header.get("version", ""),
            "date_created": header.get("started", ""),
            "stream_rpn": self._about,
        }
        self._images.seek(0)
        self._file.write(b'\n],\n"images":[')
        shutil.copyfileobj(self._images, self._file)
        self._images.close()
        rest = {"categories": CATEGORIES, "licenses": [], "info": info}
        self._file.write(b"\n],\n" + json.dumps(rest)[1:].encode() + b"\n")
        super()._close()

    def _abort(self) -> None:
        self._images.close()
        super()._abort()


def read_coco(path: Path, contents: Contents) -> Iterator[Proposals]:
    """Yields the images of a COCO dataset, or those of COCO results, that have boxes."""
    try:
        data = json.loads(path.read_bytes())
        if isinstance(data, list):
            yield from _results(data)
            contents.complete = True
        else:
            yield from _dataset(data, contents)
    except DAMAGE as error:
        raise StreamRPNError(
            f"{str(path)!r} holds neither a COCO dataset nor COCO detection results, or is damaged"
        ) from error


def _results(results: list[Any]) -> Iterator[Proposals]:
    for image_id, group in itertools.groupby(results, key=lambda item: item["image_id"]):
        items = list(group)
        name = items[0].get("file_name")
        # Where a name stands beside it, the id is the position among the images of a folder.
        yield saved_proposals(
            image_id, *_boxes_of(items), image_id=None if name else image_id, name=name
        )


def _dataset(data: dict[str, Any], contents: Contents) -> Iterator[Proposals]:
    about = data.get("info", {}).get("stream_rpn")
    if about is not None:
        contents.headers.append(check_header(about["header"]))
    by_image: dict[int, list[Any]] = {image["id"]: [] for image in data["images"]}
    for annotation in data["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    for image in data["images"]:
        frame, name = image.get("frame", image["id"]), image["file_name"]
        if "pts" in image and name == picture_name(frame, None):
            name = None
        yield saved_proposals(
            frame,
            *_boxes_of(by_image[image["id"]]),
            pts=image.get("pts"),
            pts_seconds=image.get("pts_seconds"),
            width=image.get("width", 0),
            height=image.get("height", 0),
            image_id=image["id"] if about is None or "frame" in image else None,
            name=name,
            drops=tuple(Drop(**drop) for drop in image.get("drops", ())),
            source=contents.headers[0]["source"] if contents.headers else "",
        )
    if about is None:
        contents.complete = True
        return
    if about["end"] is not None:
        contents.ends.append(check_end(about["end"]))
    contents.settle()


def _boxes_of(items: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes and scores, best first; what people drew has no score, and 1 is its."""
    boxes = np.array([item["bbox"] for item in items], dtype=np.float64).reshape(-1, 4)
    if len(boxes) != len(items):
        raise ValueError("a box is four numbers")
    boxes[:, 2:] += boxes[:, :2]
    scores = np.array([item.get("score", 1.0) for item in items], np.float64)
    order = np.argsort(-scores, kind="stable")
    return boxes[order], scores[order]
