"""What vectors of boxes find again: python -m bench.embed --data DIR [--json FILE].

DIR holds `video` with MOTChallenge ground truth beside videos, and `coco` with
annotations_val.json and val.tar. A vector stands for each annotated object: that of the proposal
that covers it best, from IoU 0.5 up. By row, for each way of pooling: the share of people whose
nearest neighbour, among all people of the clip 25 frames away and more, is the same person, with
the mean average precision of the whole ranking; and the share of objects whose nearest neighbour
in other pictures is of the same category: of people, and the mean over the categories that have
ten objects. Beside them what the pixels of a box find, shrunk to 8×16, and what chance does.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from PIL import Image

import stream_rpn
from bench import report
from bench.tracking import overlaps, truth
from stream_rpn.embedding import Embedding, EmbedSpec
from stream_rpn.evaluation.coco import read_image_ids
from stream_rpn.frame import Proposals

DATA = Path("../shared/data")
IOU = 0.5
APART = 25  # frames between two looks at a person
STRIDE = 2  # every such frame of a clip is used
LEAST = 10  # objects of a category that counts
ALL = (4, 8, 16, 32, 64, 128)
SPECS = {
    **{f"stride {stride}": EmbedSpec((stride,), (1, 1)) for stride in (8, 16, 32, 64)},
    **{
        f"{name}, {rows}×{columns}": EmbedSpec(strides, (rows, columns))
        for name, strides in (("stride 8 and 16", (8, 16)), ("all maps", ALL))
        for rows, columns in ((1, 1), (2, 1), (4, 1), (2, 2))
    },
}


class Objects(NamedTuple):
    """Annotated objects that a proposal covers.

    Attributes:
        picture: [N] frame or image of each.
        label: [N] who or what it is.
        vectors: by way of pooling, [N, D] of length 1.
    """

    picture: np.ndarray
    label: np.ndarray
    vectors: dict[str, np.ndarray]


def clip_pictures(path: Path) -> Iterator[tuple[int, Image.Image, np.ndarray, np.ndarray]]:
    """Yields frames of a clip with their index, the boxes of people and who they are."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        annotated = truth(path.with_suffix(".gt.txt"), stream.width, stream.height)
        for index, frame in enumerate(container.decode(stream)):
            if index % STRIDE == 0 and index in annotated:
                ids, boxes = annotated[index]
                yield index, frame.to_image(), boxes, ids


def coco_pictures(data: Path) -> Iterator[tuple[int, Image.Image, np.ndarray, np.ndarray]]:
    """Yields pictures with their id, the boxes of objects and their categories."""
    annotations = data / "annotations_val.json"
    ids = read_image_ids(annotations)
    of_image: dict[int, list[dict[str, Any]]] = {}
    for one in json.loads(annotations.read_text())["annotations"]:
        of_image.setdefault(one["image_id"], []).append(one)
    with tarfile.open(data / "val.tar") as tar:
        for member in tar:
            image_id = ids.find(member.name) if member.isfile() else None
            if image_id in of_image:
                found = of_image[image_id]
                boxes = np.array([one["bbox"] for one in found], float)
                boxes[:, 2:] += boxes[:, :2]
                picture = Image.open(io.BytesIO(tar.extractfile(member).read()))
                labels = np.array([one["category_id"] for one in found])
                yield image_id, picture.convert("RGB"), boxes, labels


def pixels(picture: Image.Image, box: np.ndarray) -> np.ndarray:
    """Returns the pixels of a box, 8×16, without their mean."""
    # A box at the edge may be a rounding beyond it.
    inside = np.minimum(box, [*picture.size, *picture.size])
    small = picture.resize((8, 16), Image.Resampling.BILINEAR, box=tuple(inside.tolist()))
    values = np.asarray(small, float).ravel()
    return values - values.mean()


def collect(
    pictures: Iterator[tuple[int, Image.Image, np.ndarray, np.ndarray]], rpn: Any
) -> Objects:
    """Returns the objects of pictures, by a network whose results carry its maps."""
    where: list[int] = []
    labels: list[int] = []
    vectors: dict[str, list[np.ndarray]] = {name: [] for name in (*SPECS, "pixels", "chance")}
    rng = np.random.default_rng(0)
    for index, picture, boxes, who in pictures:
        proposals: Proposals = stream_rpn.propose(picture, model=rpn, features=True)
        ious = overlaps(boxes, proposals.boxes.astype(float))
        covered = ious.max(axis=1) >= IOU
        rows = ious.argmax(axis=1)[covered]
        where += [index] * len(rows)
        labels += who[covered].tolist()
        assert proposals.features is not None
        maps = [one[None] for one in proposals.features.values()]
        chosen = torch.from_numpy(proposals.input_boxes[rows])[None]
        channels = [one.shape[1] for one in maps]
        for name, spec in SPECS.items():
            embedding = Embedding.choose(proposals.strides, channels, spec)
            vectors[name] += list(embedding.pool(maps, chosen)[0].numpy())
        vectors["pixels"] += [pixels(picture, box) for box in proposals.boxes[rows]]
        vectors["chance"] += list(rng.normal(size=(len(rows), 16)))
    whole = {name: np.stack(found).astype(np.float32) for name, found in vectors.items()}
    lengths = {name: np.linalg.norm(v, axis=1, keepdims=True) for name, v in whole.items()}
    unit = {name: v / np.maximum(lengths[name], 1e-6) for name, v in whole.items()}
    return Objects(np.array(where), np.array(labels), unit)


def neighbours(objects: Objects, name: str, apart: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns how near [N, N] all are to all, and whether they are of the same label.

    What lies less than `apart` frames or pictures away is as far as can be.
    """
    vectors, picture = objects.vectors[name], objects.picture
    near = vectors @ vectors.T
    near[np.abs(picture[:, None] - picture[None]) < apart] = -np.inf
    return near, objects.label[:, None] == objects.label[None]


def again(objects: Objects, name: str) -> tuple[float, float]:
    """Returns the share of people found again first, and the mean average precision."""
    near, same = neighbours(objects, name, APART)
    found = same & np.isfinite(near)
    asked = found.any(axis=1)
    order = np.argsort(-near[asked], axis=1, kind="stable")
    hits = np.take_along_axis(found[asked], order, axis=1)
    precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    average = (precision * hits).sum(axis=1) / hits.sum(axis=1)
    return float(hits[:, 0].mean()), float(average.mean())


def kinds(objects: Objects, name: str) -> tuple[float, float]:
    """Returns the share of people next to people, and the mean over categories."""
    near, same = neighbours(objects, name, 1)
    right = same[np.arange(len(near)), near.argmax(axis=1)]
    labels, counts = np.unique(objects.label, return_counts=True)
    shares = [right[objects.label == label].mean() for label in labels[counts >= LEAST]]
    return float(right[objects.label == 1].mean()), float(np.mean(shares))


def rows_of(model: str, data: Path) -> list[dict[str, Any]]:
    """Returns a row per way of pooling."""
    rpn = stream_rpn.load(model)
    clips = sorted((data / "video").glob("*.gt.txt"))
    people = {
        path.name.split("-")[0]: collect(
            clip_pictures(path.with_suffix("").with_suffix(".mp4")), rpn
        )
        for path in clips
    }
    things = collect(coco_pictures(data / "coco"), rpn)
    rows = []
    for name, vectors in things.vectors.items():
        row: dict[str, Any] = {"model": model, "pooling": name, "length": vectors.shape[1]}
        for clip, objects in people.items():
            first, average = again(objects, name)
            row |= {f"{clip} first": round(first, 3), f"{clip} mAP": round(average, 3)}
        person, mean = kinds(things, name)
        row |= {"person": round(person, 3), "category": round(mean, 3)}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--model", action="append", help="default: the default model")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    for name in ("video", "coco/annotations_val.json", "coco/val.tar"):
        if not (arguments.data / name).exists():
            parser.error(f"{arguments.data / name} does not exist; --data names its folder")
    rows = []
    for model in arguments.model or [stream_rpn.models.DEFAULT_MODEL]:
        rows += rows_of(model, arguments.data)
    if arguments.json:
        report.write_json(arguments.json, "embed", rows, iou=IOU, apart=APART, stride=STRIDE)
    report.print_table(rows)


if __name__ == "__main__":
    main()
