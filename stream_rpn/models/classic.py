"""`classic`: the RPN of Ren et al. 2015 on a small backbone, to show that the recipe learns.

One map of stride 16 (MobileNetV2 in VGG's place), nine anchors of three sizes and three ratios, two
logits per anchor. Sizes are fitted to COCO's boxes at a shorter side of 320.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from stream_rpn.anchors import AnchorSpec
from stream_rpn.input_spec import InputSpec
from stream_rpn.models import mobilenet_v2
from stream_rpn.rpn import RPN, ProposalSpec, RPNHead

STRIDE = 16
SIZES = (24.0, 72.0, 192.0)
RATIOS = (1.0, 0.5, 2.0)
# The last layer of stride 16 in torchvision's `mobilenet_v2().features`, and its channels.
LAST_LAYER, CHANNELS = 13, 96
HIDDEN = 256


class MobileNetV2Stride16(nn.Module):
    """MobileNetV2 up to its last map of stride 16, [B, 96, H/16, W/16]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mobilenet_v2.features()[: LAST_LAYER + 1]

    def forward(self, images: Tensor) -> Tensor:
        """Returns the map of images [B, 3, H, W]."""
        result: Tensor = self.layers(images)
        return result

    def load_classifier(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a classifier's features, given under torchvision's `mobilenet_v2` names."""
        layers = mobilenet_v2.features(state)[: LAST_LAYER + 1]
        self.layers.load_state_dict(layers.state_dict())


def build() -> RPN:
    """Returns the untrained model."""
    return RPN(
        MobileNetV2Stride16(),
        RPNHead(CHANNELS, len(SIZES) * len(RATIOS), hidden_channels=HIDDEN, softmax=True),
        AnchorSpec((SIZES,), RATIOS, order="scale-major"),
        input_spec=InputSpec(
            min_size=320,
            max_size=640,
            size_divisor=STRIDE,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            antialias=True,
        ),
        proposal_spec=ProposalSpec(pre_nms_top_n=6000, post_nms_top_n=300),
    )
