"""Draws the picture at the head of the README.

    python -m bench.hero car-detection.mp4

The video is Intel's, https://github.com/intel-iot-devkit/sample-videos (CC BY 4.0). The default
model looks at one of its frames, and the picture shows what every annotated one does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import stream_rpn

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "car-detection.jpg"
FRAME = 208
SECONDS = 0.08  # of a frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", help="car-detection.mp4")
    video = parser.parse_args().video
    start = (FRAME - 0.5) * SECONDS
    try:
        (proposals,) = stream_rpn.stream(video, start=start, max_frames=1, images=True)
    except stream_rpn.StreamRPNError as error:
        sys.exit(f"bench.hero: {error}")
    proposals.draw().save(PICTURE, quality=90, optimize=True)
    print(f"frame {proposals.frame}, {proposals.pts_seconds:.2f} s → {PICTURE}")


if __name__ == "__main__":
    main()
