"""What a picture shows of proposals: which boxes, in which colours, and what is written on them.

Nothing here imports PyAV or numpy before something is drawn: `--help` knows the choices.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal, TypedDict

from stream_rpn.frame import Proposals, StreamRPNError

if TYPE_CHECKING:
    import numpy as np

    from stream_rpn.sinks.canvas import Canvas

LABELS = ("auto", "none", "score", "id", "both")
"""What is written beside a box: its score, the id of its track, both; `auto` is id or score."""

COLORS = ("auto", "score", "track", "source")
"""What gives a box its colour; `auto` is the track where objects are followed, else the score."""

# Red, green and blue from score 0 to 1: weak boxes have cold colours, strong ones hot ones.
GRADIENT = ((60, 90, 255), (0, 190, 255), (40, 225, 120), (255, 215, 0), (255, 55, 70))

# Hues so far apart are the most different ones, however many are wanted.
_GOLDEN_RATIO = 0.618034


class DrawStyle(TypedDict, total=False):
    """What a caller may say of drawing beside how many boxes; each has a default.

    Attributes:
        nms: IoU with a better box above which a box is not shown, so that pictures show objects and
            no stacks (0.5); 1 shows all.
        score: the least score of a box that is shown (0.2).
        labels: what is written beside a box ("auto").
        color: what gives a box its colour ("auto").
        thickness: of lines, in pixels of the picture; None for 2 up to 720p, 4 at 1080p, 8 at 4K.
        stamp: whether the frame's time is written in the upper left corner (False).
    """

    nms: float
    score: float
    labels: Literal["auto", "none", "score", "id", "both"]
    color: Literal["auto", "score", "track", "source"]
    thickness: int | None
    stamp: bool


@dataclass(frozen=True)
class DrawSpec:
    """How the boxes of a frame are drawn.

    Attributes:
        top: how many of the best boxes are shown; of tracks alone, where objects were followed.
        nms: IoU with a better box above which a box is not shown.
        score: the least score of a box that is shown.
        labels: one of `LABELS`.
        color: one of `COLORS`.
        thickness: of lines, or None.
        stamp: whether the time is written.

    Raises:
        StreamRPNError: one of them is none of what it can be.
    """

    top: int = 20
    nms: float = 0.5
    score: float = 0.2
    labels: str = "auto"
    color: str = "auto"
    thickness: int | None = None
    stamp: bool = False

    def __post_init__(self) -> None:
        if self.top < 0:
            raise StreamRPNError(f"the boxes to draw must be 0 or more, got {self.top}")
        if not 0 <= self.nms <= 1:
            raise StreamRPNError(f"the NMS of drawing must be in [0, 1], got {self.nms:g}")
        if not self.score <= 1:
            raise StreamRPNError(f"the least score to draw must be 1 at most, got {self.score:g}")
        if self.labels not in LABELS:
            raise StreamRPNError(f"labels are {', '.join(LABELS)}, got {self.labels!r}")
        if self.color not in COLORS:
            raise StreamRPNError(f"boxes are coloured by {', '.join(COLORS)}, got {self.color!r}")
        if self.thickness is not None and self.thickness < 1:
            raise StreamRPNError(f"lines must be 1 pixel thick or more, got {self.thickness}")

    @property
    def needs_tracks(self) -> bool:
        """Whether it shows what is known only where objects were followed."""
        return self.labels in ("id", "both") or self.color == "track"

    def draw(self, canvas: Canvas, proposals: Proposals, source: int = 0) -> int:
        """Draws the best boxes of a frame, and returns how many.

        Args:
            canvas: shows the frame.
            proposals: of the frame, best first.
            source: which of several sources it is of, from 0, for its colour.
        """
        shown = proposals.scores >= self.score
        if proposals.track_ids is not None:
            shown &= proposals.track_ids >= 0
        rows = shown.nonzero()[0]
        proposals = proposals[rows[apart(proposals.boxes[rows], self.top, self.nms)]]
        stamp = stamp_of(proposals) if self.stamp else ""
        colors = self._colors(proposals, source)
        canvas.draw(proposals.boxes, colors, self._texts(proposals), self.thickness, stamp)
        return len(proposals)

    def _texts(self, proposals: Proposals) -> list[str]:
        scores = [f"{score:.0%}" for score in proposals.scores.tolist()]
        if proposals.track_ids is None:
            return scores if self.labels in ("auto", "score") else []
        ids = [f"#{track}" for track in proposals.track_ids.tolist()]
        both = [f"{track} {score}" for track, score in zip(ids, scores, strict=True)]
        return {"auto": ids, "none": [], "score": scores, "id": ids, "both": both}[self.labels]

    def _colors(self, proposals: Proposals, source: int) -> np.ndarray:
        """Returns [N, 3] red, green and blue from 0 to 255."""
        import numpy as np

        by, tracks = self.color, proposals.track_ids
        if by == "source":
            return np.full((len(proposals), 3), color_of(source))
        if tracks is not None and by in ("auto", "track"):
            return np.array([color_of(track) for track in tracks.tolist()]).reshape(-1, 3)
        positions = np.linspace(0, 1, len(GRADIENT))
        channels = (np.interp(proposals.scores, positions, c) for c in zip(*GRADIENT, strict=True))
        return np.stack(list(channels), axis=1)


USUAL_DRAWING = DrawSpec()
"""How boxes are drawn where nobody says."""


def apart(boxes: np.ndarray, top: int, nms: float) -> list[int]:
    """Returns the first `top` boxes that overlap none of those before them by more than `nms`.

    Args:
        boxes: [N, 4] x1, y1, x2, y2, best first.
        top: how many at most.
        nms: IoU.
    """
    if nms >= 1:
        return list(range(min(top, len(boxes))))
    kept: list[int] = []
    shown: list[tuple[float, float, float, float, float]] = []
    # Few are compared before there are enough: numpy would take five times as long.
    for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        if len(kept) == top:
            break
        area = (x2 - x1) * (y2 - y1)
        for left, above, right, below, other in shown:
            if x1 < right and left < x2 and y1 < below and above < y2:
                shared = (min(x2, right) - max(x1, left)) * (min(y2, below) - max(y1, above))
                # Of what both cover it is more than `nms`.
                if shared * (1 + nms) > nms * (area + other):
                    break
        else:
            kept.append(index)
            shown.append((x1, y1, x2, y2, area))
    return kept


def color_of(number: int) -> tuple[float, float, float]:
    """Returns a colour for the track or source of a number: red, green, blue from 0 to 255."""
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN_RATIO % 1, 0.75, 1)
    return 255 * red, 255 * green, 255 * blue


def stamp_of(proposals: Proposals) -> str:
    """Returns when a frame was taken by this machine's calendar and zone, if it is live.

    Otherwise its time in the source; where nothing tells that, its number.
    """
    if proposals.unix_seconds is not None:
        taken = datetime.fromtimestamp(proposals.unix_seconds)
        return taken.isoformat(sep=" ", timespec="milliseconds")
    if proposals.pts_seconds is None:
        return f"frame {proposals.frame}"
    minutes, milliseconds = divmod(round(abs(proposals.pts_seconds) * 1000), 60_000)
    hours, minutes = divmod(minutes, 60)
    sign = "-" if proposals.pts_seconds < 0 else ""
    return f"{sign}{hours}:{minutes:02d}:{milliseconds / 1000:06.3f}"
