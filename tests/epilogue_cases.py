"""Maps for the pass after a convolution."""

import torch
from torch import Tensor


def maps(
    channels: int, dtype: torch.dtype, size: tuple[int, int, int] = (2, 7, 9), *, odd: bool = True
) -> tuple[Tensor, Tensor]:
    """Returns a channels-last map of a batch, height and width, and a bias.

    Args:
        channels: of the map.
        dtype: of both.
        size: batch, height and width.
        odd: some of it is infinite, not a number, or a zero with a sign.
    """
    generator = torch.Generator().manual_seed(channels)
    batch, height, width = size
    x = 4 * torch.randn(batch, height, width, channels, generator=generator)
    if odd:
        x[0, 0, :5, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0])
    bias = torch.randn(channels, generator=generator)
    bias[-1] = -0.0
    return x.to(dtype).permute(0, 3, 1, 2), bias.to(dtype)
