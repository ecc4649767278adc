"""How well objects are followed: python -m bench.tracking [--data DIR] [--json FILE].

DIR holds videos with MOTChallenge ground truth beside them (*.gt.txt). The network looks at every
frame once; each tracker then follows the same proposals, and so does ByteTrack with the thresholds
of the library, which are made for detectors. By row: IDF1 (Ristani et al. 2016) with its precision
and recall, identity switches and MOTA (Bernardin and Stiefelhagen 2008), all at IoU 0.5, and how
many tracks there are of how many objects. Only people are annotated: who follows a car is charged
with it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from bench import report
from stream_rpn import api
from stream_rpn.frame import Proposals, StreamRPNError
from stream_rpn.tracking import TRACKERS, Tracking, TrackSpec

DATA = Path("../shared/data/video")
IOU = 0.5
COLUMNS = ("clip", "tracker", "objects", "tracks", "IDF1", "IDP", "IDR", "switches", "MOTA", "ms")

Boxes = tuple[np.ndarray, np.ndarray]
"""Of a frame: ids [N] int64 and boxes [N, 4], x1, y1, x2, y2 in pixels."""

# What the library takes where nobody says otherwise, and no NMS or least score before it.
AS_SHIPPED = TrackSpec(score=0.0, nms=1.0, start_score=0.7, sure_score=0.6)


def truth(path: Path, width: int, height: int) -> dict[int, Boxes]:
    """Returns annotated boxes by frame from 0, clipped to the picture, where proposals end."""
    rows = np.loadtxt(path, delimiter=",", ndmin=2)
    boxes = rows[:, 2:6].copy()
    boxes[:, :2] -= 1
    boxes[:, 2:] += boxes[:, :2]
    boxes = boxes.clip(0, (width, height, width, height))
    chosen = rows[:, 6] != 0
    return {
        int(frame) - 1: (
            rows[chosen & (rows[:, 0] == frame), 1].astype(np.int64),
            boxes[chosen & (rows[:, 0] == frame)],
        )
        for frame in np.unique(rows[:, 0])
    }


def followed(frames: Iterable[Proposals]) -> dict[int, Boxes]:
    """Returns the boxes that are of a track, by frame."""
    found = {}
    for proposals in frames:
        assert proposals.track_ids is not None
        of_tracks = proposals.track_ids >= 0
        found[proposals.frame] = proposals.track_ids[of_tracks], proposals.boxes[of_tracks]
    return found


def overlaps(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Returns IoUs [N, M] of boxes [N, 4] and [M, 4]."""
    low = np.maximum(ours[:, None, :2], theirs[None, :, :2])
    high = np.minimum(ours[:, None, 2:], theirs[None, :, 2:])
    common = (high - low).clip(0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (ours, theirs)]
    return common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-9)


def score(truth: dict[int, Boxes], found: dict[int, Boxes]) -> dict[str, Any]:
    """Returns the row of a clip; frames without annotation do not count."""
    objects = np.unique(np.concatenate([ids for ids, _ in truth.values()]))
    nothing = np.empty(0, np.int64), np.empty((0, 4))
    ours = {frame: found.get(frame, nothing) for frame in truth}
    tracks = np.unique(np.concatenate([ids for ids, _ in ours.values()]))
    together = np.zeros((len(objects), len(tracks)), int)
    num_true = sum(len(ids) for ids, _ in truth.values())
    num_ours = sum(len(ids) for ids, _ in ours.values())
    matches = switches = 0
    last: dict[int, int] = {}
    for frame, (ids, boxes) in sorted(truth.items()):
        track_ids, track_boxes = ours[frame]
        ious = overlaps(boxes, track_boxes)
        fits = ious >= IOU
        rows, columns = np.nonzero(fits)
        np.add.at(
            together,
            (np.searchsorted(objects, ids[rows]), np.searchsorted(tracks, track_ids[columns])),
            1,
        )
        # As CLEAR MOT has it: who was matched stays so while it fits, then the best by IoU.
        kept = np.array([[last.get(int(i)) == int(t) for t in track_ids] for i in ids], bool)
        worth = np.where(fits, ious + 1000.0 * kept.reshape(ious.shape), 0.0)
        for row, column in zip(*linear_sum_assignment(worth, maximize=True), strict=True):
            if fits[row, column]:
                matches += 1
                before = last.get(int(ids[row]))
                switches += before is not None and before != track_ids[column]
                last[int(ids[row])] = int(track_ids[column])
    true_ids = int(together[linear_sum_assignment(together, maximize=True)].sum())
    misses, false = num_true - matches, num_ours - matches
    return {
        "objects": len(objects),
        "tracks": len(tracks),
        "IDF1": round(2 * true_ids / max(num_true + num_ours, 1), 4),
        "IDP": round(true_ids / max(num_ours, 1), 4),
        "IDR": round(true_ids / max(num_true, 1), 4),
        "switches": int(switches),
        "MOTA": round(1 - (misses + false + switches) / max(num_true, 1), 4),
    }


def rows_of(path: Path, model: str) -> Iterable[dict[str, Any]]:
    """Yields a row per tracker of one clip."""
    with api.open_pipeline(model, device="cpu").open(str(path)) as stream:
        frames, info = list(stream), stream.info
    annotated = truth(path.with_suffix(".gt.txt"), info.width, info.height)
    specs = {name: TrackSpec(tracker=name) for name in TRACKERS}
    for name, spec in {**specs, "bytetrack as shipped": AS_SHIPPED}.items():
        spent = report.measure(
            lambda spec=spec: list(map(Tracking(spec, info.fps).track, frames)),
            warmup=0,
            min_runs=3,
            seconds=0,
        )
        found = followed(map(Tracking(spec, info.fps).track, frames))
        row = score(annotated, found)
        milliseconds = round(spent["median_ms"] / len(frames), 3)
        yield {"clip": path.stem, "tracker": name, **row, "ms": milliseconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--model", default="nanodet_m")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    clips = sorted(
        path.with_suffix("").with_suffix(".mp4") for path in arguments.data.glob("*.gt.txt")
    )
    if not clips:
        parser.error(f"{arguments.data} has no ground truth (*.gt.txt); --data names its folder")
    try:
        TrackSpec().library_class()
    except StreamRPNError as error:
        parser.error(str(error))
    rows = [row for clip in clips for row in rows_of(clip, arguments.model)]
    if arguments.json:
        spec = json.loads(json.dumps(asdict(TrackSpec())))
        report.write_json(arguments.json, "tracking", rows, model=arguments.model, spec=spec)
    report.print_table(rows, COLUMNS)


if __name__ == "__main__":
    main()
