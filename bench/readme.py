"""Writes the numbers and pictures of README.md and of docs/ from bench/results/*.json.

    python -m bench.readme [--check]

What stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->` on a page is made by the function
of that name in `PAGES`. The pictures carry the digest of the results that they were drawn
from, so that `--check` can tell whether they are current whatever the version of matplotlib.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench import archive, batch, gate_table, gpu_table, pictures, recall_table, tiles
from bench.gpu_table import number, shape_in_words
from stream_rpn.engines import INT8
from stream_rpn.models import IN_INT8

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
DOCS = ROOT / "docs"
# The scripts on a processor where `auto` takes int8, written under this name.
WITHOUT_BFLOAT16 = "scripts_cpu_avx2.json"
# Above this share of the cores in other processes' hands, a measurement says so.
QUIET = 0.05
LIVE_SCENARIOS = {
    "steady 720p 30": "720p at 30 frames/s",
    "model 5x too slow": "the same, the model 5 × too slow",
    "four 360p 15": "four of 360p at 15 frames/s",
    "eight 180p 5": "eight of 180p at 5 frames/s",
    "http mjpeg 360p 15": "HTTP MJPEG, 360p at 15 frames/s",
    "20 % packets lost": "360p with 20 % of the packets lost",
}
# Those that ship, as tables show them.
RECALL_MODELS = ("tiny", "small", "nanodet_m", "nanodet_m_1.5x", "classic")

Report = dict[str, Any]


def rendered(page: str, text: str) -> str:
    """Returns the text of a page with what stands between its marks made anew."""
    for name, block in PAGES[page].items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{block()}{end}{rest.split(end)[1]}"
    return text


def stale_pictures() -> list[str]:
    """Returns the pictures that were not drawn from the results as they are now."""
    from PIL import Image

    stale = []
    for name, (sources, _) in PICTURES.items():
        if not _exist(sources):
            continue
        path = DOCS / name
        if not path.is_file() or Image.open(path).info.get("Source") != _digest(sources):
            stale.append(name)
    return stale


def draw_pictures() -> None:
    """Draws the pictures whose results are there."""
    for name, (sources, draw) in PICTURES.items():
        if _exist(sources):
            DOCS.mkdir(exist_ok=True)
            draw(DOCS / name, {"Source": _digest(sources)}, *map(_load, sources))


def _speed() -> str:
    """The first screen: how fast, on what, compared with what, how to repeat it."""
    repeat = (
        "On your video and machine: `stream-rpn bench video.mp4 --compare`; all numbers of "
        "[How fast](docs/performance.md): `make bench`.\n"
    )
    report = _load("scripts_cpu.json")
    if report is None:
        return repeat
    rows = {row["what"]: row for row in report["rows"]}
    dtype = report["default_dtype"]
    form = f" {INT8}" if dtype == INT8 else ""
    same = rows[f"stream-rpn nanodet_m 320, openvino{form}"]
    default = rows[f"stream-rpn nanodet_m 416, openvino{form}"]
    first = rows["stream-rpn tiny 320, torch"]
    simple = rows.get("OpenCV + OpenVINO script, 320")
    than_simple = (
        f" and {same['fps_median'] / simple['fps_median']:.2f} × the one that tutorials lead to"
        if simple
        else ""
    )
    start = report["first_result"]["openvino"]
    times = default["fps_median"] / first["fps_median"]
    return (
        f"**{default['fps_median']:.0f} frames/s** from {_clip(report)} to JSON lines "
        f"{_on(report)} ({dtype}, no GPU) with the default model, {times:.1f} × the first "
        "release's, which found much less. With the network and the size that scripts use, "
        f"{same['fps_median']:.0f} frames/s: **{same['ratio']:.2f} ×** an OpenVINO script "
        f"written with care{than_simple}.{_in_floats(rows) if form else ''} "
        f"First result after {start['seconds_median']:.1f} s, "
        f"{start['peak_memory_mb']:.0f} MB at the peak.{_speed_without_bfloat16()}"
        f"{_speed_on_gpu()}\n{repeat}"
    )


def _speed_without_bfloat16() -> str:
    report = _load(WITHOUT_BFLOAT16)
    if report is None:
        return ""
    rows = {row["what"]: row for row in report["rows"]}
    same, default = (rows[f"stream-rpn nanodet_m {size}, openvino {INT8}"] for size in (320, 416))
    return (
        f" Without bfloat16 ({INT8}, {_on(report)}): "
        f"{default['fps_median']:.0f}, and {same['fps_median']:.0f} ({same['ratio']:.2f} ×)."
    )


def _in_floats(rows: dict[str, dict[str, Any]]) -> str:
    default = rows["stream-rpn nanodet_m 416, openvino"]
    same = rows["stream-rpn nanodet_m 320, openvino"]
    return (
        f" `--dtype float32`, for a little more recall: {default['fps_median']:.0f}, and "
        f"{same['fps_median']:.0f} ({same['ratio']:.2f} ×)."
    )


def _speed_on_gpu() -> str:
    report = _load("gpu_proof.json")
    if report is None:
        return ""
    rows = [row for row in report["rows"] if row.get("frames_per_second")]
    found = {row["name"]: row["frames_per_second"] for row in rows if row["section"] == "pipeline"}
    model = "resnet50_fpn"
    # One source, as the other loop has.
    ours = max(
        fps
        for name, fps in found.items()
        if name.startswith(f"stream-rpn {model}") and name.endswith(", 1 at a time")
    )
    tuned = next(fps for name, fps in found.items() if name.startswith("torchvision loop, tuned"))
    return (
        f" On one {report['machine']['gpu'].split(' 80GB')[0]}: `{model}` at {ours:.0f} frames/s, "
        f"{ours / tuned:.1f} × torchvision's loop tuned for it."
    )


def _numbers() -> str:
    proof, decoders = _load("gpu_proof.json"), _load("decoders.json")
    parts = [
        proof and gpu_table.tables(proof, _load("gpu_proof_triton_3_8.json")),
        decoders and gpu_table.decoders(decoders),
        _scripts("scripts_cpu.json"),
        _scripts(WITHOUT_BFLOAT16),
        _pipeline(),
        _kernels(),
        _growth(),
    ]
    return "\n".join(part for part in parts if part)


def _scripts(name: str) -> str:
    report = _load(name)
    if report is None:
        return ""
    lines = [
        f"Beside the scripts that people write: NanoDet-Plus-m, the same weights, from "
        f"{_clip(report)} to JSON lines of 300 boxes {_on(report)}, where `auto` is "
        f"{report['default_dtype']}, in turns in one run, medians (the number in a name is the "
        "input's shorter side):",
        "",
        "| | frames/s | × the careful script | CPU ms a frame |",
        "|---|---|---|---|",
    ]
    for row in sorted(report["rows"], key=lambda row: -row["fps_median"]):
        ours = row["what"].startswith("stream-rpn")
        name = f"**{row['what']}**" if ours else row["what"]
        spread = f"{row['ratio_min']:.2f}–{row['ratio_max']:.2f}"
        lines.append(
            f"| {name} | {number(row['fps_median'])} | {row['ratio']:.2f} ({spread}) "
            f"| {number(row['cpu_ms_a_frame'])} |"
        )
    where = "The scripts stand in `stream_rpn/measure/openvino_scripts.py`."
    return "\n".join([*lines, "", f"{where} {_noise(report)}".rstrip(), ""])


def _pipeline() -> str:
    report = _load("pipeline_cpu.json")
    if report is None:
        return ""
    models = list(dict.fromkeys(row["model"] for row in report["rows"]))
    whats = list(dict.fromkeys(row["what"] for row in report["rows"]))
    cells = {(row["what"], row["model"]): row for row in report["rows"]}
    lines = [
        "Beside what PyTorch can do, by both engines:",
        "",
        f"Frames/s from {_clip(report)} to JSON lines {_on(report)}, and times the torchvision "
        "loop (`to_ndarray` → the detector's transform, backbone and RPN → JSON), same weights, "
        "in turns in one run; medians (by PyTorch where nothing else is said):",
        "",
        "| | " + " | ".join(f"`{model}`" for model in models) + " |",
        "|---" * (len(models) + 1) + "|",
    ]
    for what in whats:
        found = [cells.get((what, model)) for model in models]
        name = f"**{what}**" if what.startswith("stream-rpn") else what
        lines.append(f"| {name} | " + " | ".join(_fps(row) for row in found) + " |")
    tuned = "“Tuned” is channels-last and bfloat16 autocast where that is faster."
    lines += ["", f"{tuned} {_noise(report)}".rstrip()]
    return "\n".join([*lines, "", "![Frames per second, ours and others'](speed.png)", ""])


def _fps(row: Report | None) -> str:
    if row is None:
        return ""
    fps = number(row["fps_median"])
    return f"{fps} ({row['ratio']:.1f} ×)" if "ratio" in row else fps


def _kernels() -> str:
    report = _load("kernels_cpu.json")
    if report is None:
        return ""
    rows = report["rows"]
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    whos = list(dict.fromkeys(row["who"] for row in rows))
    ms = {(row["shape"], row["who"]): row.get("median_ms") for row in rows}
    lines = [
        f"The proposal stage alone {_on(report)}, milliseconds an image (head outputs to boxes, "
        "the same boxes from all):",
        "",
        "| pre-NMS k per level | " + " | ".join(whos) + " |",
        "|---" * (len(whos) + 1) + "|",
    ]
    for shape in shapes:
        found = (ms.get((shape, who)) for who in whos)
        values = " | ".join("" if value is None else number(value) for value in found)
        lines.append(f"| {shape_in_words(shape)} | {values} |")
    timed = [row for row in rows if "median_ms" in row]
    low = min(row["p10_ms"] / row["median_ms"] for row in timed)
    high = max(row["p90_ms"] / row["median_ms"] for row in timed)
    spread = f"Eight runs of ten took between {low:.2f} and {high:.2f} times these medians."
    return "\n".join([*lines, "", spread, ""])


def _growth() -> str:
    report = _load("scaling_cpu.json")
    if report is None:
        return ""
    lines = [
        f"How it grows {_on(report)}:",
        "",
        "| | from | to | time | grows as | memory, MB | grows as |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["growth"]:
        ms = f"{number(row['ms_from'])} → {number(row['ms_to'])} ms"
        time = f"{ms} ({row['time_of']})"
        growth = f"x^{row['time_exponent']:.2f} (r² {row['r2']:.2f})"
        lines.append(
            f"| {row['x']} | {row['from']} | {row['to']} | {time} | {growth} "
            f"| {row['mb_from']:.0f} → {row['mb_to']:.0f} | x^{row['memory_exponent']:.2f} |"
        )
    return "\n".join([*lines, "", "![How time grows](scaling.png)", ""])


def _recall() -> str:
    reports = {model: _load(f"{model}.json") for model in RECALL_MODELS}
    reports |= {f"{model} --dtype int8": _load(f"{model}_int8.json") for model in IN_INT8}
    return recall_table.of_all({model: report for model, report in reports.items() if report})


def _card(model: str) -> dict[str, Callable[[], str]]:
    """Returns the blocks of a model's card."""

    def recall(name: str = model) -> str:
        report = _load(f"{name}.json")
        return "" if report is None else recall_table.card(report)

    def certainty() -> str:
        report = _load("certainty.json")
        return "" if report is None else recall_table.certainty(report, model)

    blocks: dict[str, Callable[[], str]] = {"recall": recall}
    if model in IN_INT8:
        blocks |= {form: partial(recall, f"{model}_{form}") for form in (INT8, "bfloat16")}
    if model.startswith("nanodet"):
        blocks["certainty"] = certainty
    return blocks


def _live() -> str:
    on_cpus = map(_load, ("live_cpu.json", "live_cpu_avx2.json"))
    tables = [_ages(report) for report in on_cpus if report]
    on_gpu = _load("live_gpu.json")
    return "\n".join([*tables, gpu_table.cameras(on_gpu) if on_gpu else ""])


def _ages(report: Report) -> str:
    lines = [
        "Age of results when written, in milliseconds, from senders on the same machine, "
        f"{_on(report)} (`python -m bench.live`; of several sources the oldest):",
        "",
        "| | frames in | results | dropped | p50 | p95 | p99 |",
        "|---|---|---|---|---|---|---|",
    ]
    for scenario, name in LIVE_SCENARIOS.items():
        of_it = [row for row in report["rows"] if row["scenario"] == scenario]
        row = max(of_it, key=lambda r: r["p95"])
        counts = " | ".join(f"{row[key]:,}" for key in ("frames_in", "frames", "dropped"))
        ages = " | ".join(f"{row[key]:.0f}" for key in ("p50", "p95", "p99"))
        lines.append(f"| {name}, {row['seconds']:.0f} s | {counts} | {ages} |")
    return "\n".join([*lines, ""])


def _gate() -> str:
    report = _load("gate.json")
    if report is None:
        return ""
    live = _load("live_gate_cpu.json")
    tables = gate_table.tables(report, _on(report))
    return tables if live is None else f"{tables}\n{gate_table.live(live['rows'], _on(live))}"


def _archive() -> str:
    report = _load("archive.json")
    return "" if report is None else archive.tables(report)


def _batch() -> str:
    report = _load("batch.json")
    if report is None:
        return ""
    return f"{batch.table(report, _on(report))}\n{_noise(report)}".rstrip() + "\n"


def _tiles() -> str:
    report = _load("tiles.json")
    return "" if report is None else tiles.table(report)


def _clip(report: Report) -> str:
    codec = {"h264": "H.264", "hevc": "HEVC"}.get(report["codec"], report["codec"])
    return f"{report['width']}×{report['height']} {codec}"


def _on(report: Report) -> str:
    machine = report["machine"]
    threads = machine["torch_threads"]
    cores = "one thread" if threads == 1 else f"{machine['cores']} cores"
    return f"on {cores} of {machine['cpu']}, commit `{machine['commit']}`"


def _noise(report: Report) -> str:
    shares = [row.get("others_utilisation") or 0.0 for row in report["rows"]]
    if max(shares) <= QUIET:
        return ""
    return (
        f"**The machine was not quiet**: other processes took up to {100 * max(shares):.0f} % of "
        "its cores. Take all of this as rough."
    )


def _exist(names: tuple[str, ...]) -> bool:
    return all((RESULTS / name).is_file() for name in names)


def _digest(names: tuple[str, ...]) -> str:
    return hashlib.sha256(b"".join((RESULTS / name).read_bytes() for name in names)).hexdigest()


def _load(name: str) -> Report | None:
    path = RESULTS / name
    return json.loads(path.read_text()) if path.is_file() else None


# Page → the blocks it has, by name.
PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"speed": _speed},
    "docs/archive.md": {"archive": _archive},
    "docs/batch.md": {"batch": _batch},
    "docs/cameras.md": {"live": _live},
    "docs/gate.md": {"gate": _gate},
    "docs/models.md": {"recall": _recall},
    "docs/performance.md": {"numbers": _numbers},
    "docs/regions.md": {"tiles": _tiles},
    **{f"stream_rpn/models/{model}.md": _card(model) for model in RECALL_MODELS},
}
# Name in docs/ → (the results it shows, what draws it from them).
PICTURES: dict[str, tuple[tuple[str, ...], Callable[..., None]]] = {
    "speed.png": (("pipeline_cpu.json",), pictures.speed),
    "peers.png": (("scripts_cpu.json", "gpu_proof.json"), pictures.peers),
    "scaling.png": (("scaling_cpu.json",), pictures.scaling),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail where a page is not current")
    arguments = parser.parse_args()
    written = {page: (ROOT / page).read_text() for page in PAGES}
    fresh = {page: rendered(page, text) for page, text in written.items()}
    stale = [page for page in PAGES if fresh[page] != written[page]]
    if arguments.check:
        if stale := stale + stale_pictures():
            what = ", ".join(stale)
            sys.exit(f"{what}: not what bench/results says; run python -m bench.readme")
        return
    draw_pictures()
    for page in stale:
        (ROOT / page).write_text(fresh[page])


if __name__ == "__main__":
    main()
