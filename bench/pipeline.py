"""Frames per second from video file to JSON lines: ours against what others would run instead.

    python -m bench.pipeline [--video CLIP] [--models …] [--seconds S] [--json PATH] [--base REF]

All sides run the same weights on the same clip in one process, in turns, so that a noisy machine
is equally unkind to all; what counts is the ratio within a round. The peers, and how they are
configured, are in `stream_rpn/measure/peers.py`: first of all the loop a torchvision user writes,
as it comes and tuned. Correctness is checked before anything is timed.

Without internet there are no COCO weights; seeded random ones serve, and the report says so. They
cost the same time in the network; how many boxes survive NMS differs.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import report
from bench.compare import add_argument, compare_with
from stream_rpn import api, engines, sinks
from stream_rpn.compute import prefers_bfloat16
from stream_rpn.frame import Frame
from stream_rpn.measure import peers
from stream_rpn.measure.meter import Meter, Usage
from stream_rpn.models.checkpoint import load_model
from stream_rpn.pipeline import Pipeline
from stream_rpn.preprocess import to_input
from stream_rpn.queues import prefetch
from stream_rpn.sources import open_source
from stream_rpn.sources.select import Selection
from stream_rpn.sources.synthetic import SyntheticVideo
from stream_rpn.timing import StageTimes

CLIP = "synthetic:1920x1080@30,240"
CLIP_FRAMES = 240
# Model → weights, and the seconds that it gets of the budget of 100.
MODELS = {"tiny": (None, 1.0), "mobilenet_v3_large_320_fpn": ("random", 0.8),
          "resnet50_fpn": ("random", 1.2)}  # fmt: skip
# The decoders of others are compared in front of this one: where they matter most.
DECODERS_WITH = "tiny"
ROUNDS = 5
LOOP, TUNED = "torchvision loop float32", "torchvision loop, tuned"


@dataclass
class Turn:
    """The work of one side in one round."""

    frames: int
    usage: Usage
    stages: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def fps(self) -> float:
        """Frames per second, from the opening of the file to its closing."""
        return self.frames / self.usage.seconds


@dataclass
class Side:
    """One way to do the work: `run(frames)` does it from the opening of the file to its end."""

    name: str
    run: Callable[[int], Turn]
    turns: list[Turn] = field(default_factory=list)


def ours(
    pipeline: Pipeline, clip: str, out: str, frames: int, *, selection: Selection | None = None
) -> Turn:
    """Runs the product's own pipeline and sink over the first frames of the clip."""
    selection = replace(selection or Selection(), max_frames=frames)
    with Meter() as meter, pipeline.open(clip, selection) as stream:
        header = sinks.make_header(stream.info, **pipeline.provenance(selection))
        with sinks.open_sink(out, overwrite=True) as sink:
            sink.begin(header, stream.info)
            for proposals in stream:
                with stream.times.measure("sinks"):
                    sink.write(proposals)
            sink.end(stream.end())
    return Turn(stream.num_results, meter.usage, stream.times.summary())


def theirs(peer: peers.Peer, clip: str, out: str, frames: int) -> Turn:
    """Runs a peer over the first frames of the clip."""
    with Meter() as meter:
        steps = peer.frames(clip, out)
        for _ in range(frames):
            next(steps)
        steps.close()
    return Turn(frames, meter.usage)


def agreement(name: str, weights: str | None, clip: str) -> dict[str, float]:
    """Checks the network in float32 on one input, and measures what the YUV path changes."""
    detector = peers.TorchvisionProposer(name, weights)
    rpn = load_model(name, weights)
    with open_source(clip) as source:
        frame = next(iter(source))
    with torch.inference_mode():
        rgb = torch.from_numpy(frame.image.to_ndarray(format="rgb24")).permute(2, 0, 1) / 255
        images, _ = detector.transform([rgb])
        features = detector.rpn.head(list(detector.backbone(images.tensors).values()))
        mine = rpn.head(list(rpn.features(images.tensors).values()))
        # Relative to the spread of the outputs, as random weights have no scale of their own.
        network = max(
            float((a - b).abs().max() / a.std())
            for one, other in zip(features, mine, strict=True)
            for a, b in zip(one, other, strict=True)
        )
        if network > 1e-3:
            sys.exit(f"WRONG: the heads of {name} differ by {network:.2g} standard deviations")
        direct, _ = to_input([frame], rpn.input_spec)
        std = torch.tensor(rpn.input_spec.std)[None, :, None, None]
        levels = ((direct - images.tensors) * std * 255).abs()
    checked = {
        "head_outputs_max_difference_in_std": network,
        "input_mean_difference_in_grey_levels": float(levels.mean()),
        "input_p99_difference_in_grey_levels": float(levels.flatten()[::7].quantile(0.99)),
    }
    # Random weights give many boxes the same score; tests/test_openvino.py tells those ties apart.
    if weights is None and engines.why_not_openvino(device="cpu") is None:
        checked["engines_share_of_equal_boxes"] = between_engines(name, frame)
    return checked


def between_engines(name: str, frame: Frame) -> float:
    """Returns the share of PyTorch's boxes that OpenVINO finds as well, in float32."""
    by_torch, by_openvino = (
        Pipeline(api.load(name), engine=engine, device="cpu", dtype="float32")
        for engine in ("torch", "openvino")
    )
    (expected,) = by_torch.process([[frame]], StageTimes())
    (found,) = by_openvino.process([[frame]], StageTimes())
    apart = np.abs(expected.input_boxes[:, None] - found.input_boxes).max(-1).min(1)
    share = float((apart < 0.1).mean())
    if share < 0.98 or len(found) != len(expected):
        sys.exit(f"WRONG: the engines agree on {share:.0%} of the boxes of {name}")
    return share


def sides(name: str, weights: str | None, clip: str, out: str, *, only_ours: bool) -> list[Side]:
    """Returns who takes part; peers that are not installed say so and do not."""
    found: list[Side] = []
    formats = {"torch": ["float32"]}
    if prefers_bfloat16(torch.device("cpu")):
        formats["torch"].append("bfloat16")
    if engines.why_not_openvino(device="cpu") is None:
        formats["openvino"] = ["float32"]
        if engines.prefers_bfloat16():
            formats["openvino"].append("bfloat16")
    pipelines = {
        (engine, dtype): Pipeline(api.load(name, weights), engine=engine, device="cpu", dtype=dtype)
        for engine, dtypes in formats.items()
        for dtype in dtypes
    }
    for (engine, dtype), pipeline in pipelines.items():
        label = f"stream-rpn {dtype}" if engine == "torch" else f"stream-rpn {dtype}, {engine}"
        found.append(Side(label, partial(ours, pipeline, clip, out)))
    if only_ours:
        return found
    # Other decoders come before torch in the fastest of its number formats.
    for peer in peers.peers(pipelines["torch", formats["torch"][-1]], name, weights):
        label = LOOP if peer.name == "torchvision loop" else peer.name
        if label not in (LOOP, TUNED) and name != DECODERS_WITH:
            continue
        if peer.missing:
            print(f"{name}: {peer.name} is skipped: {peer.missing}", file=sys.stderr)
            continue
        found.append(Side(label, partial(theirs, peer, clip, out)))
    return sorted(found, key=lambda side: side.name.startswith("stream-rpn"))


def take_turns(taking_part: list[Side], seconds: float) -> int:
    """Lets the sides work in turns for about so many seconds in all; returns the rounds.

    The first round warms up (allocators, oneDNN's caches, the file cache) and is not kept; from it
    each side gets as many frames a turn as fit, the same in every round.
    """
    frames = {}
    started = time.perf_counter()
    for side in taking_part:
        side.run(1)
        pace = side.run(2).usage.seconds / 2
        share = seconds / (ROUNDS + 1) / len(taking_part)
        frames[side.name] = max(2, min(CLIP_FRAMES, int(share / pace)))
    rounds = 0
    while rounds < 3 or (
        rounds < ROUNDS and (time.perf_counter() - started) * (1 + 1 / (rounds + 1)) < seconds
    ):
        for side in taking_part:
            side.turns.append(side.run(frames[side.name]))
        rounds += 1
    return rounds


def row_of(side: Side) -> dict[str, Any]:
    """Returns what a side did: frames/s over the rounds, and the rest of its middle round."""
    fps = [turn.fps for turn in side.turns]
    middle = sorted(side.turns, key=lambda turn: turn.fps)[len(fps) // 2]
    usage = middle.usage
    row: dict[str, Any] = {
        "what": side.name,
        "fps_median": round(statistics.median(fps), 3),
        "fps_min": round(min(fps), 3),
        "fps_max": round(max(fps), 3),
        "rounds": len(fps),
        "frames_a_round": middle.frames,
        "cpu_ms_a_frame": round(usage.cpu_seconds / middle.frames * 1e3, 2),
        "cpu_utilisation": round(usage.cpu_utilisation, 3),
        "others_utilisation": usage.others_utilisation,
        "peak_memory_mb": usage.peak_memory_mb,
    }
    if middle.stages:
        row["stages_p50_ms"] = {key: stage["p50_ms"] for key, stage in middle.stages.items()}
    return row


def ratios(side: Side, base: Side, key: str = "ratio") -> dict[str, float]:
    """Returns how many times as fast a side was as another, round by round."""
    found = [mine.fps / their.fps for mine, their in zip(side.turns, base.turns, strict=True)]
    return {
        key: round(statistics.median(found), 3),
        f"{key}_min": round(min(found), 3),
        f"{key}_max": round(max(found), 3),
    }


def rows_of(model: str, taking_part: list[Side]) -> list[dict[str, Any]]:
    """Returns one row a side: frames/s, and the ratios to the torchvision loops."""
    by_name = {side.name: side for side in taking_part}
    rows = []
    for side in taking_part:
        row = {"model": model, **row_of(side)}
        for key, other in (("ratio", LOOP), ("ratio_tuned", TUNED)):
            if other in by_name and side.name not in (LOOP, TUNED):
                row |= ratios(side, by_name[other], key)
        rows.append(row)
    return rows


def compare(
    model: str, clip: str, out: str, seconds: float, *, only_ours: bool
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Returns a model's rows, and how well its network agrees with torchvision's."""
    weights = MODELS[model][0]
    check = {} if only_ours else agreement(model, weights, clip)
    taking_part = sides(model, weights, clip, out, only_ours=only_ours)
    take_turns(taking_part, seconds)
    return rows_of(model, taking_part), check


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video", help=f"a clip (default: {CLIP}, encoded first)")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument(
        "--seconds", type=float, default=100.0, help="for each model, about (default: 100)"
    )
    parser.add_argument("--only-ours", action="store_true", help="without the peers")
    parser.add_argument("--json", default="bench/results/pipeline_cpu.json", metavar="PATH")
    add_argument(parser)
    arguments = parser.parse_args()
    if arguments.base is not None:
        options = ["--models", *arguments.models, "--only-ours"]
        options += ["--seconds", str(arguments.seconds / 5)]
        if arguments.video is not None:
            options += ["--video", str(Path(arguments.video).resolve())]
        return compare_with(
            arguments.base, "bench.pipeline", options, ("model", "what"), "fps_median"
        )
    facts = report.machine()
    print(report.describe_machine(facts))
    rows, checks = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = arguments.video
        if clip is None:
            clip = str(folder / "clip.mp4")
            with SyntheticVideo.parse(CLIP).encoded() as encoded:
                Path(clip).write_bytes(encoded.read())

        with open_source(clip) as source:
            info = source.info

        def measured() -> Any:
            for model in arguments.models:
                seconds = arguments.seconds * MODELS[model][1]
                out = str(folder / "out.jsonl")
                yield model, *compare(model, clip, out, seconds, only_ours=arguments.only_ours)
                gc.collect()

        # In a thread, for the reason given in `stream_rpn/commands/bench.py`.
        for model, found, check in prefetch(measured(), 1, name="bench"):
            rows += found
            checks[model] = check
            columns = ["model", "what", "fps_median", "fps_min", "fps_max", "ratio", "ratio_tuned",
                       "cpu_ms_a_frame", "cpu_utilisation", "others_utilisation"]  # fmt: skip
            report.print_table(found, columns)
    report.write_json(
        arguments.json,
        "pipeline on a CPU",
        rows,
        machine=facts,
        clip=arguments.video or CLIP,
        width=info.width,
        height=info.height,
        codec=info.codec,
        weights={name: MODELS[name][0] or "trained" for name in arguments.models},
        checks=checks,
    )
    print(json.dumps(checks))
    return 0


if __name__ == "__main__":
    sys.exit(main())
