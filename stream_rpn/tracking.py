"""Which boxes of successive frames are one object (`--track`), by roboflow's library `trackers`.

Proposals are many and nest, and trackers take every box for an object. So only boxes above a score,
after an NMS of their own, are followed; the others stay, with the id −1. The library's thresholds
(a track begins at 0.7) are made for detectors, whose scores end near 1; ours rarely pass 0.7, and
much below 0.5 are parts of objects and what is none. What these numbers give is measured by
`bench.tracking`, on whose two clips they were chosen.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stream_rpn.frame import Proposals, StreamRPNError

if TYPE_CHECKING:
    import numpy as np

TRACKERS = {
    "bytetrack": "ByteTrackTracker",
    "sort": "SORTTracker",
    "ocsort": "OCSORTTracker",
    "botsort": "BoTSORTTracker",
    "cbiou": "CBIoUTracker",
}
"""The library's classes by the names of `--track`."""

NO_TRACK = -1
"""The id of a box that is of no track."""

# For a source that tells no rate; the library's own.
_USUAL_FPS = 30.0


@dataclass(frozen=True)
class TrackSpec:
    """How objects are followed.

    Attributes:
        tracker: a name of `TRACKERS`.
        score: the least score of a box that is followed.
        nms: the IoU above which, of boxes that could be followed, the worse is not.
        start_score: the least score of a box that begins a track.
        sure_score: boxes of this score find their tracks before the others do.
        lost_seconds: how long an object that is not seen is waited for.

    Raises:
        StreamRPNError: there is no tracker of that name.
    """

    tracker: str = "bytetrack"
    score: float = 0.3
    nms: float = 0.5
    start_score: float = 0.5
    sure_score: float = 0.5
    lost_seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.tracker not in TRACKERS:
            raise StreamRPNError(
                f"there is no tracker {self.tracker!r}; known are {', '.join(TRACKERS)}"
            )

    @classmethod
    def parse(cls, track: str | bool | None) -> TrackSpec | None:
        """Returns what a name stands for, True for ByteTrack; None for None, False and "off".

        Raises:
            StreamRPNError: there is no such tracker, or the library is not installed.
        """
        if track is None or track is False or track == "off":
            return None
        spec = cls() if track is True else cls(tracker=str(track))
        spec.library_class()
        return spec

    def library_class(self) -> Any:
        """Returns the library's class.

        Raises:
            StreamRPNError: the library is not installed, or is another one of that name.
        """
        try:
            import trackers

            return getattr(trackers, TRACKERS[self.tracker])
        except (ImportError, AttributeError) as error:
            raise StreamRPNError(
                f"tracking by {self.tracker} needs the library trackers; "
                "`pip install 'stream-rpn[track]'` provides it"
            ) from error


class Tracking:
    """The tracks of one source.

    Args:
        spec: how objects are followed.
        fps: frames a second of the source, None where unknown.
    """

    def __init__(self, spec: TrackSpec, fps: float | None) -> None:
        self._spec = spec
        found = spec.library_class()
        settings = {
            # The library counts its buffer in frames of thirty a second.
            "lost_track_buffer": round(30 * spec.lost_seconds),
            "frame_rate": fps if fps is not None and 1 <= fps <= 1000 else _USUAL_FPS,
            "track_activation_threshold": spec.start_score,
            "high_conf_det_threshold": spec.sure_score,
            "enable_cmc": False,  # wants pixels, where results have boxes
        }
        known = inspect.signature(found).parameters
        self._tracker = found(**{name: v for name, v in settings.items() if name in known})
        self._looked: int | None = None
        self._ids: np.ndarray | None = None
        self._seconds = -math.inf

    def track(self, proposals: Proposals) -> Proposals:
        """Returns the proposals of the next frame with their `track_ids`, [N] int64.

        Time goes on as the frames' own does, so that objects are looked for as much further on as
        frames were lost or left out between. A frame that was held has the ids of the one that it
        shows again: nothing has moved since.
        """
        if self._ids is None or proposals.held is None or proposals.held != self._looked:
            self._ids = self._next(proposals)
            self._looked = proposals.frame
        return replace(proposals, track_ids=self._ids.copy())

    def _next(self, proposals: Proposals) -> np.ndarray:
        # Here, as `--help` tells of trackers at once.
        import numpy as np
        import supervision

        rows = np.flatnonzero(proposals.scores >= self._spec.score)
        followed = supervision.Detections(
            xyxy=proposals.boxes[rows].astype(np.float64),
            confidence=proposals.scores[rows],
            class_id=np.zeros(len(rows), int),
            data={"row": rows},
        ).with_nms(self._spec.nms, class_agnostic=True)
        tracked = self._tracker.update(followed, timestamp=self._time(proposals))
        ids = np.full(len(proposals), NO_TRACK, np.int64)
        if len(tracked):
            ids[tracked.data["row"]] = tracked.tracker_id
        # From 1 up, as MOTChallenge counts.
        return np.where(ids >= 0, ids + 1, NO_TRACK)

    def _time(self, proposals: Proposals) -> float | None:
        """Returns when a frame is shown, later than the one before; None where nothing tells."""
        if proposals.pts_seconds is None:
            return None
        self._seconds = max(proposals.pts_seconds, math.nextafter(self._seconds, math.inf))
        return self._seconds
