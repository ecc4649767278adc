"""What a batch writes: a Parquet file a piece, its record in the footer; manifest and failures.

A piece is done when its file is there, and the file is there when it is whole: there is no other
mark that could disagree. The file is named by the piece, so doing it twice leaves it there once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stream_rpn.batch.pieces import Piece
from stream_rpn.batch.storage import Store, short_name
from stream_rpn.drops import Drop
from stream_rpn.frame import Proposals
from stream_rpn.sources.address import masked

if TYPE_CHECKING:
    import pyarrow as pa

ABOUT = b"stream_rpn"
"""The key of our record in the metadata of a file, as in `sinks.parquet`."""

ROWS_A_GROUP = 1000


def folder_of(source: str) -> str:
    """Returns the folder of a source's results, within that of all."""
    return f"proposals/video={short_name(source)}"


def file_of(piece: Piece) -> str:
    """Returns the name of a piece's file, within the folder of all results."""
    return f"{folder_of(piece.source)}/part-{piece.number:05d}.parquet"


def schema() -> pa.Schema:
    """Returns the columns of proposals: a row a frame."""
    import pyarrow as pa

    drop = pa.struct(
        [
            ("reason", pa.string()),
            ("count", pa.int64()),
            ("first_pts", pa.int64()),
            ("seconds", pa.float64()),
        ]
    )
    return pa.schema(
        [
            ("source", pa.string()),
            ("frame", pa.int64()),
            ("pts", pa.int64()),
            ("pts_seconds", pa.float64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
            ("scores", pa.list_(pa.float32())),
            ("levels", pa.list_(pa.int32())),
            ("anchors", pa.list_(pa.int32())),
            ("drops", pa.list_(drop)),
        ]
    )


def table(frames: Sequence[Proposals], source: str) -> pa.Table:
    """Returns the proposals of frames as rows of `schema()`."""
    import pyarrow as pa

    offsets = np.cumsum([0, *(len(p) for p in frames)]).astype(np.int32)

    def lists(name: str, dtype: type) -> pa.Array:
        arrays: list[np.ndarray] = [np.asarray(getattr(p, name), dtype).ravel() for p in frames]
        values = pa.array(np.concatenate(arrays) if arrays else np.zeros(0, dtype))
        if name == "boxes":
            values = pa.FixedSizeListArray.from_arrays(values, 4)
        return pa.ListArray.from_arrays(offsets, values)

    columns = {
        "source": [source] * len(frames),
        **{
            name: [getattr(p, name) for p in frames]
            for name in ("frame", "pts", "pts_seconds", "width", "height")
        },
        "boxes": lists("boxes", np.float32),
        "scores": lists("scores", np.float32),
        "levels": lists("levels", np.int32),
        "anchors": lists("anchors", np.int32),
        "drops": [[_drop(drop) for drop in p.drops] for p in frames],
    }
    return pa.table(columns, schema=schema())


def _drop(drop: Drop) -> dict[str, Any]:
    return {"seconds": None, **drop.record()}


class Checksum:
    """A sum over frames of what they hold: the same, however a video was cut."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, proposals: Proposals) -> None:
        """Counts a frame: its number and pts, and the bytes of its boxes, scores and levels."""
        digest = hashlib.blake2b(digest_size=8)
        digest.update(np.array([proposals.frame, proposals.pts or 0], "<i8").tobytes())
        for name, dtype in (("boxes", "<f4"), ("scores", "<f4"), ("levels", "<i4")):
            digest.update(np.ascontiguousarray(getattr(proposals, name), dtype).tobytes())
        self.value = (self.value + int.from_bytes(digest.digest(), "little")) % (1 << 64)


def write_piece(
    path: Path, piece: Piece, frames: Iterable[Proposals], about: dict[str, Any]
) -> None:
    """Writes the proposals of a piece, in groups of `ROWS_A_GROUP` rows.

    Args:
        path: where to.
        piece: which.
        frames: its proposals; when they have come, `about` is complete.
        about: what stands in the footer as JSON.
    """
    import pyarrow.parquet as pq

    source = text(masked(piece.source))
    with pq.ParquetWriter(path, schema(), compression="zstd", use_dictionary=["source"]) as writer:
        for some in groups(frames):
            writer.write_table(table(some, source))
        writer.add_key_value_metadata({ABOUT: json.dumps(about)})


def groups(frames: Iterable[Proposals]) -> Iterator[list[Proposals]]:
    """Yields the frames in groups, of `ROWS_A_GROUP` at most."""
    group: list[Proposals] = []
    for proposals in frames:
        group.append(proposals)
        if len(group) == ROWS_A_GROUP:
            yield group
            group = []
    if group:
        yield group


def text(name: str) -> str:
    """Returns a name as a text: those of files may hold bytes that are none."""
    return name.encode(errors="backslashreplace").decode()


def record_of(store: Store, piece: Piece) -> dict[str, Any] | None:
    """Returns what the file of a piece says of itself; None where it is not there, or another's."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with store.open(file_of(piece)) as file:
        if file is None:
            return None
        try:
            metadata = pq.read_metadata(file).metadata or {}
            record: dict[str, Any] = json.loads(metadata[ABOUT])["piece"]
        except (pa.ArrowException, KeyError, ValueError, TypeError):
            return None
    return record if record.get("plan") == piece.to_json() else None


MANIFEST = (
    ("source", "string"),
    ("video", "string"),
    ("complete", "bool"),
    ("frames", "int64"),
    ("pieces", "int32"),
    ("whole_because", "string"),
    ("seconds", "float64"),
    ("damaged_packets", "int64"),
    ("corrupt_frames", "int64"),
    ("drops", "drops"),
    ("busy_seconds", "float64"),
    ("workers", "strings"),
    ("checksum", "string"),
    ("version", "string"),
)

FAILURES = (
    ("source", "string"),
    ("video", "string"),
    ("piece", "int32"),
    ("pieces", "int32"),
    ("kind", "string"),
    ("tries", "int32"),
    ("why", "string"),
    ("worker", "string"),
    ("time", "string"),
)


def write_table(
    store: Store, name: str, columns: Sequence[tuple[str, str]], rows: Sequence[dict[str, Any]]
) -> None:
    """Writes rows as a Parquet file of these columns, in place of one that was there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        "string": pa.string(),
        "strings": pa.list_(pa.string()),
        "bool": pa.bool_(),
        "int32": pa.int32(),
        "int64": pa.int64(),
        "float64": pa.float64(),
        "drops": pa.list_(pa.struct([("reason", pa.string()), ("count", pa.int64())])),
    }
    form = pa.schema([(column, types[kind]) for column, kind in columns])
    made = pa.Table.from_pylist(list(rows), schema=form)
    store.put(name, lambda path: pq.write_table(made, path, compression="zstd"))


def manifest_row(source: str, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the row of a source from the records of its pieces that were done."""
    plan = Piece.from_json(records[0]["plan"])
    drops: dict[str, int] = {}
    for record in records:
        for reason, count in record["drops"].items():
            drops[reason] = drops.get(reason, 0) + count
    seconds = [Piece.from_json(record["plan"]).seconds for record in records]
    known = [s for s in seconds if s is not None]
    return {
        "source": text(masked(source)),
        "video": short_name(source),
        "complete": len(records) == plan.count and all(r["complete"] for r in records),
        "frames": sum(record["frames"] for record in records),
        "pieces": plan.count,
        "whole_because": plan.whole_because,
        "seconds": sum(known) if len(known) == len(seconds) else None,
        "damaged_packets": sum(record["damaged_packets"] for record in records),
        "corrupt_frames": sum(record["corrupt_frames"] for record in records),
        "drops": [{"reason": reason, "count": count} for reason, count in drops.items()],
        "busy_seconds": round(sum(record["busy_seconds"] for record in records), 3),
        "workers": sorted({record["worker"] for record in records}),
        "checksum": f"{sum(int(r['checksum'], 16) for r in records) % (1 << 64):016x}",
        "version": plan.version,
    }
