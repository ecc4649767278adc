"""preprocess_batch: decoded planes → the network's input, resized, normalised, turned, padded."""

import torch
from torch import Tensor

from stream_rpn.kernels.dispatch import fused_or_reference, has_changed, opaque_op
from stream_rpn.kernels.preprocess_reference import (
    PlaneLayout,
    preprocess_reference,
)

__all__ = ["PlaneLayout", "preprocess_batch"]


@torch.no_grad()
def preprocess_batch(
    data: Tensor,
    table: Tensor,
    matrix: Tensor,
    mean: Tensor,
    std: Tensor,
    out: Tensor,
    *,
    antialias: bool = False,
) -> Tensor:
    """Returns `out` filled with a batch of images that lie as YUV 4:2:0 planes in `data`.

    The formula stands in `preprocess_reference`. Geometry is read from the table on the device, so
    that one captured CUDA graph serves sources of any size; on a device its contents are therefore
    trusted, on a CPU they are checked.

    Args:
        data: [bytes] uint8, all planes of all images.
        table: [B, 12] int64, one `PlaneLayout` a row.
        matrix: [B, 3, 4] float32, per image from sample values (and 1) to RGB in [0, 1]: the range,
            the bit depth and the position of the bits in a sample are folded in.
        mean: [3] float32.
        std: [3] float32.
        out: [B, 3, H, W] float32, float16 or bfloat16, contiguous or channels-last, filled. With a
            fourth channel, which is filled with zeros, a GPU writes a pixel at once, and the first
            convolution reads it so; its weights for that channel may be anything finite.
        antialias: widen the bilinear filter where an axis shrinks, as in `F.interpolate`.

    Raises:
        ValueError: a shape, device or row of the table does not fit.
        TypeError: an argument is of another type.
    """
    _check(data, table, matrix, mean, std, out)
    _preprocess_op(data, table, matrix, mean, std, out, antialias)
    has_changed(out)
    return out


@opaque_op("preprocess", writes="out")
def _preprocess_op(
    data: Tensor,
    table: Tensor,
    matrix: Tensor,
    mean: Tensor,
    std: Tensor,
    out: Tensor,
    antialias: bool,
) -> None:
    if table.device.type == "cpu":
        for index, row in enumerate(table.tolist()):
            _check_layout(index, PlaneLayout(*row), data, out)

    def fused() -> None:
        from stream_rpn.kernels.preprocess_triton import preprocess_triton

        preprocess_triton(data, table, matrix, mean, std, out, antialias=antialias)

    def reference() -> None:
        preprocess_reference(data, table, matrix, mean, std, out, antialias=antialias)

    fused_or_reference("preprocess", out, fused, reference)


@torch.library.register_fake("stream_rpn::preprocess")  # type: ignore[untyped-decorator]
def _(
    data: Tensor,
    table: Tensor,
    matrix: Tensor,
    mean: Tensor,
    std: Tensor,
    out: Tensor,
    antialias: bool,
) -> None:
    return None


def _check(
    data: Tensor, table: Tensor, matrix: Tensor, mean: Tensor, std: Tensor, out: Tensor
) -> None:
    named = {"out": out, "data": data, "table": table, "matrix": matrix, "mean": mean, "std": std}
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    floats = (torch.float32, torch.float16, torch.bfloat16)
    channels = 4 if out.shape[1:2] == (4,) else 3
    for name, dtypes, shape in (
        ("out", floats, (None, channels, None, None)),
        ("data", (torch.uint8,), (None,)),
        ("table", (torch.int64,), (*out.shape[:1], len(PlaneLayout._fields))),
        ("matrix", (torch.float32,), (*out.shape[:1], 3, 4)),
        ("mean", (torch.float32,), (3,)),
        ("std", (torch.float32,), (3,)),
    ):
        tensor = named[name]
        if tensor.dtype not in dtypes:
            expected = " or ".join(str(dtype) for dtype in dtypes)
            raise TypeError(f"{name} must be {expected}, got {tensor.dtype}")
        if len(tensor.shape) != len(shape) or any(
            side not in (None, got) for side, got in zip(shape, tensor.shape, strict=True)
        ):
            sides = ", ".join("*" if side is None else str(side) for side in shape)
            raise ValueError(f"{name} must be [{sides}], got {list(tensor.shape)}")
        if tensor.device != out.device:
            raise ValueError(
                f"{name} must be on the device of out, {out.device}, got {tensor.device}"
            )
        if name == "out":
            if not (out.is_contiguous() or out.is_contiguous(memory_format=torch.channels_last)):
                strides = list(out.stride())
                raise ValueError(f"out must be contiguous or channels-last, got strides {strides}")
        elif not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {list(tensor.stride())}")


def _check_layout(index: int, layout: PlaneLayout, data: Tensor, out: Tensor) -> None:
    item, rows, columns = layout.sample_bytes, layout.height, layout.width
    chroma_rows, chroma_columns = (rows + 1) // 2, (columns + 1) // 2
    interleaved = layout.v_offset == layout.u_offset + item
    steps = (
        (layout.y_offset, item),
        (layout.v_offset, item),
        (layout.y_pitch, item),
        (layout.u_offset, layout.uv_step),
        (layout.uv_pitch, layout.uv_step),
    )
    if item not in (1, 2):
        problem = f"sample_bytes must be 1 or 2, got {item}"
    elif rows < 1 or columns < 1:
        problem = f"height and width must be at least 1, got {rows} and {columns}"
    elif layout.rotation not in (0, 90, 180, 270):
        problem = f"rotation must be 0, 90, 180 or 270, got {layout.rotation}"
    elif layout.uv_step != item and not (layout.uv_step == 2 * item and interleaved):
        problem = (
            f"uv_step must be sample_bytes, or twice that with v_offset = u_offset + sample_bytes, "
            f"got {layout}"
        )
    elif any(value < 0 or value % step for value, step in steps):
        problem = (
            f"luma offset and pitch and v_offset must be multiples of sample_bytes, u_offset and "
            f"uv_pitch of uv_step, none negative, got {layout}"
        )
    elif not 1 <= layout.resized_height <= out.shape[2]:
        problem = f"resized_height must be in [1, {out.shape[2]}], got {layout.resized_height}"
    elif not 1 <= layout.resized_width <= out.shape[3]:
        problem = f"resized_width must be in [1, {out.shape[3]}], got {layout.resized_width}"
    else:
        chroma_end = (chroma_rows - 1) * layout.uv_pitch + (chroma_columns - 1) * layout.uv_step
        end = item + max(
            layout.y_offset + (rows - 1) * layout.y_pitch + (columns - 1) * item,
            max(layout.u_offset, layout.v_offset) + chroma_end,
        )
        if end <= len(data):
            return
        problem = f"the planes must end within the {len(data)} bytes of data, got {end}"
    raise ValueError(f"table[{index}]: {problem}")
