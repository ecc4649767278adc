"""How live sources fare for minutes: real senders on the loopback, the whole command.

    python -m bench.live [--seconds S] [--only NAME …] [--model NAME] [--engine NAME]
        [--json PATH]

Each scenario runs `stream-rpn` in this process until a Ctrl-C ends it, and reports per source:
frames in, results, drops by reason and whether they add up, ages (arrival of a frame's last packet
→ result written) as percentiles and for the first and last third of the time; and for the process:
peak memory, how much it grew from the second quarter to the last, and threads left behind. Senders
are processes of their own that take next to no computing time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench import report
from bench.senders import free_port, free_ports, sender
from stream_rpn.cli import main as stream_rpn
from stream_rpn.frame import Proposals
from stream_rpn.models import DEFAULT_MODEL
from stream_rpn.network import eager
from stream_rpn.sinks.jsonl import JSONLinesSink
from stream_rpn.statistics import StreamStatistics

SECONDS = 360.0
# Seconds a frame, so that a fifth of 30 frames a second get through, as cores share frames out.
SLOW_MODEL_SECONDS = 5 / 30 * min(torch.get_num_threads(), eager.MAX_WORKERS)
COLUMNS = (
    "scenario", "source", "frames_in", "frames", "held", "dropped", "adds_up", "reconnects",
    "p50", "p95", "p99", "p95_first_third", "p95_last_third",
    "peak_mib", "growth_percent", "threads_left", "exit",
)  # fmt: skip


@dataclass
class Scenario:
    """The streams that are sent, and the call of the command.

    Attributes:
        name: of the row.
        share: of the whole time.
        uris: the sources.
        senders: their arguments for `bench.senders`.
        options: of the command.
        slow: whether the model is made five times too slow for 30 frames a second, by torch.
        restart: kill the first sender in the middle and start it again after three seconds.
        full: the disk is full in the middle.
    """

    name: str
    share: float
    uris: list[str]
    senders: list[tuple[str, ...]]
    options: list[str] = field(default_factory=list)
    slow: bool = False
    restart: bool = False
    full: bool = False


def scenarios() -> list[Scenario]:
    ports = iter(free_ports(128))

    def cameras(*specs: str) -> tuple[list[str], list[tuple[str, ...]]]:
        chosen = [next(ports) for _ in specs]
        senders = [
            ("udp", str(port), *spec.split()) for port, spec in zip(chosen, specs, strict=True)
        ]
        return [f"udp://127.0.0.1:{port}" for port in chosen], senders

    lossy = next(ports)
    hidden, behind = cameras("1280x720@30")
    relay = ("relay", hidden[0].rpartition(":")[2], str(lossy), "--loss", "0.2")
    jpeg = free_port(socket.SOCK_STREAM)
    short = ["--read-timeout", "2", "--reconnect", "9"]
    # What two cores could not decode.
    many = (4, 16, 32) if torch.cuda.is_available() else ()
    return [
        *(Scenario(f"{n} of 1080p 30", 0.1, *cameras(*["1920x1080@30"] * n)) for n in many),
        Scenario("steady 720p 30", 0.25, *cameras("1280x720@30")),
        Scenario(
            "model 5x too slow",
            0.2,
            *cameras("1280x720@30"),
            # What `_slow_model` slows.
            ["--engine", "torch", "--device", "cpu"],
            slow=True,
        ),
        Scenario("four 360p 15", 0.1, *cameras(*["640x360@15"] * 4)),
        Scenario("eight 180p 5", 0.1, *cameras(*["320x180@5"] * 8)),
        *(
            Scenario(
                f"eight 360p 10, seven still, gate {gate}",
                0.05,
                *cameras("640x360@10", *["640x360@10 --still"] * 7),
                ["--gate", gate],
            )
            for gate in ("off", "auto")
        ),
        Scenario(
            "http mjpeg 360p 15",
            0.05,
            [f"http://127.0.0.1:{jpeg}/camera"],
            [("mjpeg", str(jpeg), "640x360@15")],
        ),
        Scenario("sender killed and restarted", 0.08, *cameras("640x360@15"), short, restart=True),
        Scenario("20 % packets lost", 0.05, [f"udp://127.0.0.1:{lossy}"], [*behind, relay]),
        Scenario("resolution changes", 0.05, *cameras("640x360@15 --then 320x240@15")),
        Scenario(
            "two fast, one stalls",
            0.07,
            *cameras("640x360@15", "640x360@15", "640x360@15 --stall-after 8"),
            ["--read-timeout", "2", "--open-timeout", "2", "--reconnect", "1"],
        ),
        Scenario("disk full", 0.05, *cameras("640x360@15", "640x360@15"), full=True),
    ]


def run(
    scenario: Scenario, seconds: float, model: str, engine: str = "auto"
) -> Iterator[dict[str, Any]]:
    """Runs a scenario and yields a row per source."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        running = [stack.enter_context(sender(*arguments)) for arguments in scenario.senders]
        # Until the senders have encoded their clips.
        time.sleep(3 + len(running) / 3)
        ages: dict[str, list[tuple[float, float]]] = {}
        stack.enter_context(_noting_ages(ages))
        if scenario.slow:
            stack.enter_context(_slow_model(SLOW_MODEL_SECONDS))
        if scenario.full:
            stack.enter_context(_full_disk(after=seconds / 2))
        if scenario.restart:
            stack.enter_context(_restarting(running[0], scenario.senders[0], seconds / 2))
        before = set(threading.enumerate())
        summary_file = Path(folder, "summary.json")
        arguments = [*scenario.uris, "-o", f"{folder}/{{stem}}.jsonl", "--quiet"]
        arguments += ["--json-summary", str(summary_file), "--model", model, "--engine", engine]
        arguments += scenario.options
        with _memory() as samples:
            ending = threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGINT))
            ending.start()
            code = stream_rpn(arguments)
            ending.cancel()
            ending.join()
        deadline = time.monotonic() + 15
        while set(threading.enumerate()) - before and time.monotonic() < deadline:
            time.sleep(0.1)
        left = len(set(threading.enumerate()) - before)
        summary = json.loads(summary_file.read_text())
        for source in summary.get("sources", [summary]):
            dropped = sum(source["drops"].values())
            yield {
                "scenario": scenario.name,
                "source": source["source"],
                "camera": scenario.uris.index(source["source"]),
                "seconds": seconds,
                "frames_in": source["frames_in"],
                "frames": source["frames"],
                "held": source["held"],
                "drops": source["drops"],
                "dropped": dropped,
                "adds_up": source["frames_in"] == source["frames"] + dropped,
                "reconnects": source["reconnects"],
                "corrupt_frames": source["corrupt_frames"],
                **source["age_ms"],
                **_thirds(ages.get(source["source"], [])),
                **_grown(samples),
                "threads_left": left,
                "exit": code,
            }


@contextlib.contextmanager
def _noting_ages(ages: dict[str, list[tuple[float, float]]]) -> Iterator[None]:
    written = StreamStatistics.written

    def noting(self: StreamStatistics, proposals: Proposals) -> None:
        written(self, proposals)
        age = proposals.age_seconds
        if age is not None:
            ages.setdefault(proposals.source, []).append((time.monotonic(), age * 1e3))

    with _patched(StreamStatistics, "written", noting):
        yield


@contextlib.contextmanager
def _slow_model(seconds: float) -> Iterator[None]:
    process = eager.EagerNetwork._process

    def slow(self: Any, frames: Any, times: Any) -> Any:
        started = time.monotonic()
        results = process(self, frames, times)
        time.sleep(max(0.0, seconds - (time.monotonic() - started)))
        return results

    with _patched(eager.EagerNetwork, "_process", slow):
        yield


@contextlib.contextmanager
def _full_disk(after: float) -> Iterator[None]:
    """Has the output of the first source meet a full disk."""
    write = JSONLinesSink._write
    started = time.monotonic()
    names: list[str] = []

    def full(self: Any, proposals: Proposals) -> None:
        names.append(self.name)
        if self.name == names[0] and time.monotonic() - started > after:
            raise OSError(28, "No space left on device")
        write(self, proposals)

    with _patched(JSONLinesSink, "_write", full):
        yield


@contextlib.contextmanager
def _restarting(
    process: subprocess.Popen[bytes], arguments: Sequence[str], after: float
) -> Iterator[None]:
    over = threading.Event()

    def restart() -> None:
        if over.wait(after):
            return
        process.kill()
        if not over.wait(3):
            with sender(*arguments):
                over.wait()

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def _patched(owner: type, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextlib.contextmanager
def _memory() -> Iterator[list[float]]:
    """Notes the resident memory of the process twice a second, in MiB."""
    samples: list[float] = []
    over = threading.Event()
    page = os.sysconf("SC_PAGE_SIZE") / 2**20

    def sample() -> None:
        while not over.wait(0.5):
            samples.append(int(Path("/proc/self/statm").read_text().split()[1]) * page)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def _grown(samples: list[float]) -> dict[str, float]:
    quarter = max(len(samples) // 4, 1)
    early, late = samples[quarter : 2 * quarter] or samples, samples[-quarter:]
    growth = statistics.median(late) / statistics.median(early) - 1
    return {"peak_mib": round(max(samples), 1), "growth_percent": round(growth * 100, 2)}


def _thirds(samples: list[tuple[float, float]]) -> dict[str, float]:
    if len(samples) < 30:
        return {}
    third = len(samples) // 3
    first, last = ([age for _, age in part] for part in (samples[:third], samples[-third:]))
    return {
        "p95_first_third": round(statistics.quantiles(first, n=20)[-1], 1),
        "p95_last_third": round(statistics.quantiles(last, n=20)[-1], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all scenarios together")
    parser.add_argument("--only", nargs="*", help="scenarios whose name holds one of these words")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="what computes in all scenarios")
    parser.add_argument("--engine", default="auto", help="as the command has it")
    parser.add_argument("--json", default="bench/results/live_cpu.json")
    arguments = parser.parse_args()
    # A shell has what it runs in the background ignore Ctrl-C, by which the scenarios end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    facts = report.machine()
    print(report.describe_machine(facts))
    # The first run of a process loads libraries, which belongs to no scenario.
    first = ["synthetic:1280x720@30,20", "-o", "null", "--quiet", "--model", arguments.model]
    if stream_rpn(first):
        sys.exit(1)
    rows = []
    for scenario in scenarios():
        if arguments.only and not any(word in scenario.name for word in arguments.only):
            continue
        seconds = arguments.seconds * scenario.share
        rows += run(scenario, seconds, arguments.model, arguments.engine)
        print(f"{scenario.name}: done", file=sys.stderr)
        report.write_json(
            arguments.json,
            "live",
            rows,
            machine=facts,
            model=arguments.model,
            engine=arguments.engine,
            max_age_ms=500,
            slow_model_ms=round(SLOW_MODEL_SECONDS * 1e3, 1),
        )
    report.print_table(rows, COLUMNS)


if __name__ == "__main__":
    main()
