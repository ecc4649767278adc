"""Compiles every shipped Triton kernel ahead of time, without a GPU, and weighs what comes out.

    python -m bench.aot             compile, print the table, compare with kernels/resources.json
    python -m bench.aot --update    the same, and write the table

A kernel fails when it does not compile, when it spills more than a few registers to memory, or when
it takes more registers, shared memory or code than the committed table allows for this version of
Triton, or so much more that fewer programs fit on a multiprocessor. `python -m tests.ptx` counts
what they do.
"""

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stream_rpn.kernels.shipped import Shipped

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
TABLE = KERNELS / "resources.json"
TRITON = ".".join(triton.__version__.split(".")[:2])
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# What a multiprocessor of an H100 has; the other GPUs here have no more.
SM_REGISTERS, SM_WARPS, SM_PROGRAMS, SM_SHARED_BYTES = 65_536, 64, 32, 228 * 1024
# Resources may exceed the table so much: a compiler's patch release moves them a little.
TOLERANCE = 1.1

Table = dict[str, dict[str, dict[str, dict[str, int]]]]


@dataclass(frozen=True)
class Resources:
    """The resources that one program of a compiled kernel takes."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    code_bytes: int


def shipped(pattern: str = "*_triton.py") -> Iterator[Shipped]:
    """Yields the kernels that the Triton files ship."""
    for path in sorted(KERNELS.glob(pattern)):
        module = importlib.import_module(f"stream_rpn.kernels.{path.stem}")
        yield from getattr(module, "shipped_configs", list)()


def compile_for(config: Shipped, target: GPUTarget):
    names = list(config.signature)
    constants = {(names.index(name),): value for name, value in config.constants.items()}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in config.aligned}
    source = ASTSource(
        config.kernel, signature=dict(config.signature), constexprs=constants, attrs=aligned
    )
    options = {"num_warps": config.num_warps, "enable_fp_fusion": False}
    return triton.compile(source, target=target, options=options)


def weigh(compiled, target: GPUTarget) -> Resources:
    if target.backend == "hip":
        return _weigh_amdgcn(compiled)
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        report = subprocess.run(
            [cuobjdump, "--dump-resource-usage", cubin.name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
    return Resources(
        registers=usage["REG"],
        spilled_bytes=usage["STACK"] + usage["LOCAL"],
        shared_bytes=compiled.metadata.shared,
        code_bytes=len(compiled.asm["cubin"]),
    )


def _weigh_amdgcn(compiled) -> Resources:
    text = compiled.asm["amdgcn"]

    def number(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", text)[1])

    return Resources(
        registers=number("vgpr_count"),
        spilled_bytes=number("private_segment_fixed_size"),
        shared_bytes=compiled.metadata.shared,
        code_bytes=len(compiled.asm["hsaco"]),
    )


def programs_per_sm(registers: int, shared_bytes: int, num_warps: int) -> int:
    """Returns how many programs of a kernel fit on a multiprocessor of an H100 at once.

    Registers are given to warps in steps of 256, and each program costs 1 KiB of shared memory more
    than it asks for.
    """
    registers_per_warp = -(-32 * registers // 256) * 256
    return min(
        SM_PROGRAMS,
        SM_WARPS // num_warps,
        SM_REGISTERS // registers_per_warp // num_warps,
        SM_SHARED_BYTES // (shared_bytes + 1024),
    )


# Bytes a thread: one vector. ptxas spills so much of two antialiased forms, on one target each:
# they keep 32 lines of samples in registers; with 16 they took half as long again on an H100.
MOST_SPILLED = 16


def problems(
    resources: Resources, committed: dict[str, int] | None, num_warps: int | None = None
) -> list[str]:
    """Returns the problems with a kernel's resources, one sentence each.

    Args:
        resources: what it takes.
        committed: what the table says.
        num_warps: of a program, for a GPU whose multiprocessors are as `programs_per_sm` says.
    """
    found = []
    if resources.spilled_bytes > MOST_SPILLED:
        found.append(f"spills {resources.spilled_bytes} bytes")
    if committed is None:
        return [*found, "is not in kernels/resources.json: run python -m bench.aot --update"]
    for name, value in asdict(resources).items():
        if value > committed[name] * TOLERANCE:
            found.append(
                f"takes {value} {name.replace('_', ' ')}, the table says {committed[name]}"
            )
    if num_warps is not None:
        fit, fitted = (
            programs_per_sm(row["registers"], row["shared_bytes"], num_warps)
            for row in (asdict(resources), committed)
        )
        if fit < fitted:
            found.append(f"fits on a multiprocessor {fit} times, by the table {fitted} times")
    return found


def read_file() -> dict[str, Any]:
    """Returns resources.json: a part for each version of Triton, and "work", of `tests.ptx`."""
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


def write_file(parts: dict[str, Any]) -> None:
    TABLE.write_text(json.dumps(parts, indent=1, sort_keys=True) + "\n")


def read_table() -> Table:
    return {version: part for version, part in read_file().items() if version != "work"}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.aot", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("--update", action="store_true", help="write kernels/resources.json")
    args = parser.parse_args()
    table, measured, failed = read_table(), {}, 0
    print(f"triton {triton.__version__}")
    print(f"{'kernel':28} {'target':8} {'registers':>9} {'spilled':>8} {'shared':>7} {'code':>8}")
    for target_name, target in TARGETS.items():
        for config in shipped():
            resources = weigh(compile_for(config, target), target)
            measured.setdefault(target_name, {})[config.name] = asdict(resources)
            committed = table.get(TRITON, {}).get(target_name, {}).get(config.name)
            wrong = problems(
                resources,
                asdict(resources) if args.update else committed,
                config.num_warps if target_name == "sm_90" else None,
            )
            failed += bool(wrong)
            print(
                f"{config.name:28} {target_name:8} {resources.registers:9} "
                f"{resources.spilled_bytes:8} {resources.shared_bytes:7} "
                f"{resources.code_bytes:8} {'; '.join(wrong)}"
            )
    if args.update:
        write_file({**read_file(), TRITON: measured})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
