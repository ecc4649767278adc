"""Prints the best box of every frame: python examples/video_to_boxes.py video.mp4."""

import sys

import stream_rpn


def main() -> None:
    source = sys.argv[1] if len(sys.argv) > 1 else "synthetic:"
    for proposals in stream_rpn.stream(source, top=100):
        x1, y1, x2, y2 = proposals.boxes[0]
        print(
            f"frame {proposals.frame} at {proposals.pts_seconds:.3f} s: {len(proposals)} boxes, "
            f"best {proposals.scores[0]:.3f} at {x1:.0f},{y1:.0f} – {x2:.0f},{y2:.0f}"
        )


if __name__ == "__main__":
    main()
