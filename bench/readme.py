"""Writes the numbers of README.md from bench/results/*.json: python -m bench.readme [--check]."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- numbers:begin -->", "<!-- numbers:end -->"


def rendered(text: str) -> str:
    """Returns the README's text with the numbers between its two marks made anew."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{_pipeline()}{_recall()}{END}{after}"


def _pipeline() -> str:
    report = _load("pipeline_cpu.json")
    if report is None:
        return ""
    machine = report["machine"]
    lines = [
        f"From file to JSON lines on {machine['cores']} cores ({machine['cpu']}), "
        f"{report['clip'].removeprefix('synthetic:')} H.264, no GPU, against the loop a "
        'torchvision user writes (`to_ndarray("rgb24")` → the detector\'s transform, backbone and '
        f"RPN → JSON), same weights ({report['weights']}), in turns in one run, commit "
        f"`{machine['commit']}`:",
        "",
        "| model | | frames/s (median, range) | × torchvision loop |",
        "|---|---|---|---|",
    ]
    for row in report["rows"]:
        ratio = f"**{row['ratio']:.2f}**" if "ratio" in row else "–"
        if "torchvision loop" in row["what"]:
            ratio = "1"
        lines.append(
            f"| `{row['model']}` | {row['what']} | {row['fps_median']:.2f} "
            f"({row['fps_min']:.2f}–{row['fps_max']:.2f}) | {ratio} |"
        )
    memory = report.get("memory")
    if memory:
        lines += [
            "",
            f"Memory: {memory['resident_mb_after_1000']:.0f} MB resident after 1,000 frames of one "
            f"stream, {memory['resident_mb_after_10000']:.0f} MB after 10,000.",
        ]
    return "\n".join(lines) + "\n"


def _recall() -> str:
    report = _load("tiny.json")
    if report is None or "summary" not in report:
        return ""
    return "\n" + report["summary"] + "\n"


def _load(name: str) -> dict[str, Any] | None:
    path = RESULTS / name
    return json.loads(path.read_text()) if path.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where the README is not current")
    arguments = parser.parse_args()
    text = README.read_text()
    fresh = rendered(text)
    if arguments.check and fresh != text:
        sys.exit("README.md does not say what bench/results says; run python -m bench.readme")
    README.write_text(fresh)


if __name__ == "__main__":
    main()
