"""A directory of one file, or some, a frame, with an index of them: crops, pictures, labels."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple, cast

from stream_rpn.frame import Proposals, StreamInfo
from stream_rpn.sinks.folder import Folder
from stream_rpn.sinks.record import lacking
from stream_rpn.sinks.sink import Sink

INDEX_FILE = "index.jsonl"


class Entry(NamedTuple):
    """A file of the directory.

    Attributes:
        line: of the index, with its name there as `file`.
        data: what it holds; None for one that is there already.
    """

    line: dict[str, Any]
    data: bytes | None


class IndexedFolderSink(Sink):
    """Writes files that `index.jsonl` tells of.

    The index begins with the header and closes with the totals, as a file of JSON lines does; in
    between it has a line a file. Of several sources each gets a directory of its own, and its
    `source` stands in the lines. The lines of a frame are written before its files: a killed run
    may leave a frame whose files are not all there, and no file that is not in the index.

    A sub-class says in `_entries` what a frame gives.

    Attributes:
        members: the endings of the files in it.
    """

    takes_several_sources: ClassVar[bool] = True
    members: ClassVar[tuple[str, ...]]

    def _claim(self) -> Folder:
        return Folder(
            self.name,
            replace=self.options.replace,
            record=INDEX_FILE,
            members=partial(_files_in, endings=self.members),
        )

    def _open(self) -> None:
        self._directory = self._place.path
        self._index = io.FileIO(self._directory / INDEX_FILE, "xb")
        self._index_bytes = 0
        self._folders: dict[str, str] = {}  # by source

    def _begin(self, header: dict[str, Any], info: StreamInfo) -> None:
        self._info = info
        if self.options.multiple_sources:
            folder = info.stem
            while folder in self._folders.values():
                folder += "_"
            self._folders[info.source] = folder
        self._put([Entry(header, None)])

    def _write(self, proposals: Proposals) -> None:
        source = self._source_of(proposals)
        entries = self._entries(proposals, self._folders.get(source, ""))
        if self.options.multiple_sources:
            entries = [Entry({**line, "source": source}, data) for line, data in entries]
        self._put(entries)

    def _end(self, end: dict[str, Any]) -> None:
        line: dict[str, Any] = {"end": end}
        if self.options.multiple_sources:
            line["source"] = end.get("source", self._last_source)
        self._put([Entry(line, None)])

    def _lacks(self, source: str, why: str) -> None:
        self._put([Entry({"end": lacking(why), "source": source}, None)])

    def _entries(self, proposals: Proposals, folder: str) -> list[Entry]:
        """Returns the files of a frame; `folder` is that of its source, or ""."""
        raise NotImplementedError

    def _put(self, entries: Iterable[Entry]) -> None:
        """Writes files with their lines; of a file that fails no line stays."""
        place = cast(Folder, self._place)
        lines = [json.dumps(entry.line).encode() + b"\n" for entry in entries]
        written = self._index_bytes
        try:
            left = memoryview(b"".join(lines))
            while left:
                left = left[self._index.write(left) :]
            for line, entry in zip(lines, entries, strict=True):
                if entry.data is not None:
                    write = partial(Path.write_bytes, data=entry.data)
                    place.put(entry.line["file"], write, sync=False)
                written += len(line)
        finally:
            self._index.truncate(written)
            self._index.seek(written)
        self._index_bytes = written

    def _close(self) -> None:
        self._index.close()

    def _abort(self) -> None:
        self._index.close()


def _files_in(directory: Path, endings: tuple[str, ...]) -> list[str]:
    """Returns the names of the files that the index of a directory tells of."""
    files: dict[str, None] = {}  # in order; frames that were held name those of others
    with open(directory / INDEX_FILE, "rb") as index:
        for line in index:
            if not line.endswith(b"\n"):  # its writer was killed there
                break
            record = json.loads(line)
            if "stream_rpn" in record or "end" in record:
                continue
            file: str = record["file"]
            inside = not os.path.isabs(file) and ".." not in PurePosixPath(file).parts
            if not (inside and file.endswith(endings)):
                raise ValueError("not a name of ours")
            files[file] = None
    return list(files)
