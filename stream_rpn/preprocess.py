"""Frames to the network's input.

A frame keeps the planes it was coded in. They are sampled straight at the size that the network
wants, which touches fewer pixels than converting the whole frame to RGB first (the formula is in
`stream_rpn.kernels.preprocess_reference`). On a CPU `to_input` reads the decoder's own memory; for
a GPU `pack` lays the planes of a batch side by side in one buffer to upload, with the table and
matrices that `stream_rpn.kernels.preprocess` reads there. Where a network wants `antialias`, a CPU
lets swscale make small planes of 8 bits (see `stream_rpn.yuv`), four times as fast.

Real 8-bit clips differ from the straightforward path, `to_ndarray("rgb24")` and torchvision's
transform, by 0.7 to 1.2 grey levels on average, nearly all of it swscale's rounding down, and by up
to 30 at sharp coloured edges, where swscale replicates chroma. From swscale's accurate conversion
with full chroma they differ by 0.2 to 0.4 levels on average.

Sizes are (height, width) of the displayed frame unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from stream_rpn import yuv
from stream_rpn.frame import Frame, StreamRPNError
from stream_rpn.input_spec import InputSpec, check_range, padded_size, resized_size
from stream_rpn.kernels.preprocess_reference import PlaneLayout, color_planes, preprocess_planes
from stream_rpn.yuv import PixelFormat, pixel_format


@cache
def color_matrix(matrix: str, full_range: bool, bits: int = 8, shift: int = 0) -> Tensor:
    """Returns `yuv.color_matrix` as a tensor."""
    return torch.from_numpy(yuv.color_matrix(matrix, full_range, bits, shift))


def planes(frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the frame's y [h, w], u and v [ceil(h/2), ceil(w/2)] as coded, without a copy.

    uint8, or uint16 for 10-bit video; on the device that the decoder left them on. They keep the
    decoder's memory alive.

    Raises:
        StreamRPNError: the pixel format is none that decoding hands over, or a CUDA surface has an
            odd size.
    """
    stored = _stored_planes(frame)
    if len(stored) == 2:
        luma, chroma = stored
        return luma, chroma[..., 0], chroma[..., 1]
    luma, u, v = stored
    return luma, u, v


def frame_matrix(frame: Frame) -> Tensor:
    """Returns [3, 4] float32 from the frame's samples to RGB in [0, 1]."""
    layout = pixel_format(frame)
    return color_matrix(frame.color.matrix, frame.color.full_range, layout.bits, layout.shift)


def to_input(
    frames: Sequence[Frame],
    spec: InputSpec,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the input of a batch of frames, converted on the CPU.

    Args:
        frames: any sizes, rotations and formats; their planes must lie in the host's memory.
        spec: what the network wants.
        device: where the result goes.
        dtype: of the result.
        channels_last: memory format of the result.
        out: [B, 3, H, W] on the CPU to write to instead, at least as large as needed; device, dtype
            and memory format are then its own.

    Returns:
        images [B, 3, H, W], normalised, turned as displayed, padded right and below with zeros to
        the largest frame's padded size; image_sizes [B, 2] int64, (height, width) without padding.
    """
    sizes = [resized_size(f.height, f.width, spec.min_size, spec.max_size) for f in frames]
    images = _allocate(sizes, spec, dtype, channels_last) if out is None else out
    mean, std = _normalization(spec)
    for frame, size, slot in zip(frames, sizes, images, strict=True):
        if spec.antialias:
            small = np.empty((3, *size), np.uint8)
            matrix = torch.from_numpy(yuv.shrink(frame, size, small))
            color_planes(torch.from_numpy(small).float(), matrix, mean, std, slot)
            continue
        preprocess_planes(
            planes(frame),
            frame_matrix(frame),
            mean,
            std,
            slot,
            size=size,
            rotation=frame.rotation,
        )
    image_sizes = torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2)
    if out is not None:
        return out, image_sizes
    return images.to(device), image_sizes.to(device)


def image_to_input(
    images: Sequence[Tensor | np.ndarray] | Tensor | np.ndarray,
    spec: InputSpec,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    first: int = 0,
) -> tuple[Tensor, Tensor]:
    """Returns the input of one RGB image or of a list of them, as torchvision's detectors make it.

    Args:
        images: tensors [3, H, W] or numpy arrays [H, W, 3]; uint8 in 0–255 or floating in [0, 1].
        spec: what the network wants.
        device: where the result goes.
        dtype: of the result.
        channels_last: memory format of the result.
        first: the index of the first image, for errors.

    Returns:
        As `to_input`. Without `antialias` and in float32, the same bits as
        `torchvision.models.detection.transform.GeneralizedRCNNTransform`.

    Raises:
        TypeError: an image is neither uint8 nor floating.
        ValueError: an image has another shape, or is floating and not in [0, 1].
    """
    batch = [images] if isinstance(images, Tensor | np.ndarray) else images
    rgb = [_rgb(image, index) for index, image in enumerate(batch, start=first)]
    sizes = [
        resized_size(image.shape[1], image.shape[2], spec.min_size, spec.max_size) for image in rgb
    ]
    result = _allocate(sizes, spec, dtype, channels_last).zero_().to(device)
    mean, std = (values[:, None, None] for values in _normalization(spec))
    for image, (height, width), slot in zip(rgb, sizes, result, strict=True):
        normalized = (image - mean.to(image.device)) / std.to(image.device)
        slot[:, :height, :width] = torch.nn.functional.interpolate(
            normalized[None],
            size=(height, width),
            mode="bilinear",
            align_corners=False,
            antialias=spec.antialias,
        )[0]
    return result, torch.tensor(sizes, dtype=torch.int64, device=device).reshape(-1, 2)


def packed_bytes(frame: Frame) -> int:
    """Returns how many bytes `pack` needs for the planes of a frame."""
    return sum(_plane_bytes(pixel_format(frame), frame.image.height, frame.image.width))


def pack(
    frames: Sequence[Frame],
    spec: InputSpec,
    data: Tensor,
    table: Tensor,
    matrix: Tensor,
    offset: int = 0,
) -> int:
    """Copies the planes of frames into `data` and describes them, for `kernels.preprocess`.

    Args:
        frames: B frames; their planes lie where `data` does, or are copied there.
        spec: what the network wants.
        data: [bytes] uint8, pinned memory or on a GPU.
        table: [B, 12] int64 on the CPU, filled with one `PlaneLayout` a row.
        matrix: [B, 3, 4] float32 on the CPU, filled with the frames' colour matrices.
        offset: of the first byte of `data` to fill.

    Returns:
        The offset behind the last byte that was filled.

    Raises:
        ValueError: `data` is too small.
    """
    needed = offset + sum(map(packed_bytes, frames))
    if data.numel() < needed:
        raise ValueError(f"data must hold {needed} bytes for these frames, got {data.numel()}")
    # Through NumPy: an element costs a tenth there of what it costs as a tensor.
    rows, matrices = table.numpy(), matrix.numpy()
    for index, frame in enumerate(frames):
        format, height, width = pixel_format(frame), frame.image.height, frame.image.width
        resized = resized_size(frame.height, frame.width, spec.min_size, spec.max_size)
        rows[index] = _layout(format, height, width, frame.rotation, resized)
        rows[index, :3] += offset
        matrices[index] = frame_matrix(frame).numpy()
        sizes = _plane_bytes(format, height, width)
        for plane, size in zip(_stored_planes(frame), sizes, strict=True):
            samples = plane.view(torch.uint8)
            place = data[offset : offset + samples.numel()].view(samples.shape)
            if data.is_cuda:
                place.copy_(samples, non_blocking=True)
            else:
                # torch would share every plane out among its threads and wait for the last of them,
                # which takes long where others keep the cores busy, such as decoders.
                np.copyto(place.numpy(), samples.numpy())
            offset += size
    return offset


@lru_cache(256)
def _layout(
    format: PixelFormat, height: int, width: int, rotation: int, resized: tuple[int, int]
) -> PlaneLayout:
    """Returns the row of a frame whose planes begin at offset 0."""
    item, sizes = format.sample_bytes, _plane_bytes(format, height, width)
    uv_step = 2 * item if format.interleaved else item
    return PlaneLayout(
        y_offset=0,
        u_offset=sizes[0],
        v_offset=sizes[0] + (item if format.interleaved else sizes[1]),
        y_pitch=width * item,
        uv_pitch=(width + 1) // 2 * uv_step,
        uv_step=uv_step,
        sample_bytes=item,
        height=height,
        width=width,
        rotation=rotation,
        resized_height=resized[0],
        resized_width=resized[1],
    )


def _stored_planes(frame: Frame) -> list[Tensor]:
    """Returns y [h, w] and u, v [ch, cw], or y and interleaved uv [ch, cw, 2], without a copy."""
    layout = pixel_format(frame)
    image = frame.image
    height, width = image.height, image.width
    if image.sw_format is not None:
        if height % 2 or width % 2:
            raise StreamRPNError(
                f"frame {frame.index} is a CUDA surface of the odd size {width}x{height}; decode "
                "this source on the CPU (the decoder cpu)"
            )
        # Through the capsule: the producer refuses the stream argument that torch passes, so that
        # ordering with the decoder's stream is the caller's task.
        return [from_dlpack(plane.__dlpack__()) for plane in image.planes]
    # Not DLPack: in 18.1 it drops the last row and column of interleaved chroma of an odd size.
    item = layout.sample_bytes
    chroma = ((height + 1) // 2, (width + 1) // 2)
    shapes: list[tuple[int, ...]] = [(height, width), chroma, chroma]
    if layout.interleaved:
        shapes = [(height, width), (*chroma, 2)]
    return [
        torch.from_numpy(
            np.ndarray(
                shape,
                np.uint8 if item == 1 else np.uint16,
                memoryview(plane),
                strides=(plane.line_size, item)
                if len(shape) == 2
                else (plane.line_size, 2 * item, item),
            )
        )
        for plane, shape in zip(image.planes, shapes, strict=True)
    ]


@lru_cache(256)
def _plane_bytes(format: PixelFormat, height: int, width: int) -> list[int]:
    chroma = ((height + 1) // 2) * ((width + 1) // 2)
    samples = [height * width, *([2 * chroma] if format.interleaved else [chroma, chroma])]
    # Aligned, so that the kernel may load samples and pairs of them at once.
    return [-(-size * format.sample_bytes // 16) * 16 for size in samples]


def _allocate(
    sizes: Sequence[tuple[int, int]], spec: InputSpec, dtype: torch.dtype, channels_last: bool
) -> Tensor:
    padded = [padded_size(size, spec.size_divisor) for size in sizes]
    height = max((size[0] for size in padded), default=0)
    width = max((size[1] for size in padded), default=0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(len(sizes), 3, height, width, dtype=dtype, memory_format=layout)


@cache
def _normalization(spec: InputSpec) -> tuple[Tensor, Tensor]:
    return torch.tensor(spec.mean), torch.tensor(spec.std)


def _rgb(image: Tensor | np.ndarray, index: int) -> Tensor:
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"image {index} must be [H, W, 3], got {list(image.shape)}")
        # torch has no tensors that must not be written to, and big-endian ones neither.
        native = np.require(image, image.dtype.newbyteorder("="), ("C", "W"))
        tensor = torch.from_numpy(native).permute(2, 0, 1)
    else:
        tensor = image
    if tensor.ndim != 3 or tensor.shape[0] != 3 or 0 in tensor.shape:
        raise ValueError(f"image {index} must be [3, H, W], got {list(tensor.shape)}")
    if tensor.dtype == torch.uint8:
        return tensor.float() / 255
    if not tensor.is_floating_point():
        raise TypeError(f"image {index} must be uint8 or floating, got {tensor.dtype}")
    lowest, highest = tensor[:, ::8, ::8].aminmax()
    check_range(float(lowest), float(highest), index)
    return tensor.float()
