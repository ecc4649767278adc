"""The instructions by which the lanes of a warp see each other's registers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.ptx.arithmetic import WIDEN, canonical
from tests.ptx.parse import TYPES, Group, Instruction, Operand, Unsupported
from tests.ptx.programs import WARP, Active, Programs

Array = np.ndarray
LANES = np.arange(WARP)


def shuffle(instruction: Instruction) -> Callable[[Programs, Active], None]:
    """shfl.sync: lanes take the value of another lane, or keep theirs where there is none."""
    target, value, distance, clamp, members = instruction.operands
    mode = instruction.parts[2]
    destinations = target.parts if isinstance(target, Group) else (target,)

    def step(programs: Programs, active: Active) -> None:
        _whole(programs, members, active)
        values = active.in_warps(programs.read(value, "b32", active))
        by = active.in_warps(programs.read(distance, "u32", active)).astype(np.int64)
        bits = active.in_warps(programs.read(clamp, "u32", active)).astype(np.int64)
        segment, limit = (bits >> 8) & 31, bits & 31
        last = (LANES & segment) | (limit & ~segment)
        if mode == "bfly":
            source = LANES ^ by
        elif mode == "up":
            source = LANES - by
        elif mode == "down":
            source = LANES + by
        else:
            source = (LANES & segment) | (by & ~segment & 31)
        found = source >= last if mode == "up" else source <= last
        source = np.where(found, source, LANES)
        results = np.take_along_axis(values, source, axis=1).ravel(), found.ravel()
        for destination, result in zip(destinations, results, strict=False):
            programs.write(destination, result, active)

    return step


def vote(instruction: Instruction) -> Callable[[Programs, Active], None]:
    """vote.sync: every lane learns of which lanes of its warp a predicate holds."""
    destination, predicate, members = instruction.operands
    mode = instruction.parts[2]

    def step(programs: Programs, active: Active) -> None:
        _whole(programs, members, active)
        holds = active.in_warps(programs.read(predicate, "pred", active))
        if mode == "ballot":
            weights = np.uint32(1) << LANES.astype(np.uint32)
            result = (holds * weights).sum(axis=1, dtype=np.uint32)
        else:
            counts = holds.sum(axis=1)
            result = {
                "any": counts > 0, "all": counts == WARP, "uni": (counts == 0) | (counts == WARP),
            }[mode]  # fmt: skip
        programs.write(destination, np.repeat(result, WARP), active)

    return step


def reduce(instruction: Instruction) -> Callable[[Programs, Active], None]:
    """redux.sync: every lane gets the sum, or the like, of its warp."""
    destination, value, members = instruction.operands
    kind = instruction.type
    functions: dict[str, np.ufunc] = {
        "add": np.add, "min": np.minimum, "max": np.maximum,
        "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    }  # fmt: skip
    function = functions[instruction.parts[2]]
    if kind == "f32":
        raise Unsupported(instruction.text)

    def step(programs: Programs, active: Active) -> None:
        _whole(programs, members, active)
        values = active.in_warps(programs.read(value, kind, active))
        result = function.reduce(values, axis=1, dtype=TYPES[kind])
        programs.write(destination, np.repeat(result, WARP), active)

    return step


def multiply(instruction: Instruction) -> Callable[[Programs, Active], None]:
    """mma.sync.m16n8k16: D = A·B + C of halves, summed in float64 and rounded once to float32.

    A GPU sums in an order, and with a precision, that no manual states.
    """
    half = instruction.types[1]
    if not instruction.has("m16n8k16") or instruction.types != ("f32", half, half, "f32"):
        raise Unsupported(instruction.text)
    widen = WIDEN.get(half)
    if widen is None:
        raise Unsupported(instruction.text)
    d, a, b, c = (operand.parts for operand in instruction.operands if isinstance(operand, Group))
    group, pair = LANES // 4, 2 * (LANES % 4)
    # Where the first of the two numbers stands that a lane holds in a register.
    a_places = [(group + 8 * (i % 2), pair + 8 * (i // 2)) for i in range(4)]
    b_places = [(pair + 8 * i, group) for i in range(2)]

    def halves(programs: Programs, active: Active, register: Operand) -> tuple[Array, Array]:
        word = active.in_warps(programs.read(register, "b32", active))
        low, high = word.astype(np.uint16), (word >> np.uint32(16)).astype(np.uint16)
        return widen(low).astype(np.float64), widen(high).astype(np.float64)

    def step(programs: Programs, active: Active) -> None:
        left = np.zeros((active.num_warps, 16, 16))
        for register, (row, column) in zip(a, a_places, strict=True):
            values = halves(programs, active, register)
            left[:, row, column], left[:, row, column + 1] = values
        right = np.zeros((active.num_warps, 16, 8))
        for register, (row, column) in zip(b, b_places, strict=True):
            values = halves(programs, active, register)
            right[:, row, column], right[:, row + 1, column] = values
        product = left @ right
        for i, (source, destination) in enumerate(zip(c, d, strict=True)):
            before = active.in_warps(programs.read(source, "f32", active)).astype(np.float64)
            total = before + product[:, group + 8 * (i // 2), pair + i % 2]
            programs.write(destination, canonical(total.ravel()), active)

    return step


def _whole(programs: Programs, members: Operand, active: Active) -> None:
    """Refuses masks that name part of a warp; all that Triton makes name all."""
    mask = programs.read(members, "b32", active)
    if (mask != np.uint32(0xFFFFFFFF)).any():
        raise Unsupported(f"a warp operation of the lanes {int(np.min(mask)):#x}")


WARP_OPERATIONS = {"shfl": shuffle, "vote": vote, "redux": reduce, "mma": multiply}
