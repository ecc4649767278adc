"""preprocess in plain PyTorch: the specification of the Triton form, and the product's CPU path.

For every pixel (i, j) of the unrotated, resized picture and every plane p of its source:

    sample_p = bilinear(plane_p, (i + ½)·h_p / rows − ½, (j + ½)·w_p / columns − ½)
    rgb      = clamp(matrix · (sample_y, sample_u, sample_v, 1), 0, 1)
    out      = (rgb − mean) / std

and the picture is turned clockwise by its rotation and padded with zeros. (h_p, w_p) is the frame's
height and width in samples of the plane, halved for chroma: for an odd frame size it is not the
plane's own size, since the last chroma sample covers half a pixel that does not exist. Rows and
columns beyond an edge repeat it. That is torchvision's bilinear convention (half-pixel centres, no
antialias) applied to each plane, with chroma taken as centred between its four luma samples. Most
video sites it between the two on the left; the difference is a quarter of a chroma sample, and
centres are what JPEG training pictures have and what replicating chroma, as swscale does, assumes.

Resizing before the conversion gives what resizing after it gives, as both are linear, except where
the source holds colours outside the RGB cube: here the mean is clamped, there the pixels were.

Everything is float32. Each image is computed by itself: its bits do not depend on its batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

# F.interpolate cannot be told an odd frame's chroma scale together with the size of its output.
_resize = torch.ops.aten.upsample_bilinear2d.out
_resize_antialiased = torch.ops.aten._upsample_bilinear2d_aa.out


class PlaneLayout(NamedTuple):
    """One row of the table: where an image lies in the flat data and what becomes of it.

    Offsets, pitches and steps are in bytes, the luma ones multiples of sample_bytes, the chroma
    pitch and u_offset multiples of uv_step. Height and width are of the luma plane as stored;
    chroma planes have half of each, rounded up.

    Attributes:
        y_offset: of the first luma sample.
        u_offset: of the first U sample.
        v_offset: of the first V sample; u_offset + sample_bytes where U and V alternate.
        y_pitch: from one luma row to the next.
        uv_pitch: from one chroma row to the next.
        uv_step: from one U sample to the next: sample_bytes, or twice that where U and V alternate.
        sample_bytes: 1, or 2 for little-endian 16-bit samples.
        height: luma rows.
        width: luma columns.
        rotation: degrees clockwise for display: 0, 90, 180 or 270.
        resized_height: of the result after rotation, without padding.
        resized_width: of the result after rotation, without padding.
    """

    y_offset: int
    u_offset: int
    v_offset: int
    y_pitch: int
    uv_pitch: int
    uv_step: int
    sample_bytes: int
    height: int
    width: int
    rotation: int
    resized_height: int
    resized_width: int


def preprocess_reference(
    data: Tensor,
    table: Tensor,
    matrix: Tensor,
    mean: Tensor,
    std: Tensor,
    out: Tensor,
    *,
    antialias: bool,
) -> None:
    """Fills `out`; arguments as in `stream_rpn.kernels.preprocess.preprocess_batch`."""
    for row, image_matrix, slot in zip(table.tolist(), matrix, out, strict=True):
        layout = PlaneLayout(*row)
        preprocess_planes(
            _planes(data, layout),
            image_matrix,
            mean,
            std,
            slot[:3],
            size=(layout.resized_height, layout.resized_width),
            rotation=layout.rotation,
            antialias=antialias,
        )
    out[:, 3:].zero_()


def preprocess_planes(
    planes: Sequence[Tensor],
    matrix: Tensor,
    mean: Tensor,
    std: Tensor,
    out: Tensor,
    *,
    size: tuple[int, int],
    rotation: int = 0,
    antialias: bool = False,
) -> None:
    """Writes one image, given as its planes, and its padding into `out`.

    Args:
        planes: y [h, w], u and v [ceil(h/2), ceil(w/2)], uint8 or uint16, any strides.
        matrix: [3, 4] float32, sample values (and 1) to RGB in [0, 1].
        mean: [3] float32.
        std: [3] float32.
        out: [3, H, W], any floating dtype and strides, H and W at least `size`.
        size: (height, width) of the resized image after rotation.
        rotation: degrees clockwise: 0, 90, 180 or 270.
        antialias: widen the bilinear filter where an axis shrinks, as in `F.interpolate`.
    """
    rows, columns = size if rotation % 180 == 0 else (size[1], size[0])
    height, width = planes[0].shape
    resize = _resize_antialiased if antialias else _resize
    samples = torch.empty(3, rows, columns, device=planes[0].device)
    for plane, resized, subsampling in zip(planes, samples, (1, 2, 2), strict=True):
        stored = plane.float()[None, None]
        y_extent, x_extent = height / subsampling, width / subsampling
        # An axis that keeps its number of samples is copied, whatever the scale, which is wrong for
        # the chroma of an odd size. One line more prevents that and is out of every filter's reach.
        below = int(plane.shape[0] == rows != y_extent)
        right = int(plane.shape[1] == columns != x_extent)
        if below or right:
            stored = pad(stored, (0, right, 0, below), mode="replicate")
        target, sizes = resized[None, None], [rows, columns]
        scales = [rows / y_extent, columns / x_extent]
        if antialias and columns == 1:
            # torch gets a single antialiased column wrong, and a single row right.
            stored, target = stored.mT, target.mT
            sizes, scales = sizes[::-1], scales[::-1]
        resize(stored, sizes, False, *scales, out=target)
    color_planes(samples, matrix, mean, std, out, rotation=rotation)


def color_planes(
    samples: Tensor,
    matrix: Tensor,
    mean: Tensor,
    std: Tensor,
    out: Tensor,
    *,
    rotation: int = 0,
) -> None:
    """Converts planes that have their size already, normalises them and pads.

    Args:
        samples: [3, rows, columns] float32: y, u and v.
        matrix: [3, 4] float32, sample values (and 1) to RGB in [0, 1].
        mean: [3] float32.
        std: [3] float32.
        out: [3, H, W], any floating dtype and strides, at least as large as the turned picture.
        rotation: degrees clockwise: 0, 90, 180 or 270.
    """
    # Normalisation is folded into the matrix, and with it the clamp's bounds.
    scaled = matrix[:, :3] / std[:, None]
    offset = (matrix[:, 3] - mean) / std
    rgb = torch.addmm(offset[:, None], scaled, samples.view(3, -1)).view_as(samples)
    lowest, highest = (-mean / std).tolist(), ((1 - mean) / std).tolist()
    height, width = rgb.shape[1:] if rotation % 180 == 0 else rgb.mT.shape[1:]
    for channel, slot, low, high in zip(rgb, out, lowest, highest, strict=True):
        channel.clamp_(low, high)
        slot[:height, :width].copy_(torch.rot90(channel, -rotation // 90) if rotation else channel)
    out[:, height:].zero_()
    out[:, :height, width:].zero_()


def _planes(data: Tensor, layout: PlaneLayout) -> tuple[Tensor, Tensor, Tensor]:
    height, width, item = layout.height, layout.width, layout.sample_bytes
    samples = data if item == 1 else data[: len(data) // 2 * 2].view(torch.uint16)
    chroma = ((height + 1) // 2, (width + 1) // 2)
    chroma_strides = (layout.uv_pitch // item, layout.uv_step // item)
    return (
        samples.as_strided((height, width), (layout.y_pitch // item, 1), layout.y_offset // item),
        samples.as_strided(chroma, chroma_strides, layout.u_offset // item),
        samples.as_strided(chroma, chroma_strides, layout.v_offset // item),
    )
