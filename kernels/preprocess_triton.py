"""preprocess as one Triton kernel for a whole batch; the formula is in `preprocess_reference`.

One program owns one or more tiles of BLOCK_H × BLOCK_W pixels, one below the other, of one image's
output, all channels, padding included. It reads its image's row of the table: a launch holds
nothing about a source.

Rotation costs nothing. An output axis walks along the rows or along the columns of the planes,
forwards or backwards. Either way the address of a tap is one offset per output row plus one per
output column, so the coordinates are computed for BLOCK_H + BLOCK_W lines, not for every pixel.

Stores: three channels of two bytes side by side make no power of two. A thread therefore computes
two neighbouring pixels, packs them into three words, and the words change lanes so that a warp
stores whole sectors; a fourth channel makes the two pixels 16 bytes, which each thread stores at
once. Left to itself the compiler has each value stored by the thread that computed it, three times
the sectors, and Triton 3.6 even lays warps across rows.

Bytes: the planes once (1.5 a source pixel at 8 bits; neighbours find shared taps in the caches, and
lines that no tap falls on are not read) and 3·H·W elements written: 3.1 + 6.2 MB for a 1080p frame
into 768×1344 bfloat16. Per pixel 8 loads and about 115 instructions for NV12 (105 with a fourth
channel), and 330 per thread and program: that is what bounds it. Antialiased, s being the larger of
1 and the shrink, a column filters each of its lines once, 2·⌈s⌉ + 1 samples a line, for all rows of
its tile, s + 2·s / BLOCK_H lines a row, and the matrix units add up the lines.

Tails: taps are clamped into the plane, so that every lane reads valid memory, in the padding and
beyond the output too; the padding is stored as zero, stores beyond the output are masked. Of a
plane a single sample wide a neighbour is read that weighs nothing: behind luma, before chroma,
which is memory of `data` as luma lies before chroma.

Races: there are none. Nobody writes what is read (samples, table, matrices), and each element of
the output is written by exactly one program, once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from stream_rpn.kernels.preprocess_reference import PlaneLayout
from stream_rpn.kernels.shipped import Shipped

# A program's tile, and how many tiles, one below the other, it owns where there are many.
BLOCK_H, BLOCK_W, STEPS, NUM_WARPS = 8, 128, 4, 4
# So many programs keep a GPU busy; with fewer each owns one tile.
BUSY = 2048
ANTIALIAS_BLOCK_H, ANTIALIAS_BLOCK_W, LINES = 16, 32, 32

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
def _taps(centre, length, lowest):
    """The first of the two samples around each coordinate, and the second one's weight.

    The second sample is the next one. At the far end it has all the weight, so that the pair lies
    within the plane. A single sample is paired with the one behind it in memory or, if `lowest` is
    -1, with the one before it, which weighs nothing.
    """
    position = tl.minimum(tl.maximum(centre - 0.5, 0.0), (length - 1).to(tl.float32))
    first = tl.minimum(position.to(tl.int32), tl.maximum(length - 2, lowest))
    return first, position - first.to(tl.float32)


@triton.jit
def _at(plane_ptr, offset):
    # Of equal axes some versions of the compiler take the rows as the fast one, if not told.
    return tl.max_contiguous(plane_ptr + offset, [1, 2])


@triton.jit
def _bilinear(plane_ptr, offset, pitch, along, across):
    """The samples [BLOCK_H, BLOCK_W] in float32 between four neighbours, the first at `offset`."""
    corner, below = _at(plane_ptr, offset), _at(plane_ptr, offset + pitch)
    top = _lerp(tl.load(corner).to(tl.float32), tl.load(corner + 1).to(tl.float32), along)
    bottom = _lerp(tl.load(below).to(tl.float32), tl.load(below + 1).to(tl.float32), along)
    return _lerp(top, bottom, across)


@triton.jit
def _shifted(bits):
    """2 ** 23 + bits, exactly, below 2 ** 23: conversions have few units, logic has many."""
    return (bits | 0x4B000000).to(tl.float32, bitcast=True)


@triton.jit
def _lerp_bits(first, second, weight):
    first, second = _shifted(first), _shifted(second)
    return tl.fma(second - first, weight, first - 8388608.0)


@triton.jit
def _bilinear_pair(plane_ptr, offset, pitch, along, across, BITS: tl.constexpr):
    """Both samples of interleaved pairs, each pair loaded at once."""
    corner, below = _at(plane_ptr, offset), _at(plane_ptr, offset + pitch)
    low: tl.constexpr = (1 << BITS) - 1
    top_left, top_right = tl.load(corner).to(tl.uint32), tl.load(corner + 1).to(tl.uint32)
    bottom_left, bottom_right = tl.load(below).to(tl.uint32), tl.load(below + 1).to(tl.uint32)
    u_top = _lerp_bits(top_left & low, top_right & low, along)
    u_bottom = _lerp_bits(bottom_left & low, bottom_right & low, along)
    v_top = _lerp_bits(top_left >> BITS, top_right >> BITS, along)
    v_bottom = _lerp_bits(bottom_left >> BITS, bottom_right >> BITS, along)
    return _lerp(u_top, u_bottom, across), _lerp(v_top, v_bottom, across)


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
    plane_ptr, y_centre, y_length, y_step, y_scale, x_centre, x_length, x_step, x_scale,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """The plane's samples under triangles as wide as an output pixel where an axis shrinks.

    Along x sample by sample for LINES lines at a time, along y as a product with the lines' weights
    on the matrix units. Their numbers have 11 bits, so each factor is a sum of two: 22 bits.
    """
    # Beyond 8 bits the samples would leave the range of float16.
    DOWN: tl.constexpr = 1.0 / 256 if plane_ptr.dtype.element_ty.primitive_bitwidth > 8 else 1.0
    y_first, y_slope, y_taps, y_norm = _triangle(y_centre, y_length, y_scale)
    x_first, x_slope, x_taps, x_norm = _triangle(x_centre, x_length, x_scale)
    result = tl.zeros([BLOCK_H, BLOCK_W], tl.float32)
    rest = tl.zeros([BLOCK_H, BLOCK_W], tl.float32)
    for start in range(tl.min(y_first), tl.max(y_first) + y_taps, LINES):
        y = start + tl.arange(0, LINES)
        line_ptr = plane_ptr + (tl.minimum(y, y_length - 1) * y_step)[:, None]
        lines = tl.zeros([LINES, BLOCK_W], tl.float32)
        for first_tap in range(0, x_taps, 4):
            for tap in tl.static_range(4):
                x = x_first + (first_tap + tap)
                pointers = line_ptr + tl.minimum(x, x_length - 1) * x_step
                sample = tl.load(tl.max_contiguous(pointers, [1, 2])).to(tl.float32)
                lines = tl.fma(sample, _weight(x, x_centre, x_length, x_slope), lines)
        lines *= x_norm * DOWN
        weight = _weight(y[None, :], y_centre, y_length, y_slope)
        high_weight, high_lines = weight.to(tl.float16), lines.to(tl.float16)
        low_weight = ((weight - high_weight.to(tl.float32)) * 2048).to(tl.float16)
        low_lines = (lines - high_lines.to(tl.float32)).to(tl.float16)
        result = tl.dot(high_weight, high_lines, result)
        result = tl.dot(high_weight, low_lines, result)
        rest = tl.dot(low_weight, high_lines, rest)
    return (result + rest / 2048) * (y_norm / DOWN)


@triton.jit
def _sample_antialiased(
    planes, y_centre, y_length, y_scale, y_luma, y_chroma, x_centre, x_length, x_scale,
    x_luma, x_chroma, pair_step, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
    LINES: tl.constexpr,
):  # fmt: skip
    """Luma, U and V [BLOCK_H, BLOCK_W] in float32."""
    luma_ptr, u_ptr, v_ptr = planes
    luma = _antialiased(
        luma_ptr, y_centre, y_length, y_luma, y_scale, x_centre, x_length, x_luma, x_scale,
        BLOCK_H, BLOCK_W, LINES,
    )  # fmt: skip
    y_centre, y_length, y_scale = y_centre * 0.5, (y_length + 1) >> 1, y_scale * 0.5
    x_centre, x_length, x_scale = x_centre * 0.5, (x_length + 1) >> 1, x_scale * 0.5
    y_chroma, x_chroma = y_chroma * pair_step, x_chroma * pair_step
    u = _antialiased(
        u_ptr, y_centre, y_length, y_chroma, y_scale, x_centre, x_length, x_chroma, x_scale,
        BLOCK_H, BLOCK_W, LINES,
    )  # fmt: skip
    v = _antialiased(
        v_ptr, y_centre, y_length, y_chroma, y_scale, x_centre, x_length, x_chroma, x_scale,
        BLOCK_H, BLOCK_W, LINES,
    )  # fmt: skip
    return luma, u, v


@triton.jit
def _halves(channel):
    return tl.split(tl.reshape(channel, [channel.shape[0], channel.shape[1] // 2, 2]))


@triton.jit
def _axis(centre, length, half, luma_step, chroma_step, single):
    """An axis's taps in luma and chroma: offsets of the first samples, weights of the second."""
    luma, luma_weight = _taps(centre, length, 0)
    chroma, chroma_weight = _taps(centre * 0.5, half, single)
    return luma * luma_step, luma_weight, chroma * chroma_step, chroma_weight


@triton.jit
def _sample(planes, y_axis, x_axis, luma_pitch, chroma_pitch, turned, interleaved):
    """Luma, U and V [BLOCK_H, BLOCK_W // 2] in float32 at the given taps."""
    luma_ptr, u_ptr, v_ptr = planes
    y_luma, y_luma_weight, y_chroma, y_chroma_weight = y_axis
    x_luma, x_luma_weight, x_chroma, x_chroma_weight = x_axis
    # Of the two axes one walks along a row of samples, where the second tap is the next sample,
    # and the other across rows.
    along = tl.where(turned, y_luma_weight, x_luma_weight)
    across = tl.where(turned, x_luma_weight, y_luma_weight)
    luma = _bilinear(luma_ptr, y_luma + x_luma, luma_pitch, along, across)
    along = tl.where(turned, y_chroma_weight, x_chroma_weight)
    across = tl.where(turned, x_chroma_weight, y_chroma_weight)
    offset = y_chroma + x_chroma
    if interleaved:
        BITS: tl.constexpr = u_ptr.dtype.element_ty.primitive_bitwidth
        pair_ptr = u_ptr.to(tl.pointer_type(tl.uint16 if BITS == 8 else tl.uint32))
        u, v = _bilinear_pair(pair_ptr, offset, chroma_pitch, along, across, BITS)
    else:
        u = _bilinear(u_ptr, offset, chroma_pitch, along, across)
        v = _bilinear(v_ptr, offset, chroma_pitch, along, across)
    return luma, u, v


@triton.jit
def _coefficients(row_ptr, mean_ptr, std_ptr, CHANNEL: tl.constexpr):
    """A channel's row of the matrix, and what normalises it."""
    row_ptr += CHANNEL * MATRIX_COLUMNS
    scale = 1.0 / tl.load(std_ptr + CHANNEL)
    shift = -tl.load(mean_ptr + CHANNEL) * scale
    y, u, v = tl.load(row_ptr), tl.load(row_ptr + 1), tl.load(row_ptr + 2)
    return y, u, v, tl.load(row_ptr + 3), scale, shift


@triton.jit
def _matrix(row_ptr, mean_ptr, std_ptr):
    return (
        _coefficients(row_ptr, mean_ptr, std_ptr, 0),
        _coefficients(row_ptr, mean_ptr, std_ptr, 1),
        _coefficients(row_ptr, mean_ptr, std_ptr, 2),
    )


@triton.jit
def _channel(samples, inside, coefficients):
    luma, u, v = samples
    of_luma, of_u, of_v, offset, scale, shift = coefficients
    rgb = tl.fma(v, of_v, tl.fma(u, of_u, tl.fma(luma, of_luma, offset)))
    value = tl.fma(tl.minimum(tl.maximum(rgb, 0.0), 1.0), scale, shift)
    return tl.where(inside, value, 0.0)


@triton.jit
def _bits(value, DTYPE: tl.constexpr):
    return value.to(DTYPE).to(tl.uint16, bitcast=True).to(tl.uint32)


@triton.jit
def _four(first, second, third, fourth):
    """Four tensors [H, W] as one [H, W, 4]."""
    pairs = tl.join(tl.join(first, third), tl.join(second, fourth))
    return tl.reshape(pairs, [first.shape[0], first.shape[1], 4])


@triton.jit
def _store(
    out_ptr,
    image,
    even,  # red, green and blue [BLOCK_H, BLOCK_W // 2]
    odd,
    rows,  # [BLOCK_H, 1]
    x_start,
    height,
    width,
    FORM: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    even_red, even_green, even_blue = even
    odd_red, odd_green, odd_blue = odd
    if FORM == "pairs":
        first = _bits(even_red, dtype) | _bits(even_green, dtype) << 16
        if CHANNELS == 3:
            second = _bits(even_blue, dtype) | _bits(odd_red, dtype) << 16
            third = _bits(odd_green, dtype) | _bits(odd_blue, dtype) << 16
            fourth = tl.zeros_like(third)
        else:
            second, fourth = _bits(even_blue, dtype), _bits(odd_blue, dtype)
            third = _bits(odd_red, dtype) | _bits(odd_green, dtype) << 16
        WORDS: tl.constexpr = CHANNELS
        columns = x_start // 2 + tl.arange(0, BLOCK_W // 2)[None, :]
        mask = ((rows < height) & (columns < width // 2))[:, :, None]
        word = tl.arange(0, 4)[None, None, :]
        words_ptr = out_ptr.to(tl.pointer_type(tl.uint32)) + image * height * (width // 2) * WORDS
        offset = (rows * (width // 2) + columns)[:, :, None] * WORDS + word
        words_ptr += tl.max_contiguous(offset, [1, 2, 4])
        value = _four(first, second, third, fourth)
        tl.store(words_ptr, value, mask=mask if WORDS == 4 else mask & (word < WORDS))
    else:
        out_ptr += image * CHANNELS * height * width
        columns = x_start + tl.arange(0, BLOCK_W)[None, :]
        mask = (rows < height) & (columns < width)
        pixel = rows * width + columns
        red = tl.interleave(even_red, odd_red).to(dtype)
        green = tl.interleave(even_green, odd_green).to(dtype)
        blue = tl.interleave(even_blue, odd_blue).to(dtype)
        if FORM == "planes":
            size = height * width
            pixel = tl.max_contiguous(pixel, [1, 2])
            tl.store(out_ptr + pixel, red, mask=mask)
            tl.store(out_ptr + (pixel + size), green, mask=mask)
            tl.store(out_ptr + (pixel + 2 * size), blue, mask=mask)
            if CHANNELS == 4:
                tl.store(out_ptr + (pixel + 3 * size), tl.zeros_like(red), mask=mask)
        else:
            value = _four(red, green, blue, tl.zeros_like(red))
            channel = tl.arange(0, 4)[None, None, :]
            mask = mask[:, :, None] & (channel < CHANNELS)
            offset = tl.max_contiguous(pixel[:, :, None] * CHANNELS + channel, [1, 2, 4])
            tl.store(out_ptr + offset, value, mask=mask)


@triton.jit
def _centres(pixel, size, scale, flip):
    """The luma coordinates of an output axis's pixel centres; 0 is the plane's edge."""
    pixel = tl.minimum(pixel, size - 1)
    return (tl.where(flip, size - 1 - pixel, pixel).to(tl.float32) + 0.5) * scale


@triton.jit(do_not_specialize=["out_height", "out_width", "steps"])
def preprocess_kernel(
    data_ptr,  # [bytes] uint8
    table_ptr,  # [B, TABLE_COLUMNS] int64
    matrix_ptr,  # [B, 3, MATRIX_COLUMNS]
    mean_ptr,  # [3]
    std_ptr,  # [3]
    out_ptr,  # [B, CHANNELS, out_height, out_width]
    out_height,
    out_width,
    steps,
    FORM: tl.constexpr,
    CHANNELS: tl.constexpr,
    ANTIALIAS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    LINES: tl.constexpr,
):
    """Grid (tile along x, tile along y, image): writes a tile of all three channels."""
    image = tl.program_id(2).to(tl.int64)
    y_start, x_start = tl.program_id(1) * (steps * BLOCK_H), tl.program_id(0) * BLOCK_W
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
    matrix_row_ptr = matrix_ptr + image * MATRIX_SIZE

    # From here on y and x are the axes of the output, whichever axis of the planes they walk along.
    turned = (rotation == 90) | (rotation == 270)
    interleaved = uv_step != sample_bytes
    luma_pitch, chroma_pitch = y_pitch >> (sample_bytes >> 1), uv_pitch >> (uv_step >> 1)
    y_length, x_length = tl.where(turned, width, height), tl.where(turned, height, width)
    y_half, x_half = (y_length + 1) >> 1, (x_length + 1) >> 1
    y_scale = tl.div_rn(y_length.to(tl.float32), resized_height.to(tl.float32))
    x_scale = tl.div_rn(x_length.to(tl.float32), resized_width.to(tl.float32))
    flip_y, flip_x = rotation >= 180, (rotation == 90) | (rotation == 180)
    y_luma, x_luma = tl.where(turned, 1, luma_pitch), tl.where(turned, luma_pitch, 1)
    y_chroma, x_chroma = tl.where(turned, 1, chroma_pitch), tl.where(turned, chroma_pitch, 1)
    wide = tl.pointer_type(tl.uint16)
    narrow_planes = luma_ptr, u_ptr, v_ptr
    wide_planes = luma_ptr.to(wide), u_ptr.to(wide), v_ptr.to(wide)
    # A plane of a single row has no second one, of a single column no second sample: see `_taps`.
    luma_below = tl.where(height > 1, luma_pitch, 0)
    chroma_below = tl.where(height > 2, chroma_pitch, 0)
    y_single, x_single = tl.where(turned, -1, 0), tl.where(turned, 0, -1)

    if ANTIALIAS:
        rows = y_start + tl.arange(0, BLOCK_H)[:, None]
        columns = x_start + tl.arange(0, BLOCK_W)[None, :]
        y_centre = _centres(rows, resized_height, y_scale, flip_y)
        x_centre = _centres(columns, resized_width, x_scale, flip_x)
        pair_step = tl.where(interleaved, 2, 1)
        if sample_bytes == 1:
            samples = _sample_antialiased(
                narrow_planes, y_centre, y_length, y_scale, y_luma, y_chroma,
                x_centre, x_length, x_scale, x_luma, x_chroma, pair_step,
                BLOCK_H, BLOCK_W, LINES,
            )  # fmt: skip
        else:
            samples = _sample_antialiased(
                wide_planes, y_centre, y_length, y_scale, y_luma, y_chroma,
                x_centre, x_length, x_scale, x_luma, x_chroma, pair_step,
                BLOCK_H, BLOCK_W, LINES,
            )  # fmt: skip
        inside = (rows < resized_height) & (columns < resized_width)
        red, green, blue = _matrix(matrix_row_ptr, mean_ptr, std_ptr)
        even_red, odd_red = _halves(_channel(samples, inside, red))
        even_green, odd_green = _halves(_channel(samples, inside, green))
        even_blue, odd_blue = _halves(_channel(samples, inside, blue))
        even, odd = (even_red, even_green, even_blue), (odd_red, odd_green, odd_blue)
        _store(
            out_ptr, image, even, odd, rows, x_start, out_height, out_width, FORM, CHANNELS, BLOCK_W
        )
    else:
        red, green, blue = _matrix(matrix_row_ptr, mean_ptr, std_ptr)
        evens = x_start + 2 * tl.arange(0, BLOCK_W // 2)[None, :]
        even_centre = _centres(evens, resized_width, x_scale, flip_x)
        odd_centre = _centres(evens + 1, resized_width, x_scale, flip_x)
        even_axis = _axis(even_centre, x_length, x_half, x_luma, x_chroma, x_single)
        odd_axis = _axis(odd_centre, x_length, x_half, x_luma, x_chroma, x_single)
        for step in range(steps):
            rows = y_start + step * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
            y_centre = _centres(rows, resized_height, y_scale, flip_y)
            y_axis = _axis(y_centre, y_length, y_half, y_luma, y_chroma, y_single)
            if sample_bytes == 1:
                even = _sample(
                    narrow_planes, y_axis, even_axis, luma_below, chroma_below, turned, interleaved
                )
                odd = _sample(
                    narrow_planes, y_axis, odd_axis, luma_below, chroma_below, turned, interleaved
                )
            else:
                even = _sample(
                    wide_planes, y_axis, even_axis, luma_below, chroma_below, turned, interleaved
                )
                odd = _sample(
                    wide_planes, y_axis, odd_axis, luma_below, chroma_below, turned, interleaved
                )
            inside = (rows < resized_height) & (evens < resized_width)
            even = (
                _channel(even, inside, red),
                _channel(even, inside, green),
                _channel(even, inside, blue),
            )
            inside = (rows < resized_height) & (evens + 1 < resized_width)
            odd = (
                _channel(odd, inside, red),
                _channel(odd, inside, green),
                _channel(odd, inside, blue),
            )
            _store(
                out_ptr,
                image,
                even,
                odd,
                rows,
                x_start,
                out_height,
                out_width,
                FORM,
                CHANNELS,
                BLOCK_W,
            )


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
    batch, channels, height, width = out.shape
    if out.numel() == 0:
        return
    block_h, block_w = _tile(antialias)
    columns, rows = triton.cdiv(width, block_w), triton.cdiv(height, block_h)
    steps = 1 if antialias or columns * rows * batch < BUSY * STEPS else STEPS
    with torch.cuda.device_of(out):
        preprocess_kernel[columns, triton.cdiv(rows, steps), batch](
            data,
            table,
            matrix,
            mean,
            std,
            out,
            height,
            width,
            steps,
            FORM=_form(out),
            CHANNELS=channels,
            ANTIALIAS=antialias,
            BLOCK_H=block_h,
            BLOCK_W=block_w,
            LINES=LINES,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,
        )


def _tile(antialias: bool) -> tuple[int, int]:
    return (ANTIALIAS_BLOCK_H, ANTIALIAS_BLOCK_W) if antialias else (BLOCK_H, BLOCK_W)


def _form(out: Tensor) -> str:
    """How the kernel writes `out`: planes, whole pixels, or pairs of pixels of six half words."""
    if out.is_contiguous():
        return "planes"
    whole_words = out.shape[3] % 2 == 0 and out.data_ptr() % 4 == 0
    return "pairs" if out.itemsize == 2 and whole_words else "pixels"


def shipped_configs() -> list[Shipped]:
    """Returns what `preprocess_triton` launches, four channels in the one type that suits them."""
    pointers = {
        "data_ptr": "*u8",
        "table_ptr": "*i64",
        "matrix_ptr": "*fp32",
        "mean_ptr": "*fp32",
        "std_ptr": "*fp32",
    }
    forms = [("contiguous", 3, "planes"), ("channels_last", 3, "pairs"), ("rgb0", 4, "pairs")]
    return [
        Shipped(
            f"preprocess/{dtype}_{name}" + ("_antialias" if antialias else ""),
            preprocess_kernel,
            {
                **pointers,
                "out_ptr": f"*{dtype}",
                **dict.fromkeys(("out_height", "out_width", "steps"), "i32"),
                **dict.fromkeys(
                    ("FORM", "CHANNELS", "ANTIALIAS", "BLOCK_H", "BLOCK_W", "LINES"), "constexpr"
                ),
            },
            {
                "FORM": "pixels" if dtype == "fp32" and form == "pairs" else form,
                "CHANNELS": channels,
                "ANTIALIAS": antialias,
                "BLOCK_H": _tile(antialias)[0],
                "BLOCK_W": _tile(antialias)[1],
                "LINES": LINES,
            },
            NUM_WARPS,
        )
        for dtype in ("bf16", "fp16", "fp32")
        for name, channels, form in forms
        for antialias in (False, True)
        if channels == 3 or dtype == "bf16"
    ]
