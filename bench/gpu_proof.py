"""Proves the GPU path on a GPU: tests, comparisons with the references, timings, in one command.

    python -m bench.gpu_proof [--json bench/results/gpu_proof.json]

Takes under eight minutes, needs no network, and PyAV for its last section only. Sections are
independent: one that fails is reported, the others still run, and the file is written after each.
`--dry-run-cpu` goes through everything at small shapes without a GPU, to try the command itself.
The predictions next to the measured numbers were written down before; `bench/results/README.md`
says how they come about.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import report
from bench.gpu_timer import Timer
from bench.workloads import (
    CASES,
    SMALL,
    WORKLOADS,
    Heads,
    Workload,
    compiled,
    detectron2_style,
    head_outputs,
    ours,
    reference,
    torchvision_rpn,
)
from stream_rpn.frame import Color, Frame
from stream_rpn.kernels import dispatch
from stream_rpn.kernels.nms import nms
from stream_rpn.kernels.preprocess import Source, preprocess
from stream_rpn.kernels.proposals import Candidates, level_sizes
from stream_rpn.kernels.propose import propose
from stream_rpn.network.gpu import GPUNetwork
from stream_rpn.preprocess import InputSpec, color_matrix
from stream_rpn.queues import prefetch
from stream_rpn.timing import StageTimes

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 480.0

# Median microseconds on an H200, float32 heads, from graph replays.
PREDICTED_US = {
    ("fpn1000", 1): 85, ("fpn1000", 8): 120, ("fpn1000", 32): 250,
    ("fpn2000", 1): 140, ("fpn2000", 8): 240, ("fpn2000", 32): 600,
    ("vgg6000", 1): 110, ("vgg6000", 8): 150, ("vgg6000", 32): 320,
    ("vgg12000", 1): 600, ("vgg12000", 8): 800, ("vgg12000", 32): 1600,
    ("preprocess 1080p", 1): 9, ("preprocess 1080p", 8): 38,
    ("preprocess 2160p", 1): 12, ("preprocess 2160p", 8): 55,
}  # fmt: skip
PREDICTED_SPEEDUP = {("fpn1000", 8): 110}
PREDICTED_SHARE = 0.46


class Proof:
    """Collects rows section by section, and writes them as they come."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path = path
        self.device = device
        self.dry = device.type == "cpu"
        self.timer = Timer(device, 0.02 if self.dry else 0.4)
        self.started = time.monotonic()
        self.machine = report.machine()
        self.rows: list[dict[str, Any]] = []
        self.sections: dict[str, str] = {}
        self.bandwidth = 0.0

    def left(self) -> float:
        """Seconds before the command should be done."""
        return SECONDS - (time.monotonic() - self.started)

    def add(self, section: str, **row: Any) -> None:
        """Keeps one row."""
        self.rows.append({"section": section, **row})

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Runs a section; what goes wrong in it is recorded."""
        before = time.monotonic()
        print(f"\n== {name}", flush=True)
        # A kernel that fails would be replaced by its reference, which always agrees with itself:
        # here it ends the section.
        dispatch._broken.clear()
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="the Triton kernel of")
                yield
            self.sections[name] = "done"
        except Exception as error:
            traceback.print_exc()
            self.sections[name] = f"failed: {type(error).__name__}: {error}"
        seconds = time.monotonic() - before
        self.sections[name] += f" ({seconds:.0f} s)"
        self.write()
        rows = [
            {k: v for k, v in row.items() if k not in ("section", "runs")}
            for row in self.rows
            if row["section"] == name
        ]
        if rows:
            report.print_table(rows)
        print(f"-- {self.sections[name]}", flush=True)

    def write(self) -> None:
        """Writes what there is so far."""
        report.write_json(
            self.path,
            "gpu_proof",
            self.rows,
            machine=self.machine,
            dry_run=self.dry,
            copy_gb_per_second=round(self.bandwidth / 1e9, 1),
            sections=self.sections,
            elapsed_seconds=round(time.monotonic() - self.started, 1),
        )

    def share(self, num_bytes: int, median_ms: float) -> float:
        """Returns the share of the measured copy bandwidth that `num_bytes` in that time are."""
        return round(num_bytes / (median_ms / 1e3) / self.bandwidth, 4) if self.bandwidth else 0.0


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
    if proof.dry:
        command.append("--collect-only")
    environment = dict(os.environ)
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


def compare(proof: Proof) -> None:
    """Compares the kernels with the references on the host, on ordinary and hard inputs."""
    wrong = 0
    for workload in SMALL if proof.dry else WORKLOADS:
        for case in CASES:
            for dtype in (torch.float32, torch.bfloat16):
                heads = head_outputs(workload, 2, proof.device, dtype, seed=7, case=case)
                if case == "coarse":
                    heads = heads._replace(
                        objectness=[_channels_last(t) for t in heads.objectness],
                        deltas=[_channels_last(t) for t in heads.deltas],
                    )
                found = ours(workload, heads)
                again = ours(workload, heads)
                alone = ours(workload, heads.image(1))
                expected = reference(workload, heads.to("cpu"))
                equal = {
                    name: torch.equal(getattr(found, name).cpu(), getattr(expected, name))
                    for name in ("count", "anchors", "levels", "boxes", "scores")
                }
                right = (
                    equal["count"] and equal["anchors"] and equal["levels"]
                    and torch.allclose(found.boxes.cpu(), expected.boxes, atol=1e-3, rtol=0)
                )  # fmt: skip
                repeated = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
                batch_free = all(torch.equal(a[1:], b) for a, b in zip(found, alone, strict=True))
                wrong += not (right and repeated and batch_free)
                proof.add(
                    "kernels against references",
                    workload=workload.name,
                    case=case,
                    dtype=str(dtype).removeprefix("torch."),
                    kept=int(found.count.sum()),
                    verdict="equal" if right else "WRONG",
                    same_bits_as_reference=all(equal.values()),
                    same_bits_again=repeated,
                    same_bits_alone=batch_free,
                )
    if wrong:
        raise AssertionError(f"{wrong} cases differ")


def time_stage(proof: Proof) -> None:
    """Times the proposal stage and its two kernels, and the same work done by others."""
    workloads, batches = (SMALL, (2, 1)) if proof.dry else (WORKLOADS, (8, 1, 32))
    for workload in workloads:
        torch.compiler.reset()
        theirs: dict[str, Callable[[Heads], Any]] = {
            "torchvision eager": torchvision_rpn(workload, proof.device),
            "detectron2-style": partial(detectron2_style, workload),
            "reference, compiled": compiled(workload),
        }
        for batch in batches:
            one = head_outputs(workload, batch, proof.device)
            size = sum(t.nbytes for t in (*one.objectness, *one.deltas))
            sets = [one] + [
                head_outputs(workload, batch, proof.device, seed=seed)
                for seed in range(1, proof.timer.num_sets(size))
            ]
            found = ours(workload, one)
            name = f"{workload.name} b{batch}"
            stage = proof.timer.graphs([partial(ours, workload, heads) for heads in sets])
            slots = sum(level_sizes(one.objectness, one.base_anchors, workload.pre_nms_top_n))
            kept = batch * workload.post_nms_top_n * 28
            item = one.objectness[0].element_size()
            moved = {
                # Logits once, four deltas a survivor; candidates of 24 bytes; slots of 28.
                "propose": batch * (workload.num_anchors * item + slots * (4 * item + 24)),
                "nms": batch * slots * 24 + kept,
                "stage": batch * (workload.num_anchors * item + slots * 4 * item) + kept,
            }
            for part, functions in _parts(workload, sets).items():
                row = stage if part == "stage" else proof.timer.graphs(functions)
                proof.add(
                    "proposal stage",
                    name=name,
                    what=part,
                    us=round(row["median_ms"] * 1e3, 1),
                    p10_us=round(row["p10_ms"] * 1e3, 1),
                    p90_us=round(row["p90_ms"] * 1e3, 1),
                    predicted_us=PREDICTED_US.get((workload.name, batch))
                    if part == "stage"
                    else None,
                    mbytes=round(moved[part] / 1e6, 2),
                    of_copy=proof.share(moved[part], row["median_ms"]),
                    runs=row["runs"],
                )
            for peer, function in theirs.items():
                # Compiling takes half a minute a time.
                needed = 260 if peer == "reference, compiled" else 120
                if proof.left() < needed or (peer == "reference, compiled" and batch > 8):
                    proof.add("proposal stage", name=name, what=peer, note="no time left for it")
                    continue
                try:
                    boxes = function(one)
                    agree = _agreement(found, boxes, one)
                    row = proof.timer.calls([partial(function, heads) for heads in sets[:3]], 3)
                except Exception as error:
                    proof.add(
                        "proposal stage", name=name, what=peer, us=None, note=str(error)[:200]
                    )
                    continue
                proof.add(
                    "proposal stage",
                    name=name,
                    what=peer,
                    us=round(row["median_ms"] * 1e3, 1),
                    p10_us=round(row["p10_ms"] * 1e3, 1),
                    p90_us=round(row["p90_ms"] * 1e3, 1),
                    ours_is_faster_by=round(row["median_ms"] / stage["median_ms"], 1),
                    predicted_us=None,
                    same_boxes=agree,
                    runs=row["runs"],
                )
            del sets, one
            proof.write()


def one_graph(proof: Proof) -> None:
    """Counts launches, host synchronisations and memory of the stage; the two selections."""
    for workload in SMALL if proof.dry else WORKLOADS:
        heads = head_outputs(workload, 2 if proof.dry else 8, proof.device)
        ours(workload, heads)
        row: dict[str, Any] = {"name": f"{workload.name} b{len(heads.image_sizes)}"}
        if not proof.dry:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            torch.cuda.set_sync_debug_mode("error")
            try:
                ours(workload, heads)
                row["host_synchronisations"] = 0
            except RuntimeError as error:
                row["host_synchronisations"] = str(error)[:120]
            finally:
                torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
            row["peak_mib"] = round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
        row |= _launches(partial(ours, workload, heads))
        proof.add("one graph", **row)
    proof.add(
        "one graph",
        name="two shapes of the selection",
        note="there is one, a grid of blocks; one program per image and level was not built",
    )


def time_preprocess(proof: Proof) -> None:
    """Times planes → network input, against copy bandwidth."""
    formats = (
        (("small", 120, 214),) if proof.dry else (("1080p", 1080, 1920), ("2160p", 2160, 3840))
    )
    height, width = (96, 160) if proof.dry else (768, 1344)
    resized = (93, 160) if proof.dry else (749, 1333)
    dtype = torch.bfloat16
    wrong = 0
    for name, rows, columns in formats:
        for batch in (1, 2) if proof.dry else (1, 8):
            data, table, matrix = packed(batch, rows, columns, resized, proof.device)
            spec = InputSpec(800, 1333)
            mean = torch.tensor(spec.mean, device=proof.device)
            std = torch.tensor(spec.std, device=proof.device)
            layout = torch.channels_last
            out_bytes = batch * 3 * height * width * 2
            count = proof.timer.num_sets(data.nbytes + out_bytes)
            outs = [
                torch.empty(
                    (batch, 3, height, width),
                    dtype=dtype,
                    device=proof.device,
                    memory_format=layout,
                )
                for _ in range(count)
            ]
            datas = [data.roll(16 * i) for i in range(count)]
            row = proof.timer.graphs(
                [
                    partial(preprocess, planes, table, matrix, mean, std, out)
                    for planes, out in zip(datas, outs, strict=True)
                ]
            )
            expected = torch.empty((batch, 3, height, width), dtype=dtype)
            preprocess(data.cpu(), table.cpu(), matrix.cpu(), mean.cpu(), std.cpu(), expected)
            preprocess(datas[0], table, matrix, mean, std, outs[0])
            difference = float((outs[0].cpu().float() - expected.float()).abs().max())
            moved = data.nbytes + out_bytes
            wrong += not difference < 0.04
            proof.add(
                "preprocess",
                name=f"{name} NV12 → {height}×{width} bf16 b{batch}",
                us=round(row["median_ms"] * 1e3, 1),
                p10_us=round(row["p10_ms"] * 1e3, 1),
                p90_us=round(row["p90_ms"] * 1e3, 1),
                predicted_us=PREDICTED_US.get((f"preprocess {name}", batch)),
                mbytes=round(moved / 1e6, 2),
                of_copy=proof.share(moved, row["median_ms"]),
                largest_difference=round(difference, 4),
                verdict="equal" if difference < 0.04 else "WRONG",
                runs=row["runs"],
            )
    if wrong:
        raise AssertionError(f"{wrong} inputs differ")


def time_network(proof: Proof) -> None:
    """Times upload → graph → download of whole batches, on frames made in memory: no decoder."""
    from stream_rpn import models

    name = "mobilenet_v3_large_320_fpn" if proof.dry else "resnet50_fpn"
    batch, rows, columns = (2, 120, 214) if proof.dry else (8, 1080, 1920)
    dtype = torch.float32 if proof.dry else torch.bfloat16
    rpn = models.find(name).build()
    rpn.to(proof.device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    total = 6 if proof.dry else 400
    for graphs in (False, True):
        network = GPUNetwork(
            rpn, proof.device, dtype, batch, graphs=graphs, features=False, images=False
        )
        for run in ("first", "second"):
            times, start = StageTimes(), time.perf_counter()
            decoded = prefetch(made_up_frames(total, rows, columns), 2 * batch + 2, name="decode")
            with network.queues(decoded, times) as queues:
                count = sum(1 for _ in queues)
            proof.add(
                "network",
                name=f"{name} b{batch} {'one graph' if graphs else 'kernel by kernel'}, {run} run",
                frames=count,
                frames_per_second=round(count / (time.perf_counter() - start), 1),
                stages={k: v["p50_ms"] for k, v in times.summary().items()},
            )
    if not proof.dry and not network._graphs._graphs:
        raise AssertionError("no graph was captured")


def run_pipeline(proof: Proof) -> None:
    """Runs whole pipelines over encoded video, on the CPU's decoder and on NVDEC."""
    if importlib.util.find_spec("av") is None:
        proof.add("pipeline", name="all", note="skipped: PyAV is not installed")
        return
    from stream_rpn.api import load
    from stream_rpn.frame import StreamRPNError
    from stream_rpn.pipeline import Pipeline
    from stream_rpn.sources.select import Selection

    clip = "synthetic:160x120@25,6" if proof.dry else "synthetic:1920x1080@25,300"
    model = "tiny" if proof.dry else "resnet50_fpn"
    made = Pipeline(load(model, "random"), device=str(proof.device), batch=2 if proof.dry else 8)
    selections = [Selection(decoder="cpu"), Selection(decoder="nvdec")]
    for selection in selections[: 1 if proof.dry else 2]:
        try:
            with made.open(clip, selection) as stream:
                count = sum(1 for _ in stream)
        except StreamRPNError as error:
            proof.add("pipeline", name=f"{model}, {selection.decoder}", note=str(error))
            continue
        proof.add(
            "pipeline",
            name=f"{model}, {stream.info.decoder}",
            frames=count,
            frames_per_second=round(stream.fps, 1),
            stages={k: v["p50_ms"] for k, v in stream.times.summary().items()},
        )


def packed(
    batch: int, rows: int, columns: int, resized: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns data, table and matrix of a batch of random NV12 frames."""
    luma, chroma = rows * columns, rows // 2 * columns
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 256, (batch * (luma + chroma),), dtype=torch.uint8, generator=generator)
    table = [
        Source(
            first,
            first + luma,
            first + luma + 1,
            columns,
            columns,
            2,
            1,
            rows,
            columns,
            0,
            *resized,
        )
        for first in range(0, len(data), luma + chroma)
    ]
    matrix = color_matrix("bt709", full_range=False).expand(batch, 3, 4)
    return data.to(device), torch.tensor(table, device=device), matrix.contiguous().to(device)


class _Plane(np.ndarray):
    """Memory that looks like a plane of PyAV's."""

    @property
    def line_size(self) -> int:
        """Bytes from one row to the next."""
        return self.strides[0]


def made_up_frames(count: int, height: int, width: int) -> Iterator[Frame]:
    """Yields NV12 frames that no decoder made: what preprocessing reads of one, and no more."""
    generator = torch.Generator().manual_seed(0)
    planes = [
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).numpy().view(_Plane)
        for shape in ((height, width), (height // 2, width))
    ]
    image = SimpleNamespace(
        planes=planes,
        format=SimpleNamespace(name="nv12"),
        sw_format=None,
        height=height,
        width=width,
    )
    color = Color("bt709", full_range=False, tagged=True)
    for index in range(count):
        yield Frame(index, index, index / 25, width, height, 0, color, image)  # type: ignore[arg-type]


def _parts(workload: Workload, sets: list[Heads]) -> dict[str, list[Callable[[], Any]]]:
    options = workload.options()
    selection = {name: options[name] for name in ("pre_nms_top_n", "score_thresh", "min_size")}
    sizes = level_sizes(sets[0].objectness, sets[0].base_anchors, workload.pre_nms_top_n)
    candidates: list[Candidates] = [propose(*heads, **selection) for heads in sets]
    rest = {"nms_thresh": options["nms_thresh"], "post_nms_top_n": options["post_nms_top_n"]}
    return {
        "stage": [],
        "propose": [partial(propose, *heads, **selection) for heads in sets],
        "nms": [partial(nms, found, sizes, **rest) for found in candidates],
    }


def _agreement(found: Any, theirs: Any, heads: Heads) -> float:
    """Returns the share of our boxes that the other found, too, within a hundredth of a pixel."""
    images = len(heads.image_sizes)
    if isinstance(theirs, tuple):
        theirs = [theirs[0][i, : int(theirs[4][i])] for i in range(images)]
    hits = total = 0
    for image in range(min(images, 2)):
        boxes = found.boxes[image, : int(found.count[image])]
        total += len(boxes)
        if len(boxes) and len(theirs[image]):
            distance = torch.cdist(boxes.cpu(), theirs[image].float().cpu(), p=torch.inf)
            hits += int((distance.amin(1) < 1e-2).sum())
    return round(hits / max(total, 1), 4)


def _launches(function: Callable[[], Any]) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        return {"kernels": None, "copies_and_fills": None}
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        function()
        torch.cuda.synchronize()
    names = [e.name for e in recorded.events() if e.device_type.name == "CUDA"]
    other = [name for name in names if name.startswith(("Memcpy", "Memset"))]
    return {"kernels": len(names) - len(other), "copies_and_fills": len(other)}


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def verdict(proof: Proof) -> list[dict[str, Any]]:
    """Returns the targets next to what was predicted and measured."""
    found = {(r.get("name"), r.get("what")): r for r in proof.rows}
    stage = found.get(("fpn1000 b8", "stage"), {}).get("us")
    peer = found.get(("fpn1000 b8", "torchvision eager"), {}).get("ours_is_faster_by")
    share = found.get(("1080p NV12 → 768×1344 bf16 b8", None), {}).get("of_copy")
    equal = [r for r in proof.rows if r["section"] == "kernels against references"]
    same = all(r["same_bits_again"] and r["same_bits_alone"] for r in equal) if equal else None
    return [
        {"target": target, "predicted": predicted, "measured": measured}
        for target, predicted, measured in (
            ("proposal stage, fpn1000 b8: at most 150 µs", PREDICTED_US["fpn1000", 8], stage),
            ("against torchvision eager: at least 50 ×", PREDICTED_SPEEDUP["fpn1000", 8], peer),
            ("preprocess 1080p b8: at least 0.7 of copy bandwidth", PREDICTED_SHARE, share),
            ("same bits from run to run and in any batch", True, same),
        )
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, default=ROOT / "bench/results/gpu_proof.json")
    parser.add_argument("--dry-run-cpu", action="store_true", help="try the command without a GPU")
    arguments = parser.parse_args()
    if not arguments.dry_run_cpu and not torch.cuda.is_available():
        print("bench.gpu_proof needs a CUDA device; --dry-run-cpu tries the command itself")
        return 2
    path = arguments.json
    if arguments.dry_run_cpu and path == parser.get_default("json"):
        path = Path(tempfile.gettempdir()) / "gpu_proof_dry_run.json"
    proof = Proof(path, torch.device("cpu" if arguments.dry_run_cpu else "cuda:0"))
    print(report.describe_machine(proof.machine))
    with proof.section("copy bandwidth"):
        proof.bandwidth = proof.timer.copy_bytes_per_second()
        proof.add("copy bandwidth", gb_per_second=round(proof.bandwidth / 1e9, 1))
    for name, run in (
        ("kernels against references", compare),
        ("one graph", one_graph),
        ("preprocess", time_preprocess),
        ("network", time_network),
        ("proposal stage", time_stage),
        ("tests", run_tests),
        ("pipeline", run_pipeline),
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
