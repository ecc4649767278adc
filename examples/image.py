"""Proposals of a single picture: python examples/image.py picture.jpg."""

import sys

import stream_rpn


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/image.py PICTURE")
    for box, score, *_ in stream_rpn.propose(sys.argv[1], top=10):
        print(f"{score:.3f}  " + " ".join(f"{side:7.1f}" for side in box))


if __name__ == "__main__":
    main()
