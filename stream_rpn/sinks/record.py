"""What stands in result files whatever their format: the header, and records read back."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from stream_rpn import __version__
from stream_rpn.drops import Drop
from stream_rpn.embedding import DTYPE
from stream_rpn.frame import Proposals, StreamInfo
from stream_rpn.sources.address import local_file

FORMAT_VERSION = 1

NO_TEXT = "backslashreplace"  # file names may hold bytes that are no UTF-8, a text may not

DAMAGE: tuple[type[Exception], ...] = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    RuntimeError,
)
"""What goes wrong in reading a file that is damaged, or no result file at all."""


@dataclass
class Contents:
    """What a reader finds in a file beside the proposals that it yields.

    Attributes:
        headers: of the sources met so far; the first one before anything is yielded.
        ends: the closing totals of sources, all of them at the end.
        complete: set at the end of a whole file.
    """

    headers: list[dict[str, Any]] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = False

    def settle(self) -> None:
        """Sets `complete` at the end of a file: every source in it has ended, none was stopped."""
        self.complete = (
            bool(self.headers)
            and len(self.headers) == len(self.ends)
            and not any("stopped" in end for end in self.ends)
        )


Reader = Callable[[Path, Contents], Iterator[Proposals]]
"""Yields the proposals of a file frame by frame, and fills in `Contents` on the way.

It puts the first header there before it yields anything, closing totals as it meets them, and sets
`complete` at the very end, of a whole file only. Raises StreamRPNError where it is no such file.
"""


def make_header(
    info: StreamInfo,
    *,
    model: str = "",
    parameters: Mapping[str, Any] | None = None,
    **made_by: Any,
) -> dict[str, Any]:
    """Returns what stands at the head of a result file: what was read, when, and by what.

    Beside the fields of `StreamInfo` (the rate as `source_fps`, since summaries have an `fps` that
    is another) these are the `version` of stream-rpn, `started` (UTC), `source_bytes` where the
    source is a file, and what is given here.
    Values that JSON does not know become what it does: infinities and NaN None, tuples lists.

    Args:
        info: of the source.
        model: the model's name.
        parameters: every number that shaped the results.
        **made_by: what else is known of their making: `weights` (file and SHA-256), `engine`,
            `device`, `dtype`.
    """
    stream = dataclasses.asdict(info)
    del stream["stem"]
    stream["source_fps"] = stream.pop("fps")
    header = {
        "stream_rpn": FORMAT_VERSION,
        "version": __version__,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **stream,
        "source_bytes": _num_bytes(info.source),
        "model": model,
        **made_by,
        "parameters": parameters or {},
    }
    return {name: _plain(value) for name, value in header.items()}


def picture_name(frame: int, name: str | None) -> str:
    """Returns the name of a picture's file; of a frame that has none, what CVAT calls it."""
    return f"frame_{frame:06d}.jpg" if name is None else name


def lacking(why: str) -> dict[str, Any]:
    """Returns the totals of a source that has no results where it should: "failed", …."""
    return {"frames": 0, "complete": False, "stopped": why}


def _num_bytes(source: str) -> int | None:
    """Returns the size of the file that a source is, None where it is none."""
    with suppress(OSError, ValueError):
        if (path := local_file(source)) is not None:
            return path.stat().st_size
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def saved_proposals(
    frame: int,
    boxes: np.ndarray | Sequence[Any],
    scores: np.ndarray | Sequence[float],
    levels: np.ndarray | Sequence[int] | None = None,
    anchors: np.ndarray | None = None,
    *,
    track_ids: np.ndarray | Sequence[int] | None = None,
    embeddings: np.ndarray | None = None,
    pts: int | None = None,
    pts_seconds: float | None = None,
    unix_seconds: float | None = None,
    width: int = 0,
    height: int = 0,
    image_id: int | None = None,
    held: int | None = None,
    name: str | None = None,
    drops: tuple[Drop, ...] = (),
    source: str = "",
) -> Proposals:
    """Returns the record of a frame that was read; what its format does not hold is neutral.

    Raises:
        ValueError: these cannot be the proposals of a frame.
        TypeError: neither can these.
    """
    unknown = np.full(len(scores), -1, np.int32)
    boxes = np.asarray(boxes, np.float32)
    scores = np.asarray(scores, np.float32)
    levels = unknown if levels is None else _integers(levels)
    anchors = unknown if anchors is None else _integers(anchors)
    tracks = None if track_ids is None else _integers(track_ids, np.int64)
    count = (len(scores),)
    if boxes.shape != (*count, 4) and (boxes.size or count != (0,)):
        raise ValueError(f"there are boxes of shape {boxes.shape} and {len(scores)} scores")
    if not scores.shape == levels.shape == anchors.shape == count:
        raise ValueError("scores and levels are not as many as boxes")
    if tracks is not None and tracks.shape != count:
        raise ValueError("track ids are not as many as boxes")
    if embeddings is not None:
        if embeddings.ndim != 2 or embeddings.dtype != DTYPE or len(embeddings) != len(scores):
            raise ValueError("embeddings are not a vector for each box")
        if not np.isfinite(embeddings).all():
            raise ValueError("embeddings must be finite")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError("boxes and scores must be finite")
    optional = (value or 0 for value in (pts, image_id, held))
    for value in (frame, width, height, *optional, *(drop.count for drop in drops)):
        operator.index(value)
    for seconds in (pts_seconds, unix_seconds):
        if seconds is not None:
            float(seconds)
    for text in (name, source):
        if not isinstance(text, str | None):
            raise TypeError("names are text")
    return Proposals(
        frame=frame,
        pts=pts,
        pts_seconds=pts_seconds,
        unix_seconds=unix_seconds,
        width=width,
        height=height,
        boxes=boxes.reshape(-1, 4),
        scores=scores,
        levels=levels,
        anchors=anchors,
        input_boxes=np.zeros((len(scores), 4), np.float32),
        drops=drops,
        image_id=image_id,
        held=held,
        track_ids=tracks,
        embeddings=embeddings,
        name=name,
        source=source,
    )


def _integers(values: np.ndarray | Sequence[int], dtype: type = np.int32) -> np.ndarray:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError("levels, anchors and track ids are integers")
    return array.astype(dtype)


def check_header(value: Any) -> dict[str, Any]:
    """Returns the header of a source, which is known to tell its name from now on.

    Raises:
        TypeError: it is no header.
    """
    header = check_end(value)
    if not isinstance(header.get("source"), str):
        raise TypeError("a header tells the source")
    if "fps" in header:  # as the first release called it
        header.setdefault("source_fps", header.pop("fps"))
    return header


def embedding_length(header: Mapping[str, Any]) -> int:
    """Returns how many numbers a box's vector has in the results of a source; 0 without vectors."""
    length: int = header["parameters"].get("embedding", {}).get("length", 0)
    return length


def check_end(value: Any) -> dict[str, Any]:
    """Returns the totals of a source.

    Raises:
        TypeError: they are none.
    """
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value
