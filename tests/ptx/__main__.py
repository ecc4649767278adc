"""Counts what the kernels ask of an H100 in launches of a fixed size, on a CPU.

    python -m tests.ptx             print the table, compare with kernels/resources.json
    python -m tests.ptx --update    the same, and write it for the installed version of Triton

Instructions are those of PTX, for each warp that executes one; what ptxas makes of them differs.
"""

from __future__ import annotations

import argparse
import sys

from bench import aot
from tests.ptx import work


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.ptx", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--update", action="store_true", help="write kernels/resources.json")
    update = parser.parse_args().update
    committed, counted, failed = work.read(), {}, 0
    print(f"triton {aot.TRITON}")
    titles = ("instr.", "per 32", "sectors", "a load", "a store", "waves", "barriers", "per SM")
    print(f"{'work':26} {'kernel':24} " + " ".join(f"{title:>11}" for title in titles))
    for name in work.WORKS:
        counted[name] = work.count(name)
        for kernel, row in counted[name].items():
            wrong = [] if update else list(work.problems(row, committed.get(name, {}).get(kernel)))
            failed += bool(wrong)
            cells = (
                row["instructions"], str(row["per"])[3:], row["sectors"], row["sectors_per_load"],
                row["sectors_per_store"], row["wavefronts_per_request"],
                row["barriers_per_program"], work.fit(kernel),
            )  # fmt: skip
            print(
                f"{name:26} {kernel:24} "
                + " ".join(f"{cell!s:>11}" for cell in cells)
                + "".join(f"\n    {problem}" for problem in wrong)
            )
    if update:
        work.write(counted)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
