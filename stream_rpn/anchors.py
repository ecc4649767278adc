"""Anchors: the boxes of several scales and area-preserving ratios that sit at every cell of a map.

Base anchors are an [A, 4] tensor, those of cell (0, 0); its row order is the order of the head's
channels. Two orders are in use in the field, and both are expressible:

* ratio-major with rounded corners, torchvision's (`ratio_major`): needed by its checkpoints;
* scale-major with unrounded, exactly equal areas, the paper's code's (`scale_major`).

A ratio is height / width. The anchors of a cell (y, x) of a level are the base anchors moved by
(x·stride_x, y·stride_y); the anchor index within a level is
(y·W + x)·A + a, whatever the memory order of the head's output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor


def ratio_major(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Returns base anchors [len(ratios)·len(sizes), 4], all sizes of the first ratio first.

    Corners are rounded to whole pixels as in torchvision's AnchorGenerator.
    """
    scales = torch.tensor(sizes, dtype=torch.float32)
    h_ratios = torch.sqrt(torch.tensor(ratios, dtype=torch.float32))
    w_ratios = 1 / h_ratios
    widths = (w_ratios[:, None] * scales[None, :]).reshape(-1)
    heights = (h_ratios[:, None] * scales[None, :]).reshape(-1)
    return (torch.stack((-widths, -heights, widths, heights), dim=1) / 2).round()


def scale_major(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Returns base anchors [len(sizes)·len(ratios), 4], all ratios of the first size first.

    Areas are exactly size², whatever the ratio (Ren et al. 2015, §3.1.1); nothing is rounded.
    """
    scales = torch.tensor(sizes, dtype=torch.float64)[:, None]
    h_ratios = torch.sqrt(torch.tensor(ratios, dtype=torch.float64))[None, :]
    widths, heights = (scales / h_ratios).reshape(-1), (scales * h_ratios).reshape(-1)
    return (torch.stack((-widths, -heights, widths, heights), dim=1) / 2).float()


def grid(base_anchors: Tensor, map_size: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Returns every anchor of one level as [H·W·A, 4] float32 in anchor-index order.

    Args:
        base_anchors: [A, 4] float32.
        map_size: (H, W) of the feature map.
        stride: (y, x) pixels between neighbouring cells.
    """
    height, width = map_size
    device = base_anchors.device
    y = torch.arange(height, device=device, dtype=torch.float32) * stride[0]
    x = torch.arange(width, device=device, dtype=torch.float32) * stride[1]
    y, x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
    return (shifts + base_anchors[None]).reshape(-1, 4)


def inside(anchors: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Returns a mask [N] of the anchors that do not cross the border of a (height, width) image."""
    height, width = image_size
    return (
        (anchors[:, 0] >= 0)
        & (anchors[:, 1] >= 0)
        & (anchors[:, 2] <= width)
        & (anchors[:, 3] <= height)
    )


@dataclass(frozen=True)
class AnchorSpec:
    """The anchors of a network, level by level.

    Attributes:
        sizes: per level the sizes (square roots of the areas) in input pixels.
        ratios: height / width, the same on every level.
        order: "ratio-major" (torchvision's, corners rounded) or "scale-major" (the paper's code's).
        centre: where the anchors of cell (0, 0) are centred, in input pixels, on both axes; one for
            every level.
    """

    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...]
    order: Literal["ratio-major", "scale-major"] = "ratio-major"
    centre: float = 0.0

    def __post_init__(self) -> None:
        sizes = [size for level in self.sizes for size in level]
        for name, values in (("anchor sizes", sizes), ("anchor ratios", self.ratios)):
            if not values or not all(0 < value < math.inf for value in values):
                raise ValueError(f"{name} must be positive numbers, got {list(values)}")

    def base_anchors(self) -> list[Tensor]:
        """Returns per level the base anchors [A, 4] float32."""
        build = ratio_major if self.order == "ratio-major" else scale_major
        return [build(sizes, self.ratios) + self.centre for sizes in self.sizes]

    def override(
        self, sizes: Sequence[float] | None = None, ratios: Sequence[float] | None = None
    ) -> AnchorSpec:
        """Returns the spec with other sizes and ratios, as many as before.

        Args:
            sizes: those of one level, to be used on every level, or those of all levels in turn.
            ratios: height / width.

        Raises:
            ValueError: another number of anchors than the head has channels for, or not positive.
        """
        per_level, levels = len(self.sizes[0]), len(self.sizes)
        spec = self
        if sizes is not None:
            if len(sizes) == per_level * levels:
                rows = [tuple(sizes[i : i + per_level]) for i in range(0, len(sizes), per_level)]
            elif len(sizes) == per_level:
                rows = [tuple(sizes)] * levels
            else:
                raise ValueError(
                    f"anchor sizes must be {per_level * levels} ({levels} levels of {per_level}) "
                    f"or {per_level} for all levels alike, got {len(sizes)}"
                )
            spec = replace(spec, sizes=tuple(rows))
        if ratios is not None:
            if len(ratios) != len(self.ratios):
                raise ValueError(
                    f"anchor ratios must be {len(self.ratios)}, as many as the head was made for, "
                    f"got {len(ratios)}"
                )
            spec = replace(spec, ratios=tuple(ratios))
        return spec
