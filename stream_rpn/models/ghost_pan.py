"""GhostPAN, NanoDet-Plus's feature pyramid: three maps in, four of equal width out.

A path aggregation network (Liu et al. 2018, "Path aggregation network for instance segmentation",
§3.1: top-down, then bottom-up) whose blocks are those of GhostNet (Han et al. 2020, §3): half of
their channels by a convolution, the other half by a cheap depthwise one of those. Structure as in
NanoDet-Plus by RangiLyu; batch norms are folded in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stream_rpn.models.shufflenet_v2 import activation, conv


class GhostModule(nn.Module):
    """Half of the channels by a 1×1 convolution, the other half by a depthwise 3×3 one of them."""

    def __init__(self, in_channels: int, channels: int, *, active: bool) -> None:
        super().__init__()
        half = channels // 2
        after = (activation,) if active else ()
        self.primary_conv = nn.Sequential(conv(in_channels, half), *(f() for f in after))
        self.cheap_operation = nn.Sequential(
            conv(half, half, 3, groups=half), *(f() for f in after)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the map [B, channels, H, W] of x [B, in_channels, H, W]."""
        y = self.primary_conv(x)
        return torch.cat((y, self.cheap_operation(y)), dim=1)


class GhostBottleneck(nn.Module):
    """Two ghost modules, and a shortcut of a depthwise 5×5 and a 1×1 convolution."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.ghost1 = GhostModule(in_channels, channels, active=True)
        self.ghost2 = GhostModule(channels, channels, active=False)
        self.shortcut = nn.Sequential(
            OrderedDict(
                {
                    "0": conv(in_channels, in_channels, 5, groups=in_channels),
                    "2": conv(in_channels, channels),
                }
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the map [B, channels, H, W] of x [B, in_channels, H, W]."""
        y: Tensor = self.ghost2(self.ghost1(x)) + self.shortcut(x)
        return y


def depthwise_separable(channels: int, *, stride: int = 1) -> nn.Sequential:
    """Returns a depthwise 5×5 and a 1×1 convolution, each with its activation."""
    return nn.Sequential(
        OrderedDict(
            {
                "depthwise": conv(channels, channels, 5, stride=stride, groups=channels),
                "depthwise_activation": activation(),
                "pointwise": conv(channels, channels),
                "pointwise_activation": activation(),
            }
        )
    )


class GhostPAN(nn.Module):
    """The pyramid.

    Args:
        in_channels: of the maps of stride 8, 16 and 32.
        channels: of the four maps that it puts out.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.reduce_layers = nn.ModuleList(
            nn.Sequential(conv(c, channels), activation()) for c in in_channels
        )
        self.top_down_blocks = nn.ModuleList(
            GhostBottleneck(2 * channels, channels) for _ in range(2)
        )
        self.downsamples = nn.ModuleList(depthwise_separable(channels, stride=2) for _ in range(2))
        self.bottom_up_blocks = nn.ModuleList(
            GhostBottleneck(2 * channels, channels) for _ in range(2)
        )
        self.extra_lvl_in_conv = nn.ModuleList([depthwise_separable(channels, stride=2)])
        self.extra_lvl_out_conv = nn.ModuleList([depthwise_separable(channels, stride=2)])

    def forward(self, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns maps [B, channels, …] of stride 8, 16, 32 and 64 of those of stride 8, 16, 32.

        The last one's sides are rounded up where the third's are odd.
        """
        c3, c4, c5 = (layer(c) for layer, c in zip(self.reduce_layers, (c3, c4, c5), strict=True))
        (top, high), (low, bottom) = self.top_down_blocks, self.bottom_up_blocks
        middle = top(torch.cat((_doubled(c5), c4), dim=1))
        p3 = high(torch.cat((_doubled(middle), c3), dim=1))
        p4 = low(torch.cat((self.downsamples[0](p3), middle), dim=1))
        p5 = bottom(torch.cat((self.downsamples[1](p4), c5), dim=1))
        return p3, p4, p5, self.extra_lvl_in_conv[0](c5) + self.extra_lvl_out_conv[0](p5)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
