"""Proves the GPU path on a GPU: tests, comparisons with the references, timings, in one command.

    python -m bench.gpu_proof [--only SECTION …] [--json bench/results/gpu_proof.json]

Takes under eight minutes, needs no network, and PyAV for whole pipelines only. Sections are
independent: one that fails is reported, the others still run, and the file is written after each.
`--dry-run-cpu` goes through everything at small shapes without a GPU, to try the command itself.
The predictions next to the measured numbers were written down before; `bench/results/README.md`
says how they come about.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench import report
from bench.gpu_checks import check
from bench.gpu_frames import run_pipeline, time_network, time_preprocess
from bench.gpu_kernels import one_graph, time_stage
from bench.gpu_record import SECONDS, Proof, verdict

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = {
    "checks": check,
    "one graph": one_graph,
    "preprocess": time_preprocess,
    "network": time_network,
    "pipeline": run_pipeline,
    "proposal stage": time_stage,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, default=ROOT / "bench/results/gpu_proof.json")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--dry-run-cpu", action="store_true", help="try the command without a GPU")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time to end within")
    arguments = parser.parse_args()
    if not arguments.dry_run_cpu and not torch.cuda.is_available():
        print("bench.gpu_proof needs a CUDA device; --dry-run-cpu tries the command itself")
        return 2
    path = arguments.json
    if arguments.dry_run_cpu and path == parser.get_default("json"):
        path = Path(tempfile.gettempdir()) / "gpu_proof_dry_run.json"
    proof = Proof(
        path, torch.device("cpu" if arguments.dry_run_cpu else "cuda:0"), arguments.seconds
    )
    print(report.describe_machine(proof.machine))
    with proof.section("copy bandwidth"):
        proof.bandwidth = proof.timer.copy_bytes_per_second()
        proof.add("copy bandwidth", gb_per_second=round(proof.bandwidth / 1e9, 1))
    for name in arguments.only:
        with torch.inference_mode(), proof.section(name):
            SECTIONS[name](proof)
    targets = verdict(proof)
    proof.rows += [{"section": "targets", **row} for row in targets]
    proof.write()
    print()
    report.print_table(targets)
    print(f"\n{proof.path}: {time.monotonic() - proof.started:.0f} s")
    return 1 if any("failed" in outcome for outcome in proof.sections.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
