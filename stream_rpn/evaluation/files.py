"""Files that evaluation reads: MOTChallenge ground truth, and proposals saved earlier."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stream_rpn import results
from stream_rpn.evaluation.recall import by_image
from stream_rpn.frame import StreamRPNError


def read_mot(path: str | Path, width: int, height: int) -> dict[int, np.ndarray]:
    """Returns the boxes of MOTChallenge ground truth by frame index from 0, clipped to the frame.

    Frames and pixels count from 1 in the file. Rows of confidence 0 are to be ignored. Annotators
    continue people beyond the border, where no proposal can follow; hence the clipping. Frames
    without a row are not annotated and do not appear.

    Raises:
        StreamRPNError: the file cannot be read, or a line of it.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
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


def read_predictions(path: str | Path) -> dict[int, np.ndarray]:
    """Returns saved proposals as boxes [P, 4] by image id or frame index, best first.

    Reads COCO results (.json), detectron2's box proposals (.pkl) and what stream-rpn itself writes.
    Pickles may hold numbers and arrays only: nothing in them is ever executed.

    Raises:
        StreamRPNError: the file cannot be read, or is none of these.
    """
    path = Path(path)
    if not path.exists():
        raise StreamRPNError(f"there is no results file '{path}'")
    if path.suffix == ".json":
        return _read_coco_results(path)
    if path.suffix in (".pkl", ".pickle"):
        return _read_detectron2(path)
    return by_image(results.read(path))


def _read_coco_results(path: Path) -> dict[int, np.ndarray]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        ids = np.array([row["image_id"] for row in rows], dtype=np.int64)
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
        scores = np.array([row["score"] for row in rows], dtype=np.float64)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StreamRPNError(
            f"'{path}' does not hold COCO results, a list of objects with image_id, bbox and score "
            f"({type(error).__name__}: {error})"
        ) from error
    boxes[:, 2:] += boxes[:, :2]
    order = np.argsort(-scores, kind="stable")
    ids, boxes = ids[order], boxes[order]
    return {int(image_id): boxes[ids == image_id] for image_id in np.unique(ids)}


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numbers, containers and numpy arrays; refuses whatever else a pickle may call."""

    _ALLOWED = frozenset(
        [
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
            *(
                (module, name)
                for module in ("numpy.core.multiarray", "numpy._core.multiarray")
                for name in ("_reconstruct", "scalar")
            ),
            ("numpy._core.numeric", "_frombuffer"),
            ("numpy.core.numeric", "_frombuffer"),
        ]
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it wants to load {module}.{name}")
        return super().find_class(module, name)


def _read_detectron2(path: Path) -> dict[int, np.ndarray]:
    try:
        data = _ArraysOnly(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a damaged pickle raises anything
        raise StreamRPNError(
            f"'{path}' is not read: a proposals pickle may hold arrays and numbers only ({error})"
        ) from error
    keys = ("ids", "boxes", "objectness_logits")
    lists = [data.get(key) for key in keys] if isinstance(data, Mapping) else [None]
    if not all(isinstance(values, Sequence | np.ndarray) for values in lists):
        raise StreamRPNError(f"'{path}' is no detectron2 proposals file: it lacks {keys}")
    mode = data.get("bbox_mode", 0)
    if mode not in (0, 1):
        raise StreamRPNError(
            f"'{path}' has boxes in mode {mode}; 0 (x1, y1, x2, y2) or 1 (x, y, width, height) is "
            "expected"
        )
    predictions = {}
    for image_id, rows, logits in zip(*lists, strict=True):
        boxes = np.array(rows, dtype=np.float64).reshape(-1, 4)
        if mode == 1:
            boxes[:, 2:] += boxes[:, :2]
        predictions[int(image_id)] = boxes[np.argsort(-np.asarray(logits), kind="stable")]
    return predictions
