"""How time and memory grow: with batch, resolution, sources, pre-NMS k, anchors, video length.

    python -m bench.scaling [--json PATH] [--only SWEEP …] [--long] [--quick]
    python -m bench.scaling --engine ray [--json PATH] [--quick]     # with workers: see bench.batch

Each sweep runs in a process of its own, smallest first, as memory once taken is seldom given back.
The growth table fits time = c · x^a (least squares of the logarithms), memory likewise; r² says
how much of the variation of time that explains. Sources are files one after another, as the product
runs them; live ones come at their own pace.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import batch as of_batch
from bench import report
from bench.workloads import WORKLOADS, Workload, head_outputs, ours
from stream_rpn import api
from stream_rpn.measure import stages
from stream_rpn.measure.meter import Meter
from stream_rpn.pipeline import Pipeline
from stream_rpn.sources.select import Selection
from stream_rpn.sources.synthetic import SyntheticVideo

HEIGHTS = {360: 640, 720: 1280, 1080: 1920, 1440: 2560, 2160: 3840}
Row = dict[str, Any]


def clip(folder: Path, uri: str) -> str:
    path = folder / f"{uri.split(':')[1].replace('/', '-')}.mp4"
    with SyntheticVideo.parse(uri).encoded() as encoded:
        path.write_bytes(encoded.read())
    return str(path)


def pipeline(size: int | None = None) -> Pipeline:
    return Pipeline(api.load(size=size), device="cpu")


def over_batches(folder: Path, quick: bool) -> Iterator[Row]:
    """1080p, the default model by PyTorch; OpenVINO computes one frame at a time."""
    path = clip(folder, "synthetic:320x180@30,30" if quick else "synthetic:1920x1080@30,60")
    for batch in (1, 2) if quick else (1, 2, 4, 8, 16, 32):
        made = Pipeline(api.load(), engine="torch", device="cpu", batch=batch)
        part = stages.whole(made, path, folder / "o.jsonl", 0.1 if quick else 2.0)
        yield _of_part(batch, part)


def over_resolutions(folder: Path, quick: bool) -> Iterator[Row]:
    """The default model, whose input has one size; x is the pixels of a frame."""
    made = pipeline()
    for height in (360, 720) if quick else HEIGHTS:
        width = HEIGHTS[height]
        path = clip(folder, f"synthetic:{width}x{height}@30,{4 if quick else 30}")
        part = stages.whole(made, path, folder / "o.jsonl", 0.1 if quick else 2.0)
        yield {"label": f"{height}p", **_of_part(width * height, part)}


def over_sources(folder: Path, quick: bool) -> Iterator[Row]:
    """Files of 20 frames of 640x360, the default model."""
    path = clip(folder, f"synthetic:640x360@30,{2 if quick else 20}")
    made = pipeline()
    _run(made, path)
    for count in (1, 2) if quick else (1, 2, 4, 8, 16):
        with Meter() as meter:
            frames = sum(_run(made, path) for _ in range(count))
        yield _of_meter(count, meter, frames)


def over_pre_nms(folder: Path, quick: bool) -> Iterator[Row]:
    """The proposal stage alone, of 257,796 anchors on five levels."""
    for k in (300, 1000) if quick else (300, 1000, 3000, 6000, 12000):
        yield _of_stage(k, replace(WORKLOADS[0], pre_nms_top_n=k), quick)


def over_anchors(folder: Path, quick: bool) -> Iterator[Row]:
    """The proposal stage alone, k = 1000, on five levels of a growing image."""
    sizes = ((128, 320), (256, 512), (448, 896), (832, 1600), (1408, 2816))
    for height, width in sizes[: 2 if quick else None]:
        grids = tuple((height // s, width // s) for s in (4, 8, 16, 32, 64))
        image = (height, width)
        workload = replace(WORKLOADS[0], image_size=image, inside=image, grids=grids)
        yield _of_stage(workload.num_anchors, workload, quick)


def over_lengths(folder: Path, quick: bool, longest: int = 10_000) -> Iterator[Row]:
    """One file of small frames at a small input size, up to its first x frames."""
    lengths = [10, 20] if quick else [n for n in (100, 1000, 10_000, 100_000) if n <= longest]
    path = clip(folder, f"synthetic:320x180@30,{lengths[-1]}")
    made = pipeline(size=64)
    _run(made, path, lengths[0])
    for length in lengths:
        with Meter() as meter:
            frames = _run(made, path, length)
        yield _of_meter(frames, meter, frames)


# Name → (rows, what x is, what time is of).
SWEEPS: dict[str, tuple[Callable[..., Iterator[Row]], str, str]] = {
    "batch": (over_batches, "frames a batch of PyTorch", "a frame, whole pipeline"),
    "resolution": (over_resolutions, "pixels a frame", "a frame, whole pipeline"),
    "sources": (over_sources, "files", "all of them"),
    "pre-NMS k": (over_pre_nms, "candidates a level", "an image, proposal stage"),
    "anchors": (over_anchors, "anchors an image", "an image, proposal stage"),
    "length": (over_lengths, "frames", "the whole file"),
}


def _run(made: Pipeline, path: str, frames: int | None = None) -> int:
    with made.open(path, Selection(max_frames=frames)) as stream:
        return sum(1 for _ in stream)


def _of_part(x: float, part: stages.Part) -> Row:
    return {
        "x": x,
        "ms": round(1e3 / part.fps, 4),
        "cpu_ms": round(part.cpu_ms, 4),
        "peak_mb": part.usage.peak_memory_mb,
        "n": part.frames,
        "others_utilisation": part.usage.others_utilisation,
    }


def _of_meter(x: float, meter: Meter, frames: int) -> Row:
    usage = meter.usage
    return {
        "x": x,
        "ms": round(usage.seconds * 1e3, 4),
        "cpu_ms": round(usage.cpu_seconds * 1e3, 4),
        "peak_mb": usage.peak_memory_mb,
        "n": frames,
        "others_utilisation": usage.others_utilisation,
    }


def _of_stage(x: float, workload: Workload, quick: bool) -> Row:
    heads = head_outputs(workload, 1, torch.device("cpu"))
    with Meter() as meter, torch.inference_mode():
        found = report.measure(lambda: ours(workload, heads), seconds=0.02 if quick else 1.0)
    return {
        "x": x,
        "ms": found["median_ms"],
        "peak_mb": meter.usage.peak_memory_mb,
        "n": found["runs"],
        "others_utilisation": meter.usage.others_utilisation,
    }


def growth(rows: Sequence[Row]) -> Row:
    """Returns the fitted exponents of a sweep's rows: time (with r²), and memory."""
    x = np.log([row["x"] for row in rows])
    found: Row = {}
    for name, key in (("time", "ms"), ("memory", "peak_mb")):
        if any(row.get(key) is None for row in rows):
            continue
        y = np.log([row[key] for row in rows])
        slope, intercept = np.polyfit(x, y, 1)
        found[f"{name}_exponent"] = round(float(slope), 3)
        if name == "time":
            spread = float(((y - y.mean()) ** 2).sum())
            left = float(((y - slope * x - intercept) ** 2).sum())
            found["r2"] = round(1 - left / spread, 3) if spread else 1.0
    return found


def _sweep(name: str, quick: bool, longest: int) -> list[Row]:
    """Runs one sweep; in a process of its own."""
    function, _, _ = SWEEPS[name]
    options = {"longest": longest} if name == "length" else {}
    with tempfile.TemporaryDirectory(prefix="stream-rpn-scaling-") as folder:
        return [{"sweep": name, **row} for row in function(Path(folder), quick, **options)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="(bench/results/…, by what is measured)")
    parser.add_argument("--engine", choices=("ray",), help="grow by workers of `stream-rpn batch`")
    parser.add_argument("--only", nargs="+", choices=list(SWEEPS), default=list(SWEEPS))
    parser.add_argument("--long", action="store_true", help="a video of 100,000 frames, too")
    parser.add_argument("--quick", action="store_true", help="two small points each, to try it")
    arguments = parser.parse_args()
    if arguments.engine == "ray":
        path = arguments.json or of_batch.RESULTS
        return of_batch.main(["--json", str(path), *(["--quick"] if arguments.quick else [])])
    facts = report.machine()
    print(report.describe_machine(facts))
    rows: list[Row] = []
    started = time.perf_counter()
    fresh = multiprocessing.get_context("spawn")
    for name in arguments.only:
        with ProcessPoolExecutor(1, mp_context=fresh) as process:
            longest = 100_000 if arguments.long else 10_000
            rows += process.submit(_sweep, name, arguments.quick, longest).result()
        print(f"  {name}: done after {time.perf_counter() - started:.0f} s", file=sys.stderr)
    grown = []
    for name, group in itertools.groupby(rows, key=lambda row: row["sweep"]):
        points = list(group)
        _, what, time_of = SWEEPS[name]
        first, last = points[0], points[-1]
        ends = {
            "from": first.get("label", f"{first['x']:,}"),
            "to": last.get("label", f"{last['x']:,}"),
            "ms_from": first["ms"], "ms_to": last["ms"],
            "mb_from": first["peak_mb"], "mb_to": last["peak_mb"],
        }  # fmt: skip
        grown.append({"sweep": name, "x": what, "time_of": time_of, **ends, **growth(points)})
    report.print_table(rows)
    print()
    report.print_table(grown)
    path = arguments.json or Path("bench/results/scaling_cpu.json")
    report.write_json(path, "scaling on a CPU", rows, machine=facts, growth=grown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
