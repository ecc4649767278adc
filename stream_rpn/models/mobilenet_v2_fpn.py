"""`tiny` and `small`: MobileNetV2, a narrow feature pyramid, the classic head.

The pyramid is additive and has 3×3 convolutions from stride 8 up only: at stride 4 the head's own
3×3 follows the sum, where a second one would cost as much as a third of the backbone. Anchors have
sizes of three strides and the 10th, 50th and 90th percentile of COCO's height / width, rounded.

`tiny` has strides 4–64 and anchors of 12–192 pixels, about the 15th to the 93rd percentile of
COCO's boxes at its input's shorter side of 320. `small` sees more pixels (512), is half as wide
again and has one level more, of stride 128, for objects that fill the picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from stream_rpn.anchors import AnchorSpec
from stream_rpn.input_spec import InputSpec
from stream_rpn.models import mobilenet_v2
from stream_rpn.rpn import RPN, ProposalSpec, RPNHead

ANCHOR_RATIOS = (0.5, 1.2, 2.6)
# Layers of torchvision's `mobilenet_v2().features` for each stride from 4 to 32. Its last two, of
# 320 and 1280 channels for the classifier, are left out.
STAGES = ((0, 4), (4, 7), (7, 14), (14, 17))
STAGE_CHANNELS = (24, 32, 96, 160)


class MobileNetV2FPN(nn.Module):
    """MobileNetV2 stages and a feature pyramid.

    Args:
        width: channels of every map.
        coarser: levels beyond stride 32, each of twice the stride before it.
    """

    def __init__(self, width: int, coarser: int) -> None:
        super().__init__()
        layers = mobilenet_v2.features()
        self.stages = nn.ModuleList(layers[start:stop] for start, stop in STAGES)
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in STAGE_CHANNELS)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.coarser = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(coarser)
        )
        for layer in (*self.lateral, *self.smooth, *self.coarser):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the maps "p2", "p3", … [B, width, H/stride, W/stride] of images [B, 3, H, W]."""
        laterals = []
        x = images
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            laterals.append(lateral(x))
        p2, p3, p4, p5 = laterals
        p4 = p4 + F.interpolate(p5, size=p4.shape[-2:])
        p3 = p3 + F.interpolate(p4, size=p3.shape[-2:])
        p2 = p2 + F.interpolate(p3, size=p2.shape[-2:])
        maps = [p2, *(conv(p) for conv, p in zip(self.smooth, (p3, p4, p5), strict=True))]
        for conv in self.coarser:
            maps.append(conv(maps[-1]))
        return {f"p{i}": p for i, p in enumerate(maps, start=2)}

    def load_classifier(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a classifier's features, given under torchvision's `mobilenet_v2` names."""
        layers = mobilenet_v2.features(state)
        for stage, (start, stop) in zip(self.stages, STAGES, strict=True):
            stage.load_state_dict(layers[start:stop].state_dict())


def tiny() -> RPN:
    """Returns the untrained model with strides 4 to 64."""
    return _build(width=64, strides=(4, 8, 16, 32, 64), shorter_side=320)


def small() -> RPN:
    """Returns the untrained model with more pixels, channels and levels."""
    return _build(width=96, strides=(4, 8, 16, 32, 64, 128), shorter_side=512)


def _build(width: int, strides: tuple[int, ...], shorter_side: int) -> RPN:
    head = RPNHead(width, len(ANCHOR_RATIOS))
    # At first every anchor is background with probability 0.99 (Lin et al. 2017, "Focal loss for
    # dense object detection", §4.1).
    nn.init.constant_(head.cls_logits.bias, -math.log(99.0))  # type: ignore[arg-type]
    return RPN(
        MobileNetV2FPN(width, coarser=len(strides) - len(STAGES)),
        head,
        AnchorSpec(tuple((3.0 * s,) for s in strides), ANCHOR_RATIOS, order="scale-major"),
        input_spec=InputSpec(
            min_size=shorter_side,
            max_size=2 * shorter_side,
            size_divisor=strides[-1],
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            antialias=True,
        ),
        proposal_spec=ProposalSpec(pre_nms_top_n=2000),
    )
