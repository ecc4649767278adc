"""The tables of what `--gate` holds and loses, from the report of `bench.gate`."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean
from typing import Any

Row = dict[str, Any]
KEPT = ("R50@100 kept", "R50@300 kept", "AR@100 kept", "AR@300 kept")


def tables(report: dict[str, Any], on: str) -> str:
    """Returns them as Markdown.

    Args:
        report: of `bench.gate`.
        on: the machine, in words.
    """
    rows: dict[str, list[Row]] = {}
    for row in report["rows"]:
        rows.setdefault(row["section"], []).append(row)
    parts = [_recall(rows.get("recall", [])), _levels(rows), _fps(rows.get("fps", []), on)]
    cost = [r for r in rows.get("cost", []) if (r["size"], r["what"]) == ("1920x1080", "gate")]
    if cost:
        parts.append(
            f"The gate takes {cost[0]['best_ms']:.2f} ms a 1080p frame on one core "
            f"(the quickest of 400; median {cost[0]['median_ms']:.2f}).\n"
        )
    return "\n".join(part for part in parts if part)


def _recall(rows: list[Row]) -> str:
    rows = [row for row in rows if row["level"] == 1]
    if not rows:
        return ""
    cameras = list(dict.fromkeys(row["camera"] for row in rows))
    lines = [
        "Share of frames held by `--gate auto`, and what is kept of the recall without it, at the "
        "worst of IoU 0.5 and the mean over IoU 0.5–0.95, 100 and 300 boxes (`python -m "
        "bench.gate`). People are annotated, in Intel's clips what the network is sure of counts; "
        "paused shows each picture six times, and in one walker the others are not there:",
        "",
        f"| | {' | '.join(cameras)} |",
        "|---" * (len(cameras) + 1) + "|",
    ]
    for clip in dict.fromkeys(row["clip"] for row in rows):
        cells = [f"{r['held']:.0%} held, {_kept(r):.3f} kept" for r in rows if r["clip"] == clip]
        lines.append(f"| {clip} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _levels(rows: dict[str, list[Row]]) -> str:
    by_level: dict[float, list[Row]] = {}
    for row in rows.get("recall", []):
        by_level.setdefault(row["level"], []).append(row)
    if not by_level:
        return ""
    lines = [
        "What a level costs: frames held (mean of the above), recall kept (worst of all), and the "
        "least contrast, in grey levels, of an object of 1 % of a 1080p picture's width that is "
        "looked at in its first frame. `auto` is the highest of these that keeps 0.99 everywhere:",
        "",
        "| `--gate` | held | kept | contrast, no noise | with noise of σ 3 | σ 6 |",
        "|---|---|---|---|---|---|",
    ]
    for level, of_it in by_level.items():
        seen = [_least(rows.get("enter", []), level, sigma) for sigma in (0, 3, 6)]
        kept = min(map(_kept, of_it))
        held = mean(row["held"] for row in of_it)
        name = "**auto** (1)" if level == 1 else f"{level:g}"
        lines.append(f"| {name} | {held:.0%} | {kept:.3f} | {' | '.join(seen)} |")
    return "\n".join([*lines, ""])


def _kept(row: Row) -> float:
    return min(row[number] for number in KEPT)


def _least(rows: Iterable[Row], level: float, sigma: float) -> str:
    """Returns the contrast from which on an object is looked at, of those that were tried."""
    tried = sorted(
        (r["contrast"], r["frames"]) for r in rows if (r["level"], r["sigma"]) == (level, sigma)
    )
    missed = [contrast for contrast, frames in tried if frames != 0]
    found = [contrast for contrast, _ in tried if contrast > max(missed, default=0)]
    if found:
        return str(found[0])
    return f"over {tried[-1][0]}" if tried else ""


def _fps(rows: list[Row], on: str) -> str:
    if not rows:
        return ""
    sides = {(row["clip"], row["gate"]): row for row in rows}
    lines = [
        f"Frames/s from file to JSON lines with sensor noise {on}, medians, in turns:",
        "",
        "| | without | `--gate auto` | |",
        "|---|---|---|---|",
    ]
    for clip in dict.fromkeys(row["clip"] for row in rows):
        off, auto = sides[clip, "off"], sides[clip, "auto"]
        times = f"{auto['ratio']:.2f} × ({auto['ratio_min']:.2f}–{auto['ratio_max']:.2f})"
        lines.append(f"| {clip} | {off['fps_median']:.3g} | {auto['fps_median']:.3g} | {times} |")
    busy = max(row.get("others_utilisation") or 0.0 for row in rows)
    if busy > 0.05:
        lines += [
            "",
            f"**The machine was not quiet**: other processes took up to {100 * busy:.0f} % of its "
            "cores. Take these as rough; the shares held do not depend on it.",
        ]
    return "\n".join([*lines, ""])


def live(rows: list[Row], on: str) -> str:
    """Returns a table of the live cameras of which all but one are still, from `bench.live`."""
    lines = [
        f"Eight cameras of 360p at 10 frames/s, seven of them still, {on}; ages of results in "
        "milliseconds, of the still ones the oldest (the machine was not quiet):",
        "",
        "| | frames in | results | held | dropped | p50 | p95 |",
        "|---|---|---|---|---|---|---|",
    ]
    for scenario in dict.fromkeys(row["scenario"] for row in rows):
        of_it = [row for row in rows if row["scenario"] == scenario]
        moving, *still = sorted(of_it, key=lambda row: row["camera"])
        gate = scenario.rpartition(" ")[2]
        lines.append(_line(f"`--gate {gate}`, the one that moves", [moving]))
        lines.append(_line(f"`--gate {gate}`, the still ones", still))
    return "\n".join([*lines, ""])


def _line(name: str, rows: list[Row]) -> str:
    keys = ("frames_in", "frames", "held", "dropped")
    counts = (f"{sum(row[key] for row in rows):,}" for key in keys)
    ages = (f"{max(row[key] for row in rows):.0f}" for key in ("p50", "p95"))
    return f"| {' | '.join([name, *counts, *ages])} |"
