"""Frames per second on a CPU beside the OpenVINO scripts that people write.

    python -m bench.scripts [--video CLIP] [--frames N] [--rounds N] [--json PATH]

All run NanoDet-Plus-m with the same weights from the same H.264 file to JSON lines of 300 boxes, in
one process, in turns; what counts is the ratio within a round. The scripts stand in
`stream_rpn/measure/openvino_scripts.py`. Their boxes are compared with ours before anything is
timed. Start and memory are those of the command in a process of its own.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

from bench import report
from bench.pipeline import CLIP, Side, Turn, ours, ratios, row_of
from stream_rpn import api, results
from stream_rpn.engines import INT8, prefers_bfloat16
from stream_rpn.kernels.boxes import iou
from stream_rpn.measure.meter import Meter
from stream_rpn.measure.openvino_scripts import SCRIPTS, Script
from stream_rpn.queues import prefetch
from stream_rpn.sources import open_source
from stream_rpn.sources.synthetic import SyntheticVideo

SIZE, TOP = 320, 300
# Frames before the first round: compiling, and the file cache.
WARM_UP = 8
# bfloat16 or float32, whichever is faster here, as the scripts take it.
FLOATING = "bfloat16" if prefers_bfloat16() else "float32"
# Model, engine, shorter side (None is its own), number format: theirs, the default, the more
# accurate one, and the default of the first release, by both engines.
OURS = (
    ("nanodet_m", "openvino", SIZE, FLOATING),
    ("nanodet_m", "openvino", SIZE, INT8),
    ("nanodet_m", "openvino", None, FLOATING),
    ("nanodet_m", "openvino", None, INT8),
    ("nanodet_m_1.5x", "openvino", None, FLOATING),
    ("tiny", "openvino", None, FLOATING),
    ("nanodet_m", "torch", SIZE, "auto"),
    ("tiny", "torch", None, "auto"),
)
CAREFUL = f"PyAV + OpenVINO script, tuned, {SIZE}"


def sides(clip: str, out: str) -> list[Side]:
    """Returns who takes part; scripts whose packages are not installed say so and do not."""
    rpn = api.load("nanodet_m", size=SIZE, top=TOP)
    found = []
    for name, (package, script) in SCRIPTS.items():
        if importlib.util.find_spec(package) is None:
            print(f"{name} is skipped: {package} is not installed", file=sys.stderr)
            continue
        peer = script(rpn, TOP)
        found.append(Side(f"{name}, {SIZE}", partial(scripted, peer, clip, out)))
    for model, engine, size, dtype in OURS:
        pipeline = api.open_pipeline(
            model, engine=engine, device="cpu", dtype=dtype, size=size, top=TOP
        )
        shown = f"stream-rpn {model} {pipeline.model.input_spec.min_size}, {engine}"
        if dtype == INT8:
            shown += f" {INT8}"
        found.append(Side(shown, partial(ours, pipeline, clip, out)))
    return found


def scripted(script: Script, clip: str, out: str, frames: int) -> Turn:
    """Runs a script over the first frames of the clip, and no others."""
    with Meter() as meter:
        for _ in script.frames(clip, out, limit=frames):
            pass
    return Turn(frames, meter.usage)


def agreement(clip: str, folder: Path) -> float:
    """Returns the share of our 50 best boxes of a frame that the careful script has as well."""
    rpn = api.load("nanodet_m", size=SIZE, top=TOP)
    # It knows the best class only.
    rpn.head.certainty = 0.0
    mine, other = str(folder / "mine.jsonl"), folder / "other.jsonl"
    pipeline = api.open_pipeline(rpn, engine="torch", device="cpu", dtype="float32")
    ours(pipeline, clip, mine, 2)
    scripted(SCRIPTS["PyAV + OpenVINO script, tuned"][1](rpn, TOP), clip, str(other), 2)

    written = [json.loads(line)["boxes"] for line in other.read_text().splitlines()]
    shares = []
    for proposals, boxes in zip(results.read(mine), written, strict=False):
        best = torch.from_numpy(proposals.boxes[:50])
        shares.append(float((iou(best, torch.tensor(boxes)).amax(1) > 0.7).float().mean()))
    # Their pictures differ: they have a quarter of the colour samples.
    if min(shares) < 0.8:
        sys.exit(f"WRONG: only {min(shares):.0%} of our best boxes are the script's as well")
    return min(shares)


def start(clip: str, engine: str) -> dict[str, float]:
    """Returns seconds to the first result, and peak memory of a whole run, of the command."""
    command = [sys.executable, "-m", "stream_rpn", clip, "--device", "cpu", "--engine", engine]
    command += ["-o", "null", "--quiet"]
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([*command, "--max-frames", "1"], check=True)
        seconds.append(time.perf_counter() - began)
    # From a small process of its own: a child's peak counts what its parent had when it was made.
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command], check=True, capture_output=True, text=True
    )
    peak = int(done.stdout) / 1024
    return {
        "seconds_median": round(statistics.median(seconds), 3),
        "seconds_min": round(min(seconds), 3),
        "peak_memory_mb": round(peak, 1),
    }


def rows_of(taking_part: list[Side]) -> list[dict]:
    """Returns a row a side: frames/s, and the ratio to the careful script."""
    base = next(side for side in taking_part if side.name == CAREFUL)
    return [row_of(side) | ratios(side, base) for side in taking_part]


def main() -> int:
    parser = argparse.ArgumentParser(description="Ours beside OpenVINO scripts.")
    parser.add_argument("--video", help=f"a clip (default: {CLIP}, encoded first)")
    parser.add_argument("--frames", type=int, default=120, help="of each in a round (120)")
    parser.add_argument("--rounds", type=int, default=4, help="that are counted (4)")
    parser.add_argument("--json", default="bench/results/scripts_cpu.json", metavar="PATH")
    arguments = parser.parse_args()
    facts = report.machine()
    print(report.describe_machine(facts))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = arguments.video or str(folder / "clip.mp4")
        if arguments.video is None:
            with SyntheticVideo.parse(CLIP).encoded() as encoded:
                Path(clip).write_bytes(encoded.read())
        with open_source(clip) as source:
            info = source.info
        first = {engine: start(clip, engine) for engine in ("openvino", "torch")}
        found = SimpleNamespace()

        def measured():
            found.share = agreement(clip, folder)
            taking_part = sides(clip, str(folder / "out.jsonl"))
            for side in taking_part:
                side.run(WARM_UP)
            for _ in range(arguments.rounds):
                for side in taking_part:
                    side.turns.append(side.run(arguments.frames))
            found.rows = rows_of(taking_part)
            yield from found.rows

        # In a thread, for the reason given in `stream_rpn/commands/bench.py`.
        with prefetch(measured(), 1, name="bench") as rows:
            report.print_table(
                list(rows),
                ["what", "fps_median", "fps_min", "fps_max", "ratio", "cpu_ms_a_frame",
                 "others_utilisation"],
            )  # fmt: skip
    print(f"the command with the default model: {first}")
    report.write_json(
        arguments.json,
        "OpenVINO scripts on a CPU",
        found.rows,
        machine=facts,
        clip=arguments.video or CLIP,
        width=info.width,
        height=info.height,
        codec=info.codec,
        default_dtype=api.open_pipeline(device="cpu").dtype,
        first_result=first,
        boxes_in_common=found.share,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
