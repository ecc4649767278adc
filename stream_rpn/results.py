"""Result files: their header, and reading them back."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stream_rpn.frame import Drop, Proposals, StreamInfo, StreamRPNError

FORMAT_VERSION = 1
_ENDINGS = (".jsonl", ".jsonl.gz", ".parquet", ".npz", ".coco.json", ".mot.txt")


def make_header(
    info: StreamInfo, *, model: str, parameters: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns what stands at the head of a result file: version, source, model and parameters.

    Values that JSON does not know become what it does: infinities and NaN None, tuples lists.
    """
    stream = dataclasses.asdict(info)
    del stream["stem"]
    header = {
        "stream_rpn": FORMAT_VERSION,
        **stream,
        "model": model,
        "parameters": parameters or {},
    }
    return {name: _plain(value) for name, value in header.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def read(path: str | os.PathLike[str]) -> Results:
    """Opens a result file that stream-rpn wrote, to iterate over its `Proposals`.

    Args:
        path: a file ending in .jsonl, .jsonl.gz, .npz, .coco.json or .mot.txt, or a .parquet
            directory.

    Raises:
        StreamRPNError: it is missing, or not such a file (the sentence names the line).
    """
    return Results(path)


class Results:
    """The proposals of a result file, frame by frame; each iteration reads the file anew.

    What a format does not hold has a neutral value: `anchors` −1, `levels` −1, `input_boxes` 0,
    sizes 0, pts None. COCO and MOT files tell of frames with boxes only, `frame` is the image id
    of COCO.

    Attributes:
        path: the file or directory.
        headers: the header of each source met so far; the first one at once.
        ends: the closing totals of each source, known once an iteration has come to the end.
        complete: whether the last iteration came to the end of a whole file; False for one that was
            cut off when its writer was killed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.headers: list[dict[str, Any]] = []
        self.ends: list[dict[str, Any]] = []
        self.complete = False
        name = str(self.path).lower()
        endings = [ending for ending in _ENDINGS if name.endswith(ending)]
        if not endings:
            raise StreamRPNError(
                f"{str(path)!r} is not a result file by its name; known are {', '.join(_ENDINGS)}"
            )
        if not self.path.exists():
            raise StreamRPNError(f"{str(path)!r} does not exist")
        self._read = {
            ".jsonl": self._json_lines,
            ".jsonl.gz": self._json_lines,
            ".parquet": self._parquet,
            ".npz": self._npz,
            ".coco.json": self._coco,
            ".mot.txt": self._mot,
        }[max(endings, key=len)]
        # One step of an iteration meets the header, and what is wrong with another kind of file.
        next(iter(self), None)

    @property
    def header(self) -> dict[str, Any]:
        """The header of the first source, empty for formats that hold none."""
        return self.headers[0] if self.headers else {}

    @property
    def sources(self) -> list[str]:
        """The names of all sources in the file, in order; none where the format holds no header."""
        if self._read != self._json_lines:
            return [header["source"] for header in self.headers]
        with self._lines() as lines:
            # Headers are recognised by their first key, as parsing every line would take long.
            return [
                json.loads(line)["source"] for line in lines if line.startswith(b'{"stream_rpn"')
            ]

    def __iter__(self) -> Iterator[Proposals]:
        self.headers, self.ends, self.complete = [], [], False
        try:
            yield from self._read()
        except OSError as error:
            raise StreamRPNError(f"cannot read {str(self.path)!r}: {error.strerror}") from error

    @contextlib.contextmanager
    def _lines(self) -> Iterator[Iterator[bytes]]:
        with open(self.path, "rb") as file:
            yield _inflated_lines(file) if self.path.suffix.lower() == ".gz" else file

    def _json_lines(self) -> Iterator[Proposals]:
        headers: dict[str | None, dict[str, Any]] = {}
        with self._lines() as lines:
            for number, line in enumerate(lines, 1):
                # Only the last line can lack its end: the writer was killed there.
                if not line.endswith(b"\n"):
                    break
                try:
                    record = json.loads(line)
                    if "stream_rpn" in record:
                        # Lines carry their source only where a file holds several.
                        headers[record["source"]] = headers[None] = record
                        self.headers.append(record)
                    elif "end" in record:
                        self.ends.append(record["end"])
                    else:
                        yield _from_record(record, headers[record.get("source")])
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise StreamRPNError(
                        f"{str(self.path)!r}, line {number}: not a line of stream-rpn results"
                    ) from error
        self.complete = bool(self.headers) and len(self.headers) == len(self.ends)

    def _parquet(self) -> Iterator[Proposals]:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise StreamRPNError(
                f"reading {str(self.path)!r} needs pyarrow; "
                "`pip install 'stream-rpn[parquet]'` provides it"
            ) from error
        parts = sorted(self.path.glob("part-*.parquet")) if self.path.is_dir() else [self.path]
        about_file = self.path / "_header.json"
        if self.path.is_dir() and not about_file.exists():
            raise StreamRPNError(f"{str(self.path)!r} is not a directory of stream-rpn results")
        if about_file.exists():
            about = json.loads(about_file.read_text())
            self.headers, self.ends = about["headers"], about["ends"]
        for part in parts:
            try:
                file = pyarrow.parquet.ParquetFile(part)
                for batch in file.iter_batches(batch_size=256):
                    yield from _from_batch(batch)
            except (pyarrow.ArrowException, KeyError) as error:
                raise StreamRPNError(
                    f"{str(part)!r} is not a Parquet file of stream-rpn results"
                ) from error
        self.complete = bool(self.headers) and len(self.headers) == len(self.ends)

    def _npz(self) -> Iterator[Proposals]:
        try:
            archive = np.load(self.path)
            about = json.loads(str(archive["about"]))
            columns = {name: archive[name] for name in archive.files if name != "about"}
        except (ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            raise StreamRPNError(
                f"{str(self.path)!r} is not an archive of stream-rpn results"
            ) from error
        self.headers = [about["header"]]
        offsets = columns["offsets"]
        for index, frame in enumerate(columns["frame"].tolist()):
            rows = slice(offsets[index], offsets[index + 1])
            pts, seconds, image_id = (
                columns[name][index].item() for name in ("pts", "pts_seconds", "image_id")
            )
            yield _proposals(
                frame,
                columns["boxes"][rows],
                columns["scores"][rows],
                columns["levels"][rows],
                columns["anchors"][rows],
                pts=None if pts == np.iinfo(np.int64).min else pts,
                pts_seconds=None if math.isnan(seconds) else seconds,
                width=int(columns["width"][index]),
                height=int(columns["height"][index]),
                image_id=None if image_id == -1 else image_id,
                name=about["names"].get(str(index)),
                drops=tuple(Drop(*drop) for drop in about["drops"].get(str(index), ())),
                source=about["header"].get("source", ""),
            )
        self.ends = [about["end"]] if about["end"] is not None else []
        self.complete = bool(self.ends)

    def _coco(self) -> Iterator[Proposals]:
        try:
            results = json.loads(self.path.read_bytes())
            for image_id, group in itertools.groupby(results, key=lambda item: item["image_id"]):
                items = list(group)
                boxes = np.array([item["bbox"] for item in items], dtype=np.float64)
                boxes[:, 2:] += boxes[:, :2]
                scores = [item["score"] for item in items]
                yield _proposals(image_id, boxes, scores, image_id=image_id)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise StreamRPNError(f"{str(self.path)!r} holds no COCO detection results") from error
        self.complete = True

    def _mot(self) -> Iterator[Proposals]:
        with open(self.path) as file:
            for frame, group in itertools.groupby(self._mot_rows(file), key=lambda row: row[0]):
                rows = np.array(list(group))
                boxes = rows[:, 2:6].copy()
                boxes[:, :2] -= 1
                boxes[:, 2:] += boxes[:, :2]
                yield _proposals(int(frame) - 1, boxes, rows[:, 6])
        self.complete = True

    def _mot_rows(self, lines: Iterable[str]) -> Iterator[list[float]]:
        for number, line in enumerate(lines, 1):
            try:
                row = [float(field) for field in line.split(",")]
            except ValueError:
                row = []
            if len(row) < 7:
                raise StreamRPNError(
                    f"{str(self.path)!r}, line {number}: not a line of MOTChallenge detections"
                )
            yield row


def _inflated_lines(file: io.BufferedReader) -> Iterator[bytes]:
    """Yields the lines of a gzip file up to where it was cut off; the last one may lack its end."""
    inflate = zlib.decompressobj(wbits=31)
    rest = b""
    while chunk := file.read(1 << 16):
        try:
            lines = (rest + inflate.decompress(chunk)).splitlines(keepends=True)
        except zlib.error as error:
            raise StreamRPNError(f"{file.name!r} is not a gzip file, or is damaged") from error
        rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        yield from lines
    if rest:
        yield rest


def _from_record(record: dict[str, Any], header: dict[str, Any]) -> Proposals:
    return _proposals(
        record["frame"],
        record["boxes"],
        record["scores"],
        record["levels"],
        pts=record["pts"],
        pts_seconds=record["pts_seconds"],
        unix_seconds=record.get("unix_seconds"),
        width=record.get("width", header["width"]),
        height=record.get("height", header["height"]),
        image_id=record.get("image_id"),
        name=record.get("name"),
        drops=tuple(Drop(**drop) for drop in record.get("drops", ())),
        source=header["source"],
    )


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
        yield _proposals(row.pop("frame"), boxes, scores, levels, anchors, drops=drops, **row)


def _proposals(
    frame: int,
    boxes: np.ndarray | Sequence[Any],
    scores: np.ndarray | Sequence[float],
    levels: np.ndarray | Sequence[int] | None = None,
    anchors: np.ndarray | None = None,
    *,
    pts: int | None = None,
    pts_seconds: float | None = None,
    unix_seconds: float | None = None,
    width: int = 0,
    height: int = 0,
    image_id: int | None = None,
    name: str | None = None,
    drops: tuple[Drop, ...] = (),
    source: str = "",
) -> Proposals:
    unknown = np.full(len(scores), -1, np.int32)
    return Proposals(
        frame=frame,
        pts=pts,
        pts_seconds=pts_seconds,
        unix_seconds=unix_seconds,
        width=width,
        height=height,
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        scores=np.asarray(scores, np.float32),
        levels=unknown if levels is None else np.asarray(levels, np.int32),
        anchors=unknown if anchors is None else np.asarray(anchors, np.int32),
        input_boxes=np.zeros((len(scores), 4), np.float32),
        drops=drops,
        image_id=image_id,
        name=name,
        source=source,
    )
