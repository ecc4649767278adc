"""Pools a feature vector for every proposal of every frame, ready for a classifier of your own."""

import sys

import torch
from torchvision.ops import MultiScaleRoIAlign

import stream_rpn


def main() -> None:
    source = sys.argv[1] if len(sys.argv) > 1 else "synthetic:"
    # The network's own arithmetic is kept, so that the maps can be pooled as they are.
    for proposals in stream_rpn.stream(source, top=50, features=True, dtype="float32"):
        features = {name: fmap[None] for name, fmap in proposals.features.items()}
        pool = MultiScaleRoIAlign(list(features)[:-1], output_size=7, sampling_ratio=2)
        boxes = [torch.from_numpy(proposals.input_boxes)]
        pooled = pool(features, boxes, [proposals.input_size])
        print(f"frame {proposals.frame}: {tuple(pooled.shape)}")


if __name__ == "__main__":
    main()
