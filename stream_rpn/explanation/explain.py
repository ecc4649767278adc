"""`stream_rpn.explain`: the door to everything in this room."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from stream_rpn import models
from stream_rpn.api import LoadOptions, load
from stream_rpn.explanation.facts import Explanation, explain_frame, find_frame
from stream_rpn.explanation.look import copy_on_cpu
from stream_rpn.timing import StageTimes

if TYPE_CHECKING:
    from stream_rpn.rpn import RPN


def explain(
    source: str | Path,
    *,
    model: str | Path | RPN = models.DEFAULT_MODEL,
    frame: int | None = None,
    time: float | None = None,
    at: tuple[float, float] | None = None,
    gt: str | Path | None = None,
    threads: int | None = None,
    **load_options: Unpack[LoadOptions],
) -> Explanation:
    """Returns everything about one frame's proposals: where they come from, and why no others.

    Computed by PyTorch, on the CPU, in float32: the boxes are those of `stream` up to rounding.

    Args:
        source: as for `stream`.
        model: see `load`; an RPN of your own stays as it is.
        frame: its number, from 0; the first one where neither it nor a time is given.
        time: the first frame from so many seconds on.
        at: the point to look at, x and y in pixels; by default the first object that was missed,
            or where the best proposal comes from.
        gt: ground truth: COCO instances (.json) of pictures, or MOTChallenge (.txt) of a video.
        threads: cores to compute on; by default all that this process may use.
        **load_options: see `load`.

    Raises:
        StreamRPNError: something cannot be read, there is no such frame or point, or no object in
            the ground truth of the frame; in one sentence.
    """
    rpn = copy_on_cpu(load(model, **load_options), threads)
    times = StageTimes()
    chosen = find_frame(str(source), frame, time, times)
    return explain_frame(rpn, str(source), chosen, times, at=at, gt=gt)
