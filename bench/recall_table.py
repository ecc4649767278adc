"""The tables of recall, from the reports of `bench.recall` and `bench.certainty`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Report = dict[str, Any]

DATA = {
    "val": "400 COCO images, shorter side 320",
    "val2017": "those of them from val2017",
    "coco_unseen": "other things than COCO's in COCO images",
    "aquarium": "sea life",
    "bccd": "blood cells",
    "raccoon": "raccoons",
    "tud-campus": "TUD-Campus",
    "pets09-s2l1-part1": "PETS09-S2L1",
}
SUMMARY = ("AR@100", "AR@1000", "R50@100", "R50@300", "R50@1000")
ALL = ("AR@10", "AR@100", "AR@300", "AR@1000", "R50@100", "R50@300", "R50@1000")
MEANING = (
    "AR is the mean over IoU 0.5–0.95, R50 is at IoU 0.5, @ the number of proposals an image; on "
    "the videos, people are annotated"
)


def of_all(reports: Mapping[str, Report]) -> str:
    """Returns the recall of models by name."""
    lines = [f"Recall ({MEANING}):", "", *_head("model", "data", "objects", *SUMMARY)]
    for model, report in reports.items():
        lines += [f"| `{model}` {_row(row, SUMMARY)}" for row in report["rows"]]
    return "\n".join(lines) + "\n"


def card(report: Report) -> str:
    """Returns the recall of one model, as its card tells it."""
    model, rows = report["model"], report["rows"]
    dtype = report["dtype"]
    plain = dtype == "float32"
    name, option = (model, "") if plain else (f"{model}_{dtype}", f"--dtype {dtype} ")
    lines = [
        f"From `bench/results/{name}.json`, made by `python -m bench.recall --model {model} "
        f"{option}--data DIR --json bench/results/{name}.json` (by {report['engine']} in "
        f"{dtype}; {MEANING}):",
        "",
        *_head("data", "objects", *ALL),
        *(_row(row, ALL) for row in rows),
        "",
    ]
    val = rows[0]
    sizes = (
        f"{area} ({val[f'objects/{area}']:,} objects) "
        f"{val[f'AR@100/{area}']:.3f} and {val[f'AR@1000/{area}']:.3f}"
        for area in ("small", "medium", "large")
    )
    lines.append(
        "By size (area of the box in these images; COCO's limits, 32² and 96²), AR@100 and AR@1000 "
        f"on the 400 images: {', '.join(sizes)}."
    )
    return "\n".join(lines) + "\n"


def certainty(report: Report, model: str) -> str:
    """Returns the recall of a model by how much sure sides count."""
    rows = [row for row in report["rows"] if row["model"] == model]
    numbers = ("AR@100", "R50@100", "R50@300")
    factors = list(dict.fromkeys(row["certainty"] for row in rows))
    (shipped,) = {row["certainty"] for row in rows if row["shipped"]}
    every = report["every"]
    nth = {1: "", 2: "second ", 3: "third "}.get(every, f"{every}th ")
    lines = [
        "What the factor on sure sides does, from `bench/results/certainty.json` "
        f"(`python -m bench.certainty --data DIR`; torch, float32, every {nth}picture of each set; "
        f"{shipped:g} ships):",
        "",
        *_head("data", "pictures", "recall", *(f"{factor:g}" for factor in factors)),
    ]
    for data in dict.fromkeys(row["data"] for row in rows):
        of_it = [row for row in rows if row["data"] == data]
        for number in numbers:
            values = " | ".join(f"{row[number]:.3f}" for row in of_it)
            lines.append(f"| {DATA[data]} | {of_it[0]['images']} | {number} | {values} |")
    return "\n".join(lines) + "\n"


def _head(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def _row(row: Report, numbers: tuple[str, ...]) -> str:
    values = " | ".join(f"{row[number]:.3f}" for number in numbers)
    return f"| {DATA[row['data']]} | {row['objects']:.0f} | {values} |"
