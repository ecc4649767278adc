"""The head of generalised focal loss (Li et al. 2020) as the head of an RPN, exactly.

For every cell it has the logits of C classes and, for each side of the box, a distribution over
0, 1, … 7 strides from the cell's centre, whose mean is where the side is (§3.1 there). Which class
is nobody's question here: objectness is the best class's logit. The box is one of an anchor of 8
strides around the centre, so that decoding, selection and suppression are those of every RPN.

Distributions know something of their own: where the sides of a box are sure, there is an object,
whatever its class (Li et al. 2021, "Generalized focal loss V2", learn a score from it). `certainty`
times the mean over the sides of log(mass of the two best bins) is added to the logit: two, as a
side between two whole numbers has both. It is between log ¼ and 0 and needs no training.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from stream_rpn.models.ghost_pan import depthwise_separable
from stream_rpn.models.shufflenet_v2 import conv
from stream_rpn.rpn import Head

BINS = 8
# Sides of the anchors in strides. Those of a box are at most 2 (BINS - 1): never near the limit at
# which decoding clips.
ANCHOR = 8.0
# A box without an extent has a logarithm all the same. In strides; no box so small is kept.
SMALLEST = 1e-6


class GFLHead(Head):
    """Two depthwise separable convolutions and a 1×1 one, of each level its own.

    Args:
        channels: of every map.
        levels: how many.
        classes: C, the classes it was trained for.
        certainty: how much the distributions count, see above.
    """

    num_anchors = 1

    def __init__(
        self, channels: int, levels: int, *, classes: int = 80, certainty: float = 0.0
    ) -> None:
        super().__init__()
        self.cls_convs = nn.ModuleList(
            nn.Sequential(depthwise_separable(channels), depthwise_separable(channels))
            for _ in range(levels)
        )
        # Class logits, then the bins of left, top, right and bottom.
        self.gfl_cls = nn.ModuleList(conv(channels, classes + 4 * BINS) for _ in range(levels))
        self.classes = classes
        self.certainty = certainty

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Returns objectness [B, 1, H, W] and deltas [B, 4, H, W] float32, one each per level."""
        sizes = [(feature.shape[-2], feature.shape[-1]) for feature in features]
        # All cells in a row: a few operations instead of a few on every level.
        cells = torch.cat(
            [
                layer(tower(feature)).flatten(2)
                for tower, layer, feature in zip(
                    self.cls_convs, self.gfl_cls, features, strict=True
                )
            ],
            dim=2,
        )
        logits, sides = torch.split(cells, [self.classes, 4 * BINS], dim=1)
        objectness = logits.amax(dim=1, keepdim=True).float()
        # A tensor [B, 4, cells] for each bin: what is asked of eight numbers is asked elementwise,
        # which takes a fraction of what reductions over so few take, `topk` above all.
        batch, _, number = cells.shape
        bins = sides.float().reshape(batch, 4, BINS, number).permute(2, 0, 1, 3).unbind()
        first, second = two_largest(bins)
        masses = [(value - first).exp() for value in bins]
        total = reduce(torch.add, masses)
        if self.certainty:
            best = (1 + (second - first).exp()) / total
            objectness = objectness + self.certainty * best.log().mean(dim=1, keepdim=True)
        distances = reduce(torch.add, (bin_ * mass for bin_, mass in enumerate(masses))) / total
        return _maps(objectness, sizes), _maps(distances_to_deltas(distances), sizes)

    def predictors(self) -> list[nn.Conv2d]:
        """Returns the last convolution of every level."""
        return list(self.gfl_cls)  # type: ignore[arg-type]


def two_largest(values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the largest and the second largest of two or more tensors, elementwise."""
    one, other, *rest = values
    first, second = torch.maximum(one, other), torch.minimum(one, other)
    for value in rest:
        second = torch.maximum(second, torch.minimum(first, value))
        first = torch.maximum(first, value)
    return first, second


def distances_to_deltas(distances: Tensor) -> Tensor:
    """Returns deltas [B, 4, N] to anchors of 8 strides around the points that distances are from.

    Args:
        distances: [B, 4, N] float32, left, top, right and bottom in strides.
    """
    near, far = torch.split(distances, 2, dim=1)
    return torch.cat(
        ((far - near) / (2 * ANCHOR), ((far + near).clamp(min=SMALLEST) / ANCHOR).log()), dim=1
    )


def _maps(cells: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Returns cells [B, C, N] as maps [B, C, H, W], one per level."""
    levels = torch.split(cells, [height * width for height, width in sizes], dim=2)
    return [level.view(*cells.shape[:2], *size) for level, size in zip(levels, sizes, strict=True)]
