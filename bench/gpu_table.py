"""The tables of the GPU, from the reports of `bench.gpu_proof` and `bench.decoders`."""

from __future__ import annotations

import re
from typing import Any

Report = dict[str, Any]


def tables(report: Report) -> str:
    """Returns frames/s of whole pipelines, and the times of the proposal stage, as Markdown."""
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
        "| | stream-rpn | torchvision | detectron2-style |",
        "|---|---|---|---|",
    ]
    stage = {(row["name"], row["what"]): row.get("us") for row in rows["proposal stage"]}
    for name in dict.fromkeys(name for name, _ in stage):
        whos = ("stage", "torchvision eager", "detectron2-style")
        found = (stage.get((name, who)) for who in whos)
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


def shape_in_words(shape: str) -> str:
    """Returns what a name such as "fpn1000 b8" stands for."""
    network, k, batch = re.fullmatch(r"(\D+)(\d+) b(\d+)", shape).groups()
    kind = {"fpn": "ResNet-50-FPN, 800×1333", "vgg": "VGG16, 600×1000"}[network]
    images = "" if batch == "1" else f", {batch} images"
    return f"{kind}, k = {k}{images}"


def number(value: float) -> str:
    """Returns three digits of a small number, and whole thousands of a large one."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
