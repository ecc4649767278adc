"""The instructions of PTX that touch memory, as steps over the lanes that execute them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.ptx import counts
from tests.ptx.memory import Memory
from tests.ptx.parse import (
    TYPES,
    UNSIGNED,
    Address,
    Group,
    Instruction,
    Operand,
    Unsupported,
    width,
)
from tests.ptx.programs import WARP, Active, Programs

Array = np.ndarray


@dataclass
class Machine:
    """What the steps of a batch of programs work on."""

    programs: Programs
    shared: Memory
    memory: Memory
    counts: counts.Counts


Step = Callable[[Machine, Active], None]


def access(instruction: Instruction) -> Step:
    """Returns the step of a load, store, atomic operation or one of matrices."""
    return _ACCESSES[instruction.base](instruction)


def is_access(instruction: Instruction) -> bool:
    return instruction.base in _ACCESSES


def smallest_access(instructions: list[Instruction], *, shared: bool) -> int:
    """Returns the bytes of the smallest access of a kernel to shared or to global memory."""
    sizes = [8]
    for instruction in instructions:
        if is_access(instruction) and _is_shared(instruction) == shared:
            sizes.append(2 if "matrix" in instruction.base else width(instruction.type))
    return min(sizes)


def _is_shared(instruction: Instruction) -> bool:
    if instruction.has("shared"):
        return True
    if instruction.has("global", "param"):
        return False
    raise Unsupported(f"memory of no named kind: {instruction.text}")


def _parts(operand: Operand) -> tuple[Operand, ...]:
    return operand.parts if isinstance(operand, Group) else (operand,)


def _address(operand: Operand, shared: bool) -> Callable[[Programs, Active], Array]:
    if not isinstance(operand, Address):
        raise Unsupported(f"address {operand}")
    base, offset = operand.base, operand.offset
    kind = "u32" if shared else "u64"

    def addresses(programs: Programs, active: Active) -> Array:
        value = np.broadcast_to(programs.read(base, kind, active), len(active))
        places = value.astype(np.int64) + offset
        return places & 0xFFFFFFFF if shared else places

    return addresses


def _count(machine: Machine, name: str, active: Active, addresses: Array) -> None:
    sectors = counts.sectors(active.lanes, addresses)
    machine.counts.add(**{f"{name}s": active.num_warps, f"{name}_sectors": sectors})


def _count_shared(machine: Machine, active: Active, addresses: Array, nbytes: int) -> None:
    waves = counts.wavefronts(active.lanes, addresses, nbytes)
    machine.counts.add(shared_requests=active.num_warps, shared_wavefronts=waves)


def _load(instruction: Instruction) -> Step:
    kind = instruction.type
    size, dtype = width(kind), TYPES[kind]
    if instruction.has("param"):
        return _load_parameter(instruction, kind)
    shared = _is_shared(instruction)
    destinations = _parts(instruction.operands[0])
    address = _address(instruction.operands[1], shared)

    def step(machine: Machine, active: Active) -> None:
        where = address(machine.programs, active)
        memory = machine.shared if shared else machine.memory
        values = memory.load(machine.programs, active, where, size, len(destinations))
        if shared:
            _count_shared(machine, active, where, size * len(destinations))
        else:
            _count(machine, "load", active, where)
        for destination, value in zip(destinations, values, strict=True):
            machine.programs.write(destination, value.view(dtype), active)

    return step


def _load_parameter(instruction: Instruction, kind: str) -> Step:
    destination, operand = instruction.operands
    address = _address(operand, shared=False)
    size = width(kind)

    def step(machine: Machine, active: Active) -> None:
        offsets = address(machine.programs, active)
        bytes_ = machine.programs.parameters[offsets[:, None] + np.arange(size)]
        values = np.ascontiguousarray(bytes_).view(TYPES[kind])[:, 0]
        machine.programs.write(destination, values, active)

    return step


def _store(instruction: Instruction) -> Step:
    kind = instruction.type
    size = width(kind)
    shared = _is_shared(instruction)
    address = _address(instruction.operands[0], shared)
    sources = _parts(instruction.operands[1])

    def step(machine: Machine, active: Active) -> None:
        programs = machine.programs
        where = address(programs, active)
        values = [programs.read(source, kind, active).view(UNSIGNED[size]) for source in sources]
        memory = machine.shared if shared else machine.memory
        memory.store(programs, active, where, values)
        if shared:
            _count_shared(machine, active, where, size * len(sources))
        else:
            _count(machine, "store", active, where)

    return step


_ATOMIC: dict[str, Callable[[Array, Array], Array]] = {
    "add": lambda old, new: old + new,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, new: new,
    "inc": lambda old, limit: np.where(old >= limit, 0, old + 1).astype(old.dtype),
    "dec": lambda old, limit: np.where((old == 0) | (old > limit), limit, old - 1),
}


def _atomic(instruction: Instruction) -> Step:
    kind = instruction.type
    name = next((part for part in instruction.parts if part in _ATOMIC), None)
    if name is None or (kind in ("f32", "f64") and name != "add") or width(kind) < 4:
        raise Unsupported(instruction.text)
    shared = _is_shared(instruction)
    *destination, target, value = instruction.operands
    address = _address(target, shared)
    operation = _ATOMIC[name]
    is_sum = name == "add" and kind not in ("f32", "f64")

    def step(machine: Machine, active: Active) -> None:
        programs = machine.programs
        where = address(programs, active)
        values = np.broadcast_to(programs.read(value, kind, active), len(active))
        memory = machine.shared if shared else machine.memory
        found = memory.update(programs, active, where, operation, values, is_sum=is_sum)
        if shared:
            _count_shared(machine, active, where, width(kind))
            machine.counts.add(shared_atomic_passes=counts.most_on_one(active.lanes, where))
        else:
            _count(machine, "atomic", active, where)
        for register in destination:
            programs.write(register, found, active)

    return step


def _matrix(instruction: Instruction) -> Step:
    """ldmatrix and stmatrix: 8×8 matrices of 16 bits, a row's address from each of 8 lanes."""
    loads = instruction.base == "ldmatrix"
    number = next(int(p[1]) for p in instruction.parts if p in ("x1", "x2", "x4"))
    transposed = instruction.has("trans")
    if not instruction.has("m8n8") or instruction.type != "b16":
        raise Unsupported(instruction.text)
    registers, target = instruction.operands if loads else reversed(instruction.operands)
    parts = _parts(registers)
    address = _address(target, shared=True)
    lane = np.arange(WARP)

    def step(machine: Machine, active: Active) -> None:
        programs, shared = machine.programs, machine.shared
        rows = active.in_warps(address(programs, active))
        for matrix, register in zip(range(number), parts, strict=True):
            first = rows[:, 8 * matrix : 8 * matrix + 8]
            # A lane holds two neighbours of a row, or, transposed, of a column.
            if transposed:
                halves = [first[:, 2 * (lane % 4) + h] + 2 * (lane // 4) for h in (0, 1)]
            else:
                halves = [first[:, lane // 4] + 4 * (lane % 4) + 2 * h for h in (0, 1)]
            places = [half.ravel() for half in halves]
            if loads:
                low, high = (shared.load(programs, active, place, 2, 1)[0] for place in places)
                word = low.astype(np.uint32) | (high.astype(np.uint32) << np.uint32(16))
                programs.write(register, word, active)
            else:
                word = programs.read(register, "b32", active)
                for place, shift in zip(places, (0, 16), strict=True):
                    half = (word >> np.uint32(shift)).astype(np.uint16)
                    shared.store(programs, active, place, [half])
            # Eight rows of 16 bytes are read or written at once, as by lanes that take 16 each.
            lanes = active.lanes.reshape(-1, WARP)[:, :8].ravel()
            waves = counts.wavefronts(lanes, first.ravel(), 16)
            machine.counts.add(shared_wavefronts=waves)
        machine.counts.add(shared_requests=active.num_warps)

    return step


_ACCESSES: dict[str, Callable[[Instruction], Step]] = {
    "ld": _load, "ldu": _load, "st": _store, "atom": _atomic, "red": _atomic,
    "ldmatrix": _matrix, "stmatrix": _matrix,
}  # fmt: skip
