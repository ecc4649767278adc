"""What `--gate` costs, spares and loses: python -m bench.gate [--data DIR] [--only SECTION …].

Sections, each of which can be measured anew while the others' rows stay in the file:

* recall: of objects, and the share of frames held, by clip, camera and level. The network looks at
  every frame once; gates of all levels decide beside it which of its results would be held.
* fps: of the whole, from file to JSON lines, with the gate and without, in turns.
* cost: milliseconds a frame of the gate alone, on one core.
* enter: frames until an object of a hundredth of the width that enters a still scene is looked at.

DIR holds videos with MOTChallenge ground truth beside them (*.gt.txt); where it does not exist,
only made-up scenes are measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

from bench import gate_scenes, report
from bench.gate_scenes import Scene
from bench.pipeline import Side, ours, ratios, row_of
from stream_rpn import api
from stream_rpn.evaluation.recall import Recall
from stream_rpn.frame import Color, Frame
from stream_rpn.gate import Gate, GateSpec, block_means
from stream_rpn.pipeline import Pipeline
from stream_rpn.queues import prefetch
from stream_rpn.sources import open_source
from stream_rpn.timing import StageTimes

DATA = Path("../shared/data/video")
LEVELS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
LIMITS = (100, 300)
NUMBERS = ("R50@100", "R50@300", "AR@100", "AR@300")
# Where nobody annotated, what the network itself is this sure of counts as an object.
SURE = 0.4
# Clips on which the whole is timed, as the second camera gives them.
TIMED = ("PETS09-S2L1", "PETS09-S2L1, paused", "PETS09-S2L1, one walker", "made up, mostly still")


def recall(data: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Yields a row per clip, camera and level."""
    pipeline = api.open_pipeline(device="cpu", top=max(LIMITS))
    for scene, camera in gate_scenes.scenes(folder, data):
        boxes, sure, looked = look(pipeline, scene)
        annotated = bool(scene.truth)
        truth = {i: t for i, t in (scene.truth or sure).items() if i in boxes}
        without = Recall(boxes, truth, LIMITS)
        for level in LEVELS:
            shown = {}
            for index in boxes:
                last = index if looked[level][index] else last  # noqa: F821 (the first is looked at)
                shown[index] = boxes[last]
            with_gate = Recall(shown, truth, LIMITS)
            row: dict[str, Any] = {
                "section": "recall",
                "clip": scene.name,
                "camera": camera.name,
                "level": level,
                "annotated": annotated,
                "objects": without.num_objects(),
                "frames": len(boxes),
                "held": round(1 - sum(looked[level]) / len(boxes), 4),
            }
            before, after = without.summary(), with_gate.summary()
            for number in NUMBERS:
                row[number] = round(after[number], 4)
                row[f"{number} kept"] = round(after[number] / before[number], 4)
            yield row


def look(
    pipeline: Pipeline, scene: Scene
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray], dict[float, list[bool]]]:
    """Returns boxes by frame, those that are sure, and by level which frames would be looked at."""
    gates = {level: Gate(GateSpec(level)) for level in LEVELS}
    looked: dict[float, list[bool]] = {level: [] for level in LEVELS}

    def asked(source: Any) -> Iterator[Frame]:
        for frame in source:
            for level, gate in gates.items():
                looked[level].append(gate.looks(frame))
            yield frame

    boxes, sure = {}, {}
    with open_source(str(scene.path), decoder="cpu") as source:
        frames = prefetch(asked(source), pipeline.queue_size, name="decode")
        with pipeline.network.queues(frames, StageTimes()) as results:
            for proposals in results:
                boxes[proposals.frame] = proposals.boxes
                sure[proposals.frame] = proposals.boxes[proposals.scores >= SURE]
    return boxes, sure, looked


def fps(data: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Yields two rows a clip: without the gate and with it."""
    pipelines = {gate: api.open_pipeline(device="cpu", gate=gate) for gate in ("off", "auto")}
    for scene, camera in gate_scenes.scenes(folder, data):
        if camera != gate_scenes.CAMERAS[1] or scene.name not in TIMED:
            continue
        out = str(folder / "out.jsonl")
        sides = [
            Side(gate, partial(ours, pipeline, str(scene.path), out))
            for gate, pipeline in pipelines.items()
        ]
        for side in sides:
            side.run(8)
        for _ in range(3):
            for side in sides:
                side.turns.append(side.run(10_000))
        for side in sides:
            row = {"section": "fps", "clip": scene.name, "gate": side.name}
            yield row | row_of(side) | ratios(side, sides[0])


def cost(data: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Yields a row a size: milliseconds a frame of one gate, the quickest and the median."""
    rng = np.random.default_rng(0)
    for width, height in ((640, 360), (1280, 720), (1920, 1080), (3840, 2160)):
        # More pictures than the caches hold.
        noise = (_noise(rng, width, height, 4.0) for _ in range(16))
        frames = [_frame((100 + n).astype(np.uint8), index) for index, n in enumerate(noise)]
        gate = Gate(GateSpec(hold_seconds=1e9))
        for what, function in (("gate", gate.looks), ("of which block means", block_means)):
            samples = []
            for run in range(400):
                frame = frames[run % len(frames)]
                one = report.measure(partial(function, frame), warmup=0, min_runs=1, seconds=0)
                samples.append(one["median_ms"])
            yield {
                "section": "cost",
                "size": f"{width}x{height}",
                "what": what,
                "best_ms": round(min(samples), 4),
                **report.summarize(samples),
            }


def enter(data: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Yields a row per noise, contrast and level: frames from the object's entry to a look."""
    for sigma in (0.0, 3.0, 6.0):
        for contrast in (10, 20, 40, 80):
            delays = [_delays(sigma, contrast, seed) for seed in range(4)]
            for level in LEVELS:
                yield {
                    "section": "enter",
                    "sigma": sigma,
                    "contrast": contrast,
                    "level": level,
                    "frames": _longest([found.get(level) for found in delays]),
                }


def _delays(sigma: float, contrast: int, seed: int) -> dict[float, int]:
    """Returns by level how many frames pass until an object is looked at; 0 is at once."""
    rng = np.random.default_rng(seed)
    gates = {level: Gate(GateSpec(level, hold_seconds=1e9)) for level in LEVELS}
    delays: dict[float, int] = {}
    still, moving = 25, 12
    left, top = rng.integers(100, 900, 2)
    noise = _noise(rng, 1920 + 64, 1080 + 64, sigma)
    for index in range(still + moving):
        y, x = rng.integers(0, 64, 2)
        luma = 100 + noise[y : y + 1080, x : x + 1920]
        if index >= still:
            # It crosses the picture in twenty seconds.
            x = left + (index - still) * 4
            luma[top : top + 38, x : x + 19] += contrast
        frame = _frame(luma.clip(0, 255).astype(np.uint8), index)
        for level, gate in gates.items():
            if gate.looks(frame) and index >= still:
                delays.setdefault(level, index - still)
    return delays


def _longest(delays: list[int | None]) -> int | None:
    """Returns the longest; None where an object was never looked at."""
    known = [delay for delay in delays if delay is not None]
    return max(known) if len(known) == len(delays) else None


def _noise(rng: np.random.Generator, width: int, height: int, sigma: float) -> np.ndarray:
    noise = rng.standard_normal((height, width), np.float32) * np.float32(sigma)
    return noise.round().astype(np.int16)


def _frame(luma: np.ndarray, index: int) -> Frame:
    height, width = luma.shape
    planes = np.full((height * 3 // 2, width), 128, np.uint8)
    planes[:height] = luma
    image = av.VideoFrame.from_ndarray(planes, format="yuv420p")
    color = Color("bt709", full_range=False, tagged=True)
    return Frame(index, index, index / 25, width, height, 0, color, image)


SECTIONS: dict[str, Callable[[Path, Path], Iterator[dict[str, Any]]]] = {
    "cost": cost,
    "enter": enter,
    "fps": fps,
    "recall": recall,
}
COLUMNS = {
    "recall": ("clip", "camera", "level", "objects", "held", "R50@100", "R50@100 kept",
               "R50@300 kept", "AR@100 kept", "AR@300 kept"),
    "fps": ("clip", "gate", "fps_median", "fps_min", "fps_max", "ratio", "others_utilisation"),
    "cost": ("size", "what", "best_ms", "median_ms", "p90_ms"),
    "enter": ("sigma", "contrast", "level", "frames"),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--json", type=Path, default=Path("bench/results/gate.json"))
    arguments = parser.parse_args()
    facts = report.machine()
    print(report.describe_machine(facts))
    before = json.loads(arguments.json.read_text()) if arguments.json.is_file() else {}
    machines = before.get("machines", {})
    rows = [row for row in before.get("rows", []) if row["section"] not in arguments.only]
    for section in arguments.only:
        with tempfile.TemporaryDirectory() as name:
            # In a thread, for the reason given in `stream_rpn/commands/bench.py`.
            measured = SECTIONS[section](arguments.data, Path(name))
            with prefetch(measured, 1, name="bench") as found:
                rows_of_section = list(found)
        report.print_table(rows_of_section, COLUMNS[section])
        rows += rows_of_section
        machines[section] = facts
    report.write_json(arguments.json, "gate", rows, machine=facts, machines=machines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
