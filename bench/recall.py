"""Recall of a model on the annotated images and videos: python -m bench.recall --data DIR.

DIR holds coco/annotations_val.json with coco/*.tar, unseen/*.json of things that are none of COCO's
classes, with unseen/*.tar, and video/*.mp4 with MOTChallenge ground truth beside them (*.gt.txt).
The numbers of docs/models.md and of the model cards come from here.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from bench import report
from stream_rpn import api
from stream_rpn.engines import ENGINES
from stream_rpn.evaluation.coco import CocoDataset
from stream_rpn.evaluation.files import read_mot
from stream_rpn.evaluation.propose import propose_dataset
from stream_rpn.evaluation.recall import Recall, by_image

# Boxes on COCO's own images, sea life, blood cells, raccoons.
UNSEEN = ("coco_unseen", "aquarium", "bccd", "raccoon")
VIDEOS = ("tud-campus", "pets09-s2l1-part1")
NUMBERS = ("AR@10", "AR@100", "AR@300", "AR@1000", "R50@100", "R50@300", "R50@1000")


def dataset_of(data, name):
    """Returns annotated pictures: "val", COCO's, or one of UNSEEN, which nobody taught a model."""
    if name == "val":
        annotations, own = data / "coco" / "annotations_val.json", data / "coco" / "val.tar"
    else:
        annotations, own = data / "unseen" / f"{name}.json", data / "unseen" / f"{name}.tar"
    tars = [own] if own.is_file() else sorted((data / "coco").glob("*.tar"))
    return CocoDataset(annotations, tars, cache_bytes=0)


def val2017(dataset):
    """Returns the objects of those pictures that no model of COCO's train2017 has seen."""
    records = json.loads(dataset.path.read_text())["images"]
    ids = {r["id"] for r in records if r["coco_split"] == "val2017"}
    return {i: boxes for i, boxes in dataset.ground_truth().items() if i in ids}


def pictures(pipeline, data):
    """Yields the rows of all pictures, COCO's first."""
    for name in ("val", *UNSEEN):
        dataset = dataset_of(data, name)
        predictions = by_image(propose_dataset(pipeline, dataset))
        yield {"data": name, **Recall(predictions, dataset.ground_truth()).summary()}
        if name == "val":
            yield {"data": "val2017", **Recall(predictions, val2017(dataset)).summary()}


def videos(pipeline, data):
    """Yields the rows of all videos."""
    for name in VIDEOS:
        path = data / "video" / f"{name}.mp4"
        with pipeline.open(str(path)) as stream:
            predictions = by_image(stream)
        truth = read_mot(path.with_suffix(".gt.txt"), stream.info.width, stream.info.height)
        yield {"data": name, **Recall(predictions, truth).summary()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--weights", help="a checkpoint instead of the model's own weights")
    parser.add_argument("--size", type=int, help="shorter side of the input, if another")
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    pipeline = api.open_pipeline(
        arguments.model,
        weights=arguments.weights,
        size=arguments.size,
        engine=arguments.engine,
        dtype=arguments.dtype,
        top=1000,
    )
    rows = [*pictures(pipeline, arguments.data), *videos(pipeline, arguments.data)]
    if arguments.json:
        report.write_json(
            arguments.json,
            "recall",
            rows,
            model=pipeline.model.name,
            engine=pipeline.engine,
            dtype=pipeline.dtype,
            input=asdict(pipeline.model.input_spec),
            proposals=asdict(pipeline.model.proposal_spec),
        )
    report.print_table(rows, ("data", "images", "objects", *NUMBERS))


if __name__ == "__main__":
    main()
