"""select_candidates in Triton: exact top-k of every level by radix selection, then decoding.

These are steps 1 to 4 of `generate_proposals`: a to d select, and e decodes, clips and filters.
All images and levels go together through 3 + P launches, P = 4 digits of 8 bits for float32 logits
(2 for bfloat16, 3 for float16), none of which waits for the host:

a. keys: logits are read in place, whatever their strides, and written as order-preserving int32
   keys in anchor order; their highest digits are counted.
b. digits (P − 1 launches): the next digit is counted where the digits before it equal those of the
   k-th highest key.
c. count: each block of anchors counts its keys above and at the k-th highest.
d. compact: each block adds up the counts of the blocks before it and writes its survivors, so that
   survivors lie in anchor order and ties are cut off in anchor order.
e. rank and decode: a survivor's place is the number of survivors that go before it; its box is
   decoded, clipped, filtered and written there.

The places are counted (k² comparisons in tiles of 32 by 32) rather than sorted: k = 1000 is 32
programs a level with 1000 comparisons a lane, 5 to 8 instructions each, where a bitonic sort runs
in one program, compiles to half a megabyte, and takes minutes in the interpreter; k = 12,000 costs
a chip of 16,896 lanes some 60,000 cycles an image. A grid of blocks is the only form: with one
program per image and level, the 200,000 logits of the finest level keep one multiprocessor busy for
25 to 50 µs a pass (27 to 53 instructions per 32 logits) while the others idle.

Bytes per anchor: 2 or 4 read and 4 written for the key, then 4 read in each of P + 1 passes, from
L2 for what fits in it; 4 deltas are read for each survivor only. Tails are masked by n < N; ties
are ordered by anchor index; NaN logits count as −inf, and −inf never comes out.

No race: a launch reads only what launches before it in the stream wrote, and of the histogram only
the digits counted by them. Within a launch every word is written by one program, but for the digit
being counted, which is added to atomically, in whatever order, and not read. The places of
launch e are a permutation, as (key, anchor) pairs are all different.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from stream_rpn.kernels.boxes_triton import decode_side, sigmoid
from stream_rpn.kernels.proposals import Candidates, HeadOutputs, ProposalSpec
from stream_rpn.kernels.shipped import Shipped

BLOCK = 4096
TILE = 32
OTHERS = 32
KEYS_WARPS, NUM_WARPS, DECODE_WARPS = 8, 8, 1
DIGITS = {torch.bfloat16: 2, torch.float16: 3, torch.float32: 4}

# Below every key, −inf's included.
BELOW_ALL = tl.constexpr(-(2**31))

# Columns of the geometry table, a row per level.
(
    N,
    NUM_ANCHORS,
    WIDTH,
    SOFTMAX,
    K,
    FIRST_KEY,
    FIRST_SLOT,
    FIRST_BLOCK,
    STRIDE_Y,
    STRIDE_X,
    BY_NUM_ANCHORS,
    BY_WIDTH,
    LOGIT_STRIDE,
    DELTA_STRIDE,
    FIELDS,
) = (tl.constexpr(column) for column in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 18, 22))


@triton.jit
def _field(row, COLUMN: tl.constexpr):
    """Returns a number of a level's geometry that 32 bits hold."""
    return tl.load(row + COLUMN).to(tl.int32)


@triton.jit
def _divide(n, divisor, reciprocal):
    """Returns n // divisor and n % divisor by the two numbers of `_reciprocal`."""
    factor = tl.load(reciprocal).to(tl.uint32)
    product = tl.umulhi(2 * n.to(tl.uint32), tl.zeros_like(n).to(tl.uint32) + factor)
    quotient = (product >> tl.load(reciprocal + 1).to(tl.uint32)).to(tl.int32)
    return quotient, n - quotient * divisor


@triton.jit
def _cell(n, row):
    """Returns (a, y, x) of anchor index n."""
    cell, a = _divide(n, _field(row, NUM_ANCHORS), row + BY_NUM_ANCHORS)
    y, x = _divide(cell, _field(row, WIDTH), row + BY_WIDTH)
    return a, y, x


@triton.jit
def _place(channel, y, x, row, STRIDE: tl.constexpr):
    """Returns the offset of an element in an image [C, H, W]: 64 bits only find the image."""
    return (
        channel * _field(row, STRIDE + 1)
        + y * _field(row, STRIDE + 2)
        + x * _field(row, STRIDE + 3)
    )


@triton.jit
def _of_level(pointers, level):
    """Returns pointers[level] for a level known at run time only: selected as an integer."""
    address = pointers[0].to(tl.int64)
    for i in tl.static_range(1, len(pointers)):
        address = tl.where(level == i, pointers[i].to(tl.int64), address)
    return address.to(pointers[0].dtype)


@triton.jit
def _load_logits(logits_ptr, image, n, row):
    """Returns the float32 logits of anchors n, NaN as −inf."""
    a, y, x = _cell(n, row)
    inside = n < _field(row, N)
    softmax = _field(row, SOFTMAX)
    # The object's channel is a, or 2a + 1 with the background's before it.
    channel = a + softmax * (a + 1)
    pointers = logits_ptr + image.to(tl.int64) * tl.load(row + LOGIT_STRIDE)
    pointers += _place(channel, y, x, row, LOGIT_STRIDE)
    logits = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    if softmax != 0:
        pointers -= tl.load(row + LOGIT_STRIDE + 1)
        logits -= tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    return tl.where(logits == logits, logits, float("-inf"))


@triton.jit
def _flip(bits):
    """Turns float32 bits into int32 keys of the same order, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _threshold(histogram, k, DIGITS: tl.constexpr):
    """Returns the first DIGITS digits of the k-th highest key, and how many keys with them to take.

    The first digit is signed, so that digits compare as keys do.
    """
    bins = tl.arange(0, 256)
    prefix = -128
    remaining = k
    for digit_index in tl.static_range(DIGITS):
        counts = tl.load(histogram + digit_index * 256 + bins)
        reaching = tl.cumsum(counts, reverse=True)
        digit = tl.sum((reaching >= remaining).to(tl.int32)) - 1
        remaining -= tl.sum(tl.where(bins > digit, counts, 0))
        prefix = prefix * 256 + digit if digit_index > 0 else prefix + digit
    return prefix, remaining


@triton.jit
def _locate(geometry, block_levels, num_levels, PASSES: tl.constexpr, BLOCK: tl.constexpr):
    """Returns what a program works on: its image, row of geometry, anchors and histogram."""
    block = tl.program_id(0)
    image = tl.program_id(1)
    level = tl.load(block_levels + block)
    row = geometry + level * FIELDS
    n = (block - _field(row, FIRST_BLOCK)) * BLOCK + tl.arange(0, BLOCK)
    histogram = (image * num_levels + level) * PASSES * 256
    return image, row, n, histogram


@triton.jit(do_not_specialize=["num_levels", "keys_per_image"])
def propose_keys_kernel(
    logits_ptrs,  # per level [B, A or 2A, H, W], any strides
    keys_ptr,  # [B, keys_per_image] int32
    histogram_ptr,  # [B, L, PASSES, 256] int32
    geometry,  # [L, FIELDS] int64
    block_levels,  # [blocks] int32
    num_levels,
    keys_per_image,
    PASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Launch a: writes the keys of a block and counts their highest digits."""
    image, row, n, histogram = _locate(geometry, block_levels, num_levels, PASSES, BLOCK)
    level = tl.load(block_levels + tl.program_id(0))
    logits = _load_logits(_of_level(logits_ptrs, level), image, n, row)
    # −0 and +0 are equal logits and must be equal keys.
    logits = tl.where(logits == 0.0, 0.0, logits)
    keys = _flip(logits.to(tl.int32, bitcast=True))
    inside = n < _field(row, N)
    first = image.to(tl.int64) * keys_per_image + tl.load(row + FIRST_KEY)
    tl.store(keys_ptr + first + n, keys, mask=inside)
    bins = tl.arange(0, 256)
    counts = tl.histogram((keys >> 24) + 128, 256, mask=inside)
    tl.atomic_add(histogram_ptr + histogram + bins, counts, mask=counts > 0, sem="relaxed")


@triton.jit(do_not_specialize=["num_levels", "keys_per_image"])
def propose_digits_kernel(
    keys_ptr,  # [B, keys_per_image] int32
    histogram_ptr,  # [B, L, PASSES, 256] int32
    geometry,  # [L, FIELDS] int64
    block_levels,  # [blocks] int32
    num_levels,
    keys_per_image,
    DIGIT: tl.constexpr,
    PASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Launch b: counts digit number DIGIT of the keys that share the digits before it."""
    image, row, n, histogram = _locate(geometry, block_levels, num_levels, PASSES, BLOCK)
    k = _field(row, K)
    prefix, _ = _threshold(histogram_ptr + histogram, k, DIGIT)
    first = image.to(tl.int64) * keys_per_image + tl.load(row + FIRST_KEY)
    inside = n < _field(row, N)
    keys = tl.load(keys_ptr + first + n, mask=inside, other=0)
    bins = tl.arange(0, 256)
    counts = tl.histogram(
        (keys >> (24 - 8 * DIGIT)) & 255, 256, mask=inside & ((keys >> (32 - 8 * DIGIT)) == prefix)
    )
    tl.atomic_add(
        histogram_ptr + histogram + DIGIT * 256 + bins, counts, mask=counts > 0, sem="relaxed"
    )


@triton.jit
def _above_and_at(keys_ptr, histogram, image, row, n, keys_per_image, PASSES: tl.constexpr):
    """Returns keys, masks of those above and at the k-th highest, and how many at it to take."""
    prefix, remaining = _threshold(histogram, _field(row, K), PASSES)
    first = image.to(tl.int64) * keys_per_image + tl.load(row + FIRST_KEY)
    inside = n < _field(row, N)
    keys = tl.load(keys_ptr + first + n, mask=inside, other=0)
    digits = keys >> (32 - 8 * PASSES)
    return keys, inside & (digits > prefix), inside & (digits == prefix), remaining


@triton.jit(do_not_specialize=["num_levels", "keys_per_image"])
def propose_count_kernel(
    keys_ptr,  # [B, keys_per_image] int32
    histogram_ptr,  # [B, L, PASSES, 256] int32
    counts_ptr,  # [B, blocks, 2] int32: above and at the k-th highest
    geometry,  # [L, FIELDS] int64
    block_levels,  # [blocks] int32
    num_levels,
    keys_per_image,
    PASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Launch c: writes a block's numbers of keys above and at the k-th highest."""
    image, row, n, histogram = _locate(geometry, block_levels, num_levels, PASSES, BLOCK)
    _, above, at, _ = _above_and_at(
        keys_ptr, histogram_ptr + histogram, image, row, n, keys_per_image, PASSES
    )
    counts = counts_ptr + (image * tl.num_programs(0) + tl.program_id(0)) * 2
    tl.store(counts, tl.sum(above.to(tl.int32)))
    tl.store(counts + 1, tl.sum(at.to(tl.int32)))


@triton.jit(do_not_specialize=["num_levels", "keys_per_image", "slots_per_image"])
def propose_compact_kernel(
    keys_ptr,  # [B, keys_per_image] int32
    histogram_ptr,  # [B, L, PASSES, 256] int32
    counts_ptr,  # [B, blocks, 2] int32: above and at the k-th highest
    selected_keys_ptr,  # [B, slots_per_image] int32
    selected_ptr,  # [B, slots_per_image] int32, anchors
    geometry,  # [L, FIELDS] int64
    block_levels,  # [blocks] int32
    num_levels,
    keys_per_image,
    slots_per_image,
    PASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Launch d: writes a block's survivors, keys and anchors, behind those of earlier blocks."""
    image, row, n, histogram = _locate(geometry, block_levels, num_levels, PASSES, BLOCK)
    keys, above, at, remaining = _above_and_at(
        keys_ptr, histogram_ptr + histogram, image, row, n, keys_per_image, PASSES
    )
    block = tl.program_id(0)
    above_before = 0
    at_before = 0
    counts = counts_ptr + image * tl.num_programs(0) * 2
    for start in range(_field(row, FIRST_BLOCK), block, 256):
        earlier = start + tl.arange(0, 256)
        above_before += tl.sum(tl.load(counts + earlier * 2, mask=earlier < block, other=0))
        at_before += tl.sum(tl.load(counts + earlier * 2 + 1, mask=earlier < block, other=0))
    # Both counts of a block fit in 16 bits: one scan serves for both.
    both = tl.cumsum((above.to(tl.int32) << 16) + at.to(tl.int32))
    at_rank = at_before + (both & 0xFFFF) - at.to(tl.int32)
    survives = above | (at & (at_rank < remaining))
    above_rank = above_before + (both >> 16) - above.to(tl.int32)
    place = above_rank + tl.minimum(at_rank, remaining)
    slot = image.to(tl.int64) * slots_per_image + tl.load(row + FIRST_SLOT) + place
    tl.store(selected_keys_ptr + slot, keys, mask=survives)
    tl.store(selected_ptr + slot, n, mask=survives)


@triton.jit
def _rank(keys_ptr, keys, position, start, k, TILE: tl.constexpr, OTHERS: tl.constexpr):
    """Returns how many of k keys go before each of a tile's, from `start` on.

    They fall by key, then by position, which is anchor order: whole tiles before and behind need
    one comparison of 32 bits a pair. Counts stay with the lanes that count until the end.
    """
    others = tl.arange(0, OTHERS)
    before = tl.zeros((OTHERS, TILE), dtype=tl.int32)
    for other_start in range(0, start, OTHERS):
        other_keys = tl.load(keys_ptr + other_start + others)
        before += (other_keys[:, None] >= keys[None, :]).to(tl.int32)
    own_end = tl.minimum(start + TILE, k)
    for other_start in range(start, own_end, OTHERS):
        other = other_start + others
        other_keys = tl.load(keys_ptr + other, mask=other < k, other=BELOW_ALL)
        equal = (other_keys[:, None] == keys[None, :]) & (other[:, None] < position[None, :])
        before += ((other_keys[:, None] > keys[None, :]) | equal).to(tl.int32)
    for other_start in range(own_end, k, OTHERS):
        other = other_start + others
        other_keys = tl.load(keys_ptr + other, mask=other < k, other=BELOW_ALL)
        before += (other_keys[:, None] > keys[None, :]).to(tl.int32)
    return tl.sum(before, axis=0)


@triton.jit(do_not_specialize=["slots_per_image"])
def propose_decode_kernel(
    selected_keys_ptr,  # [B, slots_per_image] int32
    selected_ptr,  # [B, slots_per_image] int32, anchors
    deltas_ptrs,  # per level [B, 4A, H, W], any strides
    base_anchors_ptrs,  # per level [A, 4]
    image_sizes_ptr,  # [B, 2] (height, width)
    boxes_ptr,  # [B, slots_per_image, 4]
    logits_ptr,  # [B, slots_per_image]
    anchors_ptr,  # [B, slots_per_image] int32
    geometry,  # [L, FIELDS] int64
    slots_per_image,
    score_thresh,
    min_size,
    TILE: tl.constexpr,
    OTHERS: tl.constexpr,
):
    """Launch e: ranks a tile of survivors among all of their level, and decodes and writes them."""
    level = tl.program_id(1)
    image = tl.program_id(2)
    row = geometry + level * FIELDS
    k = _field(row, K)
    start = tl.program_id(0) * TILE
    if start < k:
        first = image.to(tl.int64) * slots_per_image + tl.load(row + FIRST_SLOT)
        position = start + tl.arange(0, TILE)
        inside = position < k
        keys = tl.load(selected_keys_ptr + first + position, mask=inside, other=0)
        n = tl.load(selected_ptr + first + position, mask=inside, other=0)
        rank = _rank(selected_keys_ptr + first, keys, position, start, k, TILE, OTHERS)

        a, y, x = _cell(n, row)
        deltas = _of_level(deltas_ptrs, level) + image.to(tl.int64) * tl.load(row + DELTA_STRIDE)
        deltas += _place(4 * a, y, x, row, DELTA_STRIDE)
        channel = tl.load(row + DELTA_STRIDE + 1)
        dx = tl.load(deltas, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(deltas + channel, mask=inside, other=0.0).to(tl.float32)
        dw = tl.load(deltas + 2 * channel, mask=inside, other=0.0).to(tl.float32)
        dh = tl.load(deltas + 3 * channel, mask=inside, other=0.0).to(tl.float32)
        base = _of_level(base_anchors_ptrs, level) + 4 * a
        base_x1 = tl.load(base).to(tl.float32)
        base_y1 = tl.load(base + 1).to(tl.float32)
        base_x2 = tl.load(base + 2).to(tl.float32)
        base_y2 = tl.load(base + 3).to(tl.float32)
        shift_x = (x * _field(row, STRIDE_X)).to(tl.float32)
        shift_y = (y * _field(row, STRIDE_Y)).to(tl.float32)
        x1, x2 = decode_side(dx, dw, base_x1 + shift_x, base_x2 + shift_x)
        y1, y2 = decode_side(dy, dh, base_y1 + shift_y, base_y2 + shift_y)

        logits = _flip(keys).to(tl.float32, bitcast=True)
        infinity = float("inf")
        keep = (tl.abs(x1) < infinity) & (tl.abs(y1) < infinity)
        keep &= (tl.abs(x2) < infinity) & (tl.abs(y2) < infinity)
        keep &= (logits > -infinity) & (sigmoid(logits) >= score_thresh)
        height = tl.load(image_sizes_ptr + 2 * image).to(tl.float32)
        width = tl.load(image_sizes_ptr + 2 * image + 1).to(tl.float32)
        x1 = tl.minimum(tl.maximum(x1, 0.0), width)
        y1 = tl.minimum(tl.maximum(y1, 0.0), height)
        x2 = tl.minimum(tl.maximum(x2, 0.0), width)
        y2 = tl.minimum(tl.maximum(y2, 0.0), height)
        keep &= (x2 - x1 >= min_size) & (y2 - y1 >= min_size)

        slot = first + rank
        tl.store(boxes_ptr + 4 * slot, tl.where(keep, x1, 0.0), mask=inside)
        tl.store(boxes_ptr + 4 * slot + 1, tl.where(keep, y1, 0.0), mask=inside)
        tl.store(boxes_ptr + 4 * slot + 2, tl.where(keep, x2, 0.0), mask=inside)
        tl.store(boxes_ptr + 4 * slot + 3, tl.where(keep, y2, 0.0), mask=inside)
        tl.store(logits_ptr + slot, tl.where(keep, logits, -infinity), mask=inside)
        tl.store(anchors_ptr + slot, tl.where(keep, n, -1), mask=inside)


@functools.cache
def _tables(rows: tuple[tuple[int, ...], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the geometry table [L, FIELDS] int64 and each block's level, on the device.

    Kept for good: a captured graph holds their addresses. A few hundred bytes per input shape.
    """
    block_levels = [
        level for level, row in enumerate(rows) for _ in range(triton.cdiv(row[N.value], BLOCK))
    ]
    return (
        torch.tensor(rows, dtype=torch.int64, device=device),
        torch.tensor(block_levels, dtype=torch.int32, device=device),
    )


def _reciprocal(divisor: int) -> tuple[int, int]:
    """Returns (factor, shift) with n // divisor == 2·n·factor >> (32 + shift) for all n < 2³¹.

    factor is 2^(31 + shift) / divisor rounded up, by less than 1: n·factor / 2^(31 + shift) exceeds
    n / divisor by less than 2^-shift, which is at most 1 / divisor, and reaches no next quotient.
    """
    shift = (divisor - 1).bit_length()
    return -(-(1 << 31 + shift) // divisor), shift


def _geometry(heads: HeadOutputs, pre_nms_top_n: int) -> tuple[tuple[int, ...], ...]:
    rows = []
    first_key = first_slot = first_block = 0
    for logits, delta, base, (stride_y, stride_x) in zip(
        heads.objectness, heads.deltas, heads.base_anchors, heads.strides, strict=True
    ):
        num_anchors, (height, width) = base.shape[0], logits.shape[2:]
        n = num_anchors * height * width
        k = min(pre_nms_top_n, n)
        softmax = int(logits.shape[1] == 2 * num_anchors)
        firsts = (first_key, first_slot, first_block)
        memory = (*logits.stride(), *delta.stride())
        reciprocals = (*_reciprocal(num_anchors), *_reciprocal(width))
        rows.append(
            (n, num_anchors, width, softmax, k, *firsts, stride_y, stride_x, *reciprocals, *memory)
        )
        first_key, first_slot = first_key + n, first_slot + k
        first_block += triton.cdiv(n, BLOCK)
    return tuple(rows)


def _of_one_dtype(levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
    mixed = len({level.dtype for level in levels}) > 1
    return tuple(level.float() if mixed else level for level in levels)


def select_candidates_triton(heads: HeadOutputs, spec: ProposalSpec) -> Candidates:
    """Returns the candidates as `select_candidates` describes them."""
    # Levels are told apart by address, so they must agree in dtype; a mixture is converted.
    heads = heads._replace(
        objectness=_of_one_dtype(heads.objectness),
        deltas=_of_one_dtype(heads.deltas),
        base_anchors=tuple(base.contiguous() for base in _of_one_dtype(heads.base_anchors)),
    )
    objectness, deltas, base_anchors, _, image_sizes = heads
    device, batch, num_levels = image_sizes.device, len(image_sizes), len(objectness)
    rows = _geometry(heads, spec.pre_nms_top_n)
    num_keys, num_slots = sum(row[N.value] for row in rows), sum(row[K.value] for row in rows)
    boxes = torch.empty(batch, num_slots, 4, device=device)
    logits = torch.empty(batch, num_slots, device=device)
    anchors = torch.empty(batch, num_slots, dtype=torch.int32, device=device)
    if batch == 0 or num_slots == 0:
        return Candidates(boxes, logits, anchors)

    geometry, block_levels = _tables(rows, device)
    # The difference of a softmax head has all 32 bits of a float32, whatever its operands had.
    passes = max(
        4 if row[SOFTMAX.value] else DIGITS[level.dtype]
        for row, level in zip(rows, objectness, strict=True)
    )
    keys = torch.empty(batch, num_keys, dtype=torch.int32, device=device)
    histogram = torch.zeros(batch, num_levels, passes, 256, dtype=torch.int32, device=device)
    counts = torch.empty(batch, len(block_levels), 2, dtype=torch.int32, device=device)
    selected_keys = torch.empty(batch, num_slots, dtype=torch.int32, device=device)
    selected = torch.empty(batch, num_slots, dtype=torch.int32, device=device)
    where = (geometry, block_levels, num_levels, num_keys)
    constants = {"PASSES": passes, "BLOCK": BLOCK}
    options = {"num_warps": NUM_WARPS, "enable_fp_fusion": False}
    blocks = (len(block_levels), batch)
    with torch.cuda.device_of(image_sizes):
        propose_keys_kernel[blocks](
            objectness,
            keys,
            histogram,
            *where,
            **constants,
            num_warps=KEYS_WARPS,
            enable_fp_fusion=False,
        )
        for digit in range(1, passes):
            propose_digits_kernel[blocks](
                keys, histogram, *where, DIGIT=digit, **constants, **options
            )
        propose_count_kernel[blocks](keys, histogram, counts, *where, **constants, **options)
        propose_compact_kernel[blocks](
            keys,
            histogram,
            counts,
            selected_keys,
            selected,
            *where,
            num_slots,
            **constants,
            **options,
        )
        tiles = (triton.cdiv(max(row[K.value] for row in rows), TILE), num_levels, batch)
        propose_decode_kernel[tiles](
            selected_keys,
            selected,
            deltas,
            base_anchors,
            image_sizes.contiguous(),
            boxes,
            logits,
            anchors,
            geometry,
            num_slots,
            spec.score_thresh,
            spec.min_size,
            TILE=TILE,
            OTHERS=OTHERS,
            num_warps=DECODE_WARPS,
            enable_fp_fusion=False,
        )
    return Candidates(boxes, logits, anchors)


def shipped_configs() -> list[Shipped]:
    """Returns the launches of `select_candidates_triton` for heads of one level and of five."""
    where = {
        "geometry": "*i64",
        "block_levels": "*i32",
        "num_levels": "i32",
        "keys_per_image": "i32",
    }
    constants = {"PASSES": "constexpr", "BLOCK": "constexpr"}
    shared = {"keys_ptr": "*i32", "histogram_ptr": "*i32"}
    shipped = []
    for name, passes in (("bf16", 2), ("fp16", 3), ("fp32", 4)):
        values = {"PASSES": passes, "BLOCK": BLOCK}
        for num_levels in (1, 5):
            pointers = (f"*{name}",) * num_levels
            shipped += [
                Shipped(
                    f"propose_keys/{name}x{num_levels}",
                    propose_keys_kernel,
                    {"logits_ptrs": pointers, **shared, **where, **constants},
                    values,
                    KEYS_WARPS,
                ),
                Shipped(
                    f"propose_decode/{name}x{num_levels}",
                    propose_decode_kernel,
                    {
                        "selected_keys_ptr": "*i32",
                        "selected_ptr": "*i32",
                        "deltas_ptrs": pointers,
                        "base_anchors_ptrs": ("*fp32",) * num_levels,
                        "image_sizes_ptr": "*i64",
                        "boxes_ptr": "*fp32",
                        "logits_ptr": "*fp32",
                        "anchors_ptr": "*i32",
                        "geometry": "*i64",
                        "slots_per_image": "i32",
                        "score_thresh": "fp32",
                        "min_size": "fp32",
                        "TILE": "constexpr",
                        "OTHERS": "constexpr",
                    },
                    {"TILE": TILE, "OTHERS": OTHERS},
                    DECODE_WARPS,
                ),
            ]
        shipped += [
            Shipped(
                f"propose_digits/{digit}of{passes}",
                propose_digits_kernel,
                {**shared, **where, "DIGIT": "constexpr", **constants},
                {"DIGIT": digit, **values},
                NUM_WARPS,
            )
            for digit in range(1, passes)
        ]
        shipped += [
            Shipped(
                f"propose_count/{passes}",
                propose_count_kernel,
                {**shared, "counts_ptr": "*i32", **where, **constants},
                values,
                NUM_WARPS,
            ),
            Shipped(
                f"propose_compact/{passes}",
                propose_compact_kernel,
                {
                    **shared,
                    "counts_ptr": "*i32",
                    "selected_keys_ptr": "*i32",
                    "selected_ptr": "*i32",
                    **where,
                    "slots_per_image": "i32",
                    **constants,
                },
                values,
                NUM_WARPS,
            ),
        ]
    return shipped
