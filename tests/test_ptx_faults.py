"""Faults planted in tiny Triton kernels are found, and their healthy twins are not blamed."""

import os
import re

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from tests.ptx import launcher  # noqa: E402
from tests.ptx.parse import Fault  # noqa: E402

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted in this process"
)
BLOCK = 256


@triton.jit
def copy_kernel(out_ptr, in_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(in_ptr + i, mask=i < n, other=0), mask=i < n)


@triton.jit
def sum_kernel(out_ptr, in_ptr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + tl.program_id(0), tl.sum(tl.load(in_ptr + i)))


@triton.jit
def shift_kernel(data_ptr, by, BARRIER: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * 2 * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(data_ptr + i + by)
    if BARRIER:
        tl.debug_barrier()
    tl.store(data_ptr + i, values)


@triton.jit
def count_kernel(counts_ptr, in_ptr, ATOMIC: tl.constexpr, READ: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.sum(tl.load(in_ptr + i))
    if ATOMIC:
        tl.atomic_add(counts_ptr, total, sem="relaxed")
    else:
        tl.store(counts_ptr, tl.load(counts_ptr) + total)
    if READ:
        tl.store(counts_ptr + 1 + tl.program_id(0), tl.load(counts_ptr))


@triton.jit
def wide_kernel(out_ptr, in_ptr, start, BLOCK: tl.constexpr):
    i = tl.max_contiguous(tl.multiple_of(start + tl.arange(0, BLOCK), BLOCK), BLOCK)
    tl.store(out_ptr + tl.arange(0, BLOCK), tl.load(in_ptr + i))


def ints(size):
    return torch.arange(size, dtype=torch.int32)


def copy(n, size=2 * BLOCK):
    """Copies n numbers between tensors of `size`, by two programs."""
    source, out = ints(size), torch.zeros(size, dtype=torch.int32)
    with launcher.simulated() as launches:
        copy_kernel[(2,)](out, source, n, BLOCK=BLOCK)
    return source, out, launches


def test_a_copy_is_right_and_is_counted():
    source, out, _ = copy(2 * BLOCK - 3)
    assert torch.equal(out[:-3], source[:-3])
    assert not out[-3:].any()
    source, out, (launch,) = copy(2 * BLOCK)
    assert torch.equal(out, source)
    assert (launch.kernel, launch.programs) == ("copy_kernel", 2)
    # 512 numbers of 4 bytes lie in 64 sectors; a warp asks for 32 or for 64 of them at once.
    assert (launch.counts.load_sectors, launch.counts.store_sectors) == (64, 64)
    assert launch.counts.loads == launch.counts.stores
    assert launch.counts.barriers == 0


@pytest.mark.parametrize("beyond", [1, 40])
def test_an_access_behind_a_tensor_is_found(beyond):
    with pytest.raises(Fault, match=r"copy_kernel, line \d+ .* bytes after one of 1988 bytes"):
        copy(497 + beyond, size=497)


def test_an_access_before_a_tensor_is_found():
    # Far from each other: the nearest one is told, and by themselves they may be neighbours.
    memory = ints(8 * BLOCK)
    out, source = memory[:BLOCK], memory[6 * BLOCK : 7 * BLOCK]
    with launcher.simulated(), pytest.raises(Fault, match="before one of 1024 bytes"):
        wide_kernel[(1,)](out, source, -16, BLOCK=BLOCK)


def test_a_broken_promise_of_alignment_is_found():
    source, out = ints(BLOCK + 32), ints(BLOCK)
    with launcher.simulated():
        wide_kernel[(1,)](out, source, 32, BLOCK=BLOCK)
    assert torch.equal(out, source[32:])
    with launcher.simulated(), pytest.raises(Fault, match="is no multiple of"):
        wide_kernel[(1,)](out, source, 3, BLOCK=BLOCK)


def test_arguments_are_specialised_as_on_a_gpu():
    source, out = ints(BLOCK + 1), ints(BLOCK)
    with launcher.simulated() as launches:
        copy_kernel[(1,)](out, source[:-1], BLOCK, BLOCK=BLOCK)
        # An address that is no multiple of 16 bytes takes a load for each number.
        copy_kernel[(1,)](out, source[1:], BLOCK, BLOCK=BLOCK)
    aligned, shifted = launches
    assert torch.equal(out, source[1:])
    assert aligned.counts.loads < shifted.counts.loads


def test_programs_that_write_different_values_to_one_place_are_found():
    @triton.jit
    def kernel(out_ptr, value, by):
        tl.store(out_ptr, value + by * tl.program_id(0))

    out = ints(1)
    with launcher.simulated():
        kernel[(3,)](out, 7, 0)
    assert out.item() == 7
    with launcher.simulated(), pytest.raises(Fault, match="different values to one place"):
        kernel[(3,)](out, 7, 1)


def test_programs_of_different_batches_are_compared(monkeypatch):
    @triton.jit
    def kernel(out_ptr):
        tl.store(out_ptr, tl.program_id(0))

    monkeypatch.setattr("tests.ptx.execute.BATCH_LANES", 1)
    with launcher.simulated(), pytest.raises(Fault, match="one program writes what another"):
        kernel[(2,)](ints(1))


def test_programs_that_add_to_one_place_are_found():
    with launcher.simulated(), pytest.raises(Fault, match="one program"):
        count_kernel[(2,)](ints(1), ints(512), ATOMIC=False, READ=False, BLOCK=BLOCK)


def test_a_program_that_reads_what_another_writes_is_found():
    with launcher.simulated():
        shift_kernel[(2,)](ints(4 * BLOCK), BLOCK, BARRIER=True, BLOCK=BLOCK)
    with (
        launcher.simulated(),
        pytest.raises(Fault, match=r"one program (reads|writes) what another program"),
    ):
        shift_kernel[(2,)](ints(5 * BLOCK), 2 * BLOCK, BARRIER=True, BLOCK=BLOCK)


def test_atomic_sums_are_no_race_and_reading_them_is():
    counts, source = torch.zeros(4, dtype=torch.int32), ints(512)
    with launcher.simulated():
        count_kernel[(2,)](counts, source, ATOMIC=True, READ=False, BLOCK=BLOCK)
    assert counts[0] == source.sum()
    with launcher.simulated(), pytest.raises(Fault, match=r"adds (atomically to|to atomically)"):
        count_kernel[(2,)](counts, source, ATOMIC=True, READ=True, BLOCK=BLOCK)


def test_a_barrier_that_is_missing_between_warps_is_found_in_global_memory():
    data = ints(2 * BLOCK)
    with launcher.simulated():
        shift_kernel[(1,)](data, 3, BARRIER=True, BLOCK=BLOCK)
    assert torch.equal(data[:BLOCK], ints(BLOCK) + 3)
    with launcher.simulated(), pytest.raises(Fault, match=r"one warp .* no barrier is between"):
        shift_kernel[(1,)](data, 3, BARRIER=False, BLOCK=BLOCK)


def without_barrier(number):
    """Returns a rewriter that takes a barrier out of the PTX."""

    def rewrite(ptx):
        barriers = list(re.finditer(r"bar\.sync\s+0;", ptx))
        match = barriers[number]
        return ptx[: match.start()] + ptx[match.end() :]

    return rewrite


def test_a_barrier_that_is_missing_between_warps_is_found_in_shared_memory():
    source, out = ints(2 * BLOCK), torch.zeros(2, dtype=torch.int32)
    with launcher.simulated() as launches:
        sum_kernel[(2,)](out, source, BLOCK=BLOCK, num_warps=4)
    assert out.tolist() == [int(source[:BLOCK].sum()), int(source[BLOCK:].sum())]
    assert launches[0].counts.barriers > 0
    with (
        launcher.simulated(without_barrier(0)),
        pytest.raises(Fault, match=r"one warp reads what another warp writes|nobody has written"),
    ):
        sum_kernel[(2,)](out, source, BLOCK=BLOCK, num_warps=4)


def test_shared_memory_that_nobody_wrote_is_found():
    def rewrite(ptx):
        return re.sub(r"(@%p\d+ )?st\.shared[^;]*;", "", ptx)

    with launcher.simulated(rewrite), pytest.raises(Fault, match="nobody has written"):
        sum_kernel[(2,)](ints(2), ints(512), BLOCK=BLOCK, num_warps=4)


def test_threads_that_write_different_values_to_one_place_are_found():
    @triton.jit
    def kernel(out_ptr, BLOCK: tl.constexpr):
        i = tl.arange(0, BLOCK)
        tl.store(out_ptr + i // 2, i)

    with launcher.simulated(), pytest.raises(Fault, match="different values to one place"):
        kernel[(1,)](ints(BLOCK), BLOCK=BLOCK)


def test_the_driver_is_only_there_for_as_long_as_asked():
    before = triton.runtime.driver._active
    with launcher.simulated():
        assert triton.runtime.driver.active.get_current_target() == launcher.TARGET
    assert triton.runtime.driver._active is before
