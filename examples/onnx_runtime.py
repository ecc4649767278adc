"""Runs an exported model in ONNX Runtime, in numpy and Pillow alone, neither torch nor stream-rpn.

stream-rpn export -o nanodet_m.onnx
python examples/onnx_runtime.py nanodet_m.onnx picture.jpg
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def to_input(image: Image.Image, spec: dict[str, Any]) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns images [1, 3, H, W] float32, and (height, width) without the padding."""
    scale = min(spec["min_size"] / min(image.size), spec["max_size"] / max(image.size))
    width, height = (math.floor(side * scale) for side in image.size)
    # Pillow's filter is antialiased; what was trained without is a little off by it.
    rgb = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    normalised = (rgb / np.float32(255) - spec["mean"]) / spec["std"]
    below, right = (-side % spec["size_divisor"] for side in (height, width))
    padded = np.pad(normalised, ((0, below), (0, right), (0, 0)))
    return padded.transpose(2, 0, 1)[None].astype(np.float32), (height, width)


def suppressed(boxes: np.ndarray, threshold: float) -> list[int]:
    """Returns the indices of the boxes [N, 4], best first, that no better one suppresses."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    kept: list[int] = []
    left = np.arange(len(boxes))
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        near = np.maximum(boxes[best, :2], boxes[left, :2])
        far = np.minimum(boxes[best, 2:], boxes[left, 2:])
        overlap = np.clip(far - near, 0, None).prod(axis=1)
        left = left[overlap <= threshold * (areas[best] + areas[left] - overlap)]
    return kept


def proposals(
    outputs: dict[str, np.ndarray],
    description: dict[str, Any],
    padded: Sequence[int],
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes [N, 4] in pixels of the network's input and scores [N], best first.

    Args:
        outputs: of the graph, by name.
        description: the JSON file.
        padded: (height, width) of the network's input.
        size: the same without padding.
    """
    spec = description["proposals"]
    boxes, scores = [], []
    for level in description["levels"]:
        objectness, deltas = outputs[level["objectness"]], outputs[level["deltas"]]
        height, width = objectness.shape[2:]
        base = np.array(level["base_anchors"], np.float32)
        logits = objectness[0].transpose(1, 2, 0).reshape(-1)
        if level["softmax"]:
            logits = logits[1::2] - logits[::2]
        y_step, x_step = level["stride"] or (padded[0] // height, padded[1] // width)
        y, x = np.mgrid[:height, :width] * np.array([y_step, x_step]).reshape(2, 1, 1)
        anchors = (np.stack([x, y, x, y], -1)[:, :, None] + base).reshape(-1, 4)
        moves = deltas[0].transpose(1, 2, 0).reshape(-1, 4)
        best = np.argsort(-logits, kind="stable")[: spec["pre_nms_top_n"]]
        logits, anchors, moves = logits[best], anchors[best], moves[best]
        sides = anchors[:, 2:] - anchors[:, :2]
        centres = anchors[:, :2] + sides / 2 + moves[:, :2] * sides
        half = np.exp(np.minimum(moves[:, 2:], math.log(1000 / 16))) * sides / 2
        limits = (size[1], size[0])
        near, far = (np.clip(corner, 0, limits) for corner in (centres - half, centres + half))
        score = 1 / (1 + np.exp(-logits))
        good = ((far - near).min(axis=1) >= spec["min_size"]) & (score >= spec["score_thresh"])
        found, score = np.concatenate([near, far], axis=1)[good], score[good]
        kept = suppressed(found, spec["nms_thresh"])
        boxes.append(found[kept])
        scores.append(score[kept])
    order = np.argsort(-np.concatenate(scores), kind="stable")[: spec["post_nms_top_n"]]
    return np.concatenate(boxes)[order], np.concatenate(scores)[order]


def propose(
    run: Callable[[np.ndarray], dict[str, np.ndarray]],
    description: dict[str, Any],
    image: Image.Image,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes [N, 4] in pixels of the image and scores [N], best first.

    `run` takes the input of the graph and returns its outputs by name.
    """
    images, size = to_input(image, description["input"])
    boxes, scores = proposals(run(images), description, images.shape[2:], size)
    return boxes * np.tile([image.width / size[1], image.height / size[0]], 2), scores


def main() -> None:
    import onnxruntime

    if len(sys.argv) != 3:
        sys.exit("usage: python examples/onnx_runtime.py MODEL.onnx PICTURE")
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    description = json.loads(Path(f"{sys.argv[1]}.json").read_text(encoding="utf-8"))
    boxes, scores = propose(
        lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True)),
        description,
        Image.open(sys.argv[2]),
    )
    for box, score in zip(boxes[:10], scores, strict=False):
        print(f"{score:.3f}  " + " ".join(f"{side:7.1f}" for side in box))


if __name__ == "__main__":
    main()
