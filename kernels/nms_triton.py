"""nms in Triton: greedy suppression per image and level in chunks of 2048, then a merge by rank.

These are steps 5 and 6 of `generate_proposals`: a to c suppress, and d merges the levels. All
images and levels go together through 3·ceil(K / 2048) launches, K the candidates of the largest
level, none of which waits for the host. For each chunk of candidates, in falling order:

a. suppress, from the second chunk on: candidates against the boxes kept from earlier chunks; those
   that overlap one (IoU > nms_thresh) are marked.
b. overlap: 128 candidates against 32 earlier ones of the chunk give a word of 32 bits for each:
   which of those it overlaps. A table lists the pairs of tile and word, so that there is a program
   for every pair below the diagonal, whatever the levels' sizes, and none above it.
c. walk: one warp per image and level goes through the chunk 32 candidates at a time. One is out if
   it is marked or if one of its words meets a kept bit; among the 32 the kept ones are the fixed
   point of "alive and not overlapping a kept one before it", found in as many rounds as the longest
   chain in it needs: the first candidate is settled at once, and each round settles the next. The
   kept are appended to the level's list; at post_nms_top_n the level is done, and programs find so.

d. merge, once at the end: a kept box's place in the output is its place in its own level plus, by
   binary search, the number of boxes in other levels that go before it.

Boxes meet in programs of one warp: a lane has four candidates in its registers and all lanes load
the same earlier box, so that nothing is exchanged or waited for. It costs 22 instructions per 32
IoUs, division included, because hardly any is divided. With t the threshold, t⁺ the float above it,
and ∪ above 0 or NaN (`boxes_triton.area`), rounding in a product never turns an order round:

   ∩ > fl(t⁺·∪)  means  ∩ > t⁺·∪,  so that fl(∩ / ∪) ≥ t⁺ > t: an overlap;
   ∩ < fl(t·∪)   means  ∩ < t·∪,   so that fl(∩ / ∪) ≤ t: none, as where anything is NaN.

Both hold for subnormal and infinite numbers and a threshold of 0, too. Where a program has a pair
that is neither, within a few units in the last place of the threshold, it divides all of its own.

The words of a chunk take 512 KiB an image and level whatever K is, where the words of 12,000
candidates would take 18 MB. Per candidate 16 bytes of box are read once in 64 programs' turns, and
4·(j / 32) bytes of words are written and read for the candidate at place j of its chunk. Beyond the
end of a level its last box stands in, and the walk asks nothing of it; equal logits keep the order
they come in, and go by level between levels.

No race: a launch reads what launches before it in the stream wrote. Within one, words are each
written by one program and not read; marks may be written by several, which all write the same 1,
and are not read. The walk of a level is one program: its list and count are its own, and it reads
nothing that it writes but the count: first, a barrier apart. In the merge, places are a
permutation, and the slots filled as unused are those beyond the last place.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import functools
from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from stream_rpn.kernels.boxes_triton import area, intersection_and_union, sigmoid
from stream_rpn.kernels.proposals import Candidates, ProposalBatch, ProposalSpec
from stream_rpn.kernels.shipped import Shipped

CHUNK = 2048
# Candidates that one word of bits stands for, and that the walk settles at a time: the lanes of a
# warp.
WORD = 32
TILE = 128
# Earlier boxes that a tile meets at a time: a lane has all of them, so they cost it registers.
OTHERS = 4
# Kept boxes that one program holds against a tile of later candidates.
KEPT_BLOCK = 128
# Of the programs that hold boxes against boxes, and of the walk. One warp waits for no other.
NUM_WARPS = 1
MERGE_TILE, MERGE_WARPS = 64, 4

# Columns of the table of pairs, a row per program of the overlap.
LEVEL, FIRST, SIZE, ROW, OTHER, PAIR_FIELDS = (tl.constexpr(column) for column in range(6))


@triton.jit
def _load_boxes(boxes, index):
    """Returns x1, y1, x2, y2 of boxes [n, 4] at `index`, and their areas."""
    x1 = tl.load(boxes + 4 * index)
    y1 = tl.load(boxes + 4 * index + 1)
    x2 = tl.load(boxes + 4 * index + 2)
    y2 = tl.load(boxes + 4 * index + 3)
    return x1, y1, x2, y2, area(x1, y1, x2, y2)


@triton.jit
def _meet(boxes, others):
    """Returns intersection and union [others, boxes] of what `_load_box` gave."""
    x1, y1, x2, y2, box_area = boxes
    a1, b1, a2, b2, other_area = others
    return intersection_and_union(
        x1[None, :],
        y1[None, :],
        x2[None, :],
        y2[None, :],
        box_area[None, :],
        a1[:, None],
        b1[:, None],
        a2[:, None],
        b2[:, None],
        other_area[:, None],
    )


@triton.jit(do_not_specialize=["chunk_start", "slots_per_image", "num_levels", "capacity"])
def nms_suppress_kernel(
    boxes_ptr,  # [B, slots_per_image, 4]
    suppressed_ptr,  # [B, slots_per_image] int8
    kept_slots_ptr,  # [B·L, capacity] int32
    kept_count_ptr,  # [B·L] int32
    levels_ptr,  # [L, 2] int32: first slot and size
    chunk_start,
    slots_per_image,
    num_levels,
    capacity,
    nms_thresh,
    above_thresh,
    TILE: tl.constexpr,
    OTHERS: tl.constexpr,
    KEPT_BLOCK: tl.constexpr,
):
    """Launch a: grid (tile, block of kept boxes, image · level)."""
    problem = tl.program_id(2)
    level = levels_ptr + 2 * (problem % num_levels)
    size = tl.load(level + 1)
    count = tl.load(kept_count_ptr + problem)
    row_start = chunk_start + tl.program_id(0) * TILE
    kept_start = tl.program_id(1) * KEPT_BLOCK
    if (row_start < size) & (kept_start < count) & (count < capacity):
        first = (problem // num_levels).to(tl.int64) * slots_per_image + tl.load(level)
        boxes = boxes_ptr + 4 * first
        kept_slots = kept_slots_ptr + problem.to(tl.int64) * capacity
        rows = row_start + tl.arange(0, TILE)
        row_boxes = _load_boxes(boxes, tl.minimum(rows, size - 1))
        sure = tl.zeros((TILE,), dtype=tl.int32)
        perhaps = tl.zeros((TILE,), dtype=tl.int32)
        kept_end = tl.minimum(kept_start + KEPT_BLOCK, count)
        for start in range(kept_start, kept_end, OTHERS):
            kept = tl.minimum(start + tl.arange(0, OTHERS), kept_end - 1)
            intersection, union = _meet(row_boxes, _load_boxes(boxes, tl.load(kept_slots + kept)))
            sure |= tl.max((intersection > above_thresh * union).to(tl.int32), axis=0)
            perhaps |= tl.max((intersection >= nms_thresh * union).to(tl.int32), axis=0)
        if tl.max(sure ^ perhaps) != 0:
            for start in range(kept_start, kept_end, OTHERS):
                kept = tl.minimum(start + tl.arange(0, OTHERS), kept_end - 1)
                intersection, union = _meet(
                    row_boxes, _load_boxes(boxes, tl.load(kept_slots + kept))
                )
                hits = tl.div_rn(intersection, union) > nms_thresh
                sure |= tl.max(hits.to(tl.int32), axis=0)
        tl.store(suppressed_ptr + first + rows, 1, mask=(sure != 0) & (rows < size))


@triton.jit(do_not_specialize=["chunk_start", "slots_per_image", "num_levels", "capacity"])
def nms_overlap_kernel(
    boxes_ptr,  # [B, slots_per_image, 4]
    words_ptr,  # [B·L, WORDS, WORDS·WORD] int32: word, then candidate that it belongs to
    kept_count_ptr,  # [B·L] int32
    pairs_ptr,  # [pairs, PAIR_FIELDS] int32, see _pairs
    chunk_start,
    slots_per_image,
    num_levels,
    capacity,
    nms_thresh,
    above_thresh,
    WORDS: tl.constexpr,
    WORD: tl.constexpr,
    TILE: tl.constexpr,
    OTHERS: tl.constexpr,
):
    """Launch b: grid (pair of a tile and a word, image)."""
    image = tl.program_id(1)
    pair = pairs_ptr + tl.program_id(0) * PAIR_FIELDS
    problem = image * num_levels + tl.load(pair + LEVEL)
    boxes = boxes_ptr + 4 * (image.to(tl.int64) * slots_per_image + tl.load(pair + FIRST))
    last = tl.load(pair + SIZE) - 1
    row_start = tl.load(pair + ROW)
    other_start = tl.load(pair + OTHER)
    if tl.load(kept_count_ptr + problem, mask=chunk_start > 0, other=0) < capacity:
        rows = row_start + tl.arange(0, TILE)
        # Beyond the end the last box stands in: nobody asks what it is said to overlap.
        row_boxes = _load_boxes(boxes, tl.minimum(rows, last))
        sure = tl.zeros((TILE,), dtype=tl.int32)
        perhaps = tl.zeros((TILE,), dtype=tl.int32)
        for start in range(0, WORD, OTHERS):
            places = start + tl.arange(0, OTHERS)
            others = _load_boxes(boxes, tl.minimum(other_start + places, last))
            intersection, union = _meet(row_boxes, others)
            bits = 1 << places[:, None]
            sure |= tl.sum(tl.where(intersection > above_thresh * union, bits, 0), axis=0)
            perhaps |= tl.sum(tl.where(intersection >= nms_thresh * union, bits, 0), axis=0)
        if tl.max((sure != perhaps).to(tl.int32)) != 0:
            for start in range(0, WORD, OTHERS):
                places = start + tl.arange(0, OTHERS)
                others = _load_boxes(boxes, tl.minimum(other_start + places, last))
                intersection, union = _meet(row_boxes, others)
                hits = tl.div_rn(intersection, union) > nms_thresh
                sure |= tl.sum(tl.where(hits, 1 << places[:, None], 0), axis=0)
        # Only those before a candidate suppress it: of its own word, the bits below its own.
        before = tl.minimum(tl.maximum(rows - other_start, 0), WORD - 1)
        bits = tl.where(rows - other_start < WORD, sure & ~(-1 << before), sure)
        word = problem.to(tl.int64) * WORDS + (other_start - chunk_start) // WORD
        tl.store(words_ptr + word * (WORDS * WORD) + (rows - chunk_start), bits)


@triton.jit(do_not_specialize=["chunk_start", "slots_per_image", "num_levels", "capacity"])
def nms_walk_kernel(
    logits_ptr,  # [B, slots_per_image]
    words_ptr,  # [B·L, WORDS, WORDS·WORD] int32: word, then candidate that it belongs to
    suppressed_ptr,  # [B, slots_per_image] int8
    kept_logits_ptr,  # [B·L, capacity]
    kept_slots_ptr,  # [B·L, capacity] int32
    kept_count_ptr,  # [B·L] int32
    levels_ptr,  # [L, 2] int32: first slot and size
    chunk_start,
    slots_per_image,
    num_levels,
    capacity,
    WORDS: tl.constexpr,
    WORD: tl.constexpr,
):
    """Launch c: grid (image · level)."""
    problem = tl.program_id(0)
    level = levels_ptr + 2 * (problem % num_levels)
    first = (problem // num_levels).to(tl.int64) * slots_per_image + tl.load(level)
    size = tl.load(level + 1)
    count = tl.load(kept_count_ptr + problem, mask=chunk_start > 0, other=0)
    list_start = problem.to(tl.int64) * capacity
    lanes = tl.arange(0, WORD)
    words = tl.arange(0, WORDS)
    PITCH: tl.constexpr = WORDS * WORD
    table = words_ptr + problem.to(tl.int64) * (WORDS * PITCH)
    logits = logits_ptr + first
    suppressed = suppressed_ptr + first
    end = tl.minimum(WORDS, tl.cdiv(size - chunk_start, WORD))
    kept_words = tl.zeros((WORDS,), dtype=tl.int32)
    rows = chunk_start + lanes
    own = tl.load(table + lanes, mask=rows < size, other=0)
    row_logits = tl.load(logits + rows, mask=rows < size, other=float("-inf"))
    gone = tl.load(suppressed + rows, mask=(rows < size) & (chunk_start > 0), other=0) != 0
    step = 0
    while (step < end) & (count < capacity):
        # What the next block needs is on its way while this one is settled.
        following = tl.minimum(step + 1, end - 1)
        next_rows = chunk_start + following * WORD + lanes
        earlier = tl.load(
            table + words[:, None] * PITCH + (following * WORD + lanes[None, :]),
            mask=words[:, None] < following,
            other=0,
        )
        next_own = tl.load(table + following * PITCH + (following * WORD + lanes))
        next_logits = tl.load(logits + next_rows, mask=next_rows < size, other=float("-inf"))
        next_suppressed = tl.load(
            suppressed + next_rows, mask=(next_rows < size) & (chunk_start > 0), other=0
        )

        alive = (row_logits > float("-inf")) & (gone == 0)
        bits = tl.sum(tl.where(alive, 1 << lanes, 0))
        previous = ~bits
        while bits != previous:
            previous = bits
            bits = tl.sum(tl.where(alive & ((own & previous) == 0), 1 << lanes, 0))
        keep = ((bits >> lanes) & 1) != 0
        place = count + tl.cumsum(keep.to(tl.int32)) - 1
        keep = keep & (place < capacity)
        tl.store(kept_logits_ptr + list_start + place, row_logits, mask=keep)
        tl.store(kept_slots_ptr + list_start + place, chunk_start + step * WORD + lanes, mask=keep)
        count += tl.sum(keep.to(tl.int32))

        kept_words = tl.where(words == step, bits, kept_words)
        hits = tl.max((earlier & kept_words[:, None]).to(tl.uint32), axis=0)
        own, row_logits = next_own, next_logits
        gone = (hits != 0) | (next_suppressed != 0)
        step += 1
    # No lane may still be about to read the count it started from.
    tl.debug_barrier()
    tl.store(kept_count_ptr + problem, count)


@triton.jit(do_not_specialize=["slots_per_image", "capacity", "post_nms_top_n"])
def nms_merge_kernel(
    boxes_ptr,  # [B, slots_per_image, 4]
    kept_logits_ptr,  # [B·L, capacity]
    kept_slots_ptr,  # [B·L, capacity] int32
    kept_count_ptr,  # [B·L] int32
    anchors_ptr,  # [B, slots_per_image] int32
    out_boxes_ptr,  # [B, post_nms_top_n, 4]
    out_scores_ptr,  # [B, post_nms_top_n]
    out_levels_ptr,  # [B, post_nms_top_n] int32
    out_anchors_ptr,  # [B, post_nms_top_n] int32
    out_count_ptr,  # [B] int32
    levels_ptr,  # [L, 2] int32: first slot and size
    slots_per_image,
    capacity,
    post_nms_top_n,
    STEPS: tl.constexpr,
    LEVELS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Launch d: grid (tile, level, image); the programs of level 0 also fill the unused slots."""
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
    first = image.to(tl.int64) * slots_per_image + tl.load(levels_ptr + 2 * level)
    anchors = tl.load(anchors_ptr + first + slot, mask=keep, other=-1)
    for coordinate in tl.static_range(4):
        values = tl.load(boxes_ptr + 4 * (first + slot) + coordinate, mask=keep, other=0.0)
        tl.store(out_boxes_ptr + 4 * (out + rank) + coordinate, values, mask=keep)
    tl.store(out_scores_ptr + out + rank, sigmoid(logits), mask=keep)
    tl.store(out_levels_ptr + out + rank, tl.zeros_like(rank) + level, mask=keep)
    tl.store(out_anchors_ptr + out + rank, anchors, mask=keep)


@functools.cache
def _levels(level_sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Returns [L, 2] int32 on the device, the first slot and the size of each level.

    Kept for good, as `_pairs` are: a captured graph holds its address.
    """
    firsts = [sum(level_sizes[:level]) for level in range(len(level_sizes))]
    table = list(zip(firsts, level_sizes, strict=True))
    return torch.tensor(table, dtype=torch.int32, device=device)


@functools.cache
def _pairs(level_sizes: tuple[int, ...], chunk_start: int, device: torch.device) -> Tensor:
    """Returns [pairs, PAIR_FIELDS] int32: each tile of a chunk with the words up to its end."""
    table = []
    first = 0
    for level, size in enumerate(level_sizes):
        for row in range(chunk_start, min(size, chunk_start + CHUNK), TILE):
            for other in range(chunk_start, min(size, row + TILE), WORD):
                table.append((level, first, size, row, other))
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
    level_sizes = tuple(level_sizes)
    num_levels, largest = len(level_sizes), max(level_sizes)
    problems = batch * num_levels
    capacity = max(1, min(post_nms_top_n, largest))
    levels = _levels(level_sizes, device)
    num_words = triton.next_power_of_2(triton.cdiv(max(1, min(largest, CHUNK)), TILE))
    num_words *= TILE // WORD
    words = torch.empty(problems, num_words, num_words * WORD, dtype=torch.int32, device=device)
    # Read and written from the second chunk on only.
    spread = num_slots if largest > CHUNK else 0
    suppressed = torch.zeros(batch, spread, dtype=torch.int8, device=device)
    kept_logits = torch.empty(problems, capacity, device=device)
    kept_slots = torch.empty(problems, capacity, dtype=torch.int32, device=device)
    kept_count = torch.empty(problems, dtype=torch.int32, device=device)
    thresh = np.float32(spec.nms_thresh)
    thresholds = (float(thresh), float(np.nextafter(thresh, np.float32(np.inf))))
    options = {"num_warps": NUM_WARPS, "enable_fp_fusion": False}
    with torch.cuda.device_of(boxes):
        for chunk_start in range(0, max(1, largest), CHUNK):
            sizes = (chunk_start, num_slots, num_levels, capacity)
            pairs = _pairs(level_sizes, chunk_start, device)
            if chunk_start > 0:
                tiles = triton.cdiv(min(largest - chunk_start, CHUNK), TILE)
                nms_suppress_kernel[(tiles, triton.cdiv(capacity, KEPT_BLOCK), problems)](
                    boxes,
                    suppressed,
                    kept_slots,
                    kept_count,
                    levels,
                    *sizes,
                    *thresholds,
                    TILE=TILE,
                    OTHERS=OTHERS,
                    KEPT_BLOCK=KEPT_BLOCK,
                    **options,
                )
            if len(pairs) > 0:
                nms_overlap_kernel[(len(pairs), batch)](
                    boxes,
                    words,
                    kept_count,
                    pairs,
                    *sizes,
                    *thresholds,
                    WORDS=num_words,
                    WORD=WORD,
                    TILE=TILE,
                    OTHERS=OTHERS,
                    **options,
                )
            nms_walk_kernel[(problems,)](
                logits,
                words,
                suppressed,
                kept_logits,
                kept_slots,
                kept_count,
                levels,
                *sizes,
                WORDS=num_words,
                WORD=WORD,
                **options,
            )
        nms_merge_kernel[(triton.cdiv(post_nms_top_n, MERGE_TILE), num_levels, batch)](
            boxes,
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
            TILE=MERGE_TILE,
            num_warps=MERGE_WARPS,
            enable_fp_fusion=False,
        )
    return out


def shipped_configs() -> list[Shipped]:
    """Returns what `nms_triton` launches at 1000 and at 2048 and more candidates a level."""
    kept = {"kept_slots_ptr": "*i32", "kept_count_ptr": "*i32"}
    sizes = dict.fromkeys(("chunk_start", "slots_per_image", "num_levels", "capacity"), "i32")
    thresholds = {"nms_thresh": "fp32", "above_thresh": "fp32"}
    shipped = [
        Shipped(
            "nms_suppress",
            nms_suppress_kernel,
            {
                "boxes_ptr": "*fp32",
                "suppressed_ptr": "*i8",
                **kept,
                "levels_ptr": "*i32",
                **sizes,
                **thresholds,
                "TILE": "constexpr",
                "OTHERS": "constexpr",
                "KEPT_BLOCK": "constexpr",
            },
            {"TILE": TILE, "OTHERS": OTHERS, "KEPT_BLOCK": KEPT_BLOCK},
            NUM_WARPS,
        )
    ]
    for num_words in (32, 64):
        values = {"WORDS": num_words, "WORD": WORD}
        constants = {"WORDS": "constexpr", "WORD": "constexpr"}
        shipped += [
            Shipped(
                f"nms_overlap/{num_words * WORD}",
                nms_overlap_kernel,
                {
                    "boxes_ptr": "*fp32",
                    "words_ptr": "*i32",
                    "kept_count_ptr": "*i32",
                    "pairs_ptr": "*i32",
                    **sizes,
                    **thresholds,
                    **constants,
                    "TILE": "constexpr",
                    "OTHERS": "constexpr",
                },
                {**values, "TILE": TILE, "OTHERS": OTHERS},
                NUM_WARPS,
            ),
            Shipped(
                f"nms_walk/{num_words * WORD}",
                nms_walk_kernel,
                {
                    "logits_ptr": "*fp32",
                    "words_ptr": "*i32",
                    "suppressed_ptr": "*i8",
                    "kept_logits_ptr": "*fp32",
                    **kept,
                    "levels_ptr": "*i32",
                    **sizes,
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
                    "boxes_ptr": "*fp32",
                    "kept_logits_ptr": "*fp32",
                    **kept,
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
                {"STEPS": 11, "LEVELS": num_levels, "TILE": MERGE_TILE},
                MERGE_WARPS,
            )
        )
    return shipped
