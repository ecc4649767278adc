"""Recall and precision over NMS and score threshold: python -m bench.presets --data DIR.

What `--preset annotate`, `--preset recall` and `--top auto` stand for is chosen from this. DIR
holds annotations_val.json with val.tar. Precision is the share of the boxes kept that cover an
object of their own at IoU 0.5; as not everything in COCO's images is annotated, the true one is
higher.
"""

from __future__ import annotations

import argparse
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from bench import report
from stream_rpn import api
from stream_rpn.evaluation.coco import CocoDataset, read_image_ids
from stream_rpn.evaluation.recall import Recall, enough, iou, match
from stream_rpn.frame import Proposals
from stream_rpn.models import DEFAULT_MODEL
from stream_rpn.sources.images import images_source

MOST = 1000
NMS = (0.5, 0.6, 0.7, 0.8)
THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55)
LIMITS = (100, 300, MOST)


def propose(model: str, nms: float, data: Path) -> dict[int, Proposals]:
    """Returns the proposals of a model by image id."""
    ids = read_image_ids(data / "annotations_val.json")
    with tarfile.open(data / "val.tar") as tar:
        members = [member for member in tar.getmembers() if member.isfile()]
        items = [
            ((member.name, tar.extractfile(member).read()), ids.find(member.name))  # type: ignore[union-attr]
            for member in members
        ]
    pipeline = api.open_pipeline(model, top=MOST, nms=nms)
    with pipeline.open(images_source(items)) as stream:
        return {proposals.image_id: proposals for proposals in stream}  # type: ignore[misc]


def kept(found: dict[int, Proposals], truth: dict[int, np.ndarray], score: float) -> dict[str, Any]:
    """Returns recall and precision at IoU 0.5 of the boxes from a score up."""
    hits = boxes = objects = 0
    for image_id, gt_boxes in truth.items():
        proposals = found[image_id]
        chosen = proposals.boxes[proposals.scores >= score].astype(np.float64)
        overlaps = match(iou(chosen, gt_boxes.astype(np.float64)))
        hits += int((overlaps >= 0.5).sum())
        boxes += len(chosen)
        objects += len(gt_boxes)
    recall, precision = hits / objects, hits / max(boxes, 1)
    return {
        "score": score,
        "boxes": round(boxes / len(truth), 1),
        "recall": round(recall, 3),
        "precision": round(precision, 3),
        "f1": round(2 * recall * precision / max(recall + precision, 1e-9), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", action="append", help=f"default: {DEFAULT_MODEL}")
    parser.add_argument("--nms", type=float, action="append", help=f"default: {NMS}")
    parser.add_argument("--json", type=Path, default=Path("bench/results/presets.json"))
    arguments = parser.parse_args()
    dataset = CocoDataset(arguments.data / "annotations_val.json", [], cache_bytes=0)
    truth = dataset.ground_truth()
    rows = []
    for model in arguments.model or [DEFAULT_MODEL]:
        for nms in arguments.nms or NMS:
            found = propose(model, nms, arguments.data)
            boxes = {image_id: proposals.boxes for image_id, proposals in found.items()}
            recall = Recall(boxes, truth, range(10, MOST + 1, 10))
            limits = {f"AR@{limit}": round(recall.average(limit), 3) for limit in LIMITS}
            limits |= {f"R50@{limit}": round(recall.at(0.5, limit), 3) for limit in LIMITS}
            common = {"model": model, "nms": nms, "enough": enough(recall), **limits}
            rows += [{**common, **kept(found, truth, score)} for score in THRESHOLDS]
            report.print_table(rows[-len(THRESHOLDS) :])
            report.write_json(arguments.json, "presets", rows)


if __name__ == "__main__":
    main()
