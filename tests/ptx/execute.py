"""Executes a kernel: its programs in batches, each batch in lockstep, block by block.

Lanes that branch apart are groups with a block each. The group whose block comes first goes on, so
that groups meet again where branches join. Programs at a barrier wait until nothing else can go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from tests.ptx.accesses import Machine, Step, access, is_access, smallest_access
from tests.ptx.counts import Counts
from tests.ptx.memory import GlobalMemory, SharedMemory
from tests.ptx.operations import operation
from tests.ptx.parse import Fault, Instruction, Kernel, Literal, Negated, Register, Unsupported
from tests.ptx.programs import Active, Programs
from tests.ptx.warps import WARP_OPERATIONS

# Lanes of a batch: enough to make numpy's overhead small, few enough for registers to be cached.
BATCH_LANES = 16_384
# Blocks that a batch may execute: a loop that nothing ends is a fault.
MOST_BLOCKS = 2_000_000
# What orders or hints, and computes nothing.
SILENT = ("membar", "fence", "nanosleep", "griddepcontrol", "prefetch", "pragma")
ENDS = ("bra", "bar", "barrier", "ret", "exit")


@dataclass
class Block:
    """Instructions that are entered at the first and left after the last."""

    first: int
    steps: list[tuple[Instruction, Step]] = field(default_factory=list)
    end: Instruction | None = None


class Program:
    """A kernel ready to run.

    Args:
        kernel: as parsed.

    Raises:
        Unsupported: it has an instruction that is not simulated.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.shared_granule = smallest_access(kernel.instructions, shared=True)
        self.granule = smallest_access(kernel.instructions, shared=False)
        self.blocks: list[Block] = []
        starts = set(kernel.labels.values())
        for place, instruction in enumerate(kernel.instructions):
            if place in starts or not self.blocks or self.blocks[-1].end is not None:
                self.blocks.append(Block(place))
            if instruction.base in ENDS and not instruction.has("warp"):
                self.blocks[-1].end = instruction
            else:
                self.blocks[-1].steps.append((instruction, _step(instruction)))
        places = {block.first: number for number, block in enumerate(self.blocks)}
        self.labels = {
            name: places.get(place, len(self.blocks)) for name, place in kernel.labels.items()
        }

    def run(
        self,
        grid: Sequence[int],
        parameters: np.ndarray,
        tensors: Sequence[Tensor],
        shared_bytes: int,
    ) -> Counts:
        """Runs all programs of a launch; returns what they asked of the GPU.

        Raises:
            Fault: a GPU would fail, or may give other results another time.
        """
        total = int(np.prod(grid))
        memory = GlobalMemory(tensors, self.granule)
        counts = Counts()
        step = max(1, BATCH_LANES // self.kernel.threads)
        with np.errstate(all="ignore"):
            for first in range(0, total, step):
                numbers = np.arange(first, min(first + step, total))
                programs = Programs(self.kernel, numbers, grid, parameters)
                shared = SharedMemory(len(numbers), shared_bytes, self.shared_granule)
                _Batch(self, Machine(programs, shared, memory, counts)).run()
        memory.write_back()
        return counts


def _step(instruction: Instruction) -> Step:
    if instruction.base in SILENT or instruction.opcode.startswith("bar.warp"):
        return lambda machine, active: None
    if is_access(instruction):
        return access(instruction)
    if instruction.base in WARP_OPERATIONS:
        among_lanes = WARP_OPERATIONS[instruction.base](instruction)
        return lambda machine, active: among_lanes(machine.programs, active)
    if instruction.base == "trap":
        return _trap
    function, sources, destinations = operation(instruction)

    def step(machine: Machine, active: Active) -> None:
        programs = machine.programs
        result = function(*[programs.read(source, kind, active) for source, kind in sources])
        results = result if isinstance(result, tuple) else (result,)
        for destination, values in zip(destinations, results, strict=True):
            programs.write(destination, values, active)

    return step


def _trap(machine: Machine, active: Active) -> None:
    raise Fault("an assertion of the kernel fails")


class _Batch:
    """The programs of a batch on their way through the blocks."""

    def __init__(self, program: Program, machine: Machine) -> None:
        self._program = program
        self._machine = machine
        programs = machine.programs
        self._ready: dict[int, Active] = {0: programs.all_lanes()}
        self._waiting: list[tuple[int, Active]] = []

    def run(self) -> None:
        for _ in range(MOST_BLOCKS):
            if not self._ready:
                if not self._waiting:
                    return
                self._pass_barrier()
            number = min(self._ready)
            active = self._ready.pop(number)
            if number < len(self._program.blocks):
                self._run_block(number, active)
        raise Fault(f"{self._program.kernel.name} does not end")

    def _run_block(self, number: int, active: Active) -> None:
        block = self._program.blocks[number]
        for instruction, step in block.steps:
            try:
                chosen = self._guarded(instruction, active)
                if chosen is not None:
                    step(self._machine, chosen)
            except Fault as fault:
                raise self._located(fault, instruction) from None
        executed = len(block.steps) + (block.end is not None)
        self._machine.counts.add(instructions=executed * active.num_warps)
        if block.end is None:
            self._enter(number + 1, active)
        else:
            self._end_block(number, block.end, active)

    def _end_block(self, number: int, end: Instruction, active: Active) -> None:
        chosen = self._guarded(end, active)
        if end.base == "bra" and chosen is not None:
            target = end.operands[0]
            assert isinstance(target, Literal)
            self._enter(self._program.labels[target.text], chosen)
        elif end.base in ("bar", "barrier"):
            if chosen is not active or len(end.operands) > 1 or not end.has("sync"):
                raise Unsupported(end.text)
            self._waiting.append((number + 1, active))
            return
        if chosen is not active:
            rest = active
            if chosen is not None:
                gone = np.isin(active.lanes, chosen.lanes, assume_unique=True)
                rest = active.where(~gone)
                parted = rest.num_warps + chosen.num_warps - active.num_warps
                self._machine.counts.add(divergences=parted)
            self._enter(number + 1, rest)

    def _guarded(self, instruction: Instruction, active: Active) -> Active | None:
        """Returns the lanes whose guard holds: all of them as they were given, or none as None."""
        guard: Register | Negated | None = instruction.guard
        if guard is None:
            return active
        holds = self._machine.programs.read(guard, "pred", active)
        if holds.all():
            return active
        return active.where(holds) if holds.any() else None

    def _enter(self, number: int, active: Active) -> None:
        there = self._ready.get(number)
        self._ready[number] = active if there is None else there.union(active)

    def _pass_barrier(self) -> None:
        """Lets all go on that wait; nothing else is left that could."""
        programs = self._machine.programs
        waits = np.zeros(programs.count, np.int64)
        barriers = np.zeros(programs.count, np.int64)
        for _, active in self._waiting:
            there = np.bincount(programs.slot[active.index], minlength=programs.count)
            waits += there
            barriers += there > 0
        name = self._program.kernel.name
        if (waits[waits > 0] != self._program.kernel.threads).any():
            raise Fault(f"{name}: some threads wait at a barrier, and others have ended")
        if (barriers > 1).any():
            raise Fault(f"{name}: threads of one program wait at different barriers")
        self._machine.counts.add(barriers=barriers.sum())
        for number, active in self._waiting:
            programs.pass_barrier(active.lanes)
            self._enter(number, active)
        self._waiting = []

    def _located(self, fault: Fault, instruction: Instruction) -> Fault:
        kernel = self._program.kernel
        return Fault(
            f"{kernel.name}, line {instruction.line} of its source: {fault} ({instruction.text})"
        )
