"""The folder of a job: what its results are of, and what became of each video."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stream_rpn.batch import results
from stream_rpn.batch.storage import PARTIAL, Store, short_name
from stream_rpn.batch.work import Work
from stream_rpn.frame import StreamRPNError

if TYPE_CHECKING:
    from stream_rpn.batch.job import Outcome


def check_job(store: Store, work: Work) -> None:
    """Notes in the results' folder what they are of; a run that would mix others in is refused.

    Raises:
        StreamRPNError: the folder is of other parameters, or cannot be written.
    """
    options = {
        name: value for name, value in work.options.items() if name not in ("device", "threads")
    }
    selection = asdict(replace(work.selection, decoder="auto"))
    mine = {"chunk": work.chunk, **options, **selection}
    text = json.dumps(mine, indent=1, sort_keys=True) + "\n"
    kept = store.read("_job.json")
    if kept is None:
        store.put_text("_job.json", text)
        return
    try:
        theirs = json.loads(kept)
    except ValueError:
        theirs = None
    if not isinstance(theirs, dict):
        raise StreamRPNError(f"{store.name}/_job.json is damaged; give another --to")
    mine = json.loads(text)
    for name in sorted({*mine, *theirs}):
        if mine.get(name) != theirs.get(name):
            raise StreamRPNError(
                f"{store.name} holds results with {name} {theirs.get(name)}, and this run has "
                f"{mine.get(name)}; give another --to"
            )


def clear(store: Store) -> None:
    """Removes what workers that were ended have begun to write here; nobody may be writing now."""
    if store.is_local:
        for path in Path(store.address, "proposals").glob(f"*/.*{PARTIAL}"):
            path.unlink(missing_ok=True)


def conclude(store: Store, sources: Sequence[str], outcome: Outcome) -> None:
    """Writes manifest and failures; rows of sources that this run was not about stay.

    Raises:
        StreamRPNError: they cannot be written.
    """
    mine = {short_name(source) for source in sources}
    rows = [
        results.manifest_row(source, [done[number] for number in sorted(done)])
        for source, done in outcome.records.items()
    ]
    manifest = [*_others(store, "manifest.parquet", mine), *rows]
    failures = [*_others(store, "failures.parquet", mine), *outcome.failures]
    order = {short_name(source): index for index, source in enumerate(sources)}
    manifest.sort(key=lambda row: order.get(row["video"], -1))
    results.write_table(store, "failures.parquet", results.FAILURES, failures)
    results.write_table(store, "manifest.parquet", results.MANIFEST, manifest)


def _others(store: Store, name: str, mine: set[str]) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with store.open(name) as file:
        if file is None:
            return []
        try:
            rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
        except pa.ArrowException:
            return []
    return [row for row in rows if row.get("video") not in mine]
