"""Detectron2's precomputed proposals: a pickle of numpy arrays and numbers, and nothing else."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stream_rpn.frame import Proposals, StreamRPNError
from stream_rpn.pickles import read_arrays
from stream_rpn.sinks.record import Contents, saved_proposals
from stream_rpn.sinks.sink import WholeFileSink

XYXY_ABS, XYWH_ABS = 0, 1  # of detectron2's BoxMode

# The logit of a score is finite so.
_LEAST = 1e-7


class Detectron2Sink(WholeFileSink):
    """Writes what `DATASETS.PROPOSAL_FILES_TRAIN` names, best boxes first.

    That is `{"ids", "boxes", "objectness_logits", "bbox_mode"}`: of each picture its id (of the
    annotation file, else the index of the frame), boxes [N, 4] float32 and logits [N] float32; and
    the mode 0, for x1, y1, x2, y2. The lists are in memory until the end, as a pickle is one
    object: 6 KB a picture of 300 boxes.
    """

    def _open(self) -> None:
        super()._open()
        self._lists: dict[str, list[Any]] = {"ids": [], "boxes": [], "objectness_logits": []}

    def _write(self, proposals: Proposals) -> None:
        image_id = proposals.image_id
        self._lists["ids"].append(proposals.frame if image_id is None else image_id)
        self._lists["boxes"].append(np.array(proposals.boxes, np.float32))
        scores = np.clip(proposals.scores.astype(np.float64), _LEAST, 1 - _LEAST)
        self._lists["objectness_logits"].append(np.log(scores / (1 - scores)).astype(np.float32))

    def _close(self) -> None:
        # Protocol 4: those of detectron2's Pythons read it.
        pickle.dump({**self._lists, "bbox_mode": XYXY_ABS}, self._file, protocol=4)
        super()._close()


def read_detectron2(path: Path, contents: Contents) -> Iterator[Proposals]:
    """Yields the images of detectron2's proposals, best boxes first; `frame` is the image's id.

    Pickles may hold numbers and arrays only: nothing in them is ever executed.
    """
    try:
        data = read_arrays(path)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise StreamRPNError(
            f"'{path}' is not read: a proposals pickle may hold arrays and numbers only ({error})"
        ) from error
    keys = ("ids", "boxes", "objectness_logits")
    lists = [data.get(key) for key in keys] if isinstance(data, Mapping) else [None]
    if not all(isinstance(values, Sequence | np.ndarray) for values in lists):
        raise StreamRPNError(f"'{path}' is no detectron2 proposals file: it lacks {keys}")
    mode = data.get("bbox_mode", XYXY_ABS)
    if mode not in (XYXY_ABS, XYWH_ABS):
        raise StreamRPNError(
            f"'{path}' has boxes in mode {mode}; 0 (x1, y1, x2, y2) or 1 (x, y, width, height) is "
            "expected"
        )
    try:
        for image_id, rows, logits in zip(*lists, strict=True):
            boxes = np.array(rows, dtype=np.float64).reshape(-1, 4)
            if mode == XYWH_ABS:
                boxes[:, 2:] += boxes[:, :2]
            logits = np.asarray(logits, dtype=np.float64)
            order = np.argsort(-logits, kind="stable")
            if order.shape != boxes.shape[:1]:
                raise ValueError(f"{len(boxes)} boxes have scores of shape {order.shape}")
            scores = 1 / (1 + np.exp(-logits[order].clip(-50, 50)))
            yield saved_proposals(int(image_id), boxes[order], scores, image_id=int(image_id))
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise StreamRPNError(
            f"'{path}' is no detectron2 proposals file: its lists do not fit together "
            f"({type(error).__name__}: {error})"
        ) from error
    contents.complete = True
