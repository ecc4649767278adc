"""`resnet50_fpn_detectron2`: the proposal network of detectron2's R50-FPN, for its weights.

That of torchvision but for what its baselines inherit from Caffe: a block halves its map in the
first 1×1 convolution and not in the 3×3 one, pixels are 0…255 less their mean and in the order BGR
(which `from_detectron2` takes out of the weights), and anchors are not rounded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from stream_rpn.anchors import AnchorSpec
from stream_rpn.rpn import RPN

# Of RGB; detectron2 writes them the other way around.
PIXEL_MEAN = (123.675, 116.28, 103.53)
_HEAD = "proposal_generator.rpn_head."
_STAGES = {"res2": "layer1", "res3": "layer2", "res4": "layer3", "res5": "layer4"}


class BottomUpFPN(nn.Module):
    """torchvision's ResNet-50 and pyramid as detectron2 has them.

    Called `bottom_up` as there, so that neither's weights are taken for the other's.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.bottom_up = backbone.get_submodule("body")
        self.fpn = backbone.get_submodule("fpn")
        for block in self.bottom_up.modules():
            # The first convolution of a stage's first block takes over the stride.
            first, second = getattr(block, "conv1", None), getattr(block, "conv2", None)
            if first is not None and second is not None and second.stride == (2, 2):
                first.stride, second.stride = (2, 2), (1, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the maps of strides 4 to 64 [B, 256, …] of images [B, 3, H, W]."""
        maps: dict[str, Tensor] = self.fpn(self.bottom_up(images))
        return maps


def build() -> RPN:
    """Returns the RPN of `COCO-Detection/faster_rcnn_R_50_FPN` and its relatives, untrained."""
    # Not at the top: whoever reads a checkpoint need not wait for torchvision.
    from stream_rpn.models import torchvision_fpn

    rpn = torchvision_fpn.resnet50_fpn()
    return RPN(
        BottomUpFPN(rpn.backbone),
        rpn.head,
        AnchorSpec(
            tuple((size,) for size in torchvision_fpn.SIZES),
            torchvision_fpn.RATIOS,
            order="scale-major",
        ),
        input_spec=replace(
            rpn.input_spec,
            mean=tuple(value / 255 for value in PIXEL_MEAN),  # type: ignore[arg-type]
            std=(1 / 255,) * 3,
            antialias=True,
        ),
    )


def is_detectron2(state: Mapping[str, object]) -> bool:
    """Tells whether tensors have the names of a detectron2 model with a proposal network."""
    return f"{_HEAD}objectness_logits.weight" in state


def from_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of a detectron2 R50-FPN under our names and for RGB.

    What stands behind the proposals is left out, and so are the anchors and the mean that older
    checkpoints hold.
    """
    result = {}
    for name, tensor in state.items():
        if name.startswith("backbone.bottom_up.stem.conv1.weight"):
            tensor = tensor.flip(1)
        if (ours := _our_key(name)) is not None:
            result[ours] = tensor
    return result


def _our_key(name: str) -> str | None:
    if name.startswith(_HEAD):
        name = name.removeprefix(_HEAD)
        name = name.replace("objectness_logits", "cls_logits").replace("anchor_deltas", "bbox_pred")
        return "head." + re.sub(r"^conv\.", "conv.0.0.", name)
    if pyramid := re.fullmatch(r"backbone\.fpn_(lateral|output)([2-5])\.(weight|bias)", name):
        kind = {"lateral": "inner_blocks", "output": "layer_blocks"}[pyramid[1]]
        return f"backbone.fpn.{kind}.{int(pyramid[2]) - 2}.0.{pyramid[3]}"
    if not name.startswith("backbone."):
        return None
    name = name.replace("bottom_up.stem.conv1.norm", "bottom_up.bn1")
    name = name.replace("bottom_up.stem.conv1", "bottom_up.conv1")
    for theirs, ours in _STAGES.items():
        name = name.replace(f"bottom_up.{theirs}.", f"bottom_up.{ours}.")
    name = re.sub(r"conv(\d)\.norm", r"bn\1", name)
    return name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
