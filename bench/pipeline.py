"""Frames per second from video file to JSON lines: ours against the loop a torchvision user writes.

    python -m bench.pipeline [--video CLIP] [--models …] [--frames N] [--rounds N] [--json PATH]

Both sides run the same weights on the same clip in one process, in turns, so that a noisy machine
is equally unkind to both; what counts is the ratio of the medians. The other side is torchvision's
own detector code with its own defaults: PyAV `to_ndarray("rgb24")`, the detector's transform,
backbone and RPN in float32, `json.dumps`. Correctness is checked before anything is timed.

Without internet there are no COCO weights; seeded random ones serve, and the report says so. They
cost the same time in the network; how many boxes survive NMS differs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import torch
import torchvision
from torch import nn

from bench import report
from stream_rpn import api, sinks
from stream_rpn.device import native_bfloat16
from stream_rpn.models.checkpoint import load_model
from stream_rpn.pipeline import Pipeline, Selection, parameters
from stream_rpn.sources import open_source
from stream_rpn.sources.synthetic import SyntheticVideo

CLIP = "synthetic:1920x1080@30,240"
LONG_CLIP = "synthetic:320x180@30,10000"
DETECTORS = {
    "resnet50_fpn": "fasterrcnn_resnet50_fpn",
    "mobilenet_v3_large_320_fpn": "fasterrcnn_mobilenet_v3_large_320_fpn",
}
FRAMES = {"resnet50_fpn": 5, "mobilenet_v3_large_320_fpn": 60, "tiny": 120}


def torchvision_detector(name: str) -> nn.Module:
    """Returns torchvision's detector with the weights that `load(name, "random")` has."""
    build = getattr(torchvision.models.detection, DETECTORS[name])
    detector: nn.Module = build(weights=None, weights_backbone=None).eval()
    ours = load_model(name, "random", fold=False)
    state = {
        key if key.startswith("backbone.") else f"rpn.{key}": tensor
        for key, tensor in ours.state_dict().items()
    }
    missing = detector.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all(key.startswith("roi_heads.") for key in missing.missing_keys)
    return detector


def straightforward_loop(detector: nn.Module, clip: str, frames: int, out: str) -> Iterator[None]:
    """Decodes, detects and writes in the plainest way; yields after each frame."""
    with av.open(clip) as container, open(out, "w") as file, torch.inference_mode():
        for index, frame in enumerate(container.decode(video=0)):
            if index == frames:
                return
            image = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1) / 255
            images, _ = detector.transform([image])
            features = detector.backbone(images.tensors)
            boxes, _ = detector.rpn(images, features)
            boxes = torchvision.models.detection.transform.resize_boxes(
                boxes[0], images.image_sizes[0], image.shape[-2:]
            )
            file.write(json.dumps({"frame": index, "boxes": boxes.tolist()}) + "\n")
            yield


def ours(pipeline: Pipeline, clip: str, frames: int, out: str) -> dict[str, Any]:
    """Runs the product's own pipeline and sink; returns frames/s, stages and CPU seconds."""
    cpu_before, started = time.process_time(), time.perf_counter()
    with pipeline.open(clip, Selection(max_frames=frames)) as stream:
        sink = sinks.open_sink(out, overwrite=True)
        header = sinks.make_header(
            stream.info,
            model=pipeline.rpn.name,
            parameters=parameters(pipeline.rpn, Selection(max_frames=frames)),
        )
        with sink:
            sink.begin(header, stream.info)
            for proposals in stream:
                with stream.times.measure("sinks"):
                    sink.write(proposals)
            sink.end(stream.end())
    elapsed = time.perf_counter() - started
    return {
        "fps": stream.num_results / elapsed,
        "cpu_seconds": time.process_time() - cpu_before,
        "elapsed_seconds": elapsed,
        "stages": stream.times.summary(),
    }


def agreement(name: str, clip: str) -> dict[str, float]:
    """Checks the network in float32 on one input, and measures what the YUV path changes."""
    detector = torchvision_detector(name)
    rpn = load_model(name, "random")
    with open_source(clip) as source:
        frame = next(iter(source))
    from stream_rpn.preprocess import to_input

    with torch.inference_mode():
        rgb = torch.from_numpy(frame.image.to_ndarray(format="rgb24")).permute(2, 0, 1) / 255
        images, _ = detector.transform([rgb])
        theirs = detector.rpn.head(list(detector.backbone(images.tensors).values()))
        mine = rpn.head(list(rpn.features(images.tensors).values()))
        # Relative to the spread of the outputs, as random weights have no scale of their own.
        network = max(
            float((a - b).abs().max() / a.std())
            for one, other in zip(theirs, mine, strict=True)
            for a, b in zip(one, other, strict=True)
        )
        if network > 1e-3:
            sys.exit(f"WRONG: the heads of {name} differ by {network:.2g} standard deviations")
        direct, _ = to_input([frame], rpn.input_spec)
        std = torch.tensor(rpn.input_spec.std)[None, :, None, None]
        levels = ((direct - images.tensors) * std * 255).abs()
    return {
        "head_outputs_max_difference_in_std": network,
        "input_mean_difference_in_grey_levels": float(levels.mean()),
        "input_p99_difference_in_grey_levels": float(levels.flatten()[::7].quantile(0.99)),
    }


def compare(name: str, clip: str, frames: int, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Returns one row for the torchvision loop and one for each of our number formats."""
    out = str(folder / "out.jsonl")
    dtypes = ["float32"]
    if native_bfloat16(torch.device("cpu")):
        dtypes.append("bfloat16")
    pipelines = {
        dtype: Pipeline(api.load(load_model(name, "random"), top=None), device="cpu", dtype=dtype)
        for dtype in dtypes
    }
    results: dict[str, list[dict[str, Any]]] = {dtype: [] for dtype in dtypes}
    loop_fps: list[float] = []
    detector = torchvision_detector(name) if name in DETECTORS else None
    for _ in range(rounds + 1):
        if detector is not None:
            started = time.perf_counter()
            for _ in straightforward_loop(detector, clip, frames, out):
                pass
            loop_fps.append(frames / (time.perf_counter() - started))
        for dtype, pipeline in pipelines.items():
            results[dtype].append(ours(pipeline, clip, frames, out))
    rows: list[dict[str, Any]] = []
    if loop_fps:
        del loop_fps[0]  # the first round warms up: allocators, oneDNN's caches, the file cache
        rows.append({"model": name, "what": "torchvision loop float32", **_spread(loop_fps)})
    for dtype, runs in results.items():
        del runs[0]
        row = {"model": name, "what": f"stream-rpn {dtype}", **_spread([r["fps"] for r in runs])}
        if loop_fps:
            pairs = [r["fps"] / loop for r, loop in zip(runs, loop_fps, strict=True)]
            row["ratio"] = round(row["fps_median"] / rows[0]["fps_median"], 2)
            row["ratio_min"], row["ratio_max"] = round(min(pairs), 2), round(max(pairs), 2)
        middle = sorted(runs, key=lambda r: r["fps"])[len(runs) // 2]
        stages = middle["stages"]
        # Decoding overlaps the network's stages; those follow one another in one thread.
        network = sum(
            stage["total_seconds"]
            for key, stage in stages.items()
            if key not in ("decode", "sinks")
        )
        slowest = max(network, stages["decode"]["total_seconds"], stages["sinks"]["total_seconds"])
        row["overlap"] = round(slowest / middle["elapsed_seconds"], 3)
        row["cpu_utilisation"] = round(
            middle["cpu_seconds"] / middle["elapsed_seconds"] / torch.get_num_threads(), 3
        )
        row["stages_p50_ms"] = {key: stage["p50_ms"] for key, stage in stages.items()}
        rows.append(row)
    return rows


def memory_growth(folder: Path) -> dict[str, Any]:
    """Returns the resident megabytes after 1,000 and after 10,000 frames of one stream."""
    clip = folder / "long.mp4"
    _write_clip(LONG_CLIP, clip)
    rpn = api.load("mobilenet_v3_large_320_fpn", "random", size=64, top=100)
    sink = sinks.open_sink(str(folder / "long.jsonl"))
    resident = {}
    with Pipeline(rpn, device="cpu").open(str(clip)) as stream, sink:
        sink.begin(sinks.make_header(stream.info, model=rpn.name, parameters={}), stream.info)
        for proposals in stream:
            sink.write(proposals)
            if stream.num_results in (1000, 10000):
                resident[f"resident_mb_after_{stream.num_results}"] = _resident_megabytes()
        sink.end(stream.end())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**resident, "frames": stream.num_results, "peak_mb": round(peak, 1)}


def _resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "fps_median": round(statistics.median(values), 3),
        "fps_min": round(min(values), 3),
        "fps_max": round(max(values), 3),
        "rounds": len(values),
    }


def _write_clip(uri: str, path: Path) -> None:
    with SyntheticVideo.parse(uri).encoded() as encoded:
        path.write_bytes(encoded.read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video", help=f"a clip (default: {CLIP}, encoded first)")
    parser.add_argument("--models", nargs="+", default=list(FRAMES), choices=list(FRAMES))
    parser.add_argument("--frames", type=int, help="frames per round instead of each model's own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--json", default="bench/results/pipeline_cpu.json", metavar="PATH")
    arguments = parser.parse_args()
    facts = report.machine()
    print(report.describe_machine(facts))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = arguments.video
        if clip is None:
            clip = str(folder / "clip.mp4")
            _write_clip(CLIP, Path(clip))
        rows, checks = [], {}
        for model in arguments.models:
            if model in DETECTORS:
                checks[model] = agreement(model, clip)
            frames = arguments.frames or FRAMES[model]
            rows += compare(model, clip, frames, arguments.rounds, folder)
        memory = None if arguments.skip_memory else memory_growth(folder)
    report.print_table(
        rows, ["model", "what", "fps_median", "fps_min", "fps_max", "ratio", "ratio_min",
               "ratio_max", "overlap", "cpu_utilisation"],
    )  # fmt: skip
    print(json.dumps({"checks": checks, "memory": memory}, indent=1))
    report.write_json(
        arguments.json,
        "pipeline on a CPU",
        rows,
        clip=arguments.video or CLIP,
        weights="seeded random (COCO weights need the internet)",
        checks=checks,
        memory=memory,
    )


if __name__ == "__main__":
    main()
