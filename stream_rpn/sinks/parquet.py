"""Parquet: a directory of part files, one row a frame, that pandas, Polars and DuckDB read."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from stream_rpn.drops import Drop
from stream_rpn.embedding import DTYPE
from stream_rpn.frame import Proposals, StreamInfo, StreamRPNError
from stream_rpn.limits import check_unpacked
from stream_rpn.sinks.folder import Folder
from stream_rpn.sinks.record import (
    DAMAGE,
    NO_TEXT,
    Contents,
    check_end,
    check_header,
    embedding_length,
    lacking,
    saved_proposals,
)
from stream_rpn.sinks.sink import Sink, SinkOptions

FIRST_PART = "part-00000.parquet"

ABOUT = b"stream_rpn"
"""The key of our record in the metadata of a file."""

OLD_HEADER_FILE = "_header.json"  # of the first release, which only some readers pass over


_BY_BOX = ("boxes", "scores", "levels", "anchors", "track_ids", "embeddings")
_VECTORS = ("boxes", "embeddings")  # which have a list for each box

_PART = re.compile(r"part-\d{5,}\.parquet")


class ParquetSink(Sink):
    """Collects rows and writes them as part files, each of which appears only when whole.

    A Parquet file is unreadable without its footer, which comes last; so a run that is killed
    leaves the parts before, and loses `PART_FRAMES` frames, `PART_BYTES` or `PART_SECONDS` at most.
    The columns are frame, pts, pts_seconds, unix_seconds (live sources), width, height, image_id,
    name, source, drops, boxes, scores, levels and anchors, with a gate held, with tracking
    track_ids, and where they were asked for embeddings (float16, lists of fixed size). Nothing but
    parts lies in the directory, so that every reader takes it as it is: headers and ends of the
    sources so far stand as JSON under `stream_rpn` in the key-value metadata of each part, with the
    run and the number of the part. The first part has no rows, and is there from the start; so may
    be others.
    """

    takes_several_sources: ClassVar[bool] = True
    PART_FRAMES = 1000
    PART_BYTES = 2**25
    PART_SECONDS = 30.0

    def __init__(self, name: str, options: SinkOptions) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise StreamRPNError(
                f"output {name!r} needs pyarrow; `pip install 'stream-rpn[parquet]'` provides it"
            ) from error
        self._arrow = pyarrow
        self._schema = pyarrow.schema(
            [
                ("frame", pyarrow.int64()),
                ("pts", pyarrow.int64()),
                ("pts_seconds", pyarrow.float64()),
                ("unix_seconds", pyarrow.float64()),
                ("width", pyarrow.int32()),
                ("height", pyarrow.int32()),
                ("image_id", pyarrow.int64()),
                ("name", pyarrow.string()),
                ("source", pyarrow.string()),
                (
                    "drops",
                    pyarrow.list_(
                        pyarrow.struct(
                            [
                                ("reason", pyarrow.string()),
                                ("count", pyarrow.int64()),
                                ("first_pts", pyarrow.int64()),
                                ("seconds", pyarrow.float64()),
                            ]
                        )
                    ),
                ),
                ("boxes", pyarrow.list_(pyarrow.list_(pyarrow.float32(), 4))),
                ("scores", pyarrow.list_(pyarrow.float32())),
                ("levels", pyarrow.list_(pyarrow.int32())),
                ("anchors", pyarrow.list_(pyarrow.int32())),
            ]
        )
        self._rows: list[dict[str, Any]] = []
        self._arrays = self._no_arrays()
        self._part_began = 0.0
        self._part_bytes = 0
        self._length = 0  # of an embedding
        self._about: dict[str, Any] = {
            "run": uuid.uuid4().hex,
            "part": 0,
            "headers": [],
            "ends": [],
        }
        super().__init__(name, options)

    def _claim(self) -> Folder:
        return Folder(
            self.name,
            replace=self.options.replace,
            record=FIRST_PART,
            members=_other_parts,
            ending=".parquet",
        )

    def _begin(self, header: dict[str, Any], info: StreamInfo) -> None:
        self._about["headers"].append(header)
        if self._about["part"] == 0:
            # All parts have the same columns, and a run has a gate or none.
            self._length = embedding_length(header)
            if "gate" in header["parameters"]:
                self._schema = self._schema.append(self._arrow.field("held", self._arrow.int64()))
            if "tracking" in header["parameters"]:
                numbers = self._arrow.list_(self._arrow.int64())
                self._schema = self._schema.append(self._arrow.field("track_ids", numbers))
            if self._length:
                vector = self._arrow.list_(self._arrow.float16(), self._length)
                vectors = self._arrow.field("embeddings", self._arrow.list_(vector))
                self._schema = self._schema.append(vectors)
            self._arrays = self._no_arrays()
            self._write_part()

    def _write(self, proposals: Proposals) -> None:
        if not self._rows:
            self._part_began = time.monotonic()
        # Only the small arrays are kept, never the image that may hang on the proposals.
        for name, arrays in self._arrays.items():
            array = getattr(proposals, name)
            if array is None and name == "embeddings":
                array = np.zeros((len(proposals), self._length), DTYPE)
            arrays.append(np.full(len(proposals), -1) if array is None else array)
            self._part_bytes += arrays[-1].nbytes
        self._rows.append(
            {
                "frame": proposals.frame,
                "pts": proposals.pts,
                "pts_seconds": proposals.pts_seconds,
                "unix_seconds": proposals.unix_seconds,
                "width": proposals.width,
                "height": proposals.height,
                "image_id": proposals.image_id,
                "name": None if proposals.name is None else _text(proposals.name),
                "source": _text(self._source_of(proposals)),
                "drops": [drop.record() for drop in proposals.drops],
                **({"held": proposals.held} if "held" in self._schema.names else {}),
            }
        )
        full = len(self._rows) >= self.PART_FRAMES or self._part_bytes >= self.PART_BYTES
        if full or time.monotonic() - self._part_began >= self.PART_SECONDS:
            self._write_part()

    def _end(self, end: dict[str, Any]) -> None:
        self._about["ends"].append(end)
        self._write_part()

    def _lacks(self, source: str, why: str) -> None:
        self._end({"source": source, **lacking(why)})

    def _close(self) -> None:
        if self._rows:
            self._write_part()

    def _abort(self) -> None:
        self._close()

    def _write_part(self) -> None:
        """Writes the rows so far, which may be none, and all that is known of the run."""
        schema = self._schema.with_metadata({ABOUT: json.dumps(self._about)})
        table = self._table(schema) if self._rows else schema.empty_table()
        self._rows, self._arrays, self._part_bytes = [], self._no_arrays(), 0
        part = f"part-{self._about['part']:05d}.parquet"
        self._about["part"] += 1
        cast(Folder, self._place).put(
            part,
            lambda path: self._arrow.parquet.write_table(
                table, path, compression="zstd", use_dictionary=["name", "source"]
            ),
        )

    def _no_arrays(self) -> dict[str, list[np.ndarray]]:
        return {name: [] for name in _BY_BOX if name in self._schema.names}

    def _table(self, schema: Any) -> Any:
        columns = {
            name: self._arrow.array([row[name] for row in self._rows], schema.field(name).type)
            for name in self._rows[0]
        }
        offsets = np.cumsum([0] + [len(scores) for scores in self._arrays["scores"]])
        for name, arrays in self._arrays.items():
            values = self._arrow.array(np.concatenate(arrays).ravel())
            if name in _VECTORS:
                length = schema.field(name).type.value_type.list_size
                values = self._arrow.FixedSizeListArray.from_arrays(values, length)
            columns[name] = self._arrow.ListArray.from_arrays(offsets.astype(np.int32), values)
        return self._arrow.table(columns, schema=schema)


def _text(name: str) -> str:
    return name.encode(errors=NO_TEXT).decode()


def _parts(directory: Path) -> list[Path]:
    """Returns the files of a directory that are called like parts, in order."""
    named = [path for path in directory.iterdir() if _PART.fullmatch(path.name)]
    return sorted(named, key=lambda path: int(path.stem.removeprefix("part-")))


def _about(metadata: Any) -> dict[str, Any] | None:
    """Returns our record in the metadata of a Parquet file, None where there is none.

    Raises:
        ValueError: it is none of ours.
        TypeError: neither.
    """
    text = (metadata.metadata or {}).get(ABOUT)
    return None if text is None else check_end(json.loads(text))


def _other_parts(directory: Path) -> list[str]:
    """Returns the names of what the run wrote that wrote the first part of a directory."""
    import pyarrow.parquet

    first = _about(pyarrow.parquet.read_metadata(directory / FIRST_PART))
    if first is None:
        if not (directory / OLD_HEADER_FILE).is_file():
            raise ValueError("not a part of ours")
        about = json.loads((directory / OLD_HEADER_FILE).read_bytes())
        names = [*about["parts"], OLD_HEADER_FILE]
        if not all(_PART.fullmatch(name) for name in about["parts"]):
            raise ValueError("not a header file of ours")
        return [name for name in names if name != FIRST_PART]
    names = []
    for part in _parts(directory)[1:]:
        with suppress(*DAMAGE, OSError):
            about = _about(pyarrow.parquet.read_metadata(part))
            if about is not None and about["run"] == first["run"]:
                names.append(part.name)
    return names


def read_parquet(path: Path, contents: Contents) -> Iterator[Proposals]:
    """Yields the frames of a directory of part files, or of one file."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise StreamRPNError(
            f"reading {str(path)!r} needs pyarrow; `pip install 'stream-rpn[parquet]'` provides it"
        ) from error
    damage = (pyarrow.ArrowException, *DAMAGE)
    parts = _parts(path) if path.is_dir() else [path]
    if not parts:
        raise StreamRPNError(f"{str(path)!r} is not a directory of stream-rpn results")
    part = parts[-1]
    try:
        # Every part tells of those before it.
        about = _about(pyarrow.parquet.read_metadata(part)) or _old_about(path)
        contents.headers += map(check_header, about["headers"])
        contents.ends += map(check_end, about["ends"])
        run = about.get("run")
        whole = path.is_file() or len(parts) == about["part"] + 1
        for part in parts:
            file = pyarrow.parquet.ParquetFile(part)
            _check_size(file.metadata, part)
            if (_about(file.metadata) or {}).get("run") != run:
                whole = False  # of another run, whose end was replaced
                continue
            for batch in file.iter_batches(batch_size=256):
                yield from _from_batch(batch)
    except damage as error:
        raise StreamRPNError(
            f"{str(part)!r} is not a Parquet file of stream-rpn results, or is damaged"
        ) from error
    contents.settle()
    contents.complete &= whole


def _old_about(path: Path) -> dict[str, Any]:
    """Returns what the first release recorded in a file beside the parts."""
    if not (path / OLD_HEADER_FILE).is_file():
        return {"headers": [], "ends": [], "part": 0}
    about = json.loads((path / OLD_HEADER_FILE).read_bytes())
    return {**about, "part": len(about.get("parts") or _parts(path)) - 1}


def _matrix(lists: Any) -> np.ndarray:
    """Returns lists of a fixed size as [N, size]."""
    matrix: np.ndarray = lists.flatten().to_numpy(zero_copy_only=False)
    return matrix.reshape(-1, lists.type.list_size)


def _check_size(metadata: Any, part: Path) -> None:
    """Refuses a small file that says it holds very much."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    num_bytes = sum(group.total_byte_size for group in groups)
    num_values = sum(
        group.column(index).num_values for group in groups for index in range(group.num_columns)
    )
    check_unpacked(max(num_bytes, 4 * num_values), part)


def _from_batch(batch: Any) -> Iterator[Proposals]:
    """Yields the rows of a record batch, their arrays without a detour over Python numbers."""
    arrays = [name for name in _BY_BOX if name in batch.schema.names]
    rows = batch.select([name for name in batch.schema.names if name not in arrays]).to_pylist()
    lists = {name: batch.column(batch.schema.names.index(name)) for name in arrays}
    for index, row in enumerate(rows):
        values = {name: lists[name][index].values for name in arrays}
        boxes = _matrix(values.pop("boxes"))
        vectors = _matrix(values.pop("embeddings")) if "embeddings" in values else None
        others = {name: v.to_numpy(zero_copy_only=False) for name, v in values.items()}
        drops = tuple(Drop(**drop) for drop in row.pop("drops") or ())
        width, height = (row.pop(name) or 0 for name in ("width", "height"))
        yield saved_proposals(
            row.pop("frame"),
            boxes,
            embeddings=vectors,
            **others,
            width=width,
            height=height,
            drops=drops,
            **row,
        )
