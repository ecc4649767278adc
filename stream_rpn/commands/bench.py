"""`stream-rpn bench`: how fast a model is on your video and machine, what limits it, and the peers.

Every number is of the steady state: loading, compiling and the first batches are told apart. The
table goes to standard output; the definitions of its ratios stand in `measure.stages`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from stream_rpn import api
from stream_rpn.commands.arguments import add_model_arguments, positive
from stream_rpn.commands.outputs import check_file
from stream_rpn.commands.tables import print_table
from stream_rpn.compute import choose_batch
from stream_rpn.frame import StreamInfo, StreamRPNError
from stream_rpn.measure import peers, stages
from stream_rpn.measure.machine import describe_machine, machine
from stream_rpn.measure.plot import draw, new_figure
from stream_rpn.measure.stages import BatchReport, Part
from stream_rpn.pipeline import Pipeline
from stream_rpn.queues import prefetch
from stream_rpn.sources import expand, open_source
from stream_rpn.sources.synthetic import SyntheticVideo

SOURCE = "synthetic:1920x1080@30,90"
BATCHES = "1,8,32"
# Above this share of the cores in other processes' hands, the numbers are not the machine's.
QUIET = 0.05
PERCENTILES = ("p50_ms", "p95_ms", "p99_ms")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `stream-rpn bench`."""
    parser.add_argument(
        "source", nargs="?", default=SOURCE, help=f"a video file (default: {SOURCE}, encoded first)"
    )
    add_model_arguments(
        parser,
        batch=None,
        batch_help=f"frames per call, several to compare: N,N,… (default: those of {BATCHES} that "
        "are quick)",
    )
    parser.add_argument(
        "--top", type=positive, default=api.DEFAULT_TOP, metavar="N", help="proposals per frame"
    )
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
    what.add_argument(
        "--seconds", type=float, default=3.0, metavar="S", help="for each number (default: 3)"
    )
    out = parser.add_argument_group("results")
    out.add_argument("--json", metavar="FILE", help="write all numbers")
    out.add_argument("--png", metavar="FILE", help="draw stages and scaling (needs matplotlib)")
    out.add_argument("--overwrite", action="store_true", help="replace existing outputs")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code.

    Raises:
        StreamRPNError: something cannot be read, measured or written.
    """
    for name in (arguments.json, arguments.png):
        if name is not None:
            check_file(name, [arguments.source], [], overwrite=arguments.overwrite)
    if not 0 < arguments.seconds < math.inf:
        raise StreamRPNError(f"--seconds must be a number above 0, got {arguments.seconds}.")
    if arguments.png is not None:
        new_figure(1, 1)  # says now, not after a minute, that matplotlib is missing
    facts = machine()
    print(describe_machine(facts), flush=True)
    with tempfile.TemporaryDirectory(prefix="stream-rpn-bench-") as folder:
        bench = _Bench(arguments, Path(folder))
        print(bench.describe(), flush=True)
        # In a thread, as the product's network runs in one: where other programs want the cores,
        # OpenMP's barriers cost the main thread several times what they cost another.
        with prefetch(bench.measure(), 1, name="bench") as lines:
            for line in lines:
                print(f"  {line}", file=sys.stderr, flush=True)
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
        _write(arguments.json, json.dumps(report, indent=1) + "\n")
    if arguments.png is not None:
        draw(report, arguments.png)
    return 0


class _Bench:
    """One run of the command, and what it found."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments = arguments
        self.path, self.info = _local(arguments.source, folder)
        self.out = folder / "proposals.jsonl"
        self.batches = _batches(arguments.batch or BATCHES)
        self.pipeline = self._pipeline(self.batches[0])
        self.reports: list[BatchReport] = []
        self.compared: list[dict[str, Any]] = []
        self.left_out: list[str] = []

    def _pipeline(self, batch: int) -> Pipeline:
        given = self.arguments
        rpn = api.load(given.model, given.weights, size=given.size, top=given.top)
        return Pipeline(rpn, device=given.device, dtype=given.dtype, batch=batch)

    @property
    def best(self) -> BatchReport:
        """The batch size that gives the most frames a second."""
        return max(self.reports, key=lambda report: report.whole.fps)

    def others(self) -> float:
        """Returns the share of the cores that other processes took, at its worst."""
        shares = [report.whole.usage.others_utilisation or 0.0 for report in self.reports]
        return max(shares, default=0.0)

    def describe(self) -> str:
        """Returns what is measured, in one line."""
        info, pipeline = self.info, self.pipeline
        return (
            f"{self.arguments.source}: {info.width}x{info.height} {info.codec}; "
            f"{pipeline.rpn.name} in {_dtype(pipeline)} on {pipeline.device}; "
            f"{self.arguments.seconds:g} s a number"
        )

    def measure(self) -> Iterator[str]:
        """Measures each batch size, then the peers; yields a line of progress for each number.

        Ctrl-C waits for the number that is being measured.
        """
        seconds, decoder = self.arguments.seconds, self.arguments.decoder
        frames = stages.sample(self.path)
        decode = stages.decode_alone(self.path, self.pipeline, seconds, decoder)
        yield f"decode alone: {decode.fps:.1f} frames/s"
        for batch in self.batches:
            if self.reports and self.arguments.batch is None:
                predicted = batch / self.reports[-1].network.fps
                if predicted > seconds:
                    self.left_out.append(
                        f"Batch {batch} is left out, as one would take {predicted:.0f} s; "
                        f"--batch {batch} measures it."
                    )
                    yield self.left_out[-1]
                    continue
            if batch != self.pipeline.batch:
                self.pipeline = self._pipeline(batch)
            unqueued, proposals = stages.network_unqueued(self.pipeline, frames, seconds)
            yield f"batch {batch}, one by one: {unqueued.fps:.1f} frames/s"
            network = stages.network_alone(self.pipeline, frames, seconds)
            yield f"batch {batch}, network alone: {network.fps:.1f} frames/s"
            sink = stages.sink_alone(self.pipeline, self.path, proposals, self.out)
            whole = stages.whole(self.pipeline, self.path, self.out, seconds, decoder)
            self.reports.append(BatchReport(batch, decode, network, unqueued, sink, whole))
            yield f"batch {batch}, the whole: {whole.fps:.1f} frames/s"
        if self.arguments.compare:
            yield from self._compare()

    def _compare(self) -> Iterator[str]:
        given = self.arguments
        if self.best.batch != self.pipeline.batch:
            self.pipeline = self._pipeline(self.best.batch)
        # Measured once more, so that both sides have the machine as it is in the same minute.
        ours = stages.whole(self.pipeline, self.path, self.out, given.seconds, given.decoder)
        self.compared.append({"name": "stream-rpn", "fps": round(ours.fps, 3), "ratio": 1.0})
        for peer in peers.peers(self.pipeline, given.model, given.weights, size=given.size):
            row = peers.measure_peer(peer, self.path, self.out, given.seconds)
            if "fps" in row:
                row["ratio"] = round(ours.fps / row["fps"], 3)
            self.compared.append(row)
            yield f"{row['name']}: {row.get('skipped') or '{:.1f} frames/s'.format(row['fps'])}"

    def to_json(self) -> dict[str, Any]:
        """Returns everything that was found."""
        pipeline = self.pipeline
        return {
            "source": self.arguments.source,
            "width": self.info.width,
            "height": self.info.height,
            "codec": self.info.codec,
            "model": pipeline.rpn.name,
            "trained": pipeline.rpn.trained,
            "device": str(pipeline.device),
            "dtype": _dtype(pipeline),
            "seconds_per_number": self.arguments.seconds,
            "bottleneck": self.best.bottleneck(),
            "left_out": self.left_out,
            "batches": [report.to_json() for report in self.reports],
            "compared": self.compared,
        }


def _local(source: str, folder: Path) -> tuple[str, StreamInfo]:
    """Returns the file to measure, which a synthetic clip is encoded to first, and what it is."""
    path = source
    if source.startswith("synthetic:"):
        path = str(folder / "clip.mp4")
        with SyntheticVideo.parse(source).encoded() as encoded:
            Path(path).write_bytes(encoded.read())
    elif source == "-":
        raise StreamRPNError("Standard input can be read only once; give bench a file.")
    else:
        files = expand([source])
        if len(files) > 1:
            raise StreamRPNError(f"{source} holds {len(files)} videos; give bench one of them.")
        path = files[0]
    with open_source(path, decoder="cpu") as opened:
        if opened.info.live:
            raise StreamRPNError(f"{source} comes at its own pace; give bench a file.")
        return path, opened.info


def _batches(text: str) -> list[int]:
    sizes = [choose_batch(part, torch.device("cpu")) for part in text.split(",")]
    return list(dict.fromkeys(sizes))


def _dtype(pipeline: Pipeline) -> str:
    return str(pipeline.dtype).removeprefix("torch.")


def _stage_table(reports: list[BatchReport]) -> Table:
    table = Table(box=None, pad_edge=False, title="Each part alone", title_justify="left")
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
    table = Table(box=None, pad_edge=False, title="The whole", title_justify="left")
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
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    table.add_column("")
    table.add_column("frames/s", justify="right")
    table.add_column("stream-rpn is faster by", justify="right")
    for row in rows:
        if "skipped" in row:
            table.add_row(row["name"], "", f"skipped: {row['skipped']}")
        else:
            table.add_row(row["name"], f"{row['fps']:.1f}", f"{row['ratio']:.2f} ×")
    return table


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StreamRPNError(f"cannot write {path!r}: {error.strerror}") from error
