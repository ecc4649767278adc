import os
import re
from dataclasses import asdict

import pytest

aot = pytest.importorskip("bench.aot", reason="needs triton")

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted in this process"
)
CONFIGS = {config.name: config for config in aot.shipped()}


def test_names_are_unique():
    assert len(CONFIGS) == len(list(aot.shipped()))


def test_table_holds_what_is_shipped_and_nothing_else():
    for version, targets in aot.read_table().items():
        for target, kernels in targets.items():
            assert set(kernels) == set(CONFIGS), (version, target)


@pytest.mark.parametrize("target", aot.TARGETS)
def test_every_kernel_compiles_without_spilling_or_growing(target):
    table = aot.read_table().get(aot.TRITON)
    wrong = {}
    for name, config in CONFIGS.items():
        resources = aot.weigh(aot.compile_for(config, aot.TARGETS[target]), aot.TARGETS[target])
        # What a version of Triton without a table compiles must not spill, either.
        committed = asdict(resources) if table is None else table[target].get(name)
        found = aot.problems(resources, committed, config.num_warps if target == "sm_90" else None)
        if found:
            wrong[name] = found
    assert not wrong


def test_programs_that_fit_on_a_multiprocessor():
    # As CUDA's occupancy calculator has them for compute capability 9.0.
    assert aot.programs_per_sm(32, 0, 4) == 16
    assert aot.programs_per_sm(72, 0, 4) == 7
    assert aot.programs_per_sm(144, 1024, 8) == 1
    assert aot.programs_per_sm(16, 0, 1) == 32
    assert aot.programs_per_sm(16, 100 * 1024, 1) == 2
    resources = aot.Resources(registers=136, spilled_bytes=0, shared_bytes=0, code_bytes=1)
    committed = {**asdict(resources), "registers": 128}
    assert aot.problems(resources, committed) == []
    assert aot.problems(resources, committed, 8) == [
        "fits on a multiprocessor 1 times, by the table 2 times"
    ]


@pytest.mark.parametrize(
    "name", [name for name in CONFIGS if re.match("nms_[^w]|propose_decode", name)]
)
def test_arithmetic_is_exactly_rounded(name):
    # Boxes and IoUs agree with the reference bit for bit only without fused, approximate or
    # flushing arithmetic. Floor may flush: its argument here is a sum with 0.5, never subnormal.
    ptx = aot.compile_for(CONFIGS[name], aot.TARGETS["sm_90"]).asm["ptx"]
    instructions = set(re.findall(r"^\s*(?:@!?%p\d+ )?([a-z][\w.]+)", ptx, re.MULTILINE))
    inexact = {
        instruction
        for instruction in instructions
        if re.match(r"fma|mad\.\w*\.?f32|ex2|rcp|div\.(full|approx)|.*\.ftz", instruction)
    }
    assert inexact <= {"cvt.rmi.ftz.f32.f32"}
    assert "div.rn.f32" in instructions


def test_a_pass_rounds_to_the_nearest_and_once():
    # As above; and bfloat16, which Triton's interpreter cuts off, is rounded.
    for dtype, rounds in (("bf16", "cvt.rn.bf16"), ("fp16", "cvt.rn.f16"), ("fp32", "")):
        for name in (f"epilogue/{dtype}x2", f"depthwise/{dtype}x2_64_3"):
            ptx = aot.compile_for(CONFIGS[name], aot.TARGETS["sm_90"]).asm["ptx"]
            assert rounds in ptx
            assert not re.search(r"\sfma|\.ftz|cvt\.rz", ptx)
