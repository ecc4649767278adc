"""Parquet: a directory of part files, one row a frame, readable by pyarrow, pandas, DuckDB, …."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from stream_rpn.frame import Drop, Proposals, StreamInfo, StreamRPNError
from stream_rpn.sinks.place import Folder
from stream_rpn.sinks.record import (
    DAMAGE,
    Contents,
    check_end,
    check_header,
    check_unpacked,
    lacking,
    saved_proposals,
)
from stream_rpn.sinks.sink import Sink, SinkOptions

HEADER_FILE = "_header.json"  # readers of Parquet directories pass over names with an underscore


class ParquetSink(Sink):
    """Collects rows and writes them as part files, each of which appears only when whole.

    A Parquet file is unreadable without its footer, which comes last; so a run that is killed
    leaves the parts before, and loses `PART_FRAMES` frames or `PART_SECONDS` at most. The columns
    are frame, pts, pts_seconds, unix_seconds (live sources), width, height, image_id, name, source,
    drops, boxes, scores, levels and anchors, and with a gate held. Headers and ends of the sources
    lie in `_header.json` in the directory, with the names of the parts: before each of them is
    written.
    """

    takes_several_sources: ClassVar[bool] = True
    PART_FRAMES = 1000
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
        self._arrays: dict[str, list[np.ndarray]] = {}
        self._part_began = 0.0
        self._about: dict[str, list[Any]] = {"headers": [], "ends": [], "parts": []}
        super().__init__(name, options)

    def _claim(self) -> Folder:
        return Folder(
            self.name,
            replace=self.options.replace,
            record=HEADER_FILE,
            members=_parts,
            ending=".parquet",
        )

    def _begin(self, header: dict[str, Any], info: StreamInfo) -> None:
        self._about["headers"].append(header)
        # All parts have the same columns, and a run has a gate or none.
        if "gate" in header["parameters"] and "held" not in self._schema.names:
            self._schema = self._schema.append(self._arrow.field("held", self._arrow.int64()))
        self._write_about()

    def _write(self, proposals: Proposals) -> None:
        if not self._rows:
            self._part_began = time.monotonic()
            self._arrays = {"boxes": [], "scores": [], "levels": [], "anchors": []}
        # Only the small arrays are kept, never the image that may hang on the proposals.
        for name, arrays in self._arrays.items():
            arrays.append(getattr(proposals, name))
        self._rows.append(
            {
                "frame": proposals.frame,
                "pts": proposals.pts,
                "pts_seconds": proposals.pts_seconds,
                "unix_seconds": proposals.unix_seconds,
                "width": proposals.width,
                "height": proposals.height,
                "image_id": proposals.image_id,
                "name": proposals.name,
                "source": self._source_of(proposals),
                "drops": [drop.record() for drop in proposals.drops],
                **({"held": proposals.held} if "held" in self._schema.names else {}),
            }
        )
        full = len(self._rows) >= self.PART_FRAMES
        if full or time.monotonic() - self._part_began >= self.PART_SECONDS:
            self._write_part()

    def _end(self, end: dict[str, Any]) -> None:
        self._write_part()
        self._about["ends"].append(end)
        self._write_about()

    def _lacks(self, source: str, why: str) -> None:
        self._end({"source": source, **lacking(why)})

    def _close(self) -> None:
        self._write_part()

    def _abort(self) -> None:
        self._write_part()

    def _write_part(self) -> None:
        if not self._rows:
            return
        rows, self._rows = self._rows, []
        columns = {
            name: self._arrow.array([row[name] for row in rows], self._schema.field(name).type)
            for name in rows[0]
        }
        offsets = np.cumsum([0] + [len(scores) for scores in self._arrays["scores"]])
        for name, arrays in self._arrays.items():
            values = self._arrow.array(np.concatenate(arrays).ravel())
            if name == "boxes":
                values = self._arrow.FixedSizeListArray.from_arrays(values, 4)
            columns[name] = self._arrow.ListArray.from_arrays(offsets.astype(np.int32), values)
        part = f"part-{len(self._about['parts']):05d}.parquet"
        self._about["parts"].append(part)
        self._write_about(sync=False)  # what syncs the part does it with this, too
        table = self._arrow.table(columns, schema=self._schema)
        cast(Folder, self._place).put(
            part,
            lambda path: self._arrow.parquet.write_table(
                table, path, compression="zstd", use_dictionary=["name", "source"]
            ),
        )

    def _write_about(self, *, sync: bool = True) -> None:
        text = json.dumps(self._about, indent=1).encode()
        cast(Folder, self._place).put(HEADER_FILE, lambda path: path.write_bytes(text), sync=sync)


def _parts(directory: Path) -> list[str]:
    """Returns the names of the parts that the header file of a directory tells of."""
    about = json.loads((directory / HEADER_FILE).read_bytes())
    # The first release did not record them.
    parts = about.get("parts") or [path.name for path in directory.glob("part-?????.parquet")]
    if not isinstance(about["headers"], list) or not all(
        re.fullmatch(r"part-\d{5,}\.parquet", part) for part in parts
    ):
        raise ValueError("not a header file of ours")
    return list(parts)


def read_parquet(path: Path, contents: Contents) -> Iterator[Proposals]:
    """Yields the frames of a directory of part files, or of one file."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise StreamRPNError(
            f"reading {str(path)!r} needs pyarrow; `pip install 'stream-rpn[parquet]'` provides it"
        ) from error
    parts = [path]
    if path.is_dir():
        if not (path / HEADER_FILE).exists():
            raise StreamRPNError(f"{str(path)!r} is not a directory of stream-rpn results")
        try:
            about = json.loads((path / HEADER_FILE).read_bytes())
            contents.headers += map(check_header, about["headers"])
            contents.ends += map(check_end, about["ends"])
            parts = [path / part for part in sorted(_parts(path))]
        except DAMAGE as error:
            raise StreamRPNError(
                f"{str(path / HEADER_FILE)!r} does not tell of stream-rpn results"
            ) from error
    for part in parts:
        if part != path and not part.exists():
            continue
        try:
            file = pyarrow.parquet.ParquetFile(part)
            _check_size(file.metadata, part)
            for batch in file.iter_batches(batch_size=256):
                yield from _from_batch(batch)
        except (pyarrow.ArrowException, *DAMAGE) as error:
            raise StreamRPNError(
                f"{str(part)!r} is not a Parquet file of stream-rpn results, or is damaged"
            ) from error
    contents.settle()
    contents.complete &= all(part.exists() for part in parts)


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
    arrays = ("boxes", "scores", "levels", "anchors")
    rows = batch.select([name for name in batch.schema.names if name not in arrays]).to_pylist()
    lists = {name: batch.column(batch.schema.names.index(name)) for name in arrays}
    for index, row in enumerate(rows):
        boxes, scores, levels, anchors = (
            (values.flatten() if name == "boxes" else values).to_numpy(zero_copy_only=False)
            for name, values in ((name, lists[name][index].values) for name in arrays)
        )
        drops = tuple(Drop(**drop) for drop in row.pop("drops") or ())
        width, height = (row.pop(name) or 0 for name in ("width", "height"))
        yield saved_proposals(
            row.pop("frame"),
            boxes.reshape(-1, 4),
            scores,
            levels,
            anchors,
            width=width,
            height=height,
            drops=drops,
            **row,
        )
