"""Runs a few hand-written PTX instructions on given bits, for the simulator's own tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from tests.ptx.execute import Program
from tests.ptx.parse import UNSIGNED, parse, width

DECLARED = {"%p": "pred", "%rs": "b16", "%r": "b32", "%rd": "b64"}
# By bytes: there are no registers of one.
REGISTERS = {1: "%rs", 2: "%rs", 4: "%r", 8: "%rd"}


def run(
    instructions: str,
    sources: Mapping[str, tuple[str, Sequence[int]]],
    results: Mapping[str, str],
    *,
    shared_bytes: int = 4096,
) -> dict[str, list[int]]:
    """Returns the bits of each result, after running instructions on bits of sources.

    Args:
        instructions: with names of sources and results in braces; other braces are doubled. Free
            registers are %p60 to %p98, and %rs, %r and %rd so.
        sources: by name the PTX type and the bits, an entry a thread.
        results: by name the PTX type.
        shared_bytes: of `global_smem`.
    """
    types = {name: kind for name, (kind, _) in sources.items()}
    threads = len(next(iter(sources.values()))[1])
    arrays = [np.array(bits, UNSIGNED[width(kind)]) for kind, bits in sources.values()]
    arrays += [np.zeros(threads, UNSIGNED[width(kind)]) for kind in results.values()]
    tensors = [torch.from_numpy(array.view(np.uint8)) for array in arrays]
    addresses = np.array([tensor.data_ptr() for tensor in tensors], np.uint64)
    program = Program(parse(_module(instructions, types, results, threads)))
    program.run((1, 1, 1), addresses.view(np.uint8), tensors, shared_bytes)
    return dict(zip(results, (array.tolist() for array in arrays[len(sources) :]), strict=True))


def _module(
    instructions: str, sources: Mapping[str, str], results: Mapping[str, str], threads: int
) -> str:
    """Returns a module that loads a source a thread, runs instructions and stores results."""
    parameters = [f".param .u64 k_param_{i}" for i in range(len(sources) + len(results))]
    lines = ["mov.u32 %r0, %tid.x;"]
    names = {}
    for number, (name, kind) in enumerate([*sources.items(), *results.items()]):
        prefix = REGISTERS[width(kind)]
        lines.append(f"ld.param.b64 %rd{number}, [k_param_{number}];")
        lines.append(f"mad.wide.u32 %rd{number}, %r0, {width(kind)}, %rd{number};")
        names[name] = f"%p{number}" if kind == "pred" else f"{prefix}{number + 20}"
        if name in sources:
            loaded = f"{prefix}{number + 20}"
            lines.append(f"ld.global.b{8 * width(kind)} {{ {loaded} }}, [ %rd{number} + 0 ];")
            if kind == "pred":
                lines.append(f"setp.ne.b16 %p{number}, {loaded}, 0;")
    lines.append(instructions.format(**names))
    for number, (name, kind) in enumerate(results.items(), len(sources)):
        stored = names[name]
        if kind == "pred":
            lines.append(f"selp.b16 %rs59, 1, 0, {stored};")
            stored = "%rs59"
        lines.append(f"st.global.b{8 * width(kind)} [ %rd{number} + 0 ], {{ {stored} }};")
    declared = [f".reg .{kind} {prefix}<99>;" for prefix, kind in DECLARED.items()]
    return "\n".join(
        [
            ".extern .shared .align 16 .b8 global_smem[];",
            f".visible .entry k({', '.join(parameters)})",
            f".reqntid {threads}",
            "{",
            *declared,
            *lines,
            "ret;",
            "}",
        ]
    )
