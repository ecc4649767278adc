"""MobileNetV2 features without batch norms: their work is in the convolutions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from stream_rpn.rpn import fold_batch_norms


def features(state: Mapping[str, Tensor] | None = None) -> nn.Sequential:
    """Returns the layers of torchvision's `mobilenet_v2().features`, with norms folded.

    Args:
        state: a classifier's tensors under torchvision's names; random where there is none.

    Raises:
        RuntimeError: tensors are missing or have other shapes.
    """
    layers = mobilenet_v2(weights=None).features.eval()
    if state is not None:
        prefix = "features."
        layers.load_state_dict(
            {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        )
    folded = fold_batch_norms(layers)
    assert isinstance(folded, nn.Sequential)
    return folded
