"""The pictures of README.md and docs/, from bench/results/; `bench.readme` has them drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.gpu_table import number
from stream_rpn.measure.plot import new_figure, save

Report = dict[str, Any]
Metadata = dict[str, str]


def speed(path: Path, metadata: Metadata, report: Report) -> None:
    """Frames/s of ours and of other loops, a panel a model."""
    models = list(dict.fromkeys(row["model"] for row in report["rows"]))
    figure = new_figure(13, 3.4)
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        rows = [row for row in report["rows"] if row["model"] == model]
        values = [row["fps_median"] for row in rows]
        low = [row["fps_median"] - row["fps_min"] for row in rows]
        high = [row["fps_max"] - row["fps_median"] for row in rows]
        colors = ["C1" if row["what"].startswith("stream-rpn") else "C7" for row in rows]
        axes.barh([row["what"] for row in rows], values, xerr=[low, high], color=colors)
        axes.invert_yaxis()
        axes.set(title=model, xlabel="frames/s: median and range")
        axes.tick_params(labelsize="small")
        axes.grid(axis="x", alpha=0.3)
    save(figure, path, metadata=metadata)


def peers(path: Path, metadata: Metadata, scripts: Report, proof: Report) -> None:
    """Ours beside what people write, with the same weights and input in each panel."""
    ours, model = "stream-rpn nanodet_m 320, openvino", "resnet50_fpn"
    on_cpu = {
        row["what"]: row["fps_median"]
        for row in scripts["rows"]
        if row["what"] == ours or not row["what"].startswith("stream-rpn")
    }
    on_gpu = {
        row["name"]: row["frames_per_second"]
        for row in proof["rows"]
        if row["section"] == "pipeline" and row.get("frames_per_second") and model in row["name"]
        if "4 at a time" not in row["name"]
    }
    cpu = f"{scripts['machine']['cores']} cores of {scripts['machine']['cpu']}: NanoDet-Plus-m"
    gpu = f"{proof['machine']['gpu'].split(' 80GB')[0]}: ResNet-50-FPN"
    figure = new_figure(11, 2.6)
    for axes, title, found in zip(figure.subplots(1, 2), (cpu, gpu), (on_cpu, on_gpu), strict=True):
        names = sorted(found, key=lambda name: -found[name])
        colors = ["C1" if name.startswith("stream-rpn") else "C7" for name in names]
        said = [name.replace(f" {model},", "").replace(f", {model}", "") for name in names]
        bars = axes.barh(said, [found[name] for name in names], color=colors)
        axes.bar_label(bars, [number(found[name]) for name in names], padding=3, fontsize="small")
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("frames/s, 1080p H.264 to JSON lines", fontsize="small")
        axes.tick_params(labelsize="small")
    save(figure, path, metadata=metadata)


def scaling(path: Path, metadata: Metadata, report: Report) -> None:
    """Time over what it grows with, a panel a sweep."""
    figure = new_figure(11, 5.5)
    panels = figure.subplots(2, -(-len(report["growth"]) // 2), squeeze=False).flat
    for axes, growth in zip(panels, report["growth"], strict=False):
        rows = [row for row in report["rows"] if row["sweep"] == growth["sweep"]]
        x, ms = [row["x"] for row in rows], [row["ms"] for row in rows]
        axes.loglog(x, ms, "o-")
        axes.set(xlabel=growth["x"], ylabel="ms", ylim=(min(ms) / 3, max(ms) * 3))
        axes.set_title(f"{growth['time_of']}: x^{growth['time_exponent']:.2f}", fontsize="medium")
        axes.minorticks_off()
        axes.set_xticks(x, [row.get("label") or _short(row["x"]) for row in rows])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.tick_params(labelsize="small")
        axes.grid(alpha=0.3)
    save(figure, path, metadata=metadata)


def _short(number: float) -> str:
    """Returns 12000 as "12k"."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= 0.999 * size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"
