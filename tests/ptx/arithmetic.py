"""The arithmetic of PTX on numpy arrays, rounded and ordered as its manual says.

Float32 operations are numpy's where these are exactly rounded; a NaN that comes out has the bits
0x7fffffff. Approximate instructions (ex2.approx, div.full, ...) are computed exactly: what a GPU
gives may differ from that by as many units in the last place as the manual allows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray
NAN_BITS = np.uint32(0x7FFFFFFF)
SMALLEST_NORMAL = np.float32(2.0**-126)


def canonical(values: Array) -> Array:
    """Gives every NaN of float32 values the bits of the canonical one."""
    values = np.asarray(values, np.float32)
    nan = values != values
    return np.where(nan, NAN_BITS.view(np.float32), values) if nan.any() else values


def flush(values: Array) -> Array:
    """Turns subnormal numbers into zeros of their sign (.ftz)."""
    small = np.abs(values) < SMALLEST_NORMAL
    return np.where(small, np.copysign(np.float32(0), values), values)


def saturate(values: Array) -> Array:
    """Clamps to [0, 1], NaN to 0 (.sat)."""
    return np.where(values > 0, np.minimum(values, np.float32(1)), np.float32(0))


def fma(a: Array, b: Array, c: Array) -> Array:
    """Returns a·b + c rounded once to float32.

    The product is exact in float64. Their sum is rounded to odd, of which a second rounding to
    fewer than half the bits makes what one rounding of the exact sum would.
    """
    a, b, c = (np.asarray(x, np.float64) for x in (a, b, c))
    product = a * b
    total = np.asarray(product + c)
    back = total - product
    error = (product - (total - back)) + (c - back)
    bits = total.view(np.int64)
    inexact = np.isfinite(total) & (error != 0) & (bits & 1 == 0)
    step = np.where((error > 0) == (total > 0), 1, -1)
    return np.where(inexact, bits + step, bits).view(np.float64).astype(np.float32)


def extremum(a: Array, b: Array, larger: bool, keep_nan: bool) -> Array:
    """Returns min or max of floats: −0 below +0; NaN only if both are, or one is (.NaN)."""
    choose = {
        (True, True): np.maximum, (True, False): np.fmax,
        (False, True): np.minimum, (False, False): np.fmin,
    }[larger, keep_nan]  # fmt: skip
    result = choose(a, b)
    zeros = (a == 0) & (b == 0)
    if zeros.any():
        negative = np.signbit(a) & np.signbit(b) if larger else np.signbit(a) | np.signbit(b)
        zero = np.where(negative, np.float32(-0.0), np.float32(0.0))
        result = np.where(zeros, zero, result)
    return result


def bf16_to_f32(bits: Array) -> Array:
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def f32_to_bf16(values: Array) -> Array:
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(values != values, np.uint32(0x7FFF), rounded).astype(np.uint16)


def f16_to_f32(bits: Array) -> Array:
    return canonical(np.asarray(bits).view(np.float16).astype(np.float32))


def f32_to_f16(values: Array) -> Array:
    bits = np.asarray(values).astype(np.float16).view(np.uint16)
    return np.where(values != values, np.uint16(0x7FFF), bits)


WIDEN: dict[str, Callable[[Array], Array]] = {"f16": f16_to_f32, "bf16": bf16_to_f32}
NARROW: dict[str, Callable[[Array], Array]] = {"f16": f32_to_f16, "bf16": f32_to_bf16}
ROUND: dict[str, Callable[[Array], Array]] = {
    "rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil,
}  # fmt: skip


def float_to_integer(values: Array, rounding: str, dtype: type[np.generic]) -> Array:
    """Rounds to an integer type, whose ends take what lies beyond; NaN becomes 0."""
    limits = np.iinfo(dtype)  # type: ignore[type-var]
    rounded = ROUND[rounding](np.asarray(values, np.float64))
    inside = (rounded >= float(limits.min)) & (rounded < float(limits.max))
    result = np.where(inside, rounded, 0).astype(dtype)
    result = np.where(rounded >= float(limits.max), dtype(limits.max), result)
    return np.where(rounded < float(limits.min), dtype(limits.min), result)


def integer_to_float(values: Array) -> Array:
    """Returns float32, to the nearest, ties to even: numpy's conversion is."""
    return np.asarray(values).astype(np.float32)


def quotient(a: Array, b: Array) -> Array:
    """Returns a / b towards zero; all bits set where b is 0, which PTX leaves open."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    floor = a // safe
    if a.dtype.kind == "i":
        floor = floor + ((a - floor * safe != 0) & ((a < 0) != (safe < 0)))
    return np.where(b == 0, ~a.dtype.type(0), floor).astype(a.dtype)


def remainder(a: Array, b: Array) -> Array:
    return np.where(b == 0, a, a - quotient(a, b) * b).astype(a.dtype)


def high_product(a: Array, b: Array) -> Array:
    """Returns the upper half of a·b."""
    a, b = np.broadcast_arrays(a, b)
    bits = 8 * a.dtype.itemsize
    if bits < 64:
        wide = np.int64 if a.dtype.kind == "i" else np.uint64
        return ((a.astype(wide) * b.astype(wide)) >> wide(bits)).astype(a.dtype)
    exact = (a.astype(object) * b.astype(object)) >> bits
    return np.asarray(exact).astype(a.dtype)


def shift_left(a: Array, count: Array) -> Array:
    bits = 8 * a.dtype.itemsize
    kept = np.left_shift(a, np.minimum(count, bits - 1).astype(a.dtype))
    return np.where(count >= bits, a.dtype.type(0), kept)


def shift_right(a: Array, count: Array) -> Array:
    """Shifts in the sign of signed numbers and 0 into others, however far."""
    bits = 8 * a.dtype.itemsize
    kept = np.right_shift(a, np.minimum(count, bits - 1).astype(a.dtype))
    return kept if a.dtype.kind == "i" else np.where(count >= bits, a.dtype.type(0), kept)


def funnel(low: Array, high: Array, count: Array, left: bool, wrap: bool) -> Array:
    """Returns 32 bits of high:low, shifted (shf)."""
    both = (np.asarray(high).astype(np.uint64) << np.uint64(32)) | low
    count = count & np.uint32(31) if wrap else np.minimum(count, np.uint32(32))
    count = np.asarray(count).astype(np.uint64)
    if left:
        return ((both << count) >> np.uint64(32)).astype(np.uint32)
    return (both >> count).astype(np.uint32)


def extract_field(a: Array, position: Array, length: Array) -> Array:
    """Returns `length` bits from `position` on; of signed numbers the last is a sign (bfe)."""
    bits = 8 * a.dtype.itemsize
    unsigned = np.dtype(f"u{a.dtype.itemsize}").type
    position, length = position & np.uint32(255), length & np.uint32(255)
    mask = _ones(length).astype(unsigned)
    value = shift_right(a, position).view(unsigned) & mask
    if a.dtype.kind == "u":
        return value
    last = np.minimum(position + length - np.uint32(1), np.uint32(bits - 1))
    negative = (shift_right(a, last) & a.dtype.type(1)) != 0
    return np.where(negative & (length != 0), value | ~mask, value).view(a.dtype)


def insert_field(a: Array, b: Array, position: Array, length: Array) -> Array:
    """Puts the lowest `length` bits of a into b at `position` (bfi)."""
    position = position & np.uint32(255)
    mask = shift_left(_ones(length & np.uint32(255)).astype(a.dtype), position)
    return (shift_left(a, position) & mask) | (b & ~mask)


def _ones(count: Array) -> Array:
    return shift_left(np.array(1, np.uint64), count) - np.uint64(1)


def permute_bytes(low: Array, high: Array, selector: Array) -> Array:
    """Returns four bytes of high:low, each chosen by four bits, or their sign bits (prmt)."""
    both = (np.asarray(high).astype(np.uint64) << np.uint64(32)) | low
    result = np.zeros(np.broadcast_shapes(both.shape, np.shape(selector)), np.uint32)
    for place in range(4):
        choice = (np.asarray(selector) >> np.uint32(4 * place)) & np.uint32(15)
        source = (choice & np.uint32(7)).astype(np.uint64) * np.uint64(8)
        byte = ((both >> source) & np.uint64(255)).astype(np.uint32)
        sign = np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0))
        byte = np.where(choice & np.uint32(8), sign, byte)
        result = result | (byte << np.uint32(8 * place))
    return result


def truth_table(a: Array, b: Array, c: Array, table: int) -> Array:
    """Returns, bit by bit, the entry of `table` that bits of a, b and c name (lop3)."""
    result = np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b), np.shape(c)), np.uint32)
    for entry in range(8):
        if table >> entry & 1:
            terms = [x if entry >> bit & 1 else ~x for x, bit in ((a, 2), (b, 1), (c, 0))]
            result = result | (terms[0] & terms[1] & terms[2])
    return result


def leading_zeros(a: Array) -> Array:
    bits = 8 * a.dtype.itemsize
    spread = np.asarray(a).astype(np.uint64)
    for shift in (1, 2, 4, 8, 16, 32):
        spread = spread | (spread >> np.uint64(shift))
    return (np.uint32(bits) - np.bitwise_count(spread)).astype(np.uint32)


def reverse_bits(a: Array) -> Array:
    bits = 8 * a.dtype.itemsize
    result = np.zeros_like(a)
    for bit in range(bits):
        moved = ((a >> a.dtype.type(bit)) & a.dtype.type(1)) << a.dtype.type(bits - 1 - bit)
        result = result | moved
    return result


def dot_bytes(a: Array, b: Array, c: Array, signed: tuple[bool, bool]) -> Array:
    """Returns c + Σ aᵢ·bᵢ over four bytes (dp4a)."""
    total = np.asarray(c).astype(np.int64)
    for place in range(4):
        terms = []
        for word, is_signed in zip((a, b), signed, strict=True):
            byte = ((np.asarray(word) >> np.uint32(8 * place)) & np.uint32(255)).astype(np.uint8)
            terms.append((byte.view(np.int8) if is_signed else byte).astype(np.int64))
        total = total + terms[0] * terms[1]
    return total.astype(np.int32)


COMPARE: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal, "ne": np.not_equal,
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip


def compare(operator: str, a: Array, b: Array) -> Array:
    """Compares as setp does: with NaN only the unordered operators ("ltu", ..., "nan") hold."""
    unordered = (a != a) | (b != b)
    if operator in ("num", "nan"):
        return unordered if operator == "nan" else ~unordered
    if operator in ("equ", "neu", "ltu", "leu", "gtu", "geu"):
        return COMPARE[operator[:-1]](a, b) | unordered
    return COMPARE[operator](a, b) & ~unordered if operator == "ne" else COMPARE[operator](a, b)


def sums_before(keys: Array, values: Array) -> Array:
    """Returns for each entry the sum of the values before it that have its key."""
    order = np.argsort(keys, kind="stable")
    summed = np.cumsum(values[order], dtype=values.dtype) - values[order]
    starts = np.flatnonzero(np.diff(keys[order], prepend=keys[order][:1] - 1))
    first = np.repeat(summed[starts], np.diff(np.append(starts, len(keys))))
    before = np.empty_like(values)
    before[order] = summed - first
    return before
