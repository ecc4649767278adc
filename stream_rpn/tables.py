"""Proposals as what other libraries take: tables of Arrow and pandas, Detections of supervision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stream_rpn.frame import Proposals, StreamRPNError

if TYPE_CHECKING:
    import pandas
    import pyarrow
    import supervision


# What all boxes of a frame share.
_OF_FRAMES = {"image_id": np.int64, "frame": np.int64, "pts": np.int64, "pts_seconds": np.float64}


@dataclass
class _Numbers:
    """A column of numbers, some of which are missing."""

    values: np.ndarray
    missing: np.ndarray


@dataclass
class _Texts:
    """A column of few texts: the index of each, −1 where it is missing."""

    codes: np.ndarray
    texts: list[str]


@dataclass
class _Vectors:
    """A column of vectors [N, D], some of which are missing."""

    values: np.ndarray
    missing: np.ndarray


def _columns(frames: Iterable[Proposals]) -> dict[str, _Numbers | _Texts | _Vectors]:
    """Returns the columns by name, in order; `track_id` and `embedding` where there are any."""
    sources: dict[str, int] = {}
    names: dict[str, int] = {}
    facts: list[tuple[int, int, int | None, int, int | None, float | None]] = []
    counts: list[int] = []
    arrays: list[tuple[np.ndarray, ...]] = []
    tracks: list[np.ndarray | None] = []
    vectors: list[np.ndarray | None] = []
    for p in frames:
        if not len(p):
            continue
        counts.append(len(p))
        arrays.append((p.boxes, p.scores, p.levels, p.anchors))
        tracks.append(p.track_ids)
        vectors.append(p.embeddings)
        source = sources.setdefault(p.source, len(sources)) if p.source else -1
        name = names.setdefault(p.name, len(names)) if p.name else -1
        facts.append((source, name, p.image_id, p.frame, p.pts, p.pts_seconds))
    source_codes, name_codes, *of_frame = zip(*facts, strict=True) if facts else [()] * 6
    empty = (np.empty((0, 4), np.float32), np.empty(0, np.float32), *[np.empty(0, np.int32)] * 2)
    boxes, scores, levels, anchors = map(np.concatenate, zip(*(arrays or [empty]), strict=True))

    def repeated(values: Sequence[Any], dtype: type) -> np.ndarray:
        return np.repeat(np.array(values, dtype), counts)

    columns: dict[str, _Numbers | _Texts | _Vectors] = {
        "source": _Texts(repeated(source_codes, np.int32), list(sources)),
        "name": _Texts(repeated(name_codes, np.int32), list(names)),
    }
    for (title, dtype), of_frames in zip(_OF_FRAMES.items(), of_frame, strict=True):
        known = [0 if value is None else value for value in of_frames]
        missing = [value is None for value in of_frames]
        columns[title] = _Numbers(repeated(known, dtype), repeated(missing, bool))
    for title, side in zip(("x1", "y1", "x2", "y2"), boxes.T, strict=True):
        columns[title] = _Numbers(side, np.zeros(len(side), bool))
    columns["score"] = _Numbers(scores, np.zeros(len(scores), bool))
    columns["level"] = _Numbers(levels, levels < 0)
    columns["anchor"] = _Numbers(anchors, anchors < 0)
    if any(ids is not None for ids in tracks):
        followed = np.concatenate(
            [np.full(n, -1) if ids is None else ids for n, ids in zip(counts, tracks, strict=True)]
        )
        columns["track_id"] = _Numbers(followed, followed < 0)
    first = next((v for v in vectors if v is not None), None)
    if first is not None:
        rows = [
            np.zeros((n, first.shape[1]), first.dtype) if v is None else v
            for n, v in zip(counts, vectors, strict=True)
        ]
        columns["embedding"] = _Vectors(
            np.concatenate(rows), repeated([v is None for v in vectors], bool)
        )
    return columns


def arrow_table(frames: Iterable[Proposals]) -> pyarrow.Table:
    """Returns the boxes of frames as a table of Arrow.

    Raises:
        StreamRPNError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise StreamRPNError(
            "pyarrow is not installed; `pip install 'stream-rpn[parquet]'` provides it"
        ) from error
    arrays = {}
    for name, column in _columns(frames).items():
        if isinstance(column, _Texts):
            codes = pa.array(column.codes, mask=column.codes < 0)
            arrays[name] = pa.DictionaryArray.from_arrays(
                codes, pa.array(column.texts, pa.string())
            )
        elif isinstance(column, _Vectors):
            arrays[name] = pa.FixedSizeListArray.from_arrays(
                pa.array(column.values.ravel()),
                column.values.shape[1],
                mask=pa.array(column.missing),
            )
        else:
            arrays[name] = pa.array(column.values, mask=column.missing)
    return pa.table(arrays)


def data_frame(frames: Iterable[Proposals]) -> pandas.DataFrame:
    """Returns the boxes of frames as a data frame of pandas.

    Raises:
        StreamRPNError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise StreamRPNError("pandas is not installed; `pip install pandas` provides it") from error
    series: dict[str, Any] = {}
    for name, column in _columns(frames).items():
        if isinstance(column, _Texts):
            series[name] = pd.Categorical.from_codes(column.codes, column.texts)
        elif isinstance(column, _Vectors):
            rows = zip(column.values, column.missing, strict=True)
            series[name] = pd.Series([None if none else v for v, none in rows], dtype=object)
        elif column.values.dtype.kind == "f":
            series[name] = np.where(column.missing, np.nan, column.values)
        elif name == "frame":
            series[name] = column.values
        else:
            # Integers of pandas' own: numpy's know nothing that is missing.
            series[name] = pd.arrays.IntegerArray(column.values, column.missing)
    return pd.DataFrame(series)


def detections(proposals: Proposals) -> supervision.Detections:
    """Returns the boxes of a frame for supervision: class 0, confidence = score.

    Raises:
        StreamRPNError: supervision is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise StreamRPNError(
            "supervision is not installed; `pip install supervision` provides Detections"
        ) from error
    return supervision.Detections(
        xyxy=proposals.boxes,
        confidence=proposals.scores,
        class_id=np.zeros(len(proposals), int),
        tracker_id=proposals.track_ids,
    )
