"""The selection of a source's frames: by time, by index, by rate."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

from stream_rpn.drops import Drop
from stream_rpn.frame import Frame, StreamRPNError
from stream_rpn.gate import GateSpec
from stream_rpn.limits import MAX_PIXELS
from stream_rpn.views import ViewSpec

_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:\.\d*)?)")


def parse_time(text: str) -> float:
    """Returns the seconds that "90", "1.5", "01:30" or "00:01:30.250" stand for.

    Raises:
        StreamRPNError: `text` is not a time.
    """
    clock = _CLOCK.fullmatch(text.strip())
    if clock:
        hours, minutes, seconds = clock.groups(default="0")
        if float(seconds) < 60 and (int(minutes) < 60 or clock[1] is None):
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    else:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if 0 <= value < math.inf:
            return value
    raise StreamRPNError(f"{text!r} is not a time; give seconds (12.5) or HH:MM:SS (00:00:12.5)")


def select(
    frames: Iterable[Frame],
    *,
    start: float | None = None,
    end: float | None = None,
    stride: int = 1,
    fps: float | None = None,
) -> Iterator[Frame]:
    """Yields the chosen frames; they keep their index, and inherit the drops of skipped ones.

    Args:
        frames: in presentation order.
        start: seconds after the first timestamp, inclusive.
        end: seconds after the first timestamp, exclusive; nothing is read past it.
        stride: keeps the frames whose index is a multiple of it.
        fps: keeps, for each tick of 1 / fps seconds from `start` on, the first frame at or after
            it, so a slower stream passes whole and a variable rate is thinned where it is faster.

    A frame without a timestamp counts as shown at the time of the one before it.

    Raises:
        StreamRPNError: a time was asked for and the first frame has no timestamp.
    """
    if stride < 1:
        raise StreamRPNError(f"the stride must be 1 or more, got {stride}")
    if fps is not None and not 0 < fps < math.inf:
        raise StreamRPNError(f"the frame rate to select must be above 0, got {fps}")
    timed = start is not None or end is not None or fps is not None
    start = start or 0.0
    # Containers round timestamps, Matroska to 1 ms: a frame that much early still meets its tick.
    slack = min(1e-3, 0.1 / fps) if fps else 0.0
    next_tick = start
    first_pts: float | None = None
    time = 0.0
    skipped: tuple[Drop, ...] = ()
    for frame in frames:
        keep = frame.index % stride == 0
        if timed:
            if frame.pts_seconds is not None:
                if first_pts is None:
                    first_pts = frame.pts_seconds
                time = frame.pts_seconds - first_pts
            elif first_pts is None:
                raise StreamRPNError(
                    "the source has no timestamps, so frames cannot be chosen by time; "
                    "use a stride instead"
                )
            if end is not None and time >= end:
                return
            keep = keep and time >= start
            if fps is not None and keep:
                keep = time >= next_tick - slack
                if keep:
                    next_tick = start + (math.floor((time - start + slack) * fps) + 1) / fps
        drops = skipped + frame.drops
        skipped = () if keep else drops
        if keep:
            frame.drops = drops
            yield frame
        # A surface of NVDEC's small pool must not live on here.
        del frame


@dataclass(frozen=True)
class Selection:
    """The frames of a source that are used.

    Attributes:
        start: seconds from the first timestamp; frames before it are left out.
        end: seconds from the first timestamp; frames from it on are left out.
        stride: every stride-th frame, by index.
        fps: at most so many frames a second, by time.
        max_frames: stop after so many results.
        video_stream: index of the video stream in a file of several.
        decoder: "auto", "cpu" or "nvdec".
        max_pixels: larger frames are refused.
        view: what is looked at of each frame, None for all of it.
        gate: how much a picture must change to be looked at; None leaves that to the pipeline.

    Raises:
        StreamRPNError: NVDEC is asked for, whose frames cannot be cut.
    """

    start: float | None = None
    end: float | None = None
    stride: int = 1
    fps: float | None = None
    max_frames: int | None = None
    video_stream: int | None = None
    decoder: Literal["auto", "cpu", "nvdec"] = "auto"
    max_pixels: int = MAX_PIXELS
    view: ViewSpec | None = None
    gate: GateSpec | None = None

    def __post_init__(self) -> None:
        if self.view is None or not self.view.cuts:
            return
        if self.decoder == "nvdec":
            raise StreamRPNError(
                "frames that NVDEC decodes stay on the GPU and cannot be cut for tiles or crops; "
                "use the decoder cpu"
            )
        object.__setattr__(self, "decoder", "cpu")

    def frames(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Yields the chosen ones of the frames, whose number is not limited here.

        Raises:
            StreamRPNError: a time was asked for and there are none, or a region does not fit.
        """
        chosen = select(frames, start=self.start, end=self.end, stride=self.stride, fps=self.fps)
        return chosen if self.view is None and self.gate is None else self._marked(chosen)

    def _marked(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Yields frames that say what is asked of their source."""
        for frame in frames:
            if self.view is not None:
                self.view.check(frame.width, frame.height)
            frame.view, frame.gate = self.view, self.gate
            yield frame
            # A surface of NVDEC's small pool must not live on here.
            del frame

    def record(self) -> dict[str, Any]:
        """Returns which frames were used, as it stands in result files."""
        apart = ("view", "gate")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}
