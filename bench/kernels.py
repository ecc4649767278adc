"""Times the proposal stage against others' on whatever machine this is.

    python -m bench.kernels [--json PATH] [--batch N] [--threads N] [--quick] [--base REF]

On a GPU: the kernels, by graph replays. On a CPU: the references, which are the product's CPU path.
Every row is compared with its reference first; a row that differs says WRONG and has no time.
Compiling, half a minute for each workload, is told apart.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import report
from bench.compare import add_argument, compare_with
from bench.gpu_timer import Timer
from bench.workloads import (
    SMALL,
    WORKLOADS,
    Workload,
    detectron2_style,
    head_outputs,
    mmdetection_style,
    ours,
    reference,
    torchvision_rpn,
)
from stream_rpn.kernels.proposals import HeadOutputs

Peer = Callable[[HeadOutputs], list[Tensor]]


def peers_of(workload: Workload, device: torch.device, *, compiled: bool) -> dict[str, Peer]:
    """Returns others' ways of doing the workload."""
    found: dict[str, Peer] = {"torchvision": torchvision_rpn(workload, device)}
    if compiled:
        found["torchvision, compiled"] = torchvision_rpn(workload, device, compiled=True)
    found["detectron2-style"] = partial(detectron2_style, workload)
    found["mmdetection-style"] = partial(mmdetection_style, workload)
    return found


def measure_stage(
    timer: Timer, workload: Workload, batch: int, peers: dict[str, Peer]
) -> list[dict[str, Any]]:
    """Returns a row for ours and one for each of the others."""
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
    for who, function in peers.items():
        started = time.perf_counter()
        try:
            theirs = function(one)
            # A second set: what was compiled for the lengths of the first is compiled again.
            for heads in sets[1:]:
                function(heads)
        except Exception as error:
            rows.append({**label, "who": who, "verdict": f"failed: {_first_line(error)}"})
            continue
        first = time.perf_counter() - started
        same = sum(
            int((torch.cdist(mine[:n], other.float(), p=torch.inf).amin(1) < 1e-2).sum())
            for mine, n, other in zip(found.boxes, found.count.tolist(), theirs, strict=True)
            if n and len(other)
        )
        elapsed = timer.calls([partial(function, heads) for heads in sets])
        row = {
            **label,
            "who": who,
            "verdict": f"{100 * same / int(found.count.sum()):.1f} % same boxes",
            **elapsed,
            "ours_is_faster_by": round(elapsed["median_ms"] / rows[0]["median_ms"], 2),
        }
        if "compiled" in who:
            row["compile_seconds"] = round(first, 1)
        rows.append(row)
    return rows


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:120]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--batch", type=int, help="frames; default 8 on a GPU, 1 on a CPU")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU, default 1")
    parser.add_argument("--quick", action="store_true", help="small shapes, to try the command")
    parser.add_argument("--only-ours", action="store_true", help="without the others")
    add_argument(parser)
    arguments = parser.parse_args()
    if arguments.base is not None:
        options = ["--only-ours", "--threads", str(arguments.threads)]
        options += ["--batch", str(arguments.batch)] if arguments.batch else []
        options += ["--quick"] if arguments.quick else []
        keys = ("op", "shape", "who")
        return compare_with(arguments.base, "bench.kernels", options, keys, "median_ms")
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(arguments.threads)
    batch = arguments.batch or (8 if device.type == "cuda" else 1)
    facts = report.machine()
    print(report.describe_machine(facts))
    timer = Timer(device, 0.05 if arguments.quick else 1.0)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for workload in SMALL if arguments.quick else WORKLOADS:
            peers = {}
            if not arguments.only_ours:
                torch.compiler.reset()
                peers = peers_of(workload, device, compiled=not arguments.quick)
            rows += measure_stage(timer, workload, batch, peers)
    report.print_table(rows)
    if arguments.json:
        report.write_json(arguments.json, "kernels", rows, machine=facts)
    return 1 if any(row["verdict"] == "WRONG" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
