"""The picture of a benchmark: what each stage takes, how fast it is by batch, and beside others."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stream_rpn.frame import StreamRPNError
from stream_rpn.sinks.place import write_whole

OURS, OTHERS = "#e8590c", "#adb5bd"
"""The colours of this package and of others in comparisons."""


def new_figure(width: float, height: float) -> Any:
    """Returns an empty matplotlib figure, in inches.

    Raises:
        StreamRPNError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise StreamRPNError(
            "a picture needs matplotlib; `pip install 'stream-rpn[bench]'` provides it"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def draw(report: Mapping[str, Any], path: str | Path) -> None:
    """Writes stages, scaling and comparison of a report of `stream-rpn bench` as a picture.

    Raises:
        StreamRPNError: matplotlib is not installed, or the file cannot be written.
    """
    peers = [row for row in report.get("compared", ()) if "fps" in row]
    figure = new_figure(16 if peers else 11, 4.2)
    panels = figure.subplots(1, 3 if peers else 2)
    _draw_stages(panels[0], report["batches"])
    _draw_batches(panels[1], report["batches"])
    if peers:
        draw_ranking(panels[2], [(row["name"], row["fps"]) for row in peers])
        panels[2].set(title="Others on the same file and weights")
    figure.suptitle(
        f"{report['model']}, {report['dtype']}, {report['device']}, "
        f"{report['width']}×{report['height']} {report['codec']}",
        fontsize="medium",
    )
    save(figure, path)


def _draw_stages(axes: Any, batches: Sequence[Mapping[str, Any]]) -> None:
    """Draws what a frame takes in each stage, a bar a batch size."""
    labels = [f"batch {row['batch']}" for row in batches]
    left = [0.0] * len(batches)
    for stage in ["decode", *batches[0]["unqueued"]["stages_ms"], "sink"]:
        values = [_stage_ms(row, stage) for row in batches]
        axes.barh(labels, values, left=left, label=stage)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="ms a frame, each stage alone", title="What a frame takes")
    # Below the bars, where it covers none.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, fontsize="small")


def _draw_batches(axes: Any, batches: Sequence[Mapping[str, Any]]) -> None:
    """Draws frames/s against the batch: of the whole, and the ceilings that its parts set."""
    sizes = [row["batch"] for row in batches]
    for part, style in (("whole", "o-"), ("network", ".--"), ("decode", ".:"), ("sink", ".:")):
        name = "the whole" if part == "whole" else f"{part} alone"
        axes.plot(sizes, [row[part]["fps"] for row in batches], style, label=name)
    axes.set(xlabel="batch", ylabel="frames/s", yscale="log", title="How fast, and the ceilings")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def draw_ranking(axes: Any, rows: Sequence[tuple[str, float]]) -> None:
    """Draws frames/s as bars, the highest on top, with their numbers; ours stand out."""
    names, values = zip(*sorted(rows, key=lambda row: -row[1]), strict=True)
    colors = [OURS if name.startswith("stream-rpn") else OTHERS for name in names]
    bars = axes.barh(names, values, color=colors, height=0.7)
    axes.bar_label(bars, [f"{v:.3g}" if v < 100 else f"{v:,.0f}" for v in values], padding=3)
    axes.invert_yaxis()
    axes.set(xlabel="frames/s", xlim=(0, 1.15 * max(values)))
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)


def check_name(path: str | Path) -> None:
    """Says now, and not after an hour, that a picture could not be written.

    Raises:
        StreamRPNError: matplotlib is not installed, or does not know the ending of the name.
    """
    known = new_figure(1, 1).canvas.get_supported_filetypes()
    if Path(path).suffix.lower().removeprefix(".") not in known:
        raise StreamRPNError(
            f"cannot write '{path}': the name of a picture ends in .png, or one of "
            f"{', '.join(f'.{ending}' for ending in sorted(known))}"
        )


def save(figure: Any, path: str | Path, **options: Any) -> None:
    """Writes a figure, whole or not at all; the ending of the name says in which format.

    Raises:
        StreamRPNError: it cannot be written.
    """
    check_name(path)
    write_whole(str(path), encoded(figure, Path(path).suffix.removeprefix("."), **options))


def encoded(figure: Any, ending: str, **options: Any) -> bytes:
    """Returns the file of a figure, of the format that ends so."""
    file = io.BytesIO()
    figure.savefig(file, format=ending.lower(), **{"dpi": 120, **options})
    return file.getvalue()


def _stage_ms(row: Mapping[str, Any], stage: str) -> float:
    stages = row["unqueued"]["stages_ms"]
    ms: float = (stages[stage] if stage in stages else row[stage]["latency_ms"])["mean_ms"]
    return ms
