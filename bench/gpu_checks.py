"""What of a GPU is right or wrong, in the GPU proof: tests, sanitizers and references at a time.

None of them is timed, and most of their time goes into compiling kernels, on the host.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.gpu_kernels import compare
from bench.gpu_record import Proof

ROOT = Path(__file__).resolve().parent.parent
TEST_SECONDS, SANITIZER_SECONDS = 120, 60

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


def check(proof: Proof) -> None:
    """Runs them all, and says what does not hold."""
    with tests(proof), sanitizers(proof):
        compare(proof)


@contextmanager
def tests(proof: Proof) -> Iterator[None]:
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
        workers = min(8, os.cpu_count() or 1)
        command += ["-n", str(workers)]
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    if proof.dry:
        command.append("--collect-only")
    if not proof.dry:
        environment["REQUIRE_CUDA"] = "1"
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [*command, f"--junitxml={report_path}", *files],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield
            process.wait(TEST_SECONDS)
        finally:
            process.kill()
        output.seek(0)
        text = output.read()
    print(text[-4000:])
    if not report_path.exists():
        raise RuntimeError(f"pytest ended with {process.returncode}: {text[-500:]}")
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
                lines = process.communicate(timeout=SANITIZER_SECONDS)[0].splitlines()
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
