"""The instructions of PTX that compute in registers: a table from opcode to function of arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tests.ptx import arithmetic
from tests.ptx.parse import TYPES, Group, Instruction, Literal, Operand, Unsupported, width

Array = np.ndarray
FLOATS = ("f32", "f64")
PACKED = {"f16x2": "f16", "bf16x2": "bf16"}


class Operation(NamedTuple):
    """What an instruction computes.

    Attributes:
        function: from arrays of the sources to one of the destination, or one for each of several.
        sources: what it reads, each with the PTX type that it is read as.
        destinations: where results go.
    """

    function: Callable[..., Array | tuple[Array, ...]]
    sources: tuple[tuple[Operand, str], ...]
    destinations: tuple[Operand, ...]


Builder = Callable[[Instruction], Operation]
_TABLE: dict[str, Builder] = {}


def _opcodes(*names: str) -> Callable[[Builder], Builder]:
    def register(builder: Builder) -> Builder:
        _TABLE.update(dict.fromkeys(names, builder))
        return builder

    return register


def operation(instruction: Instruction) -> Operation:
    """Returns what an instruction computes.

    Raises:
        Unsupported: it is none of the table, or has a modifier that changes what it does.
    """
    builder = _TABLE.get(instruction.base)
    if builder is None:
        raise Unsupported(instruction.text)
    return builder(instruction)


def _plain(
    instruction: Instruction, function: Callable[..., Array | tuple[Array, ...]], *kinds: str
) -> Operation:
    """Returns an operation of one destination whose sources have these types, in their order."""
    destination, *sources = instruction.operands
    if len(sources) != len(kinds):
        raise Unsupported(instruction.text)
    return Operation(function, tuple(zip(sources, kinds, strict=True)), (destination,))


_INTEGER: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum,
    "div": arithmetic.quotient, "rem": arithmetic.remainder, "neg": np.negative, "abs": np.abs,
}  # fmt: skip
_FLOAT: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "fma": arithmetic.fma,
    "mad": arithmetic.fma, "sqrt": np.sqrt,
    "ex2": lambda x: np.exp2(x.astype(np.float64)), "lg2": lambda x: np.log2(x.astype(np.float64)),
    "rcp": lambda x: 1 / x.astype(np.float64), "rsqrt": lambda x: 1 / np.sqrt(x.astype(np.float64)),
    "sin": lambda x: np.sin(x.astype(np.float64)), "cos": lambda x: np.cos(x.astype(np.float64)),
    "tanh": lambda x: np.tanh(x.astype(np.float64)),
}  # fmt: skip


@_opcodes(
    "add", "sub", "mul", "div", "rem", "min", "max", "neg", "abs", "fma", "mad",
    "sqrt", "ex2", "lg2", "rcp", "rsqrt", "sin", "cos", "tanh",
)  # fmt: skip
def _arithmetic(instruction: Instruction) -> Operation:
    kind = instruction.type
    if kind in ("f32", "f16", "bf16", "f16x2", "bf16x2"):
        return _float_arithmetic(instruction, kind)
    if kind == "f64":
        raise Unsupported(instruction.text)
    name = instruction.base
    if name in ("mul", "mad"):
        return _product(instruction, kind)
    if name not in _INTEGER or instruction.has("sat", "cc"):
        raise Unsupported(instruction.text)
    return _plain(instruction, _INTEGER[name], *[kind] * (len(instruction.operands) - 1))


def _float_arithmetic(instruction: Instruction, kind: str) -> Operation:
    if instruction.has("rz", "rm", "rp", "xorsign", "abs.NaN", "relu", "oob"):
        raise Unsupported(instruction.text)
    name = instruction.base
    if kind != "f32" and name in ("fma", "mad"):
        # By way of float32 it would round twice.
        raise Unsupported(instruction.text)
    ftz = instruction.has("ftz")

    def of_float32(*values: Array) -> Array:
        if ftz:
            values = tuple(arithmetic.flush(value) for value in values)
        if name in ("min", "max"):
            result = values[0]
            for value in values[1:]:
                keep_nan = instruction.has("NaN")
                result = arithmetic.extremum(result, value, name == "max", keep_nan)
        elif name in ("neg", "abs"):
            bits = np.asarray(values[0]).view(np.uint32)
            sign = np.uint32(0x80000000)
            return (bits ^ sign if name == "neg" else bits & ~sign).view(np.float32)
        else:
            result = np.asarray(_FLOAT[name](*values), np.float32)
        result = arithmetic.canonical(result)
        if instruction.has("sat"):
            result = arithmetic.saturate(result)
        return arithmetic.flush(result) if ftz else result

    def of_halves(*values: Array) -> Array:
        half = PACKED.get(kind, kind)
        parts = []
        for shift in (0, 16) if kind in PACKED else (0,):
            words = [np.asarray(value) >> value.dtype.type(shift) for value in values]
            wide = [arithmetic.WIDEN[half](word.astype(np.uint16)) for word in words]
            parts.append(arithmetic.NARROW[half](of_float32(*wide)))
        if kind not in PACKED:
            return parts[0]
        return parts[0].astype(np.uint32) | (parts[1].astype(np.uint32) << np.uint32(16))

    function = of_float32 if kind == "f32" else of_halves
    return _plain(instruction, function, *[kind] * (len(instruction.operands) - 1))


def _product(instruction: Instruction, kind: str) -> Operation:
    adds = instruction.base == "mad"
    if instruction.has("wide"):
        wider = kind[0] + str(2 * int(kind[1:]))
        dtype = TYPES[wider]

        def wide(a: Array, b: Array, *c: Array) -> Array:
            product = np.asarray(a).astype(dtype) * np.asarray(b).astype(dtype)
            return product + c[0] if adds else product

        return _plain(instruction, wide, kind, kind, *[wider] * adds)
    if instruction.has("hi"):

        def high(a: Array, b: Array, *c: Array) -> Array:
            product = arithmetic.high_product(a, b)
            return product + c[0] if adds else product

        return _plain(instruction, high, kind, kind, *[kind] * adds)
    if not instruction.has("lo"):
        raise Unsupported(instruction.text)
    return _plain(instruction, lambda a, b, *c: a * b + c[0] if adds else a * b, kind, kind,
                  *[kind] * adds)  # fmt: skip


@_opcodes("and", "or", "xor", "not", "cnot")
def _bitwise(instruction: Instruction) -> Operation:
    functions: dict[str, Callable[..., Array]] = {
        "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
        "cnot": lambda x: (x == 0).astype(x.dtype),
    }  # fmt: skip
    kinds = [instruction.type] * (len(instruction.operands) - 1)
    return _plain(instruction, functions[instruction.base], *kinds)


@_opcodes("shl", "shr")
def _shift(instruction: Instruction) -> Operation:
    left = instruction.base == "shl"
    function = arithmetic.shift_left if left else arithmetic.shift_right
    return _plain(instruction, function, instruction.type, "u32")


@_opcodes("shf")
def _funnel(instruction: Instruction) -> Operation:
    left, wrap = instruction.has("l"), instruction.has("wrap")
    return _plain(
        instruction,
        lambda low, high, count: arithmetic.funnel(low, high, count, left, wrap),
        "b32", "b32", "u32",
    )  # fmt: skip


@_opcodes("bfe", "bfi", "prmt", "popc", "clz", "brev", "lop3", "dp4a")
def _bits(instruction: Instruction) -> Operation:
    kind = instruction.type
    match instruction.base:
        case "bfe":
            return _plain(instruction, arithmetic.extract_field, kind, "u32", "u32")
        case "bfi":
            return _plain(instruction, arithmetic.insert_field, kind, kind, "u32", "u32")
        case "prmt" if instruction.opcode == "prmt.b32":
            return _plain(instruction, arithmetic.permute_bytes, "b32", "b32", "b32")
        case "popc":
            return _plain(instruction, lambda x: np.bitwise_count(x).astype(np.uint32), kind)
        case "clz":
            return _plain(instruction, arithmetic.leading_zeros, kind)
        case "brev":
            return _plain(instruction, arithmetic.reverse_bits, kind)
        case "lop3":
            *operands, table = instruction.operands
            assert isinstance(table, Literal)
            number = int(table.text, 0)
            sources = tuple((operand, "b32") for operand in operands[1:])
            return Operation(
                lambda a, b, c: arithmetic.truth_table(a, b, c, number), sources, (operands[0],)
            )
        case "dp4a":
            first, second = (name == "s32" for name in instruction.types)
            return _plain(
                instruction,
                lambda a, b, c: arithmetic.dot_bytes(a, b, c, (first, second)),
                "b32", "b32", "b32",
            )  # fmt: skip
    raise Unsupported(instruction.text)


@_opcodes("mov")
def _move(instruction: Instruction) -> Operation:
    kind = instruction.type
    destination, source = instruction.operands
    if isinstance(source, Group):
        part = f"b{8 * width(kind) // len(source.parts)}"
        return Operation(
            lambda *parts: _pack(parts, kind),
            tuple((operand, part) for operand in source.parts),
            (destination,),
        )
    if isinstance(destination, Group):
        number = len(destination.parts)
        part = f"b{8 * width(kind) // number}"
        return Operation(
            lambda whole: _unpack(whole, number, part), ((source, kind),), destination.parts
        )
    return Operation(lambda value: value, ((source, kind),), (destination,))


def _pack(parts: tuple[Array, ...], kind: str) -> Array:
    dtype = np.dtype(f"u{width(kind)}").type
    bits = 8 * width(kind) // len(parts)
    result = np.asarray(parts[0]).astype(dtype)
    for place, part in enumerate(parts[1:], 1):
        result = result | (np.asarray(part).astype(dtype) << dtype(bits * place))
    return result


def _unpack(whole: Array, number: int, part: str) -> tuple[Array, ...]:
    unsigned = np.dtype(f"u{whole.dtype.itemsize}").type
    whole = np.asarray(whole).view(unsigned)
    bits = 8 * width(part)
    return tuple((whole >> unsigned(bits * place)).astype(TYPES[part]) for place in range(number))


@_opcodes("setp")
def _set_predicate(instruction: Instruction) -> Operation:
    kind = instruction.type
    _, operator, *more = instruction.parts
    destination, a, b, *joined = instruction.operands
    combine = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}.get(more[0])
    if bool(joined) != (combine is not None) or kind in ("f16", "bf16", "f16x2", "bf16x2"):
        raise Unsupported(instruction.text)
    flushes = instruction.has("ftz")
    both = isinstance(destination, Group)

    def function(x: Array, y: Array, *other: Array) -> Array | tuple[Array, ...]:
        if flushes:
            x, y = arithmetic.flush(x), arithmetic.flush(y)
        holds = arithmetic.compare(operator, x, y)
        results = [holds, ~holds] if both else [holds]
        if combine is not None:
            results = [combine(result, other[0]) for result in results]
        return tuple(results) if both else results[0]

    sources = ((a, kind), (b, kind), *((operand, "pred") for operand in joined))
    destinations = destination.parts if isinstance(destination, Group) else (destination,)
    return Operation(function, sources, destinations)


@_opcodes("selp")
def _select(instruction: Instruction) -> Operation:
    kind = instruction.type
    return _plain(instruction, lambda a, b, choose: np.where(choose, a, b), kind, kind, "pred")


@_opcodes("cvt")
def _convert(instruction: Instruction) -> Operation:
    to, source = instruction.types[-2:]
    if instruction.has("relu", "satfinite", "rz", "rna", "rs") or "f64" in (to, source):
        raise Unsupported(instruction.text)
    flushes, saturates = instruction.has("ftz"), instruction.has("sat")
    rounding = next((part for part in instruction.parts if part in arithmetic.ROUND), None)

    def to_float32(values: Array) -> Array:
        if source in arithmetic.WIDEN:
            return arithmetic.WIDEN[source](values)
        if source != "f32":
            return arithmetic.integer_to_float(values)
        values = arithmetic.canonical(values)
        return arithmetic.flush(values) if flushes else values

    if to in PACKED:
        if source != "f32":
            raise Unsupported(instruction.text)
        narrow = arithmetic.NARROW[PACKED[to]]
        return _plain(
            instruction,
            lambda high, low: _pack((narrow(to_float32(low)), narrow(to_float32(high))), "b32"),
            "f32", "f32",
        )  # fmt: skip
    if to in arithmetic.NARROW:
        return _plain(instruction, lambda x: arithmetic.NARROW[to](to_float32(x)), source)
    if to == "f32":

        def float32(values: Array) -> Array:
            result = to_float32(values)
            if rounding is not None:
                result = arithmetic.canonical(arithmetic.ROUND[rounding](result))
            return arithmetic.saturate(result) if saturates else result

        return _plain(instruction, float32, source)
    dtype = TYPES[to]
    if source == "f32" or source in arithmetic.WIDEN:
        if rounding is None:
            raise Unsupported(instruction.text)
        towards = rounding
        return _plain(
            instruction,
            lambda x: arithmetic.float_to_integer(to_float32(x), towards, dtype),
            source,
        )
    if saturates:
        limits = np.iinfo(dtype)  # type: ignore[type-var]
        return _plain(
            instruction, lambda x: np.clip(x, limits.min, limits.max).astype(dtype), source
        )
    return _plain(instruction, lambda x: np.asarray(x).astype(dtype), source)


@_opcodes("createpolicy")
def _cache_policy(instruction: Instruction) -> Operation:
    return Operation(lambda: np.zeros((), np.uint64), (), instruction.operands[:1])
