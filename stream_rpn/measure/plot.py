"""The picture of a benchmark: what each stage takes, and how frames/s grow with the batch."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stream_rpn.frame import StreamRPNError
from stream_rpn.sinks.place import write_whole


def new_figure(width: float, height: float) -> Any:
    """Returns an empty matplotlib figure, in inches.

    Raises:
        StreamRPNError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise StreamRPNError(
            "a picture needs matplotlib; `pip install 'stream-rpn[bench]'` brings it"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def draw(report: Mapping[str, Any], path: str | Path) -> None:
    """Writes stage bars and scaling curves of a report of `stream-rpn bench` as a picture.

    Raises:
        StreamRPNError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure(11, 4.2)
    bars, curves = figure.subplots(1, 2)
    batches = report["batches"]
    labels = [f"batch {row['batch']}" for row in batches]
    stages = ["decode", *batches[0]["unqueued"]["stages_ms"], "sink"]
    left = [0.0] * len(batches)
    for stage in stages:
        values = [_stage_ms(row, stage) for row in batches]
        bars.barh(labels, values, left=left, label=stage)
        left = [a + b for a, b in zip(left, values, strict=True)]
    bars.invert_yaxis()
    bars.set_xlim(0, 1.3 * max(left))  # room for the legend
    bars.legend(loc="center right", fontsize="small")
    bars.set(xlabel="ms a frame, each stage alone", title="What a frame takes")
    sizes = [row["batch"] for row in batches]
    for part, style in (("whole", "o-"), ("network", ".--"), ("decode", ".:"), ("sink", ".:")):
        name = "the whole" if part == "whole" else f"{part} alone"
        curves.plot(sizes, [row[part]["fps"] for row in batches], style, label=name)
    curves.set(xlabel="batch", ylabel="frames/s", yscale="log", title="How fast, and the ceilings")
    curves.set_xscale("log", base=2)
    curves.set_xticks(sizes, [str(size) for size in sizes])
    curves.grid(alpha=0.3)
    curves.legend(fontsize="small")
    figure.suptitle(
        f"{report['model']}, {report['dtype']}, {report['device']}, "
        f"{report['width']}×{report['height']} {report['codec']}",
        fontsize="medium",
    )
    save(figure, path)


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
