"""A soak with faults: the whole command, again and again, while the world about it breaks.

    python -m bench.soak [--seconds 3600] [--seed N] [--runs N] [--json bench/results/soak.json]

Each run draws, from the seed, a source (files, pipes, cameras, servers), outputs (every format in
its turn), whether they replace old ones, a fault, and the moment at which it comes. The command is
a process of its own, its sources are real senders. After each run `bench.soak_checks` looks at what
is left: sums, results, old results, temporary files, exit code, messages, processes. Whatever is
not as the documentation promises is printed, kept in the report, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from bench import report, soak_checks
from bench.soak_checks import FORMATS, After
from bench.soak_sources import Sources
from stream_rpn.measure.machine import machine
from stream_rpn.sinks import sink_class_of

SECONDS = 3600.0
ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["--size", "64", "--threads", "1", "--json-summary", "summary.json"]
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGKILL")
FAULTS = (
    "none",
    *SIGNALS,
    "SIGINT twice",
    "disk fills",
    "reader of stdout dies",
    "reader of stderr dies",
    "folder removed",
    "second run",
    "source dies",
    "source falls silent",
)  # fmt: skip
COLUMNS = (
    "fault", "runs", "frames_in", "results", "dropped", "exits", "problems",
)  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One run, drawn before it begins.

    Attributes:
        source: name of the kind of source, see `Sources`.
        formats: endings of the outputs.
        fault: one of FAULTS.
        moment: when it comes, as a share of the time that such a run takes undisturbed.
        overwrite: whether there are old results, which are to be replaced.
    """

    source: str
    formats: tuple[str, ...]
    fault: str
    moment: float
    overwrite: bool


def trials(chance: random.Random) -> Iterator[Trial]:
    """Yields trials without end: each format and each fault in its turn, the rest by chance."""
    faults, formats = itertools.cycle(FAULTS), itertools.cycle(FORMATS)
    for fault, first in zip(faults, formats, strict=False):
        kinds = Sources.ENDING if fault.startswith("source") else Sources.KINDS
        others = [name for name in FORMATS if name != first]
        chosen = (first, *chance.sample(others, chance.choice([0, 0, 1, 2])))
        yield Trial(
            chance.choice(kinds),
            chosen,
            fault,
            chance.triangular(0, 1.1, 0.9),
            chance.random() < 0.5,
        )


class Soak:
    """Runs trials in a folder, one after another, and judges each.

    Args:
        folder: for clips, old results and outputs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.sources = Sources(folder / "sources")
        self._usual = defaultdict(lambda: 5.0)  # seconds that a run takes undisturbed, by source
        self._old = folder / "old"
        self._old.mkdir()
        names = [f"o{ending}" for ending in FORMATS]
        self._command([str(self.sources.other)], names, self._old).communicate()
        (self._old / "summary.json").unlink()
        assert all((self._old / name).exists() for name in names), "a plain run failed"

    def run(self, trial: Trial) -> dict[str, Any]:
        """Runs a trial; returns what came of it, with the problems that were found."""
        with self._disk(trial) as disk, self.sources.open(trial.source) as source:
            folder = disk / "out"
            folder.mkdir()
            names = _names(trial.formats, several=len(source.uris) > 1)
            if trial.overwrite:
                for name in names:
                    _copy(self._old / name, folder / name)
            extra = [*source.options, *(["--overwrite"] if trial.overwrite else [])]
            printing = trial.fault == "reader of stdout dies"
            started = time.monotonic()
            process = self._command(
                source.uris, [*names, *(["-"] if printing else [])], folder, extra, source.stdin
            )
            source.begin(process)
            with _Run(process) as run:
                wait = trial.moment * self._usual[trial.source]
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(wait)
                fault, injected_at = "none", time.monotonic()
                if process.poll() is None:
                    fault = trial.fault
                    if fault == "second run":
                        run.second = self._command([str(self.sources.other)], names, folder, extra)
                    elif fault == "reader of stdout dies":
                        run.printed.leave()
                    elif fault == "reader of stderr dies":
                        run.told.leave()
                    elif fault == "folder removed":
                        while folder.exists():  # a file may come while the others go
                            shutil.rmtree(folder, ignore_errors=True)
                    elif fault == "disk fills":
                        _fill(disk, process)
                    elif fault == "source dies":
                        source.die()
                    elif fault == "source falls silent":
                        source.fall_silent()
                    elif fault != "none":
                        run.signal(fault)
                run.wait(source.seconds_left)
                ended = time.monotonic()
                after = After(
                    folder=folder,
                    names=names,
                    old=self._old if trial.overwrite else None,
                    source=source,
                    fault=fault,
                    fault_seconds=ended - injected_at,
                    signals=run.signals,
                    exit=process.returncode,
                    told=run.told.text(),
                    printed="" if printing else run.printed.text(),
                    group=process.pid,
                    hung=run.hung,
                    second=run.second_exit(),
                )
                problems = soak_checks.judge(after)
                account = soak_checks.account(folder)
                if fault == "none":
                    self._usual[trial.source] += 0.3 * (ended - started - self._usual[trial.source])
                if fault == "SIGKILL":
                    problems += self._recover(folder, names)
        return {
            "source": trial.source,
            "outputs": list(trial.formats),
            "overwrite": trial.overwrite,
            "fault": fault,
            "at_seconds": round(wait, 3),
            "seconds": round(ended - started, 2),
            "exit": after.code,
            **account,
            "problems": problems,
            "told": after.told[-2000:].replace(f"{self._folder}/", ""),
        }

    def _command(
        self,
        uris: Sequence[str],
        outputs: Sequence[str],
        folder: Path,
        extra: Sequence[str] = (),
        stdin: int = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        chosen = [argument for name in outputs for argument in ("-o", name)]
        return subprocess.Popen(
            [sys.executable, "-m", "stream_rpn", *uris, *chosen, *FLAGS, *extra],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def _recover(self, out: Path, names: list[str]) -> list[str]:
        """Runs again where a run was killed: all must be as if that one had never been."""
        (out / "summary.json").unlink(missing_ok=True)
        process = self._command([str(self.sources.other)], names, out, ["--overwrite"])
        told = process.communicate()[1].decode()
        if process.returncode:
            return [f"the run after a kill ends with {process.returncode}: {told}"]
        return [
            f"after a kill and another run: {problem}"
            for problem in soak_checks.whole(out, names, self.sources.OTHER_FRAMES)
        ]

    @contextlib.contextmanager
    def _disk(self, trial: Trial) -> Iterator[Path]:
        """A folder for outputs; a disk of its own where that is to fill and may be mounted."""
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            mounted = trial.fault == "disk fills" and not subprocess.call(
                ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", name],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                yield Path(name)
            finally:
                if mounted:
                    subprocess.check_call(["umount", name])


class _Run:
    """A process, what it says, and what is done to it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.told = _Reader(process.stderr)
        self.printed = _Reader(process.stdout)
        self.signals: list[int] = []
        self.hung = False
        self.second: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process in (self.process, self.second):
            if process is not None and process.poll() is None:  # the soak itself is stopped
                process.kill()

    def signal(self, fault: str) -> None:
        """Sends what a fault is called by, once or "twice"."""
        name, _, twice = fault.partition(" ")
        for number in range(2 if twice else 1):
            time.sleep(0.05 * number)
            self.process.send_signal(signal.Signals[name])  # nothing, where it has ended
            self.signals.append(signal.Signals[name])

    def wait(self, seconds: float) -> None:
        """Waits for the end; where it does not come by itself, with Ctrl-C as users do it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(soak_checks.HUNG_SECONDS if self.signals else seconds)
        if self.process.poll() is None and not self.signals:
            self.signal("SIGINT")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(soak_checks.HUNG_SECONDS)
        if self.process.poll() is None:
            self.hung = True
            self.process.kill()
            self.process.wait()

    def second_exit(self) -> int | None:
        """Waits for the second run, where there is one; returns its exit status."""
        if self.second is None:
            return None
        self.second.communicate()
        return self.second.returncode


class _Reader:
    """Reads what a process says, until it leaves."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._data = bytearray()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._pipe:
            while not self._left.is_set():
                if select.select([self._pipe], [], [], 0.05)[0]:
                    data = os.read(self._pipe.fileno(), 1 << 16)
                    if not data:
                        break
                    self._data += data

    def leave(self) -> None:
        """Closes the pipe."""
        self._left.set()
        self._thread.join()

    def text(self) -> str:
        """Returns all of it, once the other side is closed."""
        self._thread.join(5)
        return self._data.decode(errors="replace")


def _fill(disk: Path, process: subprocess.Popen[bytes]) -> None:
    """Fills the disk; where it is not one of its own, limits the size of the process's files."""
    if disk.is_mount():
        with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
            while filler.write(b"\0" * 4096):
                pass
    else:
        import resource

        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


def _names(formats: Sequence[str], *, several: bool) -> list[str]:
    """Returns the outputs of a run: of several sources those that can hold them."""
    names = [f"o{ending}" for ending in formats]
    if several:
        names = [name for name in names if sink_class_of(name).takes_several_sources]
    return names or ["o.jsonl"]


def _copy(path: Path, target: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, target)
    else:
        shutil.copy(path, target)


def rows(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row for each fault: how many runs, what came in and out, how they ended."""
    table = []
    for fault in FAULTS:
        these = [result for result in results if result["fault"] == fault]
        if these:
            table.append(
                {
                    "fault": fault,
                    "runs": len(these),
                    **{
                        name: sum(result[name] for result in these)
                        for name in ("frames_in", "results", "dropped")
                    },
                    "exits": dict(sorted(Counter(str(r["exit"]) for r in these).items())),
                    "sources": dict(Counter(result["source"] for result in these)),
                    "outputs": dict(Counter(name for r in these for name in r["outputs"])),
                    "problems": sum(bool(result["problems"]) for result in these),
                }
            )
    return table


def soak(seconds: float, seed: int, runs: int | None) -> Iterator[dict[str, Any]]:
    """Runs trials for so long, or so many; yields what came of each."""
    # What a shell starts in the background ignores Ctrl-C, what nohup starts a hang-up, and so
    # would the commands.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="soak-") as name, contextlib.ExitStack() as stack:
        run_in = Soak(Path(name))
        stack.enter_context(run_in.sources)
        for number, trial in enumerate(trials(random.Random(seed))):
            if number == runs or time.monotonic() > end:
                break
            yield {"run": number, **run_in.run(trial)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, help="at most so many")
    parser.add_argument("--json", default="bench/results/soak.json")
    arguments = parser.parse_args()
    started = time.monotonic()
    facts = machine()
    results: list[dict[str, Any]] = []
    table: list[dict[str, Any]] = []
    problems: list[dict[str, Any]] = []
    for result in soak(arguments.seconds, arguments.seed, arguments.runs):
        results.append(result)
        if result["problems"]:
            problems.append(result)
            print(result, flush=True)
        table = rows(results)
        # After each run: a soak that is cut short keeps what it found.
        report.write_json(
            arguments.json,
            "soak",
            table,
            machine=facts,
            seconds=round(time.monotonic() - started),
            seed=arguments.seed,
            runs=len(results),
            found=problems,
        )
    report.print_table(table, COLUMNS)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
