"""A stand-in for the GPU's driver, by which kernel[grid](...) on tensors of the CPU is simulated.

Triton's JIT does all that it does for an H100: it specialises by the arguments, compiles down to
PTX and keeps what it compiled. Only ptxas is left out: here the PTX is what the driver loads.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from tests.ptx.counts import Counts
from tests.ptx.execute import Program
from tests.ptx.parse import UNSIGNED, Kernel, parse, width

TARGET = GPUTarget("cuda", 90, 32)
MOST_SHARED_BYTES = 232_448
# Triton keeps kernels by device: no GPU has these numbers.
_DEVICES = itertools.count(1000)


@dataclass(frozen=True)
class Launch:
    """A launch that has run.

    Attributes:
        kernel: its name.
        grid: programs along x, y and z.
        threads: of a program.
        counts: what it asked of the GPU.
    """

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    counts: Counts

    @property
    def programs(self) -> int:
        return int(np.prod(self.grid))


@contextmanager
def simulated(rewrite: Callable[[str], str] | None = None) -> Iterator[list[Launch]]:
    """Has Triton launch on the simulated GPU; yields a list that grows by each launch.

    Args:
        rewrite: changes a kernel's PTX before it is loaded, as to plant a fault.
    """
    launches: list[Launch] = []
    before = driver._active, knobs.runtime.add_stages_inspection_hook
    device = _SHARED_DEVICE if rewrite is None else next(_DEVICES)
    _Utils.rewrite, _Launcher.launches = rewrite, launches
    driver.set_active(_Driver(device))
    knobs.runtime.add_stages_inspection_hook = _stop_at_ptx
    try:
        with knobs.cache.scope():
            # Of its own: Triton 3.6 would find what it has compiled for a real GPU, ptxas included.
            knobs.cache.dir = f"{knobs.cache.dir}-simulated"
            yield launches
    finally:
        _Utils.rewrite, _Launcher.launches = None, None
        driver._active, knobs.runtime.add_stages_inspection_hook = before


_SHARED_DEVICE = next(_DEVICES)


def _stop_at_ptx(*context: Any) -> tuple[str, str] | None:
    """Triton's hook: without arguments it names itself for the cache, else it edits the stages."""
    if not context:
        return "simulated", "simulated"
    stages = context[1]
    stages["cubin"] = lambda ptx, metadata: ptx.encode()
    return None


class _Utils:
    rewrite: Callable[[str], str] | None = None

    @staticmethod
    def get_device_properties(device: int) -> dict[str, int]:
        return {"max_shared_mem": MOST_SHARED_BYTES, "multiprocessor_count": 132, "warpSize": 32,
                "max_num_regs": 65_536, "sm_clock_rate": 1_980_000, "mem_clock_rate": 2_619_000,
                "mem_bus_width": 5120}  # fmt: skip

    @staticmethod
    def load_binary(
        name: str, binary: bytes, shared: int, device: int
    ) -> tuple[None, Program, int, int, int]:
        ptx = binary.decode()
        if _Utils.rewrite is not None:
            ptx = _Utils.rewrite(ptx)
        # Of ten thousand closures none is garbage, and looking for some takes most of the time.
        collects = gc.isenabled()
        gc.disable()
        try:
            program = Program(parse(ptx))
        finally:
            if collects:
                gc.enable()
        # Module, function, registers, spilled bytes, most threads.
        return None, program, 0, 0, 1024

    @staticmethod
    def unload_module(module: None) -> None:
        pass


class _Launcher:
    launches: list[Launch] | None = None

    def __init__(self, source: Any, metadata: Any) -> None:
        self._signature = list(source.signature.values())
        self._shared_bytes = metadata.shared

    def __call__(
        self, x: int, y: int, z: int, stream: int, program: Program, packed: Any,
        launch_metadata: Any, enter: Any, leave: Any, *arguments: Any,
    ) -> None:  # fmt: skip
        if self.launches is None:
            raise RuntimeError("a simulated kernel was launched outside of `simulated`")
        given = [
            argument for kind, argument in _flat(self._signature, arguments) if kind != "constexpr"
        ]
        tensors = [argument for argument in given if isinstance(argument, Tensor)]
        grid = (x, y, z)
        counts = program.run(grid, _packed(program.kernel, given), tensors, self._shared_bytes)
        self.launches.append(Launch(program.kernel.name, grid, program.kernel.threads, counts))


def _flat(signature: Sequence[Any], arguments: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for kind, argument in zip(signature, arguments, strict=True):
        if isinstance(kind, tuple):
            yield from _flat(kind, argument)
        else:
            yield kind, argument


def _packed(kernel: Kernel, given: Sequence[Any]) -> np.ndarray:
    """Returns the bytes of the arguments; what Triton adds behind them, scratch memory, is 0."""
    packed = np.zeros(kernel.parameter_bytes, np.uint8)
    for parameter, argument in zip(kernel.parameters.values(), given, strict=False):
        size = width(parameter.type)
        if isinstance(argument, Tensor):
            value = np.array(argument.data_ptr(), np.uint64)
        elif isinstance(argument, float):
            value = np.array(argument, {4: np.float32, 8: np.float64}[size])
        else:
            value = np.array(int(argument) % (1 << 8 * size), UNSIGNED[size])
        packed[parameter.offset : parameter.offset + size] = np.frombuffer(
            value.tobytes(), np.uint8
        )
    return packed


class _Driver:
    """What Triton asks of the active driver."""

    utils = _Utils
    launcher_cls = _Launcher

    def __init__(self, device: int) -> None:
        self._device = device

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_device(self) -> int:
        return self._device

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind
