"""A feature vector for every box (`--embed`): RoIAlign on the network's own maps, of one length.

He et al. 2017, "Mask R-CNN", §3. The vector is what the network saw anyway, so that it costs next
to nothing beside the proposals; it was taught to find objects, not to tell one from another. Which
maps, and how they are pooled, was chosen by `bench.embed`: those of stride 8 and 16 find the same
person again better than coarser ones or all together, and the same kind of thing as well; an upper
and a lower half tell people apart better than the mean of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from stream_rpn.rpn import RPN

DTYPE = "float16"
"""Of the vectors: half of float32's bytes, for the same neighbours."""

_SIDE = 128  # of the input that tells sizes of maps


@dataclass(frozen=True)
class EmbedSpec:
    """How boxes are pooled.

    Attributes:
        strides: input pixels a cell of the maps; of a network that has no such map, all are used.
        grid: bins of a box, (rows, columns).
        samples: of a bin, along either axis.
    """

    strides: tuple[int, ...] = (8, 16)
    grid: tuple[int, int] = (2, 1)
    samples: int = 4


@dataclass(frozen=True)
class Embedding:
    """How boxes are pooled from the maps of one network.

    Attributes:
        levels: indices of the maps, as in `Proposals.levels`.
        strides: of each, (y, x) input pixels a cell.
        channels: of each.
        grid: see `EmbedSpec`.
        samples: see `EmbedSpec`.
    """

    levels: tuple[int, ...]
    strides: tuple[tuple[int, int], ...]
    channels: tuple[int, ...]
    grid: tuple[int, int]
    samples: int

    @classmethod
    def choose(
        cls,
        strides: Sequence[tuple[int, int]],
        channels: Sequence[int],
        spec: EmbedSpec | None = None,
    ) -> Embedding:
        """Returns how boxes are pooled from maps of these strides and channels, one a level."""
        spec = spec or EmbedSpec()
        wanted = tuple(i for i, (y, _) in enumerate(strides) if y in spec.strides)
        levels = wanted or tuple(range(len(strides)))
        return cls(
            levels,
            tuple((int(strides[i][0]), int(strides[i][1])) for i in levels),
            tuple(channels[i] for i in levels),
            spec.grid,
            spec.samples,
        )

    @classmethod
    def of(cls, rpn: RPN, spec: EmbedSpec | None = None) -> Embedding:
        """Returns how boxes are pooled from the maps of a network of torch, which runs once."""
        import torch

        weight = next(rpn.parameters())
        side = input_side(rpn.input_spec.size_divisor)
        with torch.inference_mode():
            images = torch.zeros(1, 3, side, side, dtype=weight.dtype, device=weight.device)
            maps = list(rpn.features(images).values())
            return cls.choose(rpn.strides(images, maps), [m.shape[1] for m in maps], spec)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The numbers that each map gives."""
        return tuple(channels * self.grid[0] * self.grid[1] for channels in self.channels)

    @property
    def length(self) -> int:
        """The numbers of a vector."""
        return sum(self.lengths)

    def facts(self) -> dict[str, Any]:
        """Returns what the header of results says of it."""
        return {**asdict(self), "length": self.length, "dtype": DTYPE, "normalised": True}

    def pool(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Returns the vectors [B, K, length] float16 of boxes [B, K, 4] in pixels of the input.

        Each map's part has the same share of a vector, which has the length 1 in space. Boxes lie
        within the image. `torchvision.ops.roi_align` (aligned) is the same up to rounding, but
        would have to be imported, which takes seconds.

        Args:
            maps: of all levels, [B, C, H, W].
            boxes: [B, K, 4] float32.
        """
        import torch
        import torch.nn.functional as F

        images, count = boxes.shape[:2]
        (rows, columns), samples = self.grid, self.samples
        x1, y1, x2, y2 = boxes.float().unbind(-1)
        parts = []
        for level, (y_stride, x_stride) in zip(self.levels, self.strides, strict=True):
            features = maps[level].float()
            channels, height, width = features.shape[1:]
            # `grid_sample` counts −1 to 1 from edge to edge of a map.
            y = _between(y1, y2, rows * samples) * (2 / (y_stride * height)) - 1
            x = _between(x1, x2, columns * samples) * (2 / (x_stride * width)) - 1
            points = torch.stack(
                (
                    x[:, :, None, :].expand(-1, -1, rows * samples, -1),
                    y[:, :, :, None].expand(-1, -1, -1, columns * samples),
                ),
                dim=-1,
            )
            values = F.grid_sample(
                features, points.flatten(1, 2), padding_mode="border", align_corners=False
            )
            bins = values.reshape(images, channels, count, rows, samples, columns, samples)
            vectors = bins.mean((4, 6)).transpose(1, 2).flatten(2)
            parts.append(F.normalize(vectors, dim=-1, eps=1e-6))
        whole: Tensor = torch.cat(parts, dim=-1) / len(parts) ** 0.5
        return whole.half()


def _between(near: Tensor, far: Tensor, count: int) -> Tensor:
    """Returns points [B, K, count] in the middles of equal parts between `near` and `far`."""
    import torch

    middles = (torch.arange(count, device=near.device) + 0.5) / count
    points: Tensor = near[..., None] + (far - near)[..., None] * middles
    return points


def input_side(divisor: int) -> int:
    """Returns a side of an input that a network takes, and whose maps tell their strides."""
    return divisor * -(-_SIDE // divisor)
