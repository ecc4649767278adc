"""What an archive of 10⁶ hours takes: python -m bench.archive [CLIP …] [--json FILE].

From what was measured: `decoders.json` (frames/s of whole pipelines on one GPU and its cores),
`gpu_proof.json` (the network alone) and `scripts_cpu.json` (two cores without a GPU); the bytes
that results take are measured here, on CLIPs. Prices and sizes of videos are assumptions, options
with their defaults, and stand in the report. Then a fleet of 10⁴ workers is simulated
(`bench.fleet`).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import report
from bench.fleet import Archive, Fleet, run
from stream_rpn import cli, read

RESULTS = Path(__file__).parent / "results"
CLIP = "synthetic:1920x1080@25,100"
FORMATS = ("boxes.parquet", "boxes.jsonl.gz", "boxes.jsonl")
GPUS = (1, 8, 64)
# Of the archive: what the last hours lose is as much, and is seen better.
SIMULATED = 0.1
# Of videos whole and cut, and of what else could be done; changes to what `Fleet` has.
POLICIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "whole videos": ({}, {"piece": None}),
    "whole videos, longest first": ({}, {"piece": None, "longest_first": True}),
    "pieces of 30 min": ({}, {"piece": 1800}),
    "pieces of 10 min": ({}, {"piece": 600}),
    "pieces of 5 min": ({}, {"piece": 300}),
    "pieces of 1 min": ({}, {"piece": 60}),
    "10 min, an hour until a piece counts as hung": ({"limit": 3600}, {"piece": 600}),
    "10 min, a share for each at the start": ({}, {"piece": 600, "shares": True}),
    "10 min, nobody taken away": ({"preempted": 0.0}, {"piece": 600}),
    "10 min, taken away every second hour": ({"preempted": 0.5}, {"piece": 600}),
    "10 min, a driver of 300 pieces a second": ({"handed_out": 300}, {"piece": 600}),
}


def measured(name: str) -> list[dict[str, Any]]:
    """Returns the rows of a committed report."""
    return json.loads((RESULTS / f"{name}.json").read_text())["rows"]


def rates() -> dict[str, float]:
    """Returns frames/s of 1080p H.264: whole pipelines, and what bounds them."""
    whole = {
        (row["sources"], row["cores"], "nvdec" in row["decoder"]): row["fps"]
        for row in measured("decoders")
    }
    network = next(
        row["stages"]["network"]
        for row in measured("gpu_proof")
        if row["section"] == "pipeline" and "nanodet_m, h264 (nvdec), 1" in row["name"]
    )
    cpu = next(row for row in measured("scripts_cpu") if row["what"].endswith("416, openvino"))
    return {
        "gpu": whole[4, 2, True],
        "one source": whole[1, 2, True],
        "cpu decoding, 2 cores": whole[1, 2, False],
        "cpu decoding, 16 cores": whole[1, 16, False],
        "network": 1000 / network,
        "2 cores": cpu["fps_median"],
    }


def sizes(clips: list[str]) -> Iterator[dict[str, Any]]:
    """Yields the bytes that a frame's results take, by clip, preset and format."""
    for clip in clips:
        for what, options in (("300 boxes", ()), ("annotate", ("--preset", "annotate"))):
            with tempfile.TemporaryDirectory() as folder:
                paths = [Path(folder, name) for name in FORMATS]
                outputs = [part for path in paths for part in ("-o", str(path))]
                code = cli.main([clip, *outputs, *options, "--max-frames", "250", "--quiet"])
                if code:
                    raise SystemExit(code)
                counts = [len(found) for found in read(str(paths[-1]))]
                for path in paths:
                    files = [path] if path.is_file() else path.iterdir()
                    yield {
                        "section": "size",
                        "clip": Path(clip).name,
                        "boxes": what,
                        "format": path.name.removeprefix("boxes"),
                        "boxes_a_frame": sum(counts) / len(counts),
                        "bytes_a_frame": sum(f.stat().st_size for f in files) / len(counts),
                    }


def plans(assumed: dict[str, float], frame_bytes: float) -> Iterator[dict[str, Any]]:
    """Yields what the archive takes of 1, 8 and 64 GPUs, by what a GPU does in a second.

    Args:
        assumed: hours, fps, megabits (a second of video) and gpu_hour (dollars).
        frame_bytes: of the results of a frame.
    """
    known = rates()
    frames = assumed["hours"] * 3600 * assumed["fps"]
    for gpus in GPUS:
        for what, rate in (("as measured", known["gpu"]), ("network's limit", known["network"])):
            seconds = frames / rate / gpus
            yield {
                "section": "plan",
                "gpus": gpus,
                "what": what,
                "frames_per_second": rate,
                "days": seconds / 86400,
                "gpu_hours": seconds * gpus / 3600,
                "dollars": seconds * gpus / 3600 * assumed["gpu_hour"],
                "read_gbit_s": assumed["megabits"] * rate * gpus / assumed["fps"] / 1000,
                "written_tb": frames * frame_bytes / 1e12,
                "written_mb_s": rate * gpus * frame_bytes / 1e6,
            }


def simulated(hours: float) -> Iterator[dict[str, Any]]:
    """Yields what becomes of the archive in a fleet, by policy."""
    for name, (changes, how) in POLICIES.items():
        fleet = Fleet(**changes)
        found = run(Archive(hours), fleet, **how)
        yield {"section": "fleet", "policy": name, **found}


def tables(found: dict[str, Any]) -> str:
    """Returns a report's tables as Markdown."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in found["rows"]:
        rows.setdefault(row["section"], []).append(row)
    a, archive, fleet = found["assumed"], found["archive"], found["fleet"]
    lines = [
        f"{a['hours']:,.0f} hours of 1080p H.264 at {a['fps']:g} frames/s and {a['megabits']:g} "
        f"Mbit/s, {a['gpu_hour']:g} dollars a GPU-hour (assumed); frames/s of one H100 measured "
        "with four videos at a time and two cores (`decoders.json`), or what its network alone "
        "allows (`gpu_proof.json`), which nobody has shown of a whole pipeline:",
        "",
        "| GPUs | frames/s each | days | GPU-hours | dollars | reads | writes | results |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['gpus']} | {r['frames_per_second']:,.0f} ({r['what']}) | {r['days']:,.1f} | "
        f"{r['gpu_hours']:,.0f} | {r['dollars']:,.0f} | {r['read_gbit_s']:.2g} Gbit/s | "
        f"{r['written_mb_s']:,.0f} MB/s | {r['written_tb']:,.0f} TB |"
        for r in rows["plan"]
    ]
    lines += [
        "",
        "Results of a frame, in bytes (the table above counts those of Parquet with 300 boxes):",
        "",
        f"| | boxes a frame | {' | '.join(FORMATS)} |",
        "|---" * (len(FORMATS) + 2) + "|",
    ]
    for clip, boxes in dict.fromkeys((r["clip"], r["boxes"]) for r in rows["size"]):
        of = [r for r in rows["size"] if (r["clip"], r["boxes"]) == (clip, boxes)]
        cells = " | ".join(f"{r['bytes_a_frame']:,.0f}" for r in of)
        lines.append(f"| {clip}, {boxes} | {of[0]['boxes_a_frame']:.0f} | {cells} |")
    lines += [
        "",
        f"A fleet of {fleet['workers']:,} workers, simulated over {archive['hours']:,.0f} hours of "
        f"video (median {archive['median'] / 60:g} minutes, at most {archive['longest'] / 3600:g} "
        f"hours), each {fleet['speed']:g} times as fast as the film; {fleet['stragglers']:.0%} of "
        f"them are {fleet['slowness']:g} times slower, each is taken away {fleet['preempted']:g} "
        f"times an hour, {archive['poison']:.2%} of the videos are poison, and the driver hands "
        f"out {fleet['handed_out']:,.0f} pieces a second:",
        "",
        "| | pieces | hours | above the best | 99 % after | idle | lost work | driver busy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['policy']} | {r['pieces']:,} | {r['hours']:.2f} | "
        f"{r['hours'] / r['ideal_hours'] - 1:.0%} | {r['hours_99']:.2f} | {r['idle']:.1%} | "
        f"{r['wasted']:.2%} | {r['driver_busy']:.0%} |"
        for r in rows["fleet"]
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measures, computes, simulates, prints, and writes the report."""
    parser = argparse.ArgumentParser(prog="python -m bench.archive", description=__doc__)
    parser.add_argument("clips", nargs="*", default=[CLIP], metavar="CLIP")
    parser.add_argument("--hours", type=float, default=1e6, help="of video (1000000)")
    parser.add_argument("--fps", type=float, default=25, help="of the videos (25)")
    parser.add_argument("--megabits", type=float, default=5, help="a second of video (5)")
    parser.add_argument("--gpu-hour", type=float, default=3, help="dollars (3)")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    assumed = {k: v for k, v in vars(arguments).items() if isinstance(v, float | int)}
    rows = list(sizes(arguments.clips))
    parquet = [r["bytes_a_frame"] for r in rows if r["format"] == ".parquet"]
    rows += plans(assumed, max(parquet))
    rows += simulated(arguments.hours * SIMULATED)
    meta = {
        "assumed": assumed,
        "archive": asdict(Archive(arguments.hours * SIMULATED)),
        "fleet": asdict(Fleet()),
    }
    print(tables({**meta, "rows": rows}))
    if arguments.json:
        report.write_json(arguments.json, "archive", rows, **meta)


if __name__ == "__main__":
    main()
