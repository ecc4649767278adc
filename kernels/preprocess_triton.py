"""preprocess as one Triton kernel for a whole batch; the formula is in `preprocess_reference`.

One program owns a tile of BLOCK_H × BLOCK_W pixels of one image's output, all three channels,
padding included. It reads its image's row of the table: a launch holds nothing about a source.

Rotation costs nothing. An output axis walks along the rows or along the columns of the planes,
forwards or backwards. Either way the address of a tap is one offset per output row plus one per
output column, so the coordinates are computed for BLOCK_H + BLOCK_W lines, not for every pixel.

Bytes: the planes once (1.5 a source pixel at 8 bits; neighbours find shared taps in the caches, and
lines that no tap falls on are not read) and 3·H·W elements written: 3.1 + 6.2 MB for a 1080p frame
into 768×1344 bfloat16. Per pixel 12 samples are loaded, 45 multiply-adds done and 3 values stored.
Antialiased, (2·⌈s⌉ + 1)² samples are loaded per plane, s being the larger of 1 and the shrink.

Tails: taps are clamped into the plane, so that every lane reads valid memory, in the padding and
beyond the output too; the padding is stored as zero, stores beyond the output are masked.

Races: there are none. Nobody writes what is read (samples, table, matrices), and each element of
the output is written by exactly one program, once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from stream_rpn.kernels.preprocess_reference import PlaneLayout
from stream_rpn.kernels.shipped import Shipped

BLOCK_H, BLOCK_W, NUM_WARPS = 8, 128, 4

# Columns of the table, a row per image: the fields of `PlaneLayout` in their order.
(
    Y_OFFSET,
    U_OFFSET,
    V_OFFSET,
    Y_PITCH,
    UV_PITCH,
    UV_STEP,
    SAMPLE_BYTES,
    HEIGHT,
    WIDTH,
    ROTATION,
    RESIZED_HEIGHT,
    RESIZED_WIDTH,
) = (tl.constexpr(column) for column in range(len(PlaneLayout._fields)))
TABLE_COLUMNS = tl.constexpr(len(PlaneLayout._fields))
# Numbers of an image's matrix and of one of its rows.
MATRIX_SIZE, MATRIX_COLUMNS = tl.constexpr(12), tl.constexpr(4)


@triton.jit
def _lerp(first, second, weight):
    return tl.fma(second - first, weight, first)


@triton.jit
def _taps(centre, length, stride):
    """The offsets of the two samples around each coordinate, and the second one's weight."""
    position = tl.minimum(tl.maximum(centre - 0.5, 0.0), (length - 1).to(tl.float32))
    first = position.to(tl.int32)
    second = tl.minimum(first + 1, length - 1)
    return first * stride, second * stride, position - first.to(tl.float32)


@triton.jit
def _bilinear(plane_ptr, y0, y1, y_weight, x0, x1, x_weight):
    """The plane's samples [BLOCK_H, BLOCK_W] in float32 at the given taps."""
    top_left = tl.load(plane_ptr + (y0 + x0)).to(tl.float32)
    top_right = tl.load(plane_ptr + (y0 + x1)).to(tl.float32)
    bottom_left = tl.load(plane_ptr + (y1 + x0)).to(tl.float32)
    bottom_right = tl.load(plane_ptr + (y1 + x1)).to(tl.float32)
    top = _lerp(top_left, top_right, x_weight)
    return _lerp(top, _lerp(bottom_left, bottom_right, x_weight), y_weight)


@triton.jit
def _low(pair, BITS: tl.constexpr):
    return (pair & ((1 << BITS) - 1)).to(tl.float32)


@triton.jit
def _high(pair, BITS: tl.constexpr):
    return (pair >> BITS).to(tl.float32)


@triton.jit
def _bilinear_pair(plane_ptr, y0, y1, y_weight, x0, x1, x_weight, BITS: tl.constexpr):
    """Both samples of interleaved pairs, each pair loaded at once."""
    top_left, top_right = tl.load(plane_ptr + (y0 + x0)), tl.load(plane_ptr + (y0 + x1))
    bottom_left, bottom_right = tl.load(plane_ptr + (y1 + x0)), tl.load(plane_ptr + (y1 + x1))
    u_top = _lerp(_low(top_left, BITS), _low(top_right, BITS), x_weight)
    u_bottom = _lerp(_low(bottom_left, BITS), _low(bottom_right, BITS), x_weight)
    v_top = _lerp(_high(top_left, BITS), _high(top_right, BITS), x_weight)
    v_bottom = _lerp(_high(bottom_left, BITS), _high(bottom_right, BITS), x_weight)
    return _lerp(u_top, u_bottom, y_weight), _lerp(v_top, v_bottom, y_weight)


@triton.jit
def _weight(sample, centre, length, slope):
    """The triangle's height above a sample; nothing beyond the plane's end."""
    distance = tl.abs(sample.to(tl.float32) + 0.5 - centre) * slope
    return tl.where(sample < length, tl.maximum(1 - distance, 0.0), 0.0)


@triton.jit
def _triangle(centre, length, scale):
    """The first sample under each coordinate's triangle, its slope, number of taps and 1 / sum."""
    support = tl.maximum(scale, 1.0)
    first = tl.maximum((centre - support + 0.5).to(tl.int32), 0)
    slope = tl.div_rn(1.0, support)
    num_taps = 2 * tl.ceil(support).to(tl.int32) + 1
    total = tl.zeros_like(centre)
    for tap in range(num_taps):
        total += _weight(first + tap, centre, length, slope)
    return first, slope, num_taps, 1 / total


@triton.jit
def _antialiased(
    plane_ptr, y_centre, y_length, y_stride, y_scale, x_centre, x_length, x_stride, x_scale
):
    """The plane's samples under triangles as wide as an output pixel where an axis shrinks."""
    y_first, y_slope, y_taps, y_norm = _triangle(y_centre, y_length, y_scale)
    x_first, x_slope, x_taps, x_norm = _triangle(x_centre, x_length, x_scale)
    result = tl.zeros_like(y_centre + x_centre)
    for y_tap in range(y_taps):
        y = y_first + y_tap
        line_ptr = plane_ptr + tl.minimum(y, y_length - 1) * y_stride
        line = tl.zeros_like(result)
        for x_tap in range(x_taps):
            x = x_first + x_tap
            sample = tl.load(line_ptr + tl.minimum(x, x_length - 1) * x_stride).to(tl.float32)
            line = tl.fma(sample, _weight(x, x_centre, x_length, x_slope) * x_norm, line)
        result = tl.fma(line, _weight(y, y_centre, y_length, y_slope) * y_norm, result)
    return result


@triton.jit
def _sample(
    luma_ptr,  # of type SAMPLE
    u_ptr,  # of type SAMPLE
    v_ptr,  # of type SAMPLE
    y_centre,  # [BLOCK_H, 1]
    y_length,
    y_scale,
    y_luma_stride,
    y_chroma_stride,
    x_centre,  # [1, BLOCK_W]
    x_length,
    x_scale,
    x_luma_stride,
    x_chroma_stride,
    interleaved,
    ANTIALIAS: tl.constexpr,
    PAIR: tl.constexpr,
):
    """Luma, U and V [BLOCK_H, BLOCK_W] in float32.

    Strides count samples in luma; in chroma they count samples, or pairs where interleaved.
    """
    y_half, x_half = (y_length + 1) // 2, (x_length + 1) // 2
    if ANTIALIAS:
        step = tl.where(interleaved, 2, 1)
        luma = _antialiased(
            luma_ptr, y_centre, y_length, y_luma_stride, y_scale,
            x_centre, x_length, x_luma_stride, x_scale,
        )  # fmt: skip
        u = _antialiased(
            u_ptr, y_centre * 0.5, y_half, y_chroma_stride * step, y_scale * 0.5,
            x_centre * 0.5, x_half, x_chroma_stride * step, x_scale * 0.5,
        )  # fmt: skip
        v = _antialiased(
            v_ptr, y_centre * 0.5, y_half, y_chroma_stride * step, y_scale * 0.5,
            x_centre * 0.5, x_half, x_chroma_stride * step, x_scale * 0.5,
        )  # fmt: skip
    else:
        y0, y1, y_weight = _taps(y_centre, y_length, y_luma_stride)
        x0, x1, x_weight = _taps(x_centre, x_length, x_luma_stride)
        luma = _bilinear(luma_ptr, y0, y1, y_weight, x0, x1, x_weight)
        y0, y1, y_weight = _taps(y_centre * 0.5, y_half, y_chroma_stride)
        x0, x1, x_weight = _taps(x_centre * 0.5, x_half, x_chroma_stride)
        if interleaved:
            pair_ptr = u_ptr.to(tl.pointer_type(PAIR))
            u, v = _bilinear_pair(
                pair_ptr, y0, y1, y_weight, x0, x1, x_weight, PAIR.primitive_bitwidth // 2
            )
        else:
            u = _bilinear(u_ptr, y0, y1, y_weight, x0, x1, x_weight)
            v = _bilinear(v_ptr, y0, y1, y_weight, x0, x1, x_weight)
    return luma, u, v


@triton.jit
def _centres(start, size, scale, flip, BLOCK: tl.constexpr):
    """The luma coordinates of an output axis's pixel centres [BLOCK]; 0 is the plane's edge."""
    pixel = tl.minimum(start + tl.arange(0, BLOCK), size - 1)
    return (tl.where(flip, size - 1 - pixel, pixel).to(tl.float32) + 0.5) * scale


# Left to itself a launch compiles anew where an integer is 1 or divisible by 16 and was not before.
# Only the strides of one pixel are 1 for good, in one memory format or the other; that rows start
# at multiples of 16, which makes stores wider, UNIT says.
@triton.jit(
    do_not_specialize=["out_height", "out_width", "image_stride", "row_stride"],
    do_not_specialize_on_alignment=["channel_stride", "column_stride"],
)
def preprocess_kernel(
    data_ptr,  # [bytes] uint8
    table_ptr,  # [B, TABLE_COLUMNS] int64
    matrix_ptr,  # [B, 3, MATRIX_COLUMNS]
    mean_ptr,  # [3]
    std_ptr,  # [3]
    out_ptr,  # [B, 3, out_height, out_width], strides as given
    out_height,
    out_width,
    image_stride,
    channel_stride,
    row_stride,
    column_stride,
    UNIT: tl.constexpr,
    ANTIALIAS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Grid (tile along x, tile along y, image): writes a tile of all three channels.

    The width and all strides but a column's count in UNITs of elements.
    """
    out_width *= UNIT
    image_stride *= UNIT
    channel_stride *= UNIT
    row_stride *= UNIT
    image = tl.program_id(2).to(tl.int64)
    y_start, x_start = tl.program_id(1) * BLOCK_H, tl.program_id(0) * BLOCK_W
    row = table_ptr + image * TABLE_COLUMNS
    luma_ptr = data_ptr + tl.load(row + Y_OFFSET)
    u_ptr = data_ptr + tl.load(row + U_OFFSET)
    v_ptr = data_ptr + tl.load(row + V_OFFSET)
    # 64 bits find the planes in a batch; within a plane 32 are enough.
    y_pitch = tl.load(row + Y_PITCH).to(tl.int32)
    uv_pitch = tl.load(row + UV_PITCH).to(tl.int32)
    uv_step = tl.load(row + UV_STEP).to(tl.int32)
    sample_bytes = tl.load(row + SAMPLE_BYTES).to(tl.int32)
    height, width = tl.load(row + HEIGHT).to(tl.int32), tl.load(row + WIDTH).to(tl.int32)
    rotation = tl.load(row + ROTATION).to(tl.int32)
    resized_height = tl.load(row + RESIZED_HEIGHT).to(tl.int32)
    resized_width = tl.load(row + RESIZED_WIDTH).to(tl.int32)

    # From here on y and x are the axes of the output, whichever axis of the planes they walk along.
    turned = (rotation == 90) | (rotation == 270)
    luma_pitch, chroma_pitch = y_pitch // sample_bytes, uv_pitch // uv_step
    y_length, x_length = tl.where(turned, width, height), tl.where(turned, height, width)
    y_scale = tl.div_rn(y_length.to(tl.float32), resized_height.to(tl.float32))
    x_scale = tl.div_rn(x_length.to(tl.float32), resized_width.to(tl.float32))
    flip_x = (rotation == 90) | (rotation == 180)
    y_centre = _centres(y_start, resized_height, y_scale, rotation >= 180, BLOCK_H)[:, None]
    x_centre = _centres(x_start, resized_width, x_scale, flip_x, BLOCK_W)[None, :]
    y_luma, x_luma = tl.where(turned, 1, luma_pitch), tl.where(turned, luma_pitch, 1)
    y_chroma, x_chroma = tl.where(turned, 1, chroma_pitch), tl.where(turned, chroma_pitch, 1)
    interleaved = uv_step != sample_bytes
    if sample_bytes == 1:
        luma, u, v = _sample(
            luma_ptr, u_ptr, v_ptr,
            y_centre, y_length, y_scale, y_luma, y_chroma,
            x_centre, x_length, x_scale, x_luma, x_chroma,
            interleaved, ANTIALIAS, tl.uint16,
        )  # fmt: skip
    else:
        wide = tl.pointer_type(tl.uint16)
        luma, u, v = _sample(
            luma_ptr.to(wide), u_ptr.to(wide), v_ptr.to(wide),
            y_centre, y_length, y_scale, y_luma, y_chroma,
            x_centre, x_length, x_scale, x_luma, x_chroma,
            interleaved, ANTIALIAS, tl.uint32,
        )  # fmt: skip

    rows = y_start + tl.arange(0, BLOCK_H)[:, None]
    columns = x_start + tl.arange(0, BLOCK_W)[None, :]
    # Left to itself the compiler gives a thread as many neighbours as one store holds, eight in
    # bfloat16, and the taps that a warp loads at once lie in four cache lines; with two it is one.
    columns = tl.max_contiguous(columns, [1, 2])
    inside = (rows < resized_height) & (columns < resized_width)
    mask = (rows < out_height) & (columns < out_width)
    pixel_ptr = out_ptr + image * image_stride + (rows * row_stride + columns * column_stride)
    for channel in tl.static_range(3):
        row_ptr = matrix_ptr + image * MATRIX_SIZE + channel * MATRIX_COLUMNS
        rgb = tl.fma(luma, tl.load(row_ptr), tl.load(row_ptr + 3))
        rgb = tl.fma(u, tl.load(row_ptr + 1), rgb)
        rgb = tl.fma(v, tl.load(row_ptr + 2), rgb)
        scale = tl.div_rn(1.0, tl.load(std_ptr + channel))
        shift = -tl.load(mean_ptr + channel) * scale
        value = tl.fma(tl.minimum(tl.maximum(rgb, 0.0), 1.0), scale, shift)
        value = tl.where(inside, value, 0.0).to(out_ptr.dtype.element_ty)
        tl.store(pixel_ptr + channel * channel_stride, value, mask=mask)


def preprocess_triton(
    data: Tensor,
    table: Tensor,
    matrix: Tensor,
    mean: Tensor,
    std: Tensor,
    out: Tensor,
    *,
    antialias: bool,
) -> None:
    """Fills `out` in one launch; arguments as in `preprocess_batch`."""
    batch, _, height, width = out.shape
    if out.numel() == 0:
        return
    grid = (triton.cdiv(width, BLOCK_W), triton.cdiv(height, BLOCK_H), batch)
    *strides, column_stride = out.stride()
    image_stride, channel_stride, row_stride = strides
    aligned = column_stride == 1 and all(number % 16 == 0 for number in (width, *strides))
    unit = 16 if aligned else 1
    with torch.cuda.device_of(out):
        preprocess_kernel[grid](
            data,
            table,
            matrix,
            mean,
            std,
            out,
            height,
            width // unit,
            image_stride // unit,
            channel_stride // unit,
            row_stride // unit,
            column_stride,
            UNIT=unit,
            ANTIALIAS=antialias,
            BLOCK_H=BLOCK_H,
            BLOCK_W=BLOCK_W,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,
        )


def shipped_configs() -> list[Shipped]:
    """Returns what `preprocess_triton` launches for contiguous and channels-last outputs."""
    pointers = {
        "data_ptr": "*u8",
        "table_ptr": "*i64",
        "matrix_ptr": "*fp32",
        "mean_ptr": "*fp32",
        "std_ptr": "*fp32",
    }
    integers = ("out_height", "out_width", "image_stride", "channel_stride", "row_stride")
    layouts = (("contiguous", "column_stride"), ("channels_last", "channel_stride"))
    return [
        Shipped(
            f"preprocess/{dtype}_{layout}" + ("_antialias" if antialias else ""),
            preprocess_kernel,
            {
                **pointers,
                "out_ptr": f"*{dtype}",
                **dict.fromkeys((*integers, "column_stride"), "i32"),
                # A stride of 1 becomes a constant in a launch, too.
                **dict.fromkeys((one, "UNIT", "ANTIALIAS", "BLOCK_H", "BLOCK_W"), "constexpr"),
            },
            {
                one: 1,
                "UNIT": 16 if layout == "contiguous" else 1,
                "ANTIALIAS": antialias,
                "BLOCK_H": BLOCK_H,
                "BLOCK_W": BLOCK_W,
            },
            NUM_WARPS,
        )
        for dtype in ("bf16", "fp16", "fp32")
        for layout, one in layouts
        for antialias in (False, True)
    ]
