"""nms in Triton: greedy suppression per image and level in chunks of 2048, then a merge by rank.

These are steps 5 and 6 of `generate_proposals`: a and b suppress, and c merges the levels.
All images and levels go together through 2·ceil(K / 2048) + 1 launches, K the candidates of the
largest level, none of which waits for the host. For each chunk of candidates, in falling order:

a. overlap: 64 candidates against 64 earlier ones of the chunk give a 64-bit word for each: which of
   those it overlaps (IoU > nms_thresh). One more column of programs holds the candidates against
   the boxes kept from earlier chunks, and notes which are still alive.
b. walk: one program per image and level goes through the chunk in blocks of 64. A candidate is out
   if one of its words meets a kept bit; inside a block the kept ones are the fixed point of "alive
   and not overlapping a kept one before it", found in as many rounds as the longest chain in it
   needs: the first candidate is settled at once, and each round settles the next. The kept are
   appended to the level's list; at post_nms_top_n the level is done, and programs find it so.

c. merge, once at the end: a kept box's place in the output is its place in its own level plus, by
   binary search, the number of boxes in other levels that go before it.

The words of a chunk take 512 KiB an image and level whatever K is, where the words of 12,000
candidates would take 18 MB. Per candidate 16 bytes of box are read once in 64 programs' turns, and
8·(j / 64) bytes of words are written and read for the candidate at place j of its chunk. Tails are
masked by K; equal logits keep the order they come in, and go by level between levels.

No race: a launch reads what launches before it in the stream wrote; within one, words and alive
bits are each written by one program and not read. The walk of a level is one program: its list and
count are its own, and it reads nothing that it writes but the count: first, a barrier apart. In the
merge, places are a permutation, and the slots filled as unused are those beyond the last place.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from stream_rpn.kernels.boxes_triton import overlaps, sigmoid
from stream_rpn.kernels.proposals import Candidates, ProposalBatch, ProposalSpec
from stream_rpn.kernels.shipped import Shipped

CHUNK = 2048
TILE = 64
NUM_WARPS = 4
# 64 × 64 overlaps keep twice as many numbers in registers as the other kernels.
OVERLAP_WARPS = 8


@triton.jit
def _load_boxes(boxes, index, inside):
    """Returns x1, y1, x2, y2 of boxes [n, 4] at `index`, 0 outside."""
    x1 = tl.load(boxes + 4 * index, mask=inside, other=0.0)
    y1 = tl.load(boxes + 4 * index + 1, mask=inside, other=0.0)
    x2 = tl.load(boxes + 4 * index + 2, mask=inside, other=0.0)
    y2 = tl.load(boxes + 4 * index + 3, mask=inside, other=0.0)
    return x1, y1, x2, y2


@triton.jit
def _hits(boxes, rows, inside, others, other_rows, other_inside, nms_thresh):
    """Returns a mask [rows, other_rows] of the boxes that overlap; none outside does."""
    x1, y1, x2, y2 = _load_boxes(boxes, rows, inside)
    a1, b1, a2, b2 = _load_boxes(others, other_rows, other_inside)
    return overlaps(
        x1[:, None],
        y1[:, None],
        x2[:, None],
        y2[:, None],
        a1[None, :],
        b1[None, :],
        a2[None, :],
        b2[None, :],
        nms_thresh,
    )


@triton.jit
def nms_overlap_kernel(
    boxes_ptr,  # [B, slots_per_image, 4]
    logits_ptr,  # [B, slots_per_image]
    words_ptr,  # [B·L, WORDS·TILE, WORDS] int64
    alive_ptr,  # [B·L, WORDS·TILE] int8
    kept_boxes_ptr,  # [B·L, capacity, 4]
    kept_count_ptr,  # [B·L] int32
    levels_ptr,  # [1 + 2·L] int32, see _levels_table
    chunk_start,
    slots_per_image,
    capacity,
    nms_thresh,
    WORDS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Launch a: grid (tile, word or WORDS for the kept boxes, image · level)."""
    tile = tl.program_id(0)
    word = tl.program_id(1)
    problem = tl.program_id(2)
    num_levels = tl.load(levels_ptr)
    image = problem // num_levels
    level = problem % num_levels
    first = image.to(tl.int64) * slots_per_image + tl.load(levels_ptr + 1 + 2 * level)
    size = tl.load(levels_ptr + 2 + 2 * level)
    boxes = boxes_ptr + 4 * first
    rows = chunk_start + tile * TILE + tl.arange(0, TILE)
    inside = rows < size
    count = tl.load(kept_count_ptr + problem)
    work = (chunk_start + tile * TILE < size) & (count < capacity)
    chunk_rows = (problem.to(tl.int64) * WORDS + tile) * TILE + tl.arange(0, TILE)
    columns = tl.arange(0, TILE)
    if work & (word <= tile):
        others = chunk_start + word * TILE + columns
        hits = _hits(boxes, rows, inside, boxes, others, others < size, nms_thresh)
        hits = hits & (others[None, :] < rows[:, None])
        bits = tl.sum(hits.to(tl.int64) << columns[None, :].to(tl.int64), axis=1)
        tl.store(words_ptr + chunk_rows * WORDS + word, bits)
    if work & (word == WORDS):
        logits = tl.load(logits_ptr + first + rows, mask=inside, other=float("-inf"))
        alive = logits > float("-inf")
        kept_boxes = kept_boxes_ptr + 4 * problem.to(tl.int64) * capacity
        for start in range(0, count, TILE):
            kept = start + columns
            hits = _hits(boxes, rows, inside, kept_boxes, kept, kept < count, nms_thresh)
            alive = alive & (tl.max(hits.to(tl.int32), axis=1) == 0)
        tl.store(alive_ptr + chunk_rows, alive.to(tl.int8))


@triton.jit
def nms_walk_kernel(
    boxes_ptr,  # [B, slots_per_image, 4]
    logits_ptr,  # [B, slots_per_image]
    words_ptr,  # [B·L, WORDS·TILE, WORDS] int64
    alive_ptr,  # [B·L, WORDS·TILE] int8
    kept_boxes_ptr,  # [B·L, capacity, 4]
    kept_logits_ptr,  # [B·L, capacity]
    kept_slots_ptr,  # [B·L, capacity] int32
    kept_count_ptr,  # [B·L] int32
    levels_ptr,  # [1 + 2·L] int32, see _levels_table
    chunk_start,
    slots_per_image,
    capacity,
    WORDS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Launch b: grid (image · level)."""
    problem = tl.program_id(0)
    num_levels = tl.load(levels_ptr)
    image = problem // num_levels
    level = problem % num_levels
    first = image.to(tl.int64) * slots_per_image + tl.load(levels_ptr + 1 + 2 * level)
    size = tl.load(levels_ptr + 2 + 2 * level)
    list_start = problem.to(tl.int64) * capacity
    columns = tl.arange(0, TILE)
    words = tl.arange(0, WORDS)
    kept_words = tl.zeros((WORDS,), dtype=tl.int64)
    count = tl.load(kept_count_ptr + problem)
    for tile in range(0, tl.minimum(WORDS, tl.cdiv(size - chunk_start, TILE))):
        if count < capacity:
            chunk_rows = (problem.to(tl.int64) * WORDS + tile) * TILE + columns
            row_words = words_ptr + chunk_rows * WORDS
            earlier = tl.load(
                row_words[:, None] + words[None, :],
                mask=(words[None, :] < tile) & (columns[:, None] >= 0),
                other=0,
            )
            own = tl.load(row_words + tile)
            hit = tl.max(((earlier & kept_words[None, :]) != 0).to(tl.int32), axis=1)
            alive = (tl.load(alive_ptr + chunk_rows) != 0) & (hit == 0)
            shift = columns.to(tl.int64)
            bits = tl.sum(alive.to(tl.int64) << shift)
            previous = ~bits
            while bits != previous:
                previous = bits
                bits = tl.sum((alive & ((own & previous) == 0)).to(tl.int64) << shift)
            kept_words = tl.where(words == tile, bits, kept_words)
            keep = ((bits >> shift) & 1) != 0
            place = count + tl.cumsum(keep.to(tl.int32)) - 1
            keep = keep & (place < capacity)
            rows = chunk_start + tile * TILE + columns
            kept = list_start + place
            x1, y1, x2, y2 = _load_boxes(boxes_ptr + 4 * first, rows, keep)
            tl.store(kept_boxes_ptr + 4 * kept, x1, mask=keep)
            tl.store(kept_boxes_ptr + 4 * kept + 1, y1, mask=keep)
            tl.store(kept_boxes_ptr + 4 * kept + 2, x2, mask=keep)
            tl.store(kept_boxes_ptr + 4 * kept + 3, y2, mask=keep)
            logits = tl.load(logits_ptr + first + rows, mask=keep, other=0.0)
            tl.store(kept_logits_ptr + kept, logits, mask=keep)
            tl.store(kept_slots_ptr + kept, rows, mask=keep)
            count += tl.sum(keep.to(tl.int32))
    # No warp may still be about to read the count it started from.
    tl.debug_barrier()
    tl.store(kept_count_ptr + problem, count)


@triton.jit
def nms_merge_kernel(
    kept_boxes_ptr,  # [B·L, capacity, 4]
    kept_logits_ptr,  # [B·L, capacity]
    kept_slots_ptr,  # [B·L, capacity] int32
    kept_count_ptr,  # [B·L] int32
    anchors_ptr,  # [B, slots_per_image] int32
    out_boxes_ptr,  # [B, post_nms_top_n, 4]
    out_scores_ptr,  # [B, post_nms_top_n]
    out_levels_ptr,  # [B, post_nms_top_n] int32
    out_anchors_ptr,  # [B, post_nms_top_n] int32
    out_count_ptr,  # [B] int32
    levels_ptr,  # [1 + 2·L] int32, see _levels_table
    slots_per_image,
    capacity,
    post_nms_top_n,
    STEPS: tl.constexpr,
    LEVELS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Launch c: grid (tile, level, image); the programs of level 0 also fill the unused slots."""
    level = tl.program_id(1)
    image = tl.program_id(2)
    num_levels = tl.num_programs(1)
    place = tl.program_id(0) * TILE + tl.arange(0, TILE)
    out = image.to(tl.int64) * post_nms_top_n

    levels = tl.arange(0, LEVELS)
    problems = image * num_levels + levels
    counts = tl.load(kept_count_ptr + problems, mask=levels < num_levels, other=0)
    total = tl.minimum(tl.sum(counts), post_nms_top_n)
    if level == 0:
        unused = (place >= total) & (place < post_nms_top_n)
        for coordinate in tl.static_range(4):
            tl.store(out_boxes_ptr + 4 * (out + place) + coordinate, 0.0, mask=unused)
        tl.store(out_scores_ptr + out + place, 0.0, mask=unused)
        tl.store(out_levels_ptr + out + place, -1, mask=unused)
        tl.store(out_anchors_ptr + out + place, -1, mask=unused)
        if tl.program_id(0) == 0:
            tl.store(out_count_ptr + image, total)

    problem = image * num_levels + level
    list_start = problem.to(tl.int64) * capacity
    inside = place < tl.load(kept_count_ptr + problem)
    logits = tl.load(kept_logits_ptr + list_start + place, mask=inside, other=float("-inf"))
    # How many of each level go before: those above, and in lower levels those equal. Both bounds of
    # the search close on the first box that does not; 2^STEPS is more than any list holds.
    low = tl.zeros((TILE, LEVELS), dtype=tl.int32)
    high = low + counts[None, :]
    lists = kept_logits_ptr + problems.to(tl.int64) * capacity
    for _ in range(STEPS):
        middle = (low + high) // 2
        open_ = low < high
        other = tl.load(lists[None, :] + middle, mask=open_, other=0.0)
        before = (other > logits[:, None]) | (
            (other == logits[:, None]) & (levels[None, :] < level)
        )
        low = tl.where(open_ & before, middle + 1, low)
        high = tl.where(open_ & (before == 0), middle, high)
    low = tl.where(levels[None, :] == level, 0, low)
    rank = place + tl.sum(low, axis=1)

    keep = inside & (rank < post_nms_top_n)
    slot = tl.load(kept_slots_ptr + list_start + place, mask=keep, other=0)
    first = image.to(tl.int64) * slots_per_image + tl.load(levels_ptr + 1 + 2 * level)
    anchors = tl.load(anchors_ptr + first + slot, mask=keep, other=-1)
    for coordinate in tl.static_range(4):
        values = tl.load(
            kept_boxes_ptr + 4 * (list_start + place) + coordinate, mask=keep, other=0.0
        )
        tl.store(out_boxes_ptr + 4 * (out + rank) + coordinate, values, mask=keep)
    tl.store(out_scores_ptr + out + rank, sigmoid(logits), mask=keep)
    tl.store(out_levels_ptr + out + rank, tl.zeros_like(rank) + level, mask=keep)
    tl.store(out_anchors_ptr + out + rank, anchors, mask=keep)


@functools.cache
def _levels_table(level_sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Returns [number of levels, then first slot and size of each] int32 on the device.

    Kept for good: a captured graph holds its address.
    """
    table = [len(level_sizes)]
    first = 0
    for size in level_sizes:
        table += [first, size]
        first += size
    return torch.tensor(table, dtype=torch.int32, device=device)


def nms_triton(
    candidates: Candidates, level_sizes: Sequence[int], spec: ProposalSpec
) -> ProposalBatch:
    """Returns the kept proposals as `nms` describes them."""
    device, (batch, num_slots) = candidates.boxes.device, candidates.logits.shape
    post_nms_top_n = spec.post_nms_top_n
    out = ProposalBatch(
        torch.empty(batch, post_nms_top_n, 4, device=device),
        torch.empty(batch, post_nms_top_n, device=device),
        torch.empty(batch, post_nms_top_n, dtype=torch.int32, device=device),
        torch.empty(batch, post_nms_top_n, dtype=torch.int32, device=device),
        torch.empty(batch, dtype=torch.int32, device=device),
    )
    if batch == 0:
        return out
    boxes, logits, anchors = (tensor.contiguous() for tensor in candidates)
    num_levels, largest = len(level_sizes), max(level_sizes)
    problems = batch * num_levels
    capacity = max(1, min(post_nms_top_n, largest))
    levels = _levels_table(tuple(level_sizes), device)
    num_words = triton.next_power_of_2(triton.cdiv(max(1, min(largest, CHUNK)), TILE))
    words = torch.empty(problems, num_words * TILE, num_words, dtype=torch.int64, device=device)
    alive = torch.empty(problems, num_words * TILE, dtype=torch.int8, device=device)
    kept_boxes = torch.empty(problems, capacity, 4, device=device)
    kept_logits = torch.empty(problems, capacity, device=device)
    kept_slots = torch.empty(problems, capacity, dtype=torch.int32, device=device)
    kept_count = torch.zeros(problems, dtype=torch.int32, device=device)
    options = {"TILE": TILE, "enable_fp_fusion": False}
    with torch.cuda.device_of(boxes):
        for chunk_start in range(0, largest, CHUNK):
            tiles = triton.cdiv(min(largest - chunk_start, CHUNK), TILE)
            nms_overlap_kernel[(tiles, num_words + 1, problems)](
                boxes,
                logits,
                words,
                alive,
                kept_boxes,
                kept_count,
                levels,
                chunk_start,
                num_slots,
                capacity,
                spec.nms_thresh,
                WORDS=num_words,
                num_warps=OVERLAP_WARPS,
                **options,
            )
            nms_walk_kernel[(problems,)](
                boxes,
                logits,
                words,
                alive,
                kept_boxes,
                kept_logits,
                kept_slots,
                kept_count,
                levels,
                chunk_start,
                num_slots,
                capacity,
                WORDS=num_words,
                num_warps=NUM_WARPS,
                **options,
            )
        nms_merge_kernel[(triton.cdiv(post_nms_top_n, TILE), num_levels, batch)](
            kept_boxes,
            kept_logits,
            kept_slots,
            kept_count,
            anchors,
            *out,
            levels,
            num_slots,
            capacity,
            post_nms_top_n,
            STEPS=capacity.bit_length(),
            LEVELS=triton.next_power_of_2(num_levels),
            num_warps=NUM_WARPS,
            **options,
        )
    return out


def shipped_configs() -> list[Shipped]:
    """Returns what `nms_triton` launches at 1000 and at 2048 and more candidates a level."""
    candidates = {"boxes_ptr": "*fp32", "logits_ptr": "*fp32"}
    chunk = {"words_ptr": "*i64", "alive_ptr": "*i8"}
    sizes = {"levels_ptr": "*i32", "chunk_start": "i32", "slots_per_image": "i32"}
    shipped = []
    for num_words in (16, 32):
        values = {"WORDS": num_words, "TILE": TILE}
        constants = {"WORDS": "constexpr", "TILE": "constexpr"}
        shipped += [
            Shipped(
                f"nms_overlap/{num_words * TILE}",
                nms_overlap_kernel,
                {
                    **candidates,
                    **chunk,
                    "kept_boxes_ptr": "*fp32",
                    "kept_count_ptr": "*i32",
                    **sizes,
                    "capacity": "i32",
                    "nms_thresh": "fp32",
                    **constants,
                },
                values,
                OVERLAP_WARPS,
            ),
            Shipped(
                f"nms_walk/{num_words * TILE}",
                nms_walk_kernel,
                {
                    **candidates,
                    **chunk,
                    "kept_boxes_ptr": "*fp32",
                    "kept_logits_ptr": "*fp32",
                    "kept_slots_ptr": "*i32",
                    "kept_count_ptr": "*i32",
                    **sizes,
                    "capacity": "i32",
                    **constants,
                },
                values,
                NUM_WARPS,
            ),
        ]
    for num_levels in (1, 8):
        shipped.append(
            Shipped(
                f"nms_merge/{num_levels}",
                nms_merge_kernel,
                {
                    "kept_boxes_ptr": "*fp32",
                    "kept_logits_ptr": "*fp32",
                    "kept_slots_ptr": "*i32",
                    "kept_count_ptr": "*i32",
                    "anchors_ptr": "*i32",
                    "out_boxes_ptr": "*fp32",
                    "out_scores_ptr": "*fp32",
                    "out_levels_ptr": "*i32",
                    "out_anchors_ptr": "*i32",
                    "out_count_ptr": "*i32",
                    "levels_ptr": "*i32",
                    "slots_per_image": "i32",
                    "capacity": "i32",
                    "post_nms_top_n": "i32",
                    "STEPS": "constexpr",
                    "LEVELS": "constexpr",
                    "TILE": "constexpr",
                },
                {"STEPS": 11, "LEVELS": num_levels, "TILE": TILE},
                NUM_WARPS,
            )
        )
    return shipped
