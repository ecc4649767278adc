"""The flow through Ray Data: a table of videos → pieces → an actor pool → a row a piece.

What travels through Ray are addresses and records, a few hundred bytes a piece. Proposals are
written by the worker that found them: Ray's own checkpoints tell which *rows* were written, and the
many rows of a piece may lie in several files, of which one that is whole would stand for all.
Placement, back-pressure, autoscaling, and what dies under a task are Ray's.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from stream_rpn.batch import results
from stream_rpn.batch.cluster import joined
from stream_rpn.batch.guard import Guard
from stream_rpn.batch.pieces import Piece
from stream_rpn.batch.storage import PARTIAL, Store, short_name, version
from stream_rpn.batch.work import Work
from stream_rpn.cores import available_cores
from stream_rpn.frame import StreamRPNError
from stream_rpn.sources.address import masked

if TYPE_CHECKING:
    import pyarrow as pa

TRIES = 2
_PLAN = "_plan.jsonl"
_MOST_BLOCKS = 10_000
# What no other piece would escape either. It travels as a failure does: of an exception, Ray brings
# to the driver no more than the text.
_JOB = "job"


@dataclass(frozen=True)
class Resources:
    """What the job may take.

    Attributes:
        address: of the cluster, as `ray.init` takes it; "local" starts one for this job.
        workers: how many at a time; None for as many as there is room for.
        cpus: cores of each worker.
        gpus: of each worker; None for one where there are any.
        limit: seconds after which a piece that has given no frame is given up.
        memory: bytes that a worker may hold; None for its share of the machine.
    """

    address: str = "local"
    workers: int | None = None
    cpus: float = 1
    gpus: float | None = None
    limit: float = 300.0
    memory: int | None = None


@dataclass
class Outcome:
    """What became of the videos.

    Attributes:
        records: of the pieces that are done, by source and number.
        failures: rows of `results.FAILURES`.
        reused: pieces that were done before.
    """

    records: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    reused: int = 0

    def complete(self, source: str) -> bool:
        """Tells whether all pieces of a source are done."""
        done = self.records.get(source)
        if not done:
            return False
        plan = Piece.from_json(next(iter(done.values()))["plan"])
        return len(done) == plan.count


class _Planner:
    """An actor: a row a video → a row a piece. It keeps plans, by which a changed video shows."""

    def __init__(self, work: Work, resources: Resources) -> None:
        self._store = Store(work.store)
        self._guard = Guard(work, resources.limit)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for source in batch["source"].to_pylist():
            try:
                rows = self._rows(source)
            except StreamRPNError as error:
                rows = [_failure(Piece(source), _JOB, str(error), 1)]
            for row in rows:
                yield _table([row])

    def _rows(self, source: str) -> list[dict[str, str]]:
        folder = results.folder_of(source)
        kept = self._store.read(f"{folder}/{_PLAN}")
        if kept is None:
            answer = self._guard.ask("plan", source)
            pieces: list[Piece] = answer.value or [Piece(source, whole_because=answer.why)]
            if answer.kind == "error":  # it does not answer; next time it may
                return [_failure(pieces[0], "error", answer.why, 1)]
            # Where nothing tells it from another, it need not be kept: it is whole.
            if pieces[0].version:
                keep_plan(self._store, pieces)
        else:
            pieces = [Piece.from_json(line) for line in kept.decode().splitlines()]
            try:
                now = version(source)
            except StreamRPNError as error:
                return [_failure(pieces[0], "error", str(error), 1)]
            if now != pieces[0].version:
                why = (
                    f"{masked(source)} has changed since its results were begun; remove "
                    f"{self._store.name}/{folder} to have them made anew"
                )
                return [_failure(pieces[0], "changed", why, 1)]
        # Of a plan that was given up, or of a run that was killed.
        mine = {results.file_of(piece).rpartition("/")[2] for piece in pieces}
        for name in self._store.names(folder):
            if name not in mine and name != _PLAN:
                self._store.remove(f"{folder}/{name}")
        return [{"piece": piece.to_json(), "failure": "", "record": ""} for piece in pieces]


class _Worker:
    """An actor: a row a piece → a row that says how it went. The model is in its child."""

    def __init__(self, work: Work, resources: Resources) -> None:
        self._store = Store(work.store)
        memory = resources.memory or _share_of_memory(resources)
        self._guard = Guard(work, resources.limit, memory)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return _table([self._answered(row) for row in batch.to_pylist()])

    def _answered(self, row: dict[str, str]) -> dict[str, str]:
        if row["failure"]:
            return row
        piece = Piece.from_json(row["piece"])
        try:
            return self._done(row, piece)
        except StreamRPNError as error:
            return _failure(piece, _JOB, str(error), 1)

    def _done(self, row: dict[str, str], piece: Piece) -> dict[str, str]:
        record = results.record_of(self._store, piece)
        if record is not None:
            return {**row, "record": json.dumps({**record, "reused": True})}
        tries = 0
        while tries < TRIES:
            tries += 1
            answer = self._guard.ask("propose", piece)
            if not answer.kind:
                return {**row, "record": json.dumps(answer.value)}
            if answer.kind in (_JOB, "unlike", "changed"):
                break
        why = answer.why
        if answer.kind in ("crash", "memory", "time"):
            self._clear(piece)
            why = f"{masked(piece.source)}: {why}"
        return _failure(piece, answer.kind, why, tries)

    def _clear(self, piece: Piece) -> None:
        """Removes what processes that were ended have written of a piece."""
        folder, _, whole = results.file_of(piece).rpartition("/")
        for name in self._store.names(folder):
            if whole in name and name.endswith(PARTIAL):
                self._store.remove(f"{folder}/{name}")


def _share_of_memory(resources: Resources) -> int | None:
    """Returns the bytes that a worker may hold, so that all that fit on this machine can."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    beside = max(int(available_cores() / resources.cpus), 1)
    return int(0.8 * total / min(beside, resources.workers or beside))


def keep_plan(store: Store, pieces: Sequence[Piece]) -> None:
    """Writes down the pieces of a video, before any of them is done."""
    text = "".join(piece.to_json() + "\n" for piece in pieces)
    name = f"{results.folder_of(pieces[0].source)}/{_PLAN}"
    store.put_text(name, text)


def _failure(piece: Piece, kind: str, why: str, tries: int) -> dict[str, str]:
    row = {
        "source": results.text(masked(piece.source)),
        "video": short_name(piece.source),
        "piece": piece.number,
        "pieces": piece.count,
        "kind": kind,
        "tries": tries,
        "why": results.text(why),
        "worker": f"{os.uname().nodename}:{os.getpid()}",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return {"piece": piece.to_json(), "failure": json.dumps(row), "record": ""}


def _table(rows: Sequence[dict[str, str]]) -> pa.Table:
    import pyarrow as pa

    names = ("piece", "failure", "record")
    return pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in names})


def run(
    sources: Sequence[str],
    work: Work,
    resources: Resources,
    tell: Callable[[Outcome, Piece], None] = lambda outcome, piece: None,
) -> Outcome:
    """Does the videos, and returns what became of them; what was done before is not done again.

    Args:
        sources: their addresses.
        work: what is done with each.
        resources: with what.
        tell: is called after each piece.

    Raises:
        StreamRPNError: there is no Ray, no cluster, no place for results, or no such model.
    """
    outcome = Outcome()
    with joined(resources.address):
        unlike = _round(sources, work, resources, outcome, tell)
        if unlike:
            # What came was something else than what was counted: these are taken whole.
            store = Store(work.store)
            for source in unlike:
                because = "its pieces do not decode to what was counted"
                keep_plan(store, [Piece(source, version(source), whole_because=because)])
                outcome.records.pop(source, None)
            _round(unlike, work, resources, outcome, tell)
    return outcome


def _round(
    sources: Sequence[str],
    work: Work,
    resources: Resources,
    outcome: Outcome,
    tell: Callable[[Outcome, Piece], None],
) -> list[str]:
    """Does the videos once; returns those that have to be taken whole."""
    unlike: dict[str, None] = {}
    with closing(_rows(sources, work, resources)) as rows:
        for row in rows:
            piece = Piece.from_json(row["piece"])
            if row["failure"]:
                failure = json.loads(row["failure"])
                if failure["kind"] == _JOB:
                    raise StreamRPNError(failure["why"])
                if failure["kind"] == "unlike":
                    unlike[piece.source] = None
                    continue
                outcome.failures.append(failure)
            else:
                record = json.loads(row["record"])
                outcome.reused += record.pop("reused", False)
                outcome.records.setdefault(piece.source, {})[piece.number] = record
            tell(outcome, piece)
    return list(unlike)


def _rows(
    sources: Sequence[str], work: Work, resources: Resources
) -> Generator[dict[str, str], None, None]:
    import pyarrow as pa
    import ray
    from ray.data import ActorPoolStrategy

    room = ray.cluster_resources()
    gpus = resources.gpus
    if gpus is None:
        device = work.options.get("device", "auto")
        gpus = 1 if room.get("GPU") and device.startswith(("auto", "cuda")) else 0
    fit = int(room.get("CPU", 1) // resources.cpus) if resources.cpus else len(sources)
    if gpus:
        fit = min(fit, int(room.get("GPU", 0) / gpus))
    if fit < 1 and resources.address == "local":
        raise StreamRPNError(
            f"a worker of {resources.cpus:g} CPUs and {gpus:g} GPUs does not fit on this machine "
            f"with {room.get('CPU', 0):g} CPUs and {room.get('GPU', 0):g} GPUs; ask for less"
        )
    if resources.workers or resources.address == "local":
        pool = ActorPoolStrategy(size=min(resources.workers or fit, fit) if fit else 1)
    else:
        pool = ActorPoolStrategy(min_size=1)
    arguments = {"work": work, "resources": resources}
    step = math.ceil(len(sources) / _MOST_BLOCKS)
    tables = [
        pa.table({"source": list(sources[first : first + step])})
        for first in range(0, len(sources), step)
    ]
    pieces = ray.data.from_arrow(tables).map_batches(
        _Planner,
        fn_constructor_kwargs=arguments,
        batch_size=1,
        batch_format="pyarrow",
        # They wait for disks and networks, and must not wait for a core that workers have.
        num_cpus=0,
        compute=ActorPoolStrategy(min_size=1, max_size=max(min(fit, len(sources)), 1)),
    )
    done = pieces.map_batches(
        _Worker,
        fn_constructor_kwargs=arguments,
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=resources.cpus,
        num_gpus=gpus,
        compute=pool,
    )
    try:
        yield from done.iter_rows()
    except ray.exceptions.RayTaskError:
        raise  # of a fault in the program, whose place it tells
    except ray.exceptions.RayError as error:
        raise StreamRPNError(f"Ray gave up: {' '.join(str(error).split())[:500]}") from error
