"""The tables of the GPU, from what `bench.gpu_proof`, `decoders` and `live` report."""

from __future__ import annotations

import re
import statistics
from typing import Any

Report = dict[str, Any]


def tables(report: Report, newer: Report | None = None) -> str:
    """Returns frames/s of whole pipelines, and the times of the proposal stage, as Markdown.

    Args:
        report: of the proof.
        newer: of another one, by another Triton.
    """
    machine = report["machine"]
    rows = {section: [] for section in report["sections"]}
    for row in report["rows"]:
        rows.setdefault(row["section"], []).append(row)
    lines = [
        f"On one {machine['gpu']} ({machine['cores']} CPU cores, torch {machine['torch']}, "
        f"commit `{machine['commit']}`; `python -m bench.gpu_proof`), 1920×1080 H.264 to JSON "
        "lines:",
        "",
        "| | frames/s |",
        "|---|---|",
    ]
    for row in rows["pipeline"]:
        if row.get("frames_per_second"):
            ours = row["name"].startswith("stream-rpn")
            name = f"**{row['name']}**" if ours else row["name"]
            lines.append(f"| {name} | {number(row['frames_per_second'])} |")
    lines += [
        "",
        "The proposal stage there, microseconds a batch as a CUDA graph; the others launch kernel "
        "by kernel, as they wait for the host in between:",
        "",
        f"| | stream-rpn, Triton {machine['triton'][:3]} | {_triton(newer)}torchvision "
        "| detectron2-style |",
        f"|---|---|{'---|' if newer else ''}---|---|",
    ]
    stage = {(row["name"], row["what"]): row.get("us") for row in rows["proposal stage"]}
    again = (
        {}
        if newer is None
        else {row["name"]: row["us"] for row in newer["rows"] if row.get("what") == "stage"}
    )
    for name in dict.fromkeys(name for name, _ in stage):
        found = [stage.get((name, "stage")), *([again.get(name)] if newer else [])]
        found += [stage.get((name, who)) for who in ("torchvision eager", "detectron2-style")]
        values = " | ".join("" if value is None else f"{value:,.0f}" for value in found)
        lines.append(f"| {shape_in_words(name)} | {values} |")
    return "\n".join([*lines, ""])


def decoders(report: Report) -> str:
    """Returns frames/s by decoder as Markdown, from the report of `bench.decoders`."""
    table: dict[tuple[str, int, int], dict[str, Any]] = {}
    for row in report["rows"]:
        decoder = "nvdec" if "nvdec" in row["decoder"] else "cpu"
        table.setdefault((row["size"], row["cores"], row["sources"]), {})[decoder] = row
    lines = [
        f"Who decodes there, filmed people in 1080p, the default model, commit "
        f"`{report['machine']['commit']}` (`python -m bench.decoders CLIP`; from the first result "
        "to the last, CPU time of the whole process). `--decoder auto` is NVDEC from 720p on:",
        "",
        "| | CPU decodes, frames/s | CPU ms a frame | NVDEC decodes, frames/s | CPU ms a frame |",
        "|---|---|---|---|---|",
    ]
    for (_, cores, sources), found in table.items():
        values = " | ".join(
            f"{number(found[who]['fps'])} | {found[who]['cpu_ms']:.1f}" for who in ("cpu", "nvdec")
        )
        lines.append(f"| {sources} at a time, {cores} cores | {values} |")
    return "\n".join([*lines, ""])


def cameras(report: Report) -> str:
    """Returns how many cameras fare as Markdown, from the report of `bench.live`."""
    machine = report["machine"]
    scenarios: dict[str, list[dict[str, Any]]] = {}
    for row in report["rows"]:
        scenarios.setdefault(row["scenario"], []).append(row)
    lines = [
        f"On one {machine['gpu']}, whose {machine['cores']} CPU cores decode and send as well, the "
        f"default model, commit `{machine['commit']}` (`python -m bench.live --only 'of 1080p'`); "
        "medians of the cameras:",
        "",
        "| | frames in | results | dropped | p50 | p95 | p95 in the last third | memory, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in scenarios.items():
        keys = ("frames_in", "frames", "dropped", "p50", "p95", "p95_last_third", "peak_mib")
        values = " | ".join(f"{statistics.median(row[key] for row in rows):,.0f}" for key in keys)
        lines.append(f"| {name} frames/s, {rows[0]['seconds']:.0f} s | {values} |")
    return "\n".join([*lines, ""])


def _triton(report: Report | None) -> str:
    return f"Triton {report['machine']['triton'][:3]} | " if report else ""


def shape_in_words(shape: str) -> str:
    """Returns what a name such as "fpn1000 b8" stands for."""
    network, k, batch = re.fullmatch(r"(\D+)(\d+) b(\d+)", shape).groups()
    kind = {"fpn": "ResNet-50-FPN, 800×1333", "vgg": "VGG16, 600×1000"}[network]
    images = "" if batch == "1" else f", {batch} images"
    return f"{kind}, k = {k}{images}"


def number(value: float) -> str:
    """Returns three digits of a small number, and whole thousands of a large one."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
