"""Recall by how much sure sides of a box count: python -m bench.certainty --data DIR.

The `certainty` of the NanoDet models (see `models/gfl_head.py`) is held to this: on COCO's
pictures, and on things that are none of COCO's classes. DIR is that of `bench.recall`. Computed by
torch in float32; objectness is linear in it: the network runs once a picture for all its values.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import torch

from bench import report
from bench.recall import UNSEEN, dataset_of
from stream_rpn import api
from stream_rpn.evaluation.recall import Recall
from stream_rpn.input_spec import frame_boxes
from stream_rpn.models import DEFAULT_MODEL
from stream_rpn.preprocess import image_to_input

CERTAINTIES = (0.0, 2.0, 4.0, 6.0, 8.0)
LIMITS = (100, 300)
NUMBERS = ("AR@100", "R50@100", "R50@300")


@torch.inference_mode()
def boxes_by_certainty(rpn, image):
    """Yields each value of CERTAINTIES with the boxes [n, 4] that it gives of an image."""
    inputs, sizes = image_to_input([image], rpn.input_spec)
    maps = list(rpn.features(inputs).values())
    strides = rpn.strides(inputs, maps)
    rpn.head.certainty = 0.0
    without, deltas = rpn.head(maps)
    rpn.head.certainty = 1.0
    once, _ = rpn.head(maps)
    size = (int(sizes[0, 0]), int(sizes[0, 1]))
    for certainty in CERTAINTIES:
        objectness = [a + certainty * (b - a) for a, b in zip(without, once, strict=True)]
        kept = rpn.proposals_of_heads(objectness, deltas, strides, sizes)
        boxes = kept.boxes[0, : int(kept.count[0])].numpy()
        yield certainty, frame_boxes(boxes, size, image.shape[:2])


def rows_of(rpn, dataset, every):
    """Yields a row a certainty: recall on every so many pictures of a set."""
    found, truth = defaultdict(dict), {}
    for index in range(0, len(dataset), every):
        sample = dataset[index]
        truth[sample.image_id] = sample.boxes
        for certainty, boxes in boxes_by_certainty(rpn, sample.image):
            found[certainty][sample.image_id] = boxes
    for certainty, predictions in found.items():
        recall = Recall(predictions, truth, LIMITS).summary()
        kept = {name: recall[name] for name in ("images", "objects", *NUMBERS)}
        yield {"certainty": certainty, **kept}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", action="append", help=f"default: {DEFAULT_MODEL}")
    parser.add_argument("--every", type=int, default=1, help="of the pictures of each set (1)")
    parser.add_argument("--json", type=Path, default=Path("bench/results/certainty.json"))
    arguments = parser.parse_args()
    rows = []
    for model in arguments.model or [DEFAULT_MODEL]:
        rpn = api.load(model, top=max(LIMITS))
        shipped = rpn.head.certainty
        for name in ("val", *UNSEEN):
            dataset = dataset_of(arguments.data, name)
            new = [
                {"model": model, "data": name, "shipped": row["certainty"] == shipped, **row}
                for row in rows_of(rpn, dataset, arguments.every)
            ]
            report.print_table(new)
            rows += new
            report.write_json(arguments.json, "certainty", rows, every=arguments.every)


if __name__ == "__main__":
    main()
