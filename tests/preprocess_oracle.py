"""preprocess in float64 by dense weights, the error that float32 may make, and random sources."""

from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from stream_rpn.input_spec import IMAGENET_MEAN, IMAGENET_STD
from stream_rpn.kernels.preprocess import PlaneLayout
from stream_rpn.preprocess import color_matrix

MEAN, STD = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)


@dataclass(frozen=True)
class Picture:
    """A source to be made up; `size` is the resized one as displayed."""

    height: int
    width: int
    size: tuple[int, int]
    rotation: int = 0
    sample_bytes: int = 1
    interleaved: bool = False
    slack: int = 0
    matrix: Tensor = field(default_factory=lambda: color_matrix("bt709", full_range=False))

    def __str__(self) -> str:
        layout = ("planar", "interleaved")[self.interleaved] + str(8 * self.sample_bytes)
        rows, columns = self.size
        return (
            f"{self.height}x{self.width}-to-{rows}x{columns}-{layout}"
            f"-turn{self.rotation}-slack{self.slack}"
        )


@st.composite
def pictures(draw) -> Picture:
    """Draws sources of any geometry, tiny ones as often as others."""
    longest = draw(st.sampled_from([4, 30]))
    side = st.integers(1, longest)
    return Picture(
        draw(side),
        draw(side),
        (draw(side), draw(side)),
        draw(st.sampled_from([0, 90, 180, 270])),
        draw(st.sampled_from([1, 2])),
        draw(st.booleans()),
        draw(st.integers(0, 4)),
    )


def lay_out(pictures: list[Picture], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Returns data of random bytes, table and matrices for `pictures`."""
    rows, offset = [], 0
    for picture in pictures:
        item = picture.sample_bytes
        step = item * (1 + picture.interleaved)
        y_pitch = (picture.width + picture.slack) * item
        uv_pitch = ((picture.width + 1) // 2 + picture.slack) * step
        u_offset = -(-(offset + picture.height * y_pitch) // 4) * 4
        chroma = (picture.height + 1) // 2 * uv_pitch
        v_offset = u_offset + (item if picture.interleaved else chroma)
        source = PlaneLayout(
            y_offset=offset,
            u_offset=u_offset,
            v_offset=v_offset,
            y_pitch=y_pitch,
            uv_pitch=uv_pitch,
            uv_step=step,
            sample_bytes=item,
            height=picture.height,
            width=picture.width,
            rotation=picture.rotation,
            resized_height=picture.size[0],
            resized_width=picture.size[1],
        )
        rows.append(list(source))
        offset = -(-(u_offset + chroma * (1 if picture.interleaved else 2)) // 4) * 4
    generator = torch.Generator().manual_seed(seed)
    data = torch.randint(0, 256, (offset,), dtype=torch.uint8, generator=generator)
    matrix = torch.stack([p.matrix / (257 if p.sample_bytes == 2 else 1) for p in pictures])
    matrix[..., 3] = torch.stack([p.matrix[:, 3] for p in pictures])
    return data, torch.tensor(rows), matrix


def weights(samples: int, extent: float, size: int, antialias: bool) -> np.ndarray:
    """Returns [size, samples] float64: how much each sample adds to each resized one."""
    scale = extent / size
    centre = (np.arange(size) + 0.5) * scale
    if antialias:
        support = max(scale, 1.0)
        distance = np.abs(np.arange(samples)[None] + 0.5 - centre[:, None]) / support
        height = np.maximum(1 - distance, 0)
        return height / height.sum(1, keepdims=True)
    position = np.clip(centre - 0.5, 0, samples - 1)
    return np.maximum(1 - np.abs(np.arange(samples)[None] - position[:, None]), 0)


def oracle(
    data: Tensor, table: Tensor, matrix: Tensor, out_size: tuple[int, int], antialias: bool
) -> tuple[Tensor, Tensor]:
    """Returns the result [B, 3, H, W] in float64 and how far float32 arithmetic may be from it.

    A coordinate carries at most four roundings of a number up to the plane's length, and on each
    axis moves a resized sample by at most its range times that (four times that where the filter is
    normalised); interpolation, matrix and normalisation add a rounding each for a dozen steps.
    """
    memory = data.numpy()
    results = np.zeros((len(table), 3, *out_size))
    tolerances = np.zeros_like(results)
    mean, std = MEAN.double().numpy()[:, None, None], STD.double().numpy()[:, None, None]
    rounding = 2.0**-24
    for index, row in enumerate(table.tolist()):
        source = PlaneLayout(*row)
        dtype, item = (np.uint8, np.uint16)[source.sample_bytes - 1], source.sample_bytes
        rows, columns = source.resized_height, source.resized_width
        if source.rotation in (90, 270):
            rows, columns = columns, rows
        samples = []
        for offset, pitch, step, halves in (
            (source.y_offset, source.y_pitch, item, 1),
            (source.u_offset, source.uv_pitch, source.uv_step, 2),
            (source.v_offset, source.uv_pitch, source.uv_step, 2),
        ):
            shape = (-(-source.height // halves), -(-source.width // halves))
            plane = np.ndarray(shape, dtype, memory.data, offset, (pitch, step)).astype(np.float64)
            y_weights = weights(shape[0], source.height / halves, rows, antialias)
            x_weights = weights(shape[1], source.width / halves, columns, antialias)
            samples.append(y_weights @ plane @ x_weights.T)
        scale, offset = matrix[index].double().numpy()[:, :3], matrix[index].double().numpy()[:, 3]
        rgb = np.tensordot(scale, np.stack(samples), 1) + offset[:, None, None]
        picture = (np.clip(rgb, 0, 1) - mean) / std
        turned = np.rot90(picture, -source.rotation // 90, (1, 2))
        results[index, :, : turned.shape[1], : turned.shape[2]] = turned
        moved = 4 * rounding * (source.height + source.width) * (4 if antialias else 1)
        reach = np.abs(scale).sum(1) * (2.0 ** (8 * item) - 1)
        tolerances[index] = (reach * moved + 12 * rounding * (reach + np.abs(offset) + 1))[
            :, None, None
        ] / std
    return torch.from_numpy(results), torch.from_numpy(tolerances)
