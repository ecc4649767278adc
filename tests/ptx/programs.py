"""A batch of programs that run in lockstep: their lanes, registers and barriers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.ptx.parse import (
    TYPES,
    UNSIGNED,
    Fault,
    Kernel,
    Literal,
    Negated,
    Operand,
    Register,
    Unsupported,
    literal,
    width,
)
from tests.ptx.races import EPOCH_SHIFT, stamps

Array = np.ndarray
WARP = 32
# What registers and shared memory hold before anything is written to them.
POISON = 0xCB


class Active:
    """The lanes of a batch that execute an instruction.

    Attributes:
        index: all of them as a slice, or the numbers of those that do, in order.
    """

    def __init__(self, lanes: Array, total: int) -> None:
        self.lanes = lanes
        self.total = total
        self.index: slice | Array = slice(None) if len(lanes) == total else lanes
        self.num_warps = int(np.count_nonzero(np.diff(lanes // WARP, prepend=-1)))

    def __len__(self) -> int:
        return len(self.lanes)

    def where(self, chosen: Array) -> Active:
        return Active(self.lanes[chosen], self.total)

    def union(self, other: Active) -> Active:
        return Active(np.union1d(self.lanes, other.lanes), self.total)

    def in_warps(self, values: Array) -> Array:
        """Returns values of the active lanes [warps, 32]; part of a warp is a fault."""
        if self.num_warps * WARP != len(self.lanes):
            raise Fault("only some lanes of a warp take part in what is for whole warps")
        return np.broadcast_to(values, len(self.lanes)).reshape(-1, WARP)


class Programs:
    """Registers and positions of the lanes of a batch of programs.

    Args:
        kernel: what they run.
        numbers: which programs of the launch they are.
        grid: programs along x, y and z.
        parameters: the bytes of the launch's arguments.
    """

    def __init__(
        self, kernel: Kernel, numbers: Array, grid: Sequence[int], parameters: Array
    ) -> None:
        self.kernel = kernel
        self.parameters = parameters
        self.count = len(numbers)
        threads = kernel.threads
        self.total = self.count * threads
        self.program = np.repeat(numbers, threads)
        # The place of a lane's program in the batch.
        self.slot = np.repeat(np.arange(self.count), threads)
        thread = np.tile(np.arange(threads), self.count)
        self._stamp = stamps(self.program, np.zeros_like(self.program), thread // WARP)
        coordinates = np.unravel_index(self.program, tuple(reversed(grid)))
        self._special = {
            "%tid.x": thread,
            "%laneid": thread % WARP,
            "%warpid": thread // WARP,
            "%ntid.x": np.array(threads),
        }
        for axis, place, side in zip("xyz", reversed(coordinates), grid, strict=True):
            self._special[f"%ctaid.{axis}"] = place
            self._special[f"%nctaid.{axis}"] = np.array(side)
            self._special.setdefault(f"%tid.{axis}", np.array(0))
            self._special.setdefault(f"%ntid.{axis}", np.array(1))
        self._special = {name: value.astype(np.uint32) for name, value in self._special.items()}
        self._registers: dict[str, Array] = {}

    def all_lanes(self) -> Active:
        return Active(np.arange(self.total), self.total)

    def stamp(self, active: Active) -> Array:
        return self._stamp[active.index]

    def pass_barrier(self, lanes: Array) -> None:
        self._stamp[lanes] += 1 << EPOCH_SHIFT

    def read(self, operand: Operand, kind: str, active: Active) -> Array:
        """Returns an operand as a PTX type, an entry a lane, or one for all."""
        if type(operand) is Register:
            register = self._registers.get(operand.name)
            if register is None:
                register = self._new_register(operand.name)
            values = register[active.index]
        elif type(operand) is Literal:
            if operand.text not in self._special:
                return self._constant(operand.text, kind)
            values = self._special[operand.text]
            if values.ndim:
                values = values[active.index]
        elif type(operand) is Negated:
            return ~self.read(operand.register, "pred", active)
        else:
            raise Unsupported(f"operand {operand}")
        dtype = TYPES[kind]
        if values.dtype == dtype:
            return values
        if values.itemsize == np.dtype(dtype).itemsize:
            return values.view(dtype)
        return values.astype(UNSIGNED[width(kind)]).view(dtype)

    def write(self, operand: Operand, values: Array, active: Active) -> None:
        """Puts values into a register; signed ones are extended with their sign."""
        if type(operand) is Register:
            register = self._registers.get(operand.name)
            if register is None:
                register = self._new_register(operand.name)
            if values.dtype.kind == "f":
                values = values.view(UNSIGNED[values.itemsize])
            register[active.index] = values
        elif not (isinstance(operand, Literal) and operand.text == "_"):
            raise Unsupported(f"destination {operand}")

    def _constant(self, text: str, kind: str) -> Array:
        if text in self.kernel.parameters:
            return literal(str(self.kernel.parameters[text].offset), kind)
        if text in self.kernel.shared_symbols:
            return literal("0", kind)
        try:
            return literal(text, kind)
        except ValueError:
            raise Unsupported(f"operand {text}") from None

    def _new_register(self, name: str) -> Array:
        dtype = np.dtype(TYPES[self.kernel.register_type(name)])
        if dtype.kind == "b":
            register = np.ones(self.total, np.bool_)
        else:
            poison = np.full(self.total * dtype.itemsize, POISON, np.uint8)
            register = poison.view(UNSIGNED[dtype.itemsize])
        self._registers[name] = register
        return register
