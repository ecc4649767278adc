"""What `bench.soak` wants to find after a run, whatever happened to it."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av

import stream_rpn
from bench.soak_sources import Source
from stream_rpn.frame import StreamRPNError
from stream_rpn.sinks.place import partial_name

FORMATS = (
    ".jsonl", ".jsonl.gz", ".parquet", ".npz", ".coco.json", ".mot.txt", ".mp4", ".mkv", "/",
)  # fmt: skip
_TELLS_ITS_END = (".jsonl", ".jsonl.gz", ".parquet", ".npz")
HUNG_SECONDS = 60.0
_NO_SENTENCES = (
    "Traceback (most recent call last)", "Exception ignored", "Fatal Python error",
    "terminate called",
)  # fmt: skip
# What the command says of a camera that was lost for good.
_STARVED = "is there but sent no video"


@dataclass
class After:
    """What is left of a run.

    Attributes:
        folder: where it wrote.
        names: its outputs there.
        old: the folder with the results that it was to replace; None where there were none.
        source: what it read.
        fault: what happened to it.
        fault_seconds: how long it lived on.
        signals: that were sent to it.
        exit: its exit status.
        told: what it said on standard error.
        printed: what it wrote to standard output.
        group: the number of its group of processes.
        hung: whether it had to be killed in the end.
        second: exit status of a second run into the same outputs, where there was one.
    """

    folder: Path
    names: Sequence[str]
    old: Path | None
    source: Source
    fault: str
    fault_seconds: float
    signals: Sequence[int]
    exit: int
    told: str
    printed: str
    group: int
    hung: bool
    second: int | None

    @property
    def code(self) -> int:
        """The exit code as a shell tells it."""
        return self.exit if self.exit >= 0 else 128 - self.exit

    @property
    def was_killed(self) -> bool:
        """Whether nothing could be finished."""
        return self.code == 137


@dataclass
class Found:
    """An output that reads back.

    Attributes:
        count: of its frames.
        complete: whether it calls itself whole; None where it cannot tell.
        drops: what it says was lost, by reason.
    """

    count: int
    complete: bool | None
    drops: Counter[str] = field(default_factory=Counter)


def judge(after: After) -> list[str]:
    """Returns a sentence for whatever is not as it is promised."""
    if _was_starting(after):
        return []
    problems = [f"{word!r} on standard error" for word in _NO_SENTENCES if word in after.told]
    if after.hung:
        problems.append(f"it did not end within {HUNG_SECONDS:g} s")
    if _lives(after.group):
        problems.append("processes were left behind")
    if after.printed:
        problems.append(f"standard output has {after.printed[:100]!r}")
    problems += _exit_code(after)
    if after.fault == "folder removed":
        return problems
    produced = 0
    for name in after.names:
        try:
            found = _output(after, name, problems)
        except (StreamRPNError, OSError, ValueError, LookupError) as error:
            problems.append(f"{name} does not read back: {type(error).__name__}: {error}")
            continue
        produced += bool(found and found.count)
        if after.code in (0, 3) and after.second is None and not found and after.fault == "none":
            problems.append(f"{name}: nothing came of it, exit code {after.code}")
    if after.code == 2 and produced and after.second is None:
        problems.append("exit code 2, but there are results")
    if after.code == 3 and not produced and after.fault != "disk fills":
        problems.append("exit code 3, but there are no results")
    if not after.was_killed:
        problems += _hidden(after.folder)
    problems += _summary(after.folder)
    return problems


def whole(folder: Path, names: Sequence[str], frames: int) -> list[str]:
    """Returns what is not as after a plain run into these outputs."""
    problems = _hidden(folder)
    for name in names:
        try:
            found = _read(folder / name, name)
        except (StreamRPNError, OSError, ValueError, LookupError) as error:
            problems.append(f"{name} does not read back: {error}")
            continue
        if found.count != frames or found.complete is False:
            problems.append(f"{name}: {found.count} frames, complete {found.complete}")
        if _partial(folder, name).exists():
            problems.append(f"{name}: {_partial(folder, name).name} is still there")
    return problems


def account(folder: Path) -> dict[str, int]:
    """Returns frames in, results and drops as the summary of a run has them; 0 without one."""
    try:
        summary = json.loads((folder / "summary.json").read_bytes())
    except OSError:
        return {"frames_in": 0, "results": 0, "dropped": 0}
    return {
        "frames_in": summary["frames_in"],
        "results": summary["frames"],
        "dropped": sum(summary["drops"].values()),
    }


def _was_starting(after: After) -> bool:
    """Tells whether Ctrl-C met Python's own start, before anything of ours is even looked for."""
    ours = f"stream_rpn{os.sep}" in after.told
    return signal.SIGINT in after.signals and "Traceback" in after.told and not ours


def _exit_code(after: After) -> list[str]:
    """docs/outputs.md: 0 whole, 2 nothing, 3 not all, 128 and the number of a signal."""
    allowed = {3 if after.source.damaged else 0} | {128 + number for number in after.signals}
    if after.fault in ("disk fills", "folder removed", "source dies", "source falls silent"):
        allowed |= {2, 3}
    if after.source.live and _STARVED in after.told:
        # Where the machine is busy with other work, a camera of ours may get no time to send.
        allowed |= {2, 3}
    if after.second is not None:
        allowed.add(2)
        if after.second not in (0, 2, 3) or after.second == after.code == 2:
            return [f"exit code {after.code}, and {after.second} of a second run"]
    if after.fault == "folder removed" and after.code == 0 and after.fault_seconds > 3:
        return ["exit code 0, but the folder had been removed"]
    return [] if after.code in allowed else [f"exit code {after.code}: {after.told[-300:]}"]


def _output(after: After, name: str, problems: list[str]) -> Found | None:
    """Judges one output; returns what is new of it."""
    final, partial = after.folder / name, _partial(after.folder, name)
    new = None
    if after.old is not None:
        if not os.path.lexists(final):
            problems.append(f"{name}: the old results are gone")
        elif _bytes(final) != _bytes(after.old / name):
            new = _read(final, name)
            stopped = after.code > 128 and not after.source.live
            if stopped and after.second is None and new.complete is False:
                problems.append(f"{name}: results of a run that was stopped replaced the old ones")
    elif final.exists():
        new = _read(final, name, after.was_killed)
    if partial.exists():
        if new:
            problems.append(f"{name}: there is {partial.name}, too")
        new = _read(partial, name, after.was_killed)
        if new.complete and after.code == 0:
            problems.append(f"{name}: whole results are called {partial.name}")
    if new is None:
        return None
    frames = sum(after.source.frames.values())
    # Of a live source frames are dropped; a second run has another source.
    known = not after.source.live and after.fault != "second run"
    is_whole = new.complete if new.complete is not None else after.code == 0
    if known and is_whole and new.count != frames and not new.drops:
        problems.append(f"{name}: {new.count} of {frames} frames, and called whole")
    if after.code == 0 and new.complete is False:
        problems.append(f"{name}: exit code 0, but complete is False")
    return new


def _read(path: Path, name: str, was_killed: bool = False) -> Found:
    """Reads an output back, and adds up what it says of its sources.

    Raises:
        StreamRPNError: it cannot be read.
        ValueError: its sums do not add up.
        OSError: it cannot be read, either.
    """
    if was_killed and _is_empty(path):
        return Found(0, None)
    if name.endswith((".mp4", ".mkv")):
        try:
            with av.open(str(path)) as container:
                return Found(sum(1 for _ in container.decode(video=0)), None)
        except av.error.FFmpegError as error:
            if was_killed and name.endswith(".mkv"):  # before the first packet was written
                return Found(0, None)
            raise ValueError(str(error)) from error
    if name.endswith("/"):
        return _crops(path, was_killed)
    results = stream_rpn.read(path)
    frames: Counter[str] = Counter()
    told: Counter[str] = Counter()
    for proposals in results:
        frames[proposals.source] += 1
        for drop in proposals.drops:
            told[drop.reason] += drop.count
    for end in results.ends:
        source = end.get("source", results.sources[0] if len(results.sources) == 1 else "")
        if end.get("stopped") and not end["frames"] and "frames_in" not in end:
            continue
        if end["frames_in"] != end["frames"] + sum(end["drops"].values()):
            raise ValueError(f"frames in are not results and drops: {end}")
        if source in frames and frames[source] != end["frames"]:
            raise ValueError(f"{frames[source]} frames, but the end says {end}")
    total: Counter[str] = Counter()
    for end in results.ends:
        total.update(end.get("drops", {}))
    if len(results.ends) == len(results.sources) > 0:
        for reason, count in told.items():
            if reason != "connection lost" and count > total[reason]:
                raise ValueError(f"results tell of {count} × {reason}, the end of {total[reason]}")
    complete = results.complete if name.endswith(_TELLS_ITS_END) else None
    return Found(frames.total(), complete, total)


def _is_empty(path: Path) -> bool:
    if path.is_file():
        return not path.stat().st_size
    return all(file.name.startswith(".") for file in path.iterdir())


def _crops(folder: Path, was_killed: bool) -> Found:
    """Reads a folder of crops.

    Raises:
        ValueError: it has a picture that is not in its index, or the other way round.
        OSError: it has no index.
    """
    pictures: dict[tuple[str, int], set[str]] = {}  # by source and frame
    for line in (folder / "index.jsonl").read_bytes().splitlines(keepends=True):
        if was_killed and not line.endswith(b"\n"):
            break
        record = json.loads(line)
        if "stream_rpn" in record or "end" in record:
            continue
        frame = (record.get("source", ""), record["frame"])
        pictures.setdefault(frame, set()).add(record["file"])
    there = {str(path.relative_to(folder)) for path in folder.rglob("*.jpg")}
    there = {name for name in there if not name.startswith("_partial")}
    named = set().union(*pictures.values())
    # The lines of a frame are written before its pictures.
    last = list(pictures.values())[-1:] if was_killed else []
    if there - named or named - there - set().union(*last):
        raise ValueError(f"the index and the pictures differ: {sorted(there ^ named)[:3]}")
    return Found(len(pictures), None)


def _summary(folder: Path) -> list[str]:
    if not (folder / "summary.json").exists():
        return []
    summary = json.loads((folder / "summary.json").read_bytes())
    return [
        f"the summary's frames in are not results and drops: {part['source']}"
        for part in [summary, *summary.get("sources", [])]
        if part["frames_in"] != part["frames"] + sum(part["drops"].values())
    ]


def _hidden(folder: Path) -> list[str]:
    """Returns what is left of temporary files."""
    return [f"{path.relative_to(folder)} was left behind" for path in folder.rglob(".*")]


def _partial(folder: Path, name: str) -> Path:
    if name.endswith("/"):
        return folder / name / "_partial"
    if name.endswith(".parquet"):
        return folder / name / "_partial.parquet"
    return folder / partial_name(name)


def _bytes(path: Path) -> dict[str, bytes]:
    """Returns the files of an output, without those that grow within."""
    if path.is_file():
        return {"": path.read_bytes()}
    files = [file for file in path.rglob("*") if file.is_file()]
    inner = {file: file.relative_to(path) for file in files}
    return {
        str(name): file.read_bytes()
        for file, name in inner.items()
        if not name.parts[0].startswith(("_partial", "."))
    }


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
