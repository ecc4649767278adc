"""`stream-rpn bench`: how fast a model is on your video and machine, what limits it, and the peers.

Every number is of the steady state: loading, compiling and the first batches are told apart. The
table goes to standard output; the definitions of its ratios stand in `measure.stages`.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from stream_rpn import signals
from stream_rpn.commands.arguments import (
    add_model_arguments,
    add_proposal_arguments,
    count_or_auto,
    load_options,
    rate,
)
from stream_rpn.commands.checks import check_model, check_sources
from stream_rpn.commands.outputs import check_file
from stream_rpn.commands.parser import examples
from stream_rpn.commands.progress import say
from stream_rpn.commands.tables import print_table
from stream_rpn.measure.plot import check_name, draw
from stream_rpn.queues import prefetch
from stream_rpn.sinks.place import write_whole

if TYPE_CHECKING:
    from rich.table import Table

    from stream_rpn.measure.stages import BatchReport, Part

SOURCE = "synthetic:1920x1080@30,90"
BATCHES = "1,8,32"
# Above this share of the cores in other processes' hands, the numbers are not the machine's.
QUIET = 0.05
PERCENTILES = ("p50_ms", "p95_ms", "p99_ms")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `stream-rpn bench`."""
    parser.epilog = examples(
        "stream-rpn bench video.mp4 --compare --json bench.json --png bench.png",
        "stream-rpn bench --model tiny --device cuda --batch 1,8,32",
    )
    parser.add_argument(
        "source", nargs="?", default=SOURCE, help=f"a video file (default: {SOURCE}, encoded first)"
    )
    add_model_arguments(
        parser,
        batch=None,
        batch_type=_counts,
        batch_help=f"frames per call, several to compare: N,N,… (default: those of {BATCHES} that "
        "are quick)",
    )
    add_proposal_arguments(parser, "top")
    parser.add_argument(
        "--decoder", choices=("auto", "cpu", "nvdec"), default="auto", help="what decodes"
    )
    what = parser.add_argument_group("measurement")
    what.add_argument(
        "--compare",
        action="store_true",
        help="also run what others would: the torchvision loop; OpenCV, TorchCodec and Ultralytics "
        "in front of the same model (those installed)",
    )
    what.add_argument("--seconds", type=rate, default=3.0, metavar="S", help="for each number")
    out = parser.add_argument_group("results")
    out.add_argument("--json", metavar="FILE", help="write all numbers")
    out.add_argument("--png", metavar="FILE", help="draw stages and scaling (needs matplotlib)")
    out.add_argument("--overwrite", action="store_true", help="replace existing outputs")


def _counts(text: str) -> str:
    """Returns an argument as it is, if it lists numbers from 1 up."""
    for part in text.split(","):
        count_or_auto(part)
    return text


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code.

    Raises:
        StreamRPNError: something cannot be read, measured or written.
    """
    for name in (arguments.json, arguments.png):
        if name is not None:
            check_file(name, [arguments.source], [], overwrite=arguments.overwrite)
    check_sources([arguments.source])
    check_model(arguments)
    if arguments.png is not None:
        check_name(arguments.png)
    from stream_rpn.measure.machine import describe_machine, machine
    from stream_rpn.measure.run import Bench

    facts = machine()
    print(describe_machine(facts), flush=True)
    with signals.temporary_folder("stream-rpn-bench-") as folder:
        batches = arguments.batch or BATCHES
        bench = Bench(arguments, load_options(arguments), batches, folder)
        print(bench.describe(), flush=True)
        # In a thread, as the product's network runs in one: where other programs want the cores,
        # OpenMP's barriers cost the main thread several times what they cost another.
        with prefetch(bench.measure(), 1, name="bench") as lines:
            for line in lines:
                say(f"  {line}")
    print()
    print_table(_stage_table(bench.reports))
    print()
    print_table(_whole_table(bench.reports))
    if bench.compared:
        print()
        print_table(_peer_table(bench.compared, bench.best.batch))
    print(f"\n{bench.best.bottleneck()}")
    if bench.others() > QUIET:
        print(
            f"The machine was not quiet: other processes took {100 * bench.others():.0f} % of its "
            "cores; the numbers are too low, and another run will give others."
        )
    report = {"name": "bench", "machine": facts, **bench.to_json()}
    if arguments.json is not None:
        write_whole(arguments.json, (json.dumps(report, indent=1) + "\n").encode())
    if arguments.png is not None:
        draw(report, arguments.png)
    return 0


def _titled(title: str) -> Table:
    from rich.table import Table  # not at the top: `--help` does without

    return Table(box=None, pad_edge=False, title=title, title_justify="left")


def _stage_table(reports: list[BatchReport]) -> Table:
    table = _titled("Each part alone")
    table.add_column("batch")
    table.add_column("part")
    for heading in ("ms a frame", "p50", "p95", "p99", "CPU ms", "frames/s at most"):
        table.add_column(heading, justify="right")
    for report in reports:

        def row(name: str, ms: float, spread: dict[str, float], cpu_ms: float | None) -> None:
            table.add_row(
                str(report.batch),  # noqa: B023 (called within the loop only)
                name,
                f"{ms:.2f}",
                *(f"{spread[p]:.2f}" if p in spread else "" for p in PERCENTILES),
                "" if cpu_ms is None else f"{cpu_ms:.2f}",
                f"{1e3 / ms:.1f}" if ms else "",
            )

        for part in (report.decode, report.network, report.sink):
            row(part.name, 1e3 / part.fps, part.latency_ms, part.cpu_ms)
            if part is report.network:
                for name, stage in report.unqueued.stages_ms.items():
                    row(f"  {name}", stage["mean_ms"], stage, None)
        table.add_section()
    return table


def _whole_table(reports: list[BatchReport]) -> Table:
    table = _titled("The whole")
    table.add_column("")
    for report in reports:
        table.add_column(f"batch {report.batch}", justify="right")

    def row(name: str, *values: float | None, form: str = "{:.1f}") -> None:
        if any(value is not None for value in values):
            table.add_row(name, *("" if v is None else form.format(v) for v in values))

    whole = [report.whole for report in reports]
    row("frames/s", *(part.fps for part in whole))
    row("÷ its slowest part alone (overlap)", *(r.overlap for r in reports), form="{:.2f}")
    of_cores = (r.whole.fps / r.cores_fps for r in reports)
    row("÷ what the cores could do", *of_cores, form="{:.2f}")
    for p in PERCENTILES:
        name = f"latency {p.removesuffix('_ms')}, queues full, ms"
        row(name, *(part.latency_ms[p] for part in whole))
    for p in PERCENTILES:
        name = f"latency {p.removesuffix('_ms')}, nothing queued, ms"
        row(name, *(report.unqueued.latency_ms[p] for report in reports))
    row("CPU, % of all cores", *(100 * part.usage.cpu_utilisation for part in whole))
    row("other processes, % of all cores", *_percent(whole, "others_utilisation"))
    row("GPU, % of the time", *_percent(whole, "gpu_utilisation"))
    row("peak memory, MB", *(part.usage.peak_memory_mb for part in whole), form="{:.0f}")
    row("peak GPU memory, MB", *(part.usage.gpu_peak_memory_mb for part in whole), form="{:.0f}")
    for what in ("gpu", "cpu"):
        joules = (getattr(part.usage, f"{what}_joules") for part in whole)
        each = (None if j is None else j / p.frames for j, p in zip(joules, whole, strict=True))
        row(f"{what.upper()} joules a frame", *each, form="{:.3f}")
    row("until the clock started, s", *(part.warm_up_seconds for part in whole), form="{:.2f}")
    return table


def _percent(parts: list[Part], name: str) -> list[float | None]:
    shares = [getattr(part.usage, name) for part in parts]
    return [None if share is None else 100 * share for share in shares]


def _peer_table(rows: list[dict[str, Any]], batch: int) -> Table:
    title = f"Others on the same file, weights and machine (batch {batch})"
    table = _titled(title)
    table.add_column("")
    table.add_column("frames/s", justify="right")
    table.add_column("stream-rpn is faster by", justify="right")
    for row in rows:
        if "skipped" in row:
            table.add_row(row["name"], "", f"skipped: {row['skipped']}")
        else:
            table.add_row(row["name"], f"{row['fps']:.1f}", f"{row['ratio']:.2f} ×")
    return table
