"""`nanodet_m` and `nanodet_m_1.5x`: RangiLyu's NanoDet-Plus as region proposal networks.

ShuffleNetV2, GhostPAN and a head of generalised focal loss, with the weights that NanoDet-Plus was
published with. As an RPN it has one square anchor a cell (see `gfl_head`). Names within `body`,
`fpn` and `head` are NanoDet's, those within `body` therefore torchvision's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from stream_rpn.input_spec import InputSpec
from stream_rpn.models.gfl_head import ANCHOR, GFLHead
from stream_rpn.models.ghost_pan import GhostPAN
from stream_rpn.models.shufflenet_v2 import Order, ShuffleNetV2, keep_plain_order
from stream_rpn.rpn import RPN, ProposalSpec

STRIDES = (8, 16, 32, 64)


class ShuffleNetGhostPAN(nn.Module):
    """Backbone and pyramid.

    Args:
        body_channels: of ShuffleNetV2's maps of stride 8, 16 and 32.
        channels: of the pyramid's maps.
    """

    def __init__(self, body_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.body = ShuffleNetV2(body_channels)
        self.fpn = GhostPAN(body_channels, channels)
        orders, exits = self.body.orders()
        keep_plain_order(
            self,
            [
                *(order._replace(name=f"body.{order.name}") for order in orders),
                *(
                    Order(f"fpn.reduce_layers.{level}.0.weight", 1, order)
                    for level, order in enumerate(exits)
                ),
            ],
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the maps "p3" … "p6" [B, channels, H/stride, W/stride] of images [B, 3, H, W].

        H and W are multiples of 32; the sides of "p6" are rounded up, as in training (416 pixels
        are 6½ of its cells).
        """
        return {f"p{i}": p for i, p in enumerate(self.fpn(*self.body(images)), start=3)}


def nanodet_m() -> RPN:
    """Returns NanoDet-Plus-m, untrained."""
    return _build((116, 232, 464), 96)


def nanodet_m_1_5x() -> RPN:
    """Returns NanoDet-Plus-m-1.5x, untrained."""
    return _build((176, 352, 704), 128)


def _build(body_channels: Sequence[int], channels: int) -> RPN:
    corner = ANCHOR / 2
    # Numbers even where the model is built without any, on the meta device.
    unit = torch.tensor([[-corner, -corner, corner, corner]], device="cpu")
    return RPN(
        ShuffleNetGhostPAN(body_channels, channels),
        GFLHead(channels, len(STRIDES), certainty=4.0),
        # Not a spec: other sizes would not fit the distances that the head has learned.
        [unit * stride for stride in STRIDES],
        # The mean and deviation that it was trained with are ImageNet's, the defaults.
        input_spec=InputSpec(min_size=416, max_size=832, antialias=True),
        # All cells of a wide picture at this size: nothing need be selected.
        proposal_spec=ProposalSpec(pre_nms_top_n=5000),
        strides=STRIDES,
    )


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns published tensors, batch norms folded, under our names and for RGB.

    Args:
        state: by the names "backbone.…", "fpn.…" and "head.…"; the first convolution is for BGR.
    """
    result = {}
    for name, tensor in state.items():
        # Convolutions followed by an activation stand in a Sequential with it.
        name = re.sub(r"(reduce_layers\.\d|primary_conv|cheap_operation)\.", r"\1.0.", name)
        name = re.sub(r"^backbone\.", "backbone.body.", name)
        name = re.sub(r"^fpn\.", "backbone.fpn.", name)
        result[name] = tensor.flip(1) if name == "backbone.body.conv1.0.weight" else tensor
    return result
