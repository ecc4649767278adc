"""A backbone and anchors of your own behind the same pipeline (untrained: boxes mean nothing)."""

import sys

from torch import nn

import stream_rpn
from stream_rpn.anchors import AnchorSpec
from stream_rpn.input_spec import InputSpec
from stream_rpn.rpn import RPN, ProposalSpec, RPNHead


def build() -> RPN:
    backbone = nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=4, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=4, padding=1),
        nn.ReLU(),
    )
    anchors = AnchorSpec(sizes=((32, 64, 128),), ratios=(0.5, 1, 2), order="scale-major", centre=8)
    return RPN(
        backbone,
        RPNHead(in_channels=64, num_anchors=9),
        anchors,
        input_spec=InputSpec(min_size=240, max_size=480, size_divisor=16),
        proposal_spec=ProposalSpec(pre_nms_top_n=2000, post_nms_top_n=100),
    )


def main() -> None:
    source = sys.argv[1] if len(sys.argv) > 1 else "synthetic:"
    for proposals in stream_rpn.stream(source, model=build()):
        print(proposals)


if __name__ == "__main__":
    main()
