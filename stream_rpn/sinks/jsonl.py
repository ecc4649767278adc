"""JSON lines: a header, one line a frame, a closing line; plain, gzipped or on standard output."""

from __future__ import annotations

import contextlib
import io
import json
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from stream_rpn.drops import Drop
from stream_rpn.frame import Proposals, StreamInfo, StreamRPNError
from stream_rpn.sinks.lines import LinesSink
from stream_rpn.sinks.record import (
    DAMAGE,
    Contents,
    check_end,
    check_header,
    lacking,
    saved_proposals,
)
from stream_rpn.sinks.sink import SinkOptions

LONGEST_LINE = 1 << 26
"""Bytes of a line that is still read: a frame of a million boxes."""


class JSONLinesSink(LinesSink):
    """Writes a line per frame, at once, so that a killed run leaves every whole line readable."""

    def __init__(self, name: str, options: SinkOptions) -> None:
        self._sizes: dict[str, tuple[int, int]] = {}  # by source
        super().__init__(name, options)

    def _begin(self, header: dict[str, Any], info: StreamInfo) -> None:
        self._sizes[info.source] = (info.width, info.height)
        self._put(_dumps(header) + b"\n")

    def _write(self, proposals: Proposals) -> None:
        self._put(self._line(proposals))

    def _end(self, end: dict[str, Any]) -> None:
        line: dict[str, Any] = {"end": end}
        if self.options.multiple_sources:
            line["source"] = end.get("source", self._last_source)
        self._put(_dumps(line) + b"\n")

    def _lacks(self, source: str, why: str) -> None:
        self._put(_dumps({"end": lacking(why), "source": source}) + b"\n")

    def _line(self, proposals: Proposals) -> bytes:
        source = self._source_of(proposals)
        return frame_line(
            proposals,
            source=source if self.options.multiple_sources else None,
            known_size=self._sizes[source],
        )


def frame_line(
    proposals: Proposals, *, source: str | None = None, known_size: tuple[int, int] | None = None
) -> bytes:
    """Returns the line of one frame, with its newline.

    Args:
        proposals: the frame.
        source: written into the line where it has to say which source it is of.
        known_size: (width, height) that the header gave; written where the frame's is another.
    """
    head: dict[str, Any] = {
        "frame": proposals.frame,
        "pts": proposals.pts,
        "pts_seconds": proposals.pts_seconds,
    }
    if proposals.unix_seconds is not None:
        head["unix_seconds"] = round(proposals.unix_seconds, 3)
    if source is not None:
        head["source"] = source
    if proposals.image_id is not None:
        head["image_id"] = proposals.image_id
    if proposals.name is not None:
        head["name"] = proposals.name
    if (proposals.width, proposals.height) != known_size:
        head["width"], head["height"] = proposals.width, proposals.height
    if proposals.held is not None:
        head["held"] = proposals.held
    if proposals.drops:
        head["drops"] = [drop.record() for drop in proposals.drops]
    tracks = proposals.track_ids
    return b'%b,"boxes":%b,"scores":%b,"levels":%b%b}\n' % (
        _dumps(head)[:-1],
        _array(np.round(proposals.boxes, 2)),
        _array(proposals.scores),
        _array(proposals.levels),
        b"" if tracks is None else b',"track_ids":%b' % _array(tracks),
    )


class GzipJSONLinesSink(JSONLinesSink):
    """The same lines compressed, and flushed so that a killed run loses one second at most."""

    FLUSH_FRAMES = 64
    FLUSH_SECONDS = 1.0

    def _open(self) -> None:
        super()._open()
        self._gzip = zlib.compressobj(level=1, wbits=31)
        self._finished = False
        self._pending = 0
        self._flushed_at = time.monotonic()

    def _put(self, data: bytes) -> None:
        compressed = self._gzip.compress(data)
        self._pending += 1
        now = time.monotonic()
        if self._pending >= self.FLUSH_FRAMES or now - self._flushed_at >= self.FLUSH_SECONDS:
            compressed += self._gzip.flush(zlib.Z_SYNC_FLUSH)
            self._pending, self._flushed_at = 0, now
        try:
            super()._put(compressed)
        except OSError:
            # Nothing may follow a gap in the compressed stream.
            self._finished = True
            raise

    def _finish(self) -> None:
        if not self._finished:
            self._finished = True
            super()._put(self._gzip.flush())

    def _close(self) -> None:
        self._finish()
        super()._close()

    def _abort(self) -> None:
        try:
            self._finish()
        finally:
            super()._abort()


def _dumps(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _array(values: np.ndarray) -> bytes:
    """Returns an array as JSON, each number as short as its format allows.

    Whatever Python does here keeps the threads that decode and upload from running: by other means
    than a library it was more than half of what several sources on a GPU waited for.
    """
    if not np.isfinite(values).all():
        raise ValueError("proposals must be finite to be written as JSON, got NaN or infinity")
    return orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)


def read_json_lines(path: Path, contents: Contents) -> Iterator[Proposals]:
    """Yields the frames of a file of JSON lines, gzipped or not."""
    headers: dict[str | None, dict[str, Any]] = {}
    cut = False
    with _lines(path) as lines:
        for number, line in enumerate(lines, 1):
            # Only the last line can lack its end: the writer was killed there.
            if not line.endswith(b"\n"):
                cut = True
                break
            try:
                record = json.loads(line)
                if "stream_rpn" in record:
                    # Lines carry their source only where a file holds several.
                    headers[record["source"]] = headers[None] = check_header(record)
                    contents.headers.append(record)
                elif "end" in record:
                    contents.ends.append(check_end(record["end"]))
                else:
                    yield _from_record(record, headers[record.get("source")])
            except DAMAGE as error:
                raise StreamRPNError(
                    f"{str(path)!r}, line {number}: not a line of stream-rpn results"
                ) from error
    contents.settle()
    contents.complete &= not cut


def source_names(path: Path) -> list[str]:
    """Returns the names of all sources in a file of JSON lines, in order, by their headers."""
    with _lines(path) as lines:
        # Headers are recognised by their first key, as parsing every line would take long.
        try:
            return [
                check_header(json.loads(line))["source"]
                for line in lines
                if line.startswith(b'{"stream_rpn"')
            ]
        except DAMAGE as error:
            raise StreamRPNError(f"{str(path)!r} has a damaged header") from error


@contextlib.contextmanager
def _lines(path: Path) -> Iterator[Iterator[bytes]]:
    with open(path, "rb") as file:
        yield _split(_inflated(file) if path.suffix.lower() == ".gz" else _chunks(file), path)


def _chunks(file: io.BufferedReader) -> Iterator[bytes]:
    while chunk := file.read(1 << 16):
        yield chunk


def _inflated(file: io.BufferedReader) -> Iterator[bytes]:
    """Yields what gzip streams, one after another, hold, up to where the last was cut off."""
    inflate = zlib.decompressobj(wbits=31)
    for chunk in _chunks(file):
        while chunk:
            if inflate.eof:
                chunk = chunk.lstrip(b"\0")  # padding
                inflate = zlib.decompressobj(wbits=31)
                continue
            try:
                # No more at a time, as a few bytes can hold a thousand times as many.
                yield inflate.decompress(chunk, 1 << 20)
            except zlib.error as error:
                raise StreamRPNError(f"{file.name!r} is not a gzip file, or is damaged") from error
            chunk = inflate.unused_data if inflate.eof else inflate.unconsumed_tail


def _split(chunks: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """Yields lines with their ends; the last one may lack it."""
    begun: list[bytes] = []
    length = 0
    for chunk in chunks:
        lines = chunk.splitlines(keepends=True) if b"\n" in chunk else [chunk]
        for line in lines:
            begun.append(line)
            length += len(line)
            if length > LONGEST_LINE:
                raise StreamRPNError(
                    f"{str(path)!r} has a line of more than {LONGEST_LINE >> 20} MiB: it holds no "
                    "results of stream-rpn"
                )
            if line.endswith(b"\n"):
                yield b"".join(begun)
                begun, length = [], 0
    if length:
        yield b"".join(begun)


def _from_record(record: dict[str, Any], header: dict[str, Any]) -> Proposals:
    return saved_proposals(
        record["frame"],
        record["boxes"],
        record["scores"],
        record["levels"],
        track_ids=record.get("track_ids"),
        pts=record["pts"],
        pts_seconds=record["pts_seconds"],
        unix_seconds=record.get("unix_seconds"),
        width=record.get("width", header["width"]),
        height=record.get("height", header["height"]),
        image_id=record.get("image_id"),
        held=record.get("held"),
        name=record.get("name"),
        drops=tuple(Drop(**drop) for drop in record.get("drops", ())),
        source=header["source"],
    )
