"""MOTChallenge detection text (det.txt)."""

from __future__ import annotations

import numpy as np

from stream_rpn.frame import Proposals
from stream_rpn.sinks.sink import WholeFileSink


class MOTSink(WholeFileSink):
    """Writes `frame,id,left,top,width,height,conf,x,y,z` lines as trackers read them.

    As in MOTChallenge frames count from 1, and so do pixels: `left` is x1 + 1, `top` is y1 + 1.
    The id is −1 (a detection, not a track), and so are the world coordinates x, y, z.
    """

    def _write(self, proposals: Proposals) -> None:
        boxes = np.asarray(proposals.boxes, dtype=np.float64)
        rows = np.column_stack([boxes[:, :2] + 1, boxes[:, 2:] - boxes[:, :2], proposals.scores])
        line = f"{proposals.frame + 1},-1,%.2f,%.2f,%.2f,%.2f,%.6g,-1,-1,-1\n"
        self._file.write((line * len(rows) % tuple(rows.ravel().tolist())).encode())
