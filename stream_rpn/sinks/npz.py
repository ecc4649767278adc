"""NumPy archives: every column one array, boxes of all frames concatenated."""

from __future__ import annotations

import json
import math
import shutil
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stream_rpn.drops import Drop
from stream_rpn.frame import Proposals, StreamInfo, StreamRPNError
from stream_rpn.limits import check_unpacked
from stream_rpn.sinks.place import Place, WholeFile
from stream_rpn.sinks.record import (
    DAMAGE,
    Contents,
    check_end,
    check_header,
    embedding_length,
    saved_proposals,
)
from stream_rpn.sinks.sink import Sink

_DAMAGE: tuple[type[Exception], ...] = (
    *DAMAGE,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    # NumPy parses the heads of arrays as Python.
    SyntaxError,
    tokenize.TokenError,
)

NO_PTS = np.iinfo(np.int64).min
"""The value for "no pts", as in FFmpeg."""

ANY = -1
"""The length of an axis that differs from one archive to another."""

COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "frame": ("<i8", ()),
    "pts": ("<i8", ()),
    "pts_seconds": ("<f8", ()),
    "width": ("<i4", ()),
    "height": ("<i4", ()),
    "image_id": ("<i8", ()),
    "held": ("<i8", ()),
    "offsets": ("<i8", ()),
    "boxes": ("<f4", (4,)),
    "scores": ("<f4", ()),
    "levels": ("<i4", ()),
    "anchors": ("<i4", ()),
    "track_ids": ("<i8", ()),
    "embeddings": ("<f2", (ANY,)),
}
"""Arrays of an archive: dtype and shape of one item."""

BY_BOX = ("boxes", "scores", "levels", "anchors", "track_ids", "embeddings")
"""Those that have a row per box."""

OPTIONAL = ("held", "track_ids", "embeddings")
"""Those that an archive has where they say anything."""


class NPZSink(Sink):
    """Writes an archive for `np.load`, without pickles, in memory that does not grow.

    The boxes of the i-th frame are `boxes[offsets[i]:offsets[i + 1]]`, and so for `scores`,
    `levels`, `anchors`, where objects were followed `track_ids` and where they were asked for
    `embeddings`; `frame`, `pts` (−2⁶³ where unknown), `pts_seconds` (NaN where unknown), `width`,
    `height` and `image_id` (−1 where unknown) have one item per frame, and where some have the
    proposals of an earlier one, so has `held`: which one (−1 where none). `about` is a string of
    JSON with `header` and `end`, and with `names` and `drops` of the frames that have any, by
    position.
    """

    def _claim(self) -> Place:
        return WholeFile(self.name, replace=self.options.replace)

    def _open(self) -> None:
        # The arrays grow side by side, but an archive holds them one after another.
        self._columns = self._place.path.parent
        self._files = {name: open(self._columns / name, "wb") for name in COLUMNS}  # noqa: SIM115
        self._num_frames = 0
        self._num_boxes = 0
        self._said: set[str] = set()  # of what is optional
        self._length = 0  # of an embedding
        self._append("offsets", 0)
        self._about: dict[str, Any] = {"header": {}, "end": None, "names": {}, "drops": {}}

    def _begin(self, header: dict[str, Any], info: StreamInfo) -> None:
        self._about["header"] = header
        self._length = embedding_length(header)
        if self._length:
            self._said.add("embeddings")

    def _write(self, proposals: Proposals) -> None:
        self._append("frame", proposals.frame)
        self._append("pts", NO_PTS if proposals.pts is None else proposals.pts)
        seconds = proposals.pts_seconds
        self._append("pts_seconds", float("nan") if seconds is None else seconds)
        self._append("width", proposals.width)
        self._append("height", proposals.height)
        self._append("image_id", -1 if proposals.image_id is None else proposals.image_id)
        self._append("held", -1 if proposals.held is None else proposals.held)
        told = {"held": proposals.held, "track_ids": proposals.track_ids}
        self._said |= {name for name, value in told.items() if value is not None}
        if proposals.name is not None:
            self._about["names"][self._num_frames] = proposals.name
        if proposals.drops:
            self._about["drops"][self._num_frames] = [
                list(drop.record().values()) for drop in proposals.drops
            ]
        for name in ("boxes", "scores", "levels", "anchors"):
            self._append(name, getattr(proposals, name))
        none = np.full(len(proposals), -1)
        self._append("track_ids", none if proposals.track_ids is None else proposals.track_ids)
        if self._length:
            nowhere = np.zeros((len(proposals), self._length))
            vectors = proposals.embeddings
            self._append("embeddings", nowhere if vectors is None else vectors)
        self._num_frames += 1
        self._num_boxes += len(proposals)
        self._append("offsets", self._num_boxes)

    def _end(self, end: dict[str, Any]) -> None:
        self._about["end"] = end

    def _close(self) -> None:
        for file in self._files.values():
            file.close()
        with zipfile.ZipFile(self._place.path, "w") as archive:
            for name, (dtype, item_shape) in COLUMNS.items():
                if name in OPTIONAL and name not in self._said:
                    continue
                column = self._columns / name
                item_shape = tuple(self._length if n == ANY else n for n in item_shape)
                count = column.stat().st_size // (
                    np.dtype(dtype).itemsize * int(np.prod(item_shape))
                )
                header = {
                    "descr": dtype,
                    "fortran_order": False,
                    "shape": (count, *item_shape),
                }
                with (
                    archive.open(f"{name}.npy", "w", force_zip64=True) as member,
                    open(column, "rb") as values,
                ):
                    np.lib.format.write_array_header_1_0(member, header)
                    shutil.copyfileobj(values, member, 1 << 20)
            with archive.open("about.npy", "w") as member:
                np.lib.format.write_array(member, np.array(json.dumps(self._about)))

    def _abort(self) -> None:
        for file in self._files.values():
            file.close()

    def _append(self, name: str, value: Any) -> None:
        self._files[name].write(np.ascontiguousarray(value, dtype=COLUMNS[name][0]).tobytes())


def read_npz(path: Path, contents: Contents) -> Iterator[Proposals]:
    """Yields the frames of an archive."""
    try:
        with zipfile.ZipFile(path) as file:
            check_unpacked(sum(member.file_size for member in file.infolist()), path)
        with np.load(path) as archive:
            about = json.loads(str(archive["about"]))
            columns = {n: archive[n] for n in COLUMNS if n not in OPTIONAL or n in archive}
        columns.setdefault("held", np.full(len(columns["frame"]), -1))
        _check(columns)
        contents.headers.append(check_header(about["header"]))
        yield from _frames(columns, about)
        if about["end"] is not None:
            contents.ends.append(check_end(about["end"]))
    except _DAMAGE as error:
        raise StreamRPNError(
            f"{str(path)!r} is not an archive of stream-rpn results, or is damaged"
        ) from error
    contents.settle()


def _frames(columns: dict[str, np.ndarray], about: dict[str, Any]) -> Iterator[Proposals]:
    offsets = columns["offsets"]
    for index, frame in enumerate(columns["frame"].tolist()):
        rows = slice(offsets[index], offsets[index + 1])
        pts, seconds, image_id, held = (
            columns[name][index].item() for name in ("pts", "pts_seconds", "image_id", "held")
        )
        yield saved_proposals(
            frame,
            columns["boxes"][rows],
            columns["scores"][rows],
            columns["levels"][rows],
            columns["anchors"][rows],
            track_ids=columns["track_ids"][rows] if "track_ids" in columns else None,
            embeddings=columns["embeddings"][rows] if "embeddings" in columns else None,
            pts=None if pts == NO_PTS else pts,
            pts_seconds=None if math.isnan(seconds) else seconds,
            width=int(columns["width"][index]),
            height=int(columns["height"][index]),
            image_id=None if image_id == -1 else image_id,
            held=None if held == -1 else held,
            name=about["names"].get(str(index)),
            drops=tuple(Drop(*drop) for drop in about["drops"].get(str(index), ())),
            source=about["header"].get("source", ""),
        )


def _check(columns: dict[str, np.ndarray]) -> None:
    """Checks that the arrays of an archive fit one another.

    Raises:
        ValueError: they do not.
    """
    num_frames, num_boxes = len(columns["frame"]), len(columns["boxes"])
    for name in columns:
        dtype, item_shape = COLUMNS[name]
        length = num_boxes if name in BY_BOX else num_frames + (name == "offsets")
        shape = columns[name].shape
        expected = (length, *item_shape)
        fits = len(shape) == len(expected) and all(
            n == m or m == ANY for n, m in zip(shape, expected, strict=True)
        )
        if not fits or columns[name].dtype != np.dtype(dtype):
            raise ValueError(f"{name} is {columns[name].dtype}{shape}")
    offsets = columns["offsets"]
    if offsets[0] != 0 or offsets[-1] != num_boxes or (np.diff(offsets) < 0).any():
        raise ValueError("offsets do not rise from 0 to the number of boxes")
