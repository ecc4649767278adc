"""Finds what looks most like one box of a video, by the vectors of `--embed`.

stream-rpn video.mp4 --embed --score-thresh 0.3 -o boxes.npz      # or boxes.parquet
python examples/similar.py boxes.npz                # like the best box of the first frame
python examples/similar.py boxes.npz 40 300,200     # like the box around that point of frame 40
"""

import sys
from collections.abc import Iterable

import numpy as np

import stream_rpn

Box = tuple[int, np.ndarray, np.ndarray]
"""The frame, [4] float32 x1, y1, x2, y2, and the vector [D] float32."""


def boxes_of(results: Iterable[stream_rpn.Proposals], nms: float = 0.5) -> list[Box]:
    """Returns the boxes of all frames, of nested ones the best."""
    found: list[Box] = []
    for proposals in results:
        if proposals.embeddings is None:
            sys.exit("these results have no vectors; make them with --embed")
        left = proposals
        while len(left):
            best = left[:1]
            found.append((best.frame, best.boxes[0], best.embeddings[0].astype(np.float32)))
            left = left[overlap(best.boxes[0], left.boxes) <= nms]
    return found


def overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Returns the IoU [N] of a box with boxes [N, 4]; 1 with itself, however small."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    common = sides.clip(min=0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    same = (boxes == box).all(axis=1)
    return np.where(same, 1.0, common / np.maximum(areas - common, 1e-9))


def asked_for(boxes: list[Box], frame: int | None, point: list[float] | None) -> Box:
    """Returns the smallest box around a point of a frame, or the first box of all."""
    if frame is None or point is None:
        return boxes[0]
    around = [
        one
        for one in boxes
        if one[0] == frame and (one[1][:2] <= point).all() and (one[1][2:] >= point).all()
    ]
    if not around:
        sys.exit(f"no box of frame {frame} is around {point}")
    return min(around, key=lambda one: float((one[1][2:] - one[1][:2]).prod()))


def main() -> None:
    if len(sys.argv) not in (2, 4):
        sys.exit("usage: python examples/similar.py RESULTS [FRAME X,Y]")
    boxes = boxes_of(stream_rpn.read(sys.argv[1]))
    if not boxes:
        sys.exit("these results have no boxes")
    where = (int(sys.argv[2]), [float(v) for v in sys.argv[3].split(",")]) if sys.argv[2:] else ()
    frame, box, vector = asked_for(boxes, *where or (None, None))
    print(f"like frame {frame} at " + ", ".join(f"{side:.0f}" for side in box))
    # Vectors have the length 1, so that products are cosines.
    cosines = np.stack([one[2] for one in boxes]) @ vector
    seen = {frame}
    for index in np.argsort(-cosines, kind="stable"):
        other, box, _ = boxes[index]
        if other not in seen:  # the nearest of each other frame
            seen.add(other)
            print(f"{cosines[index]:.3f}  frame {other:5}  " + " ".join(f"{s:6.0f}" for s in box))
        if len(seen) > 10:
            break


if __name__ == "__main__":
    main()
