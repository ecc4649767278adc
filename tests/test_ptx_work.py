"""No kernel does more for its results than kernels/resources.json says that it does."""

import os

import pytest

pytest.importorskip("triton")

from tests.ptx import work

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted in this process"
)


@pytest.mark.parametrize("name", work.WORKS)
def test_no_kernel_does_more_than_the_table_says(name):
    table = work.read()
    if not table:
        pytest.skip("the table has no numbers of this version of Triton")
    counted = work.count(name)
    # A kernel that is gone must go from the table, too.
    assert set(counted) == set(table[name])
    wrong = {
        kernel: list(work.problems(row, table[name][kernel])) for kernel, row in counted.items()
    }
    assert {kernel: found for kernel, found in wrong.items() if found} == {}


def test_what_has_grown_is_told():
    row = {"per": "32 logits", "instructions": 11.5, "sectors_per_load": 4.0}
    assert list(work.problems(row, {**row, "instructions": 11.0})) == []
    assert list(work.problems(row, {**row, "instructions": 10.0})) == [
        "has 11.5 instructions, the table says 10.0"
    ]
    assert "--update" in next(work.problems(row, None))
