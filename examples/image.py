"""Proposals of a single picture: python examples/image.py picture.jpg."""

import sys

from torchvision.io import ImageReadMode, read_image

import stream_rpn


def main() -> None:
    image = read_image(sys.argv[1], ImageReadMode.RGB)
    proposals = stream_rpn.propose(image, top=10)
    for box, score in zip(proposals.boxes, proposals.scores, strict=True):
        print(f"{score:.3f}  " + " ".join(f"{side:7.1f}" for side in box))


if __name__ == "__main__":
    main()
