"""Each family of PTX instructions that Triton makes for our kernels, held to exact arithmetic.

The oracles compute a lane at a time with Python's integers and fractions, so they share nothing
with the simulator, which computes with numpy.
"""

import math
import struct
from fractions import Fraction

import numpy as np
import pytest

from tests.ptx.parse import width
from tests.ptx.snippet import run

THREADS = 96
BITS = {"f32": (24, -126, 127), "f16": (11, -14, 15), "bf16": (8, -126, 127)}
NAN = {"f32": 0x7FFFFFFF, "f16": 0x7FFF, "bf16": 0x7FFF}


def to_bits(value, kind):
    """Returns the bits of an integer (modulo), a truth or the nearest float, ties to even."""
    if kind not in BITS:
        return int(value) % (1 << 8 * width(kind))
    digits, lowest, highest = BITS[kind]
    size = 8 * width(kind)
    if value != value:
        return NAN[kind]
    sign = (math.copysign(1, value) < 0) << (size - 1)
    infinity = (2 * highest + 1) << (digits - 1)
    if value in (math.inf, -math.inf):
        return sign | infinity
    magnitude = abs(Fraction(value))
    if magnitude == 0:
        return sign
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    exponent -= magnitude < Fraction(2) ** exponent
    exponent = max(exponent, lowest)
    steps = round(magnitude / Fraction(2) ** (exponent - digits + 1))
    # A carry into the next exponent, or out of the subnormal ones, comes out right by itself.
    return sign | min(steps + ((exponent - lowest) << (digits - 1)), infinity)


def from_bits(bits, kind):
    """Returns what bits say: an int, a bool or a float."""
    if kind == "pred":
        return bool(bits)
    if kind == "f32":
        return struct.unpack("<f", struct.pack("<I", bits))[0]
    if kind == "f16":
        return struct.unpack("<e", struct.pack("<H", bits))[0]
    if kind == "bf16":
        return struct.unpack("<f", struct.pack("<I", bits << 16))[0]
    size = 8 * width(kind)
    return bits - (1 << size) if kind[0] == "s" and bits >> (size - 1) else bits


def is_nan(bits, kind):
    return kind in BITS and from_bits(bits, kind) != from_bits(bits, kind)


def hard_values(kind, seed):
    """Returns bits of a type: its odd values, then random ones, in random order."""
    random = np.random.default_rng(seed)
    if kind == "pred":
        return random.integers(0, 2, THREADS).tolist()
    size = 8 * width(kind)
    odd = [0, 1, 2, 3, (1 << size) - 1, 1 << (size - 1), (1 << (size - 1)) - 1, 5, 31, 32, 33]
    if kind in BITS:
        digits, _, highest = BITS[kind]
        one = highest << (digits - 1)
        infinity = (2 * highest + 1) << (digits - 1)
        odd = [0, 1, 3, (1 << (digits - 1)) - 1, 1 << (digits - 1), one, one + 1, infinity - 1]
        odd += [infinity, infinity + 1, one + (1 << (digits - 2)), one + (5 << (digits - 1))]
        odd += [bits | 1 << (size - 1) for bits in odd]
    values = [int(bits) for bits in random.integers(0, 1 << size, THREADS, np.uint64)]
    if kind in BITS:
        # Of one size, so that sums round and products do not all leave the range.
        values = [to_bits(float(x), kind) for x in random.normal(0, 3, THREADS)]
    places = random.choice(THREADS, 3 * len(odd), replace=False)
    for place, bits in zip(places, 3 * odd, strict=True):
        values[place] = bits
    return values


def finite(function, special):
    """Returns an oracle: exact on finite numbers, Python's own on others and on zeros' signs."""

    def oracle(*values):
        if not all(math.isfinite(value) for value in values):
            return special(*values)
        exact = function(*(Fraction(value) for value in values))
        return exact if exact else special(*values)

    return oracle


def divide(a, b):
    if b == 0 or math.isinf(a):
        negative = math.copysign(1, a) != math.copysign(1, b)
        magnitude = math.nan if a != a or a == b == 0 or math.isinf(b) else math.inf
        return -magnitude if negative else magnitude
    return a / b


def division(a, b):
    if all(map(math.isfinite, (a, b))) and a and b:
        return Fraction(a) / Fraction(b)
    return math.nan if a != a or b != b else divide(a, b)


def smaller(a, b):
    if a != a or b != b:
        return b if a != a else a
    return min((a, b), key=lambda x: (x, math.copysign(1, x)))


def larger(a, b):
    return -smaller(-a, -b)


def with_nan(function):
    return lambda a, b: math.nan if a != a or b != b else function(a, b)


def flushed(function):
    def flush(value):
        tiny = value == value and abs(value) < 2.0**-126
        return math.copysign(0.0, value) if tiny else value

    return lambda *values: flush(function(*map(flush, values)))


def towards_zero(a, b):
    return -1 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def to_integer(rounding, low, high):
    def oracle(value):
        if value != value:
            return 0
        if math.isinf(value):
            return low if value < 0 else high
        return min(max(rounding(value), low), high)

    return oracle


def field(bits, position, length, signed):
    position, length = position & 255, length & 255
    bits %= 2**32
    sign = bits >> min(position + length - 1, 31) & 1 if signed and length else 0
    return sum(
        (bits >> position + i & 1 if i < length and position + i < 32 else sign) << i
        for i in range(32)
    )


def inserted(a, b, position, length):
    position, length = position & 255, length & 255
    mask = ((1 << length) - 1) << position
    return (a << position & mask | b & ~mask) & 0xFFFFFFFF


def permuted(a, b, selector):
    both = (b << 32 | a).to_bytes(8, "little")
    chosen = []
    for place in range(4):
        choice = selector >> 4 * place & 15
        byte = both[choice & 7]
        chosen.append((255 if byte & 128 else 0) if choice & 8 else byte)
    return int.from_bytes(bytes(chosen), "little")


def shifted(value, count, bits, left):
    if left:
        return value << count if count < bits else 0
    return value >> min(count, bits)


def rows():
    """Yields (instruction, types of its sources, type of its result, oracle)."""
    for kind in ("s16", "s32", "s64"):
        yield f"add.{kind}", (kind, kind), kind, lambda a, b: a + b
        yield f"sub.{kind}", (kind, kind), kind, lambda a, b: a - b
    for kind in ("s32", "u32", "s64", "u16"):
        yield f"min.{kind}", (kind, kind), kind, min
        yield f"max.{kind}", (kind, kind), kind, max
    for kind in ("s32", "u32", "s64"):
        yield f"div.{kind}", (kind, kind), kind, towards_zero
        yield (
            f"rem.{kind}", (kind, kind), kind,
            lambda a, b: a - towards_zero(a, b) * b if b else a,
        )  # fmt: skip
        yield f"mul.lo.{kind}", (kind, kind), kind, lambda a, b: a * b
        yield f"mad.lo.{kind}", (kind, kind, kind), kind, lambda a, b, c: a * b + c
    for kind in ("s32", "u32", "u64", "s64"):
        size = int(kind[1:])
        yield f"mul.hi.{kind}", (kind, kind), kind, lambda a, b, size=size: a * b >> size
    for kind, wide in (("s32", "s64"), ("u32", "u64"), ("s16", "s32"), ("u16", "u32")):
        yield f"mul.wide.{kind}", (kind, kind), wide, lambda a, b: a * b
        yield f"mad.wide.{kind}", (kind, kind, wide), wide, lambda a, b, c: a * b + c
    for kind in ("b16", "b32", "b64"):
        yield f"and.{kind}", (kind, kind), kind, lambda a, b: a & b
        yield f"or.{kind}", (kind, kind), kind, lambda a, b: a | b
        yield f"xor.{kind}", (kind, kind), kind, lambda a, b: a ^ b
        yield f"not.{kind}", (kind,), kind, lambda a: ~a
        size = int(kind[1:])
        yield f"shl.{kind}", (kind, "u32"), kind, lambda a, n, size=size: shifted(a, n, size, True)
    for kind in ("u16", "s16", "u32", "s32", "u64", "s64"):
        size = int(kind[1:])
        yield f"shr.{kind}", (kind, "u32"), kind, lambda a, n, size=size: shifted(a, n, size, False)
    yield "neg.s32", ("s32",), "s32", lambda a: -a
    yield "abs.s32", ("s32",), "s32", abs
    yield "popc.b32", ("b32",), "u32", int.bit_count
    yield "popc.b64", ("b64",), "u32", int.bit_count
    yield "clz.b32", ("b32",), "u32", lambda a: 32 - a.bit_length()
    yield "clz.b64", ("b64",), "u32", lambda a: 64 - a.bit_length()
    yield "brev.b32", ("b32",), "b32", lambda a: int(f"{a:032b}"[::-1], 2)
    yield "bfe.u32", ("u32", "u32", "u32"), "u32", lambda a, p, n: field(a, p, n, False)
    yield "bfe.s32", ("s32", "u32", "u32"), "s32", lambda a, p, n: field(a, p, n, True)
    yield "bfi.b32", ("b32", "b32", "u32", "u32"), "b32", inserted
    yield "prmt.b32", ("b32", "b32", "b32"), "b32", permuted
    yield (
        "shf.l.wrap.b32", ("b32", "b32", "u32"), "b32",
        lambda a, b, n: (b << 32 | a) << (n & 31) >> 32,
    )  # fmt: skip
    yield (
        "shf.r.clamp.b32",
        ("b32", "b32", "u32"),
        "b32",
        lambda a, b, n: (b << 32 | a) >> min(n, 32),
    )
    for kind in ("f32", "bf16"):
        yield f"neg.{kind}", (kind,), kind, lambda a: -a
        yield f"abs.{kind}", (kind,), kind, abs
    yield "add.rn.f32", ("f32", "f32"), "f32", finite(lambda a, b: a + b, lambda a, b: a + b)
    yield "sub.rn.f32", ("f32", "f32"), "f32", finite(lambda a, b: a - b, lambda a, b: a - b)
    yield "mul.rn.f32", ("f32", "f32"), "f32", finite(lambda a, b: a * b, lambda a, b: a * b)
    yield "div.rn.f32", ("f32", "f32"), "f32", division
    yield "div.full.f32", ("f32", "f32"), "f32", division
    yield (
        "fma.rn.f32",
        ("f32", "f32", "f32"),
        "f32",
        finite(lambda a, b, c: a * b + c, lambda a, b, c: a * b + c),
    )
    yield "add.f16", ("f16", "f16"), "f16", finite(lambda a, b: a + b, lambda a, b: a + b)
    yield "sqrt.rn.f32", ("f32",), "f32", lambda a: math.sqrt(a) if a >= 0 else math.nan
    yield "min.f32", ("f32", "f32"), "f32", smaller
    yield "max.f32", ("f32", "f32"), "f32", larger
    yield "min.NaN.f32", ("f32", "f32"), "f32", with_nan(smaller)
    yield "max.NaN.f32", ("f32", "f32"), "f32", with_nan(larger)
    yield "max.ftz.f32", ("f32", "f32"), "f32", flushed(larger)
    for kind in ("b32", "u32", "s32", "b64", "f32", "b16"):
        yield f"selp.{kind}", (kind, kind, "pred"), kind, lambda a, b, choose: a if choose else b
    comparisons = {
        "eq": lambda a, b: a == b,
        "ne": lambda a, b: a != b,
        "lt": lambda a, b: a < b,
        "le": lambda a, b: a <= b,
        "gt": lambda a, b: a > b,
        "ge": lambda a, b: a >= b,
    }
    for name, holds in comparisons.items():
        for kind in ("s32", "u32", "s64", "u64", "s16") if name not in ("eq", "ne") else ("b32",):
            yield f"setp.{name}.{kind}", (kind, kind), "pred", holds
        # Without "u" nothing holds of NaN, with it everything.
        ordered = with_nan(holds)
        yield (f"setp.{name}.f32", ("f32", "f32"), "pred", lambda a, b, o=ordered: o(a, b) is True)
        yield (
            f"setp.{name}u.f32",
            ("f32", "f32"),
            "pred",
            lambda a, b, o=ordered: o(a, b) is not False,
        )
    yield "setp.num.f32", ("f32", "f32"), "pred", lambda a, b: a == a and b == b
    yield "setp.nan.f32", ("f32", "f32"), "pred", lambda a, b: a != a or b != b
    yield ("setp.lt.and.s32", ("s32", "s32", "pred"), "pred", lambda a, b, p: a < b and p)
    yield "setp.ge.or.f32", ("f32", "f32", "pred"), "pred", lambda a, b, p: a >= b or p
    for name, joined in (("and", lambda a, b: a and b), ("or", lambda a, b: a or b)):
        yield f"{name}.pred", ("pred", "pred"), "pred", joined
    yield "xor.pred", ("pred", "pred"), "pred", lambda a, b: a != b
    yield "not.pred", ("pred",), "pred", lambda a: not a
    for to, source in (
        ("s64", "s32"), ("u64", "u32"), ("u32", "u64"), ("u16", "u32"), ("u32", "u16"),
        ("s32", "s16"), ("s32", "s8"), ("u32", "u8"), ("u8", "u32"),
    ):  # fmt: skip
        yield f"cvt.{to}.{source}", (source,), to, lambda a: a
    for source in ("s32", "u32", "s64", "u64", "s16", "u16", "u8"):
        yield f"cvt.rn.f32.{source}", (source,), "f32", lambda a: a
    for kind in ("f16", "bf16"):
        yield f"cvt.f32.{kind}", (kind,), "f32", lambda a: a
        yield f"cvt.rn.{kind}.f32", ("f32",), kind, lambda a: a
    for name, rounding in (
        ("rzi", math.trunc), ("rmi", math.floor), ("rpi", math.ceil), ("rni", round),
    ):  # fmt: skip
        yield (
            f"cvt.{name}.f32.f32", ("f32",), "f32",
            lambda a, r=rounding: (
                math.copysign(r(a), a) if math.isfinite(a) else a
            ),
        )  # fmt: skip
        for to, low, high in (("s32", -(2**31), 2**31 - 1), ("u32", 0, 2**32 - 1)):
            yield f"cvt.{name}.{to}.f32", ("f32",), to, to_integer(rounding, low, high)
    yield (
        "cvt.rmi.ftz.f32.f32", ("f32",), "f32",
        flushed(lambda a: math.copysign(math.floor(a), a) if math.isfinite(a) else a),
    )  # fmt: skip
    for kind in ("b16", "b32", "b64"):
        yield f"mov.{kind}", (kind,), kind, lambda a: a


ROWS = list(rows())


@pytest.mark.parametrize(("opcode", "sources", "result", "oracle"), ROWS, ids=[r[0] for r in ROWS])
def test_an_instruction_gives_exact_results(opcode, sources, result, oracle):
    given = {
        name: (kind, hard_values(kind, seed))
        for seed, (name, kind) in enumerate(zip("abcd", sources, strict=False))
    }
    operands = ", ".join("{" + name + "}" for name in ("result", *given))
    got = run(f"{opcode} {operands};", given, {"result": result})["result"]
    lanes = zip(*(bits for _, bits in given.values()), strict=True)
    for found, bits in zip(got, lanes, strict=True):
        values = [from_bits(b, kind) for b, kind in zip(bits, sources, strict=True)]
        expected = to_bits(oracle(*values), result)
        if not (is_nan(found, result) and is_nan(expected, result)):
            assert found == expected, (opcode, values, from_bits(found, result))


@pytest.mark.parametrize("opcode", ["add.rn.f32", "min.NaN.f32", "div.rn.f32"])
def test_a_nan_that_arithmetic_makes_is_the_canonical_one(opcode):
    given = {"a": ("f32", [0xFFC12345] * THREADS), "b": ("f32", [0x3F800000] * THREADS)}
    got = run(opcode + " {result}, {a}, {b};", given, {"result": "f32"})["result"]
    assert set(got) == {NAN["f32"]}
