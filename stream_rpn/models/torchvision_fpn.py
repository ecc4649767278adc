"""The proposal networks inside torchvision's COCO detectors: its backbones and FPN, our head.

Sizes, ratios and thresholds are those torchvision builds the detectors with
(torchvision.models.detection.faster_rcnn).
"""

from torch import nn
from torchvision.models import mobilenet_v3_large, resnet50
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from stream_rpn.anchors import AnchorSpec
from stream_rpn.input_spec import InputSpec
from stream_rpn.rpn import RPN, ProposalSpec, RPNHead

RATIOS = (0.5, 1.0, 2.0)
SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
LARGE_INPUT = InputSpec(min_size=800, max_size=1333)
SMALL_INPUT = InputSpec(min_size=320, max_size=640)
CHANNELS = 256


def resnet50_fpn() -> RPN:
    """Returns the RPN of `fasterrcnn_resnet50_fpn`: five levels, one size and three ratios each."""
    return _resnet50(norm_layer=None, conv_depth=1)


def resnet50_fpn_v2() -> RPN:
    """Returns the RPN of `fasterrcnn_resnet50_fpn_v2`: batch norms in the FPN, a deeper head."""
    return _resnet50(norm_layer=nn.BatchNorm2d, conv_depth=2)


def _resnet50(norm_layer: type[nn.Module] | None, conv_depth: int) -> RPN:
    backbone = BackboneWithFPN(
        resnet50(weights=None),
        return_layers={f"layer{i}": str(i - 1) for i in (1, 2, 3, 4)},
        in_channels_list=[256, 512, 1024, 2048],
        out_channels=CHANNELS,
        norm_layer=norm_layer,
    )
    return RPN(
        backbone,
        RPNHead(CHANNELS, len(RATIOS), conv_depth=conv_depth),
        AnchorSpec(tuple((size,) for size in SIZES), RATIOS),
        input_spec=LARGE_INPUT,
    )


def mobilenet_v3_large_fpn() -> RPN:
    """Returns the RPN of `fasterrcnn_mobilenet_v3_large_fpn`: 15 anchors on each of 3 levels."""
    return _mobilenet_v3_large(LARGE_INPUT, ProposalSpec(score_thresh=0.05))


def mobilenet_v3_large_320_fpn() -> RPN:
    """Returns the RPN of `fasterrcnn_mobilenet_v3_large_320_fpn`: at most 150 proposals."""
    return _mobilenet_v3_large(
        SMALL_INPUT, ProposalSpec(pre_nms_top_n=150, post_nms_top_n=150, score_thresh=0.05)
    )


def _mobilenet_v3_large(input_spec: InputSpec, proposal_spec: ProposalSpec) -> RPN:
    # The classifier's batch norms have an epsilon of 1e-3, the detectors' have the usual 1e-5.
    backbone = BackboneWithFPN(
        mobilenet_v3_large(weights=None, norm_layer=nn.BatchNorm2d).features,
        # Feature 13 is the first block of stride 32 and 16 the last convolution.
        return_layers={"13": "0", "16": "1"},
        in_channels_list=[160, 960],
        out_channels=CHANNELS,
    )
    return RPN(
        backbone,
        RPNHead(CHANNELS, len(SIZES) * len(RATIOS)),
        AnchorSpec((SIZES,) * 3, RATIOS),
        input_spec=input_spec,
        proposal_spec=proposal_spec,
    )
