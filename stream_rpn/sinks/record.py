"""What stands in result files whatever their format: the header, and records read back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stream_rpn.frame import Drop, Proposals, StreamInfo

FORMAT_VERSION = 1


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
"""Yields the proposals of a file frame by frame; raises StreamRPNError where it is no such file."""


def make_header(
    info: StreamInfo, *, model: str, parameters: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns what stands at the head of a result file: version, source, model and parameters.

    Values that JSON does not know become what it does: infinities and NaN None, tuples lists.
    """
    stream = dataclasses.asdict(info)
    del stream["stem"]
    header = {
        "stream_rpn": FORMAT_VERSION,
        **stream,
        "model": model,
        "parameters": parameters or {},
    }
    return {name: _plain(value) for name, value in header.items()}


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
    pts: int | None = None,
    pts_seconds: float | None = None,
    unix_seconds: float | None = None,
    width: int = 0,
    height: int = 0,
    image_id: int | None = None,
    name: str | None = None,
    drops: tuple[Drop, ...] = (),
    source: str = "",
) -> Proposals:
    """Returns the record of a frame that was read; what its format does not hold is neutral."""
    unknown = np.full(len(scores), -1, np.int32)
    return Proposals(
        frame=frame,
        pts=pts,
        pts_seconds=pts_seconds,
        unix_seconds=unix_seconds,
        width=width,
        height=height,
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        scores=np.asarray(scores, np.float32),
        levels=unknown if levels is None else np.asarray(levels, np.int32),
        anchors=unknown if anchors is None else np.asarray(anchors, np.int32),
        input_boxes=np.zeros((len(scores), 4), np.float32),
        drops=drops,
        image_id=image_id,
        name=name,
        source=source,
    )
