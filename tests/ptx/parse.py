"""PTX text to instructions: what Triton's NVPTX backend writes, not all that PTX allows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache

import numpy as np

# Integers stand for the bits of the halves, which numpy's float16 is only one of.
TYPES: dict[str, type[np.generic]] = {
    "pred": np.bool_,
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8,
    "b16": np.uint16, "u16": np.uint16, "s16": np.int16, "f16": np.uint16, "bf16": np.uint16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "f32": np.float32,
    "f16x2": np.uint32, "bf16x2": np.uint32,
    "b64": np.uint64, "u64": np.uint64, "s64": np.int64, "f64": np.float64,
}  # fmt: skip
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@cache
def width(name: str) -> int:
    """Returns the bytes of a PTX type."""
    return np.dtype(TYPES[name]).itemsize


class Unsupported(Exception):
    """The PTX holds something that is not simulated."""


class Fault(Exception):
    """A GPU would fail here, or give results that depend on chance."""


@dataclass(frozen=True)
class Register:
    name: str


@dataclass(frozen=True)
class Literal:
    """A number, or the name of a label, parameter, shared array or special register."""

    text: str


@dataclass(frozen=True)
class Negated:
    """A predicate of which the opposite is taken."""

    register: Register


@dataclass(frozen=True)
class Address:
    base: Register | Literal
    offset: int


@dataclass(frozen=True)
class Group:
    """Registers in braces, or the two of `p|q`."""

    parts: tuple[Operand, ...]


Operand = Register | Literal | Negated | Address | Group


@dataclass(frozen=True, slots=True)
class Instruction:
    opcode: str
    operands: tuple[Operand, ...]
    guard: Register | Negated | None
    text: str
    line: int

    @property
    def parts(self) -> tuple[str, ...]:
        return _parts(self.opcode)

    @property
    def base(self) -> str:
        return _parts(self.opcode)[0]

    @property
    def types(self) -> tuple[str, ...]:
        return _types(self.opcode)

    @property
    def type(self) -> str:
        return self.types[-1]

    def has(self, *names: str) -> bool:
        return not _parts_set(self.opcode).isdisjoint(names)


@cache
def _parts(opcode: str) -> tuple[str, ...]:
    return tuple(re.split(r"\.|::", opcode))


@cache
def _parts_set(opcode: str) -> frozenset[str]:
    return frozenset(_parts(opcode))


@cache
def _types(opcode: str) -> tuple[str, ...]:
    return tuple(part for part in _parts(opcode)[1:] if part in TYPES)


@dataclass(frozen=True)
class Parameter:
    offset: int
    type: str


@dataclass
class Kernel:
    """One kernel: its instructions in order, and the index that each label stands before."""

    name: str
    threads: int
    parameters: dict[str, Parameter]
    register_types: dict[str, str]
    shared_symbols: set[str]
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def register_type(self, name: str) -> str:
        """Returns the type that a register, %r12 say, was declared with."""
        prefix = re.match(r"%[a-z]+", name)
        if prefix is None or prefix[0] not in self.register_types:
            raise Unsupported(f"register {name}")
        return self.register_types[prefix[0]]

    @property
    def parameter_bytes(self) -> int:
        return max((p.offset + width(p.type) for p in self.parameters.values()), default=0)


_ENTRY = re.compile(r"\.visible\s+\.entry\s+(\w+)\s*\((.*?)\)(.*?)\{(.*)", re.DOTALL)


def parse(ptx: str) -> Kernel:
    """Returns the kernel that a module of Triton holds."""
    entry = _ENTRY.search(ptx)
    if entry is None:
        raise Unsupported("a module without a kernel")
    name, parameters, attributes, body = entry.groups()
    threads = re.search(r"\.reqntid\s+(\d+)", attributes)
    if threads is None:
        raise Unsupported("a kernel without .reqntid")
    kernel = Kernel(
        name,
        int(threads[1]),
        _parameters(parameters),
        {p: t for t, p in re.findall(r"\.reg\s+\.(\w+)\s+(%[a-z]+)<\d+>", body)},
        set(re.findall(r"\.shared\s+\.align\s+\d+\s+\.b8\s+(\w+)", ptx)),
    )
    line = 0
    for statement in _statements(body):
        location = re.match(r"\.loc\s+\d+\s+(\d+)", statement)
        label = re.fullmatch(r"([$\w]+):", statement)
        if location:
            line = int(location[1])
        elif label:
            kernel.labels[label[1]] = len(kernel.instructions)
        elif not statement.startswith("."):
            kernel.instructions.append(_instruction(statement, line))
    return kernel


def _parameters(text: str) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    end = 0
    for kind, name in re.findall(r"\.param\s+\.(\w+)[^,]*?(\w+)\s*(?:,|$)", text.strip()):
        size = width(kind)
        offset = -(-end // size) * size
        found[name] = Parameter(offset, kind)
        end = offset + size
    return found


def _statements(body: str) -> list[str]:
    """Returns directives, labels ("L:") and instructions, up to the kernel's closing brace."""
    statements = []
    depth = 1
    for raw in re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL).splitlines():
        line = raw.split("//")[0].strip()
        if line.startswith((".loc", ".pragma")):
            statements.append(line.rstrip(";"))
            continue
        while line:
            if line[0] in "{}":
                depth += 1 if line[0] == "{" else -1
                if depth == 0:
                    return statements
                line = line[1:].strip()
                continue
            label = re.match(r"[$\w]+:(?!:)", line)
            if label:
                statements.append(label[0])
                line = line[label.end() :].strip()
                continue
            statement, _, line = line.partition(";")
            statements.append(statement.strip())
            line = line.strip()
    return statements


def _instruction(text: str, line: int) -> Instruction:
    match = re.fullmatch(r"(?:@(!?%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", text, re.DOTALL)
    if match is None:
        raise Unsupported(text)
    guard = None if match[1] is None else _operand(match[1])
    assert guard is None or isinstance(guard, Register | Negated)
    operands = tuple(_operand(part) for part in _split(match[3], ","))
    return Instruction(match[2], operands, guard, " ".join(text.split()), line)


def _split(text: str, separator: str) -> list[str]:
    """Splits at separators that are in no brackets."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "{[(") - (letter in "}])")
        if letter == separator and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


@cache
def _operand(text: str) -> Operand:
    if text.startswith("{"):
        return Group(tuple(_operand(part) for part in _split(text[1:-1], ",")))
    if text.startswith("["):
        match = re.fullmatch(r"\[\s*([%$\w]+)\s*(?:\+\s*(-?\d+))?\s*\]", text)
        if match is None:
            raise Unsupported(f"address {text}")
        base = _operand(match[1])
        assert isinstance(base, Register | Literal)
        return Address(base, int(match[2] or 0))
    if "|" in text:
        return Group(tuple(_operand(part.strip()) for part in text.split("|")))
    if text.startswith("!"):
        return Negated(Register(text[1:].strip()))
    if text.startswith("%") and text[1:].rstrip("0123456789") != text[1:]:
        return Register(text)
    return Literal(text)


@cache
def literal(text: str, kind: str) -> np.ndarray:
    """Returns a number of the PTX as an array without axes of a PTX type."""
    dtype = np.dtype(TYPES[kind])
    if kind == "pred":
        return np.array(int(text, 0) != 0)
    unsigned = UNSIGNED[dtype.itemsize]
    if text[:2].lower() in ("0f", "0d"):
        bits = int(text[2:], 16)
    else:
        bits = int(text.rstrip("U"), 0) % (1 << 8 * dtype.itemsize)
    return np.array(bits, unsigned).view(dtype)
