"""MobileNetV2 up to stride 32 (Sandler et al. 2018, table 2), batch norms folded in.

Layers and their names are those of torchvision's `mobilenet_v2().features` without its last two, of
320 and 1280 channels for the classifier. Torchvision's own, whose import takes as long as torch's,
is needed only to take over a classifier's weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from stream_rpn.rpn import fold_batch_norms

# Expansion, channels, blocks, stride of the first block.
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2))


class InvertedResidual(nn.Module):
    """Widens by a 1×1 convolution, filters each channel by a 3×3 one, narrows by a 1×1 one."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.residual = stride == 1 and in_channels == channels
        self.conv = nn.Sequential(
            *([_conv_relu6(in_channels, hidden, 1)] if expansion > 1 else []),
            _conv_relu6(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the map [B, channels, H/stride, W/stride] of x [B, in_channels, H, W]."""
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


def features(state: Mapping[str, Tensor] | None = None) -> nn.Sequential:
    """Returns the seventeen layers.

    Args:
        state: a classifier's tensors under torchvision's names; random where there is none.

    Raises:
        RuntimeError: tensors are missing or have other shapes.
    """
    channels = 32
    layers: list[nn.Module] = [_conv_relu6(3, channels, 3, stride=2)]
    for expansion, out_channels, blocks, stride in BLOCKS:
        for block in range(blocks):
            layers.append(
                InvertedResidual(channels, out_channels, stride if block == 0 else 1, expansion)
            )
            channels = out_channels
    ours = nn.Sequential(*layers)
    if state is None:
        for layer in ours.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    else:
        from torchvision.models import mobilenet_v2

        theirs = mobilenet_v2(weights=None).features.eval()
        prefix = "features."
        theirs.load_state_dict(
            {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        )
        ours.load_state_dict(fold_batch_norms(theirs)[: len(ours)].state_dict())  # type: ignore[index]
    return ours.eval()


def _conv_relu6(
    in_channels: int, channels: int, size: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, size, stride, padding=size // 2, groups=groups)
    return nn.Sequential(conv, nn.ReLU6(inplace=True))
