"""`stream-rpn batch` beside the plain command: what Ray costs, and how it grows with workers.

    python -m bench.batch [--rounds N] [--only memory] [--quick] [--json PATH]

Needs Ray. Every run is the command as a user gives it, `batch` with a Ray of its own, over the same
videos to Parquet, each with one thread to compute on; in turns, and what counts is the ratio within
a round. Times are those at which whole results appeared: a video takes what passes between the
first and the last of them, and start-up is what passed before, less a video. Where other processes
take a share of the machine, CPU time says more than the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import report
from stream_rpn.cores import available_cores
from stream_rpn.measure.meter import busy_seconds
from stream_rpn.sources.synthetic import SyntheticVideo

RESULTS = Path("bench/results/batch.json")
SAMPLE_SECONDS = 1.0
WORKERS = (1, 2)
PLAIN = "the plain command"
MEMORY = "memory of a worker, by quarters of a job"
LONG = "synthetic:320x180@25"
Row = dict[str, Any]


@dataclass
class Sample:
    """A moment of a run: CPU seconds of the command with all its processes, and of the machine."""

    at: float
    own: float
    machine: float
    resident: float


@dataclass
class Run:
    """A command that has ended.

    Attributes:
        began: when, of `time.time`.
        ended: when.
        parts: when its files appeared, by video.
        samples: from beginning to end.
    """

    began: float
    ended: float
    parts: dict[Path, list[float]]
    samples: list[Sample] = field(repr=False)

    def row(self, frames: int, together: int) -> Row:
        """Returns what a video of so many frames takes where so many are done together."""
        whole = sorted(map(max, self.parts.values()))
        first, last = whole[together - 1], whole[-1]
        videos = len(whole) - together
        begin, end = self._nearest(first), self._nearest(last)
        own = end.own - begin.own
        others = end.machine - begin.machine - own
        return {
            "video_seconds": (last - first) / videos,
            "cpu_ms_a_frame": 1e3 * own / (videos * frames),
            "start_seconds": first - self.began - (last - first) / videos * together,
            "end_seconds": self.ended - last,
            "others_utilisation": max(others, 0.0) / ((end.at - begin.at) * available_cores()),
        }

    def _nearest(self, moment: float) -> Sample:
        return min(self.samples, key=lambda sample: abs(sample.at - moment))


class _Watch(threading.Thread):
    """Looks at a process and all that it started, until it has ended."""

    def __init__(self, pid: int) -> None:
        import psutil

        super().__init__(daemon=True)
        self._psutil = psutil
        self._process = psutil.Process(pid)
        self._cpu: dict[int, float] = {}
        self._proposing: set[int] = set()
        self.samples: list[Sample] = []

    def run(self) -> None:
        with contextlib.suppress(self._psutil.NoSuchProcess):
            while self._process.status() != self._psutil.STATUS_ZOMBIE:
                self._look()
                time.sleep(SAMPLE_SECONDS)

    def _look(self) -> None:
        resident = 0.0
        for process in (self._process, *self._process.children(recursive=True)):
            try:
                self._cpu[process.pid] = sum(process.cpu_times()[:2])
                if self._proposes(process):
                    resident = max(resident, process.memory_info().rss / 2**20)
            except self._psutil.NoSuchProcess:
                continue
        own = sum(self._cpu.values())
        self.samples.append(Sample(time.time(), own, busy_seconds() or 0.0, resident))

    def _proposes(self, process: Any) -> bool:
        """Tells whether the model is in a process: it is in the one that a worker keeps."""
        if process.pid not in self._proposing:
            parent = process.parent()
            if (
                "stream_rpn.batch.child" not in process.cmdline()
                or parent is None
                or "(_Worker)" not in " ".join(parent.cmdline())
            ):
                return False
            self._proposing.add(process.pid)
        return True


def run(results: Path, *arguments: str) -> Run:
    """Runs stream-rpn, whose results are Parquet files somewhere in a folder, and removes them."""
    began = time.time()
    with subprocess.Popen([sys.executable, "-m", "stream_rpn", *arguments, "--quiet"]) as process:
        watch = _Watch(process.pid)
        watch.start()
    ended = time.time()
    watch.join()
    if process.returncode:
        sys.exit(process.returncode)
    parts: dict[Path, list[float]] = {}
    for part in results.rglob("part-*.parquet"):
        parts.setdefault(part.parent, []).append(part.stat().st_mtime)
    shutil.rmtree(results)
    return Run(began, ended, parts, watch.samples)


def plain(videos: Sequence[str], results: Path) -> Run:
    """Runs the plain command over videos, one after another."""
    results.mkdir()
    return run(results, *videos, "--threads", "1", "-o", str(results / "{stem}.parquet"))


def batch(videos: Sequence[str], results: Path, workers: int, *options: str) -> Run:
    """Runs `stream-rpn batch`, with workers of a core each."""
    options = ("--workers", str(workers), "--threads", "1", *options)
    return run(results, "batch", *videos, "--to", str(results), *options)


def encoded(path: Path, spec: str) -> str:
    """Makes a video, and returns its name."""
    with SyntheticVideo.parse(spec).encoded() as file:
        path.write_bytes(file.read())
    return str(path)


def compared(folder: Path, spec: str, number: int, rounds: int) -> list[Row]:
    """Returns a row for the plain command, and for `batch` by workers."""
    frames = SyntheticVideo.parse(spec).num_frames
    first = encoded(folder / "0.mp4", spec)
    videos = [first, *(str(folder / f"{index}.mp4") for index in range(1, number))]
    for video in videos[1:]:
        shutil.copy(first, video)
    turns: dict[str, list[Row]] = {}
    plain(videos[:1], folder / "o")  # the file cache, and what is kept of the model
    for turn in range(rounds):
        for workers in (0, *WORKERS):
            name = _named(workers) if workers else PLAIN
            done = batch(videos, folder / "o", workers) if workers else plain(videos, folder / "o")
            if len(done.parts) != number:
                sys.exit(f"WRONG: results of {len(done.parts)} videos, not of {number}")
            row = done.row(frames, workers or 1)
            turns.setdefault(name, []).append(row)
            said = ", ".join(f"{key} {value:.3g}" for key, value in row.items())
            print(f"  round {turn + 1}, {name}: {said}", file=sys.stderr)
    return [_summary(name, turns, frames) for name in turns]


def _named(workers: int) -> str:
    return f"batch, {workers} worker{'s' if workers > 1 else ''}"


def _summary(name: str, turns: dict[str, list[Row]], frames: int) -> Row:
    rows = turns[name]
    row: Row = {"what": name, "rounds": len(rows)}
    rates = [frames / r["video_seconds"] for r in rows]
    row |= _spread("fps", rates) | _spread("cpu_ms_a_frame", [r["cpu_ms_a_frame"] for r in rows])
    for key in ("start_seconds", "end_seconds"):
        row[key] = round(statistics.median(r[key] for r in rows), 2)
    row["others_utilisation"] = round(max(r["others_utilisation"] for r in rows), 4)
    against = {_named(1): ("of_plain", PLAIN), _named(2): ("growth", _named(1))}.get(name)
    if against:
        key, other = against
        for what, measure in (("", "video_seconds"), ("_cpu", "cpu_ms_a_frame")):
            pairs = zip(rows, turns[other], strict=True)
            ratios = [mine[measure] / its[measure] for mine, its in pairs]
            if (key, what) == ("growth", ""):
                ratios = [1 / ratio for ratio in ratios]
            row |= _spread(key + what, ratios)
    return row


def _spread(name: str, values: Sequence[float]) -> Row:
    median = round(statistics.median(values), 3)
    return {
        name: median,
        f"{name}_min": round(min(values), 3),
        f"{name}_max": round(max(values), 3),
    }


def memory(folder: Path, pieces: int) -> Row:
    """Returns how much a worker held in the quarters of a job of many small pieces."""
    video = encoded(folder / "long.mp4", f"{LONG},{25 * pieces}")
    done = batch([video], folder / "o", 1, "--chunk", "1s", "--size", "64")
    (parts,) = done.parts.values()
    # What comes before the first piece is the model.
    busy = [s for s in done.samples if min(parts) < s.at < max(parts)]
    step = len(busy) // 4
    quarters = [busy[index * step : (index + 1) * step] for index in range(4)]
    medians = [round(statistics.median(s.resident for s in q), 1) for q in quarters]
    return {
        "what": MEMORY,
        "commit": report.machine()["commit"],
        "pieces": len(parts),
        "seconds": round(max(parts) - min(parts), 1),
        "quarters_mb": medians,
        "peak_mb": round(max(s.resident for s in busy), 1),
    }


def table(found: dict[str, Any], on: str) -> str:
    """Returns the report as Markdown."""
    rows = {row["what"]: row for row in found["rows"]}
    clip = SyntheticVideo.parse(found["clip"])
    seconds = float(clip.num_frames / clip.fps)
    lines = [
        f"{found['videos']} videos of {seconds:g} s, {clip.width}×{clip.height} H.264, {on}, one "
        "thread to compute on a worker; medians (and spread) of "
        f"{found['rounds']} rounds in turns:",
        "",
        "| | frames/s | times | CPU ms a frame | start-up, s |",
        "|---|---|---|---|---|",
    ]
    times = {
        _named(1): ("of_plain", "the plain command's time"),
        _named(2): ("growth", "the rate of one"),
    }
    for name in (PLAIN, *map(_named, WORKERS)):
        row = rows[name]
        key, of = times.get(name, ("", ""))
        ratio = f"{_said(row, key)} × {of}" if key else ""
        lines.append(
            f"| {name} | {_said(row, 'fps')} | {ratio} | {_said(row, 'cpu_ms_a_frame')} "
            f"| {row['start_seconds']:.1f} |"
        )
    held = rows[MEMORY]
    quarters = ", ".join(f"{mb:.0f}" for mb in held["quarters_mb"])
    lines += [
        "",
        f"Memory of a worker over {held['pieces']} pieces (`--size 64`, commit "
        f"`{held['commit']}`), by quarters of the job: {quarters} MB.",
    ]
    return "\n".join(lines) + "\n"


def _said(row: Row, key: str) -> str:
    low, middle, high = (row[key + part] for part in ("_min", "", "_max"))
    return f"{middle:.3g} ({low:.3g}–{high:.3g})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--rounds", type=int, default=3, help="that are counted (3)")
    parser.add_argument("--only", choices=("memory",), help="the rest of the report stays")
    parser.add_argument("--quick", action="store_true", help="small and once, to try it")
    chosen = parser.parse_args(arguments)
    if importlib.util.find_spec("ray") is None:
        parser.error("needs Ray; `pip install 'stream-rpn[ray]'` provides it")
    facts = report.machine()
    clip, number, pieces, rounds = "synthetic:1280x720@25,100", 16, 600, chosen.rounds
    if chosen.quick:
        clip, number, pieces, rounds = "synthetic:320x180@25,50", 4, 12, 1
    known = {"machine": facts, "clip": clip, "videos": number, "rounds": rounds}
    rows: list[Row] = []
    if chosen.only:
        if not chosen.json.is_file():
            parser.error(f"{chosen.json} is not there to be added to")
        kept = json.loads(chosen.json.read_text())
        known = {name: kept[name] for name in known}
        rows = [row for row in kept["rows"] if row["what"] != MEMORY]
    print(report.describe_machine(facts))
    with tempfile.TemporaryDirectory(prefix="stream-rpn-batch-") as name:
        if not chosen.only:
            rows = compared(Path(name), clip, number, rounds)
        rows.append(memory(Path(name), pieces))
    report.print_table(rows)
    report.write_json(chosen.json, "batch", rows, **known)
    return 0


if __name__ == "__main__":
    sys.exit(main())
