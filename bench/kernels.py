"""Times the proposal stage against others' on whatever machine this is.

    python -m bench.kernels [--json PATH] [--batch N] [--threads N] [--quick]

On a GPU: the kernels, by graph replays. On a CPU: the references, which are the product's CPU path.
Every row is compared with its reference first; a row that differs says WRONG and has no time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import report
from bench.gpu_timer import Timer
from bench.workloads import (
    SMALL,
    WORKLOADS,
    Heads,
    Workload,
    decode_all,
    head_outputs,
    ours,
    reference,
    torchvision_rpn,
)


def measure_stage(timer: Timer, workload: Workload, batch: int) -> list[dict[str, Any]]:
    """Returns a row each for ours, torchvision's and detectron2's way of working."""
    device = timer.device
    one = head_outputs(workload, batch, device)
    size = sum(t.nbytes for t in (*one.objectness, *one.deltas))
    sets = [one] + [
        head_outputs(workload, batch, device, seed=seed) for seed in range(1, timer.num_sets(size))
    ]
    label: dict[str, Any] = {"op": "proposals", "shape": f"{workload.name} b{batch}"}
    found, expected = ours(workload, one), reference(workload, one.to("cpu"))
    if not all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True)):
        return [{**label, "who": "stream-rpn", "verdict": "WRONG"}]
    rows = [{**label, "who": "stream-rpn", "verdict": "equal to the reference"}]
    rows[0] |= timer.graphs([partial(ours, workload, heads) for heads in sets])
    peers: dict[str, Callable[[Heads], list[Tensor]]] = {
        "torchvision": torchvision_rpn(workload, device),
        "decode all, then top-k": partial(decode_all, workload),
    }
    for who, function in peers.items():
        theirs = function(one)
        same = sum(
            int((torch.cdist(mine[:n], other.float(), p=torch.inf).amin(1) < 1e-2).sum())
            for mine, n, other in zip(found.boxes, found.count.tolist(), theirs, strict=True)
            if n and len(other)
        )
        time = timer.calls([partial(function, heads) for heads in sets])
        rows.append(
            {
                **label,
                "who": who,
                "verdict": f"{100 * same / int(found.count.sum()):.1f} % same boxes",
                **time,
                "ours_is_faster_by": round(time["median_ms"] / rows[0]["median_ms"], 2),
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--batch", type=int, help="frames; default 8 on a GPU, 1 on a CPU")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU, default 1")
    parser.add_argument("--quick", action="store_true", help="small shapes, to try the command")
    arguments = parser.parse_args()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(arguments.threads)
    batch = arguments.batch or (8 if device.type == "cuda" else 1)
    print(report.describe_machine(report.machine()))
    timer = Timer(device, 0.05 if arguments.quick else 1.0)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for workload in SMALL if arguments.quick else WORKLOADS:
            rows += measure_stage(timer, workload, batch)
    report.print_table(rows)
    if arguments.json:
        report.write_json(arguments.json, "kernels", rows)
    return 1 if any(row["verdict"] == "WRONG" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
