"""Proves the GPU path on a GPU: tests, comparisons with the references, timings, in one command.

    python -m bench.gpu_proof [--json bench/results/gpu_proof.json]

Takes under eight minutes, needs no network, and PyAV for whole pipelines only. Sections are
independent: one that fails is reported, the others still run, and the file is written after each.
`--dry-run-cpu` goes through everything at small shapes without a GPU, to try the command itself.
The predictions next to the measured numbers were written down before; `bench/results/README.md`
says how they come about.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from bench import report
from bench.gpu_frames import run_pipeline, time_network, time_preprocess
from bench.gpu_kernels import compare, one_graph, time_stage
from bench.gpu_record import SECONDS, Proof, verdict

ROOT = Path(__file__).resolve().parent.parent

# The proposal stage and preprocessing at the size of a thumbnail, equal to the references.
SMALL_CASE = """
import torch
from stream_rpn.kernels import trial
from stream_rpn.kernels.proposals import ProposalSpec
device, spec = torch.device("cuda"), ProposalSpec(pre_nms_top_n=200, post_nms_top_n=100)
for dtype in (torch.float32, torch.bfloat16):
    for anchors, softmax in (([3, 3], False), ([9], True)):
        heads = trial.hard_heads(anchors, 200, dtype, softmax=softmax)
        assert not list(trial.proposals_differ(heads, spec, device))
    for antialias in (False, True):
        assert not list(trial.preprocessing_differs(dtype, device, antialias=antialias))
"""


def run_tests(proof: Proof) -> None:
    """Runs the tests that need a GPU; files that need PyAV are named where it is missing."""
    files = [
        str(path)
        for path in sorted((ROOT / "tests").glob("test_*.py"))
        if "needs_cuda" in path.read_text()
    ]
    report_path = Path(tempfile.mkdtemp()) / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "needs_cuda", "--tb=short"]
    command += ["--continue-on-collection-errors", "-p", "no:cacheprovider"]
    environment = dict(os.environ)
    if importlib.util.find_spec("xdist") is not None:
        # Most of the time goes into compiling kernels and into references, on the host.
        workers = min(6, os.cpu_count() or 1)
        command += ["-n", str(workers)]
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    if proof.dry:
        command.append("--collect-only")
    if not proof.dry:
        environment["REQUIRE_CUDA"] = "1"
    done = subprocess.run(
        [*command, f"--junitxml={report_path}", *files],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    print(done.stdout[-4000:])
    if not report_path.exists():
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stderr[-500:]}")
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for case in ElementTree.parse(report_path).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}".lstrip(":")
        problem = next((e for e in case if e.tag in ("failure", "error", "skipped")), None)
        if problem is None:
            counts["passed"] += 1
            continue
        text = problem.text or problem.get("message") or ""
        needs_av = "No module named 'av'" in text
        outcome = "skipped" if problem.tag == "skipped" or needs_av else "failed"
        counts[outcome] += 1
        why = "needs PyAV" if needs_av else " ".join(text.split())[-200:]
        proof.add("tests", test=name, outcome=outcome, why=why)
    proof.add("tests", test="all", outcome=str(counts), why="")
    if counts["failed"]:
        raise AssertionError(f"{counts['failed']} GPU tests failed")


def run_checked_tests(proof: Proof) -> None:
    """Runs the tests and the sanitizers side by side: neither is timed."""
    with sanitizers(proof):
        run_tests(proof)


@contextmanager
def sanitizers(proof: Proof) -> Iterator[None]:
    """Runs CUDA's memory and race checkers on a small case beside what the block does."""
    program = shutil.which("compute-sanitizer")
    if proof.dry or program is None:
        proof.add("sanitizers", tool="compute-sanitizer", outcome="not tried", summary="")
        yield
        return
    running = {
        tool: subprocess.Popen(
            [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", SMALL_CASE],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for tool in ("memcheck", "racecheck")
    }
    try:
        yield
    finally:
        failed = []
        for tool, process in running.items():
            try:
                lines = process.communicate(timeout=60)[0].splitlines()
            except subprocess.TimeoutExpired:
                process.kill()
                lines = ["not done in time"]
            summary = next(
                (line for line in reversed(lines) if "SUMMARY" in line), "".join(lines[-1:])
            )
            passed = process.returncode == 0
            failed += [] if passed else [tool]
            proof.add(
                "sanitizers", tool=tool, outcome="passed" if passed else "failed", summary=summary
            )
    if failed:
        raise AssertionError(f"{' and '.join(failed)} found something")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, default=ROOT / "bench/results/gpu_proof.json")
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
    for name, run in (
        ("kernels against references", compare),
        ("one graph", one_graph),
        ("tests", run_checked_tests),
        ("pipeline", run_pipeline),
        ("preprocess", time_preprocess),
        ("network", time_network),
        ("proposal stage", time_stage),
    ):
        with torch.inference_mode(), proof.section(name):
            run(proof)
    targets = verdict(proof)
    proof.rows += [{"section": "targets", **row} for row in targets]
    proof.write()
    print()
    report.print_table(targets)
    print(f"\n{proof.path}: {time.monotonic() - proof.started:.0f} s")
    return 1 if any("failed" in outcome for outcome in proof.sections.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
