"""Files wherever fsspec reaches: sources are streamed from there, results appear when whole."""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from stream_rpn import signals
from stream_rpn.frame import StreamRPNError
from stream_rpn.sinks.place import reason
from stream_rpn.sources.address import is_url, local_path, masked

_BLOCK = 4 << 20
_BLOCKS_KEPT = 8

PARTIAL = ".part"
"""Ending of what is not whole."""

# Of these a file is there when it is whole: what is uploaded appears at the end of it.
_APPEAR_WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "r2"}


def filesystem(address: str) -> tuple[Any, str]:
    """Returns the file system of fsspec that an address is on, and the path there.

    Raises:
        StreamRPNError: nothing here knows such addresses.
    """
    try:
        import fsspec.core
    except ImportError as error:
        raise StreamRPNError(
            "`stream-rpn batch` needs Ray; `pip install 'stream-rpn[ray]'` provides it"
        ) from error
    if not is_url(address):
        address = str(local_path(address).absolute())
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise StreamRPNError(f"{masked(address)} cannot be reached: {_sentence(error)}") from error
    return found


def version(address: str) -> str:
    """Returns what tells the content of a file without reading it: its size, and tag or time.

    Raises:
        StreamRPNError: it is not there, or does not answer.
    """
    if not is_url(address):
        try:
            stat = local_path(address).stat()
        except (OSError, ValueError):
            return ""  # no file: a pattern of pictures, a synthetic clip, or gone
        return f"{stat.st_size}-{stat.st_mtime_ns}"
    fs, path = filesystem(address)
    fs.invalidate_cache()  # of listings, which may be older than the file
    with told(f"{masked(address)} cannot be read"):
        info = fs.info(path)
    names = ("ETag", "etag", "md5Hash", "generation", "LastModified", "last_modified", "mtime")
    tag = next((str(info[name]) for name in names if info.get(name)), "")
    return f"{info.get('size')}-{tag.strip(chr(34))}"


def opened(address: str) -> BinaryIO | None:
    """Opens a file elsewhere for reading ahead in blocks; None for what is opened by its name.

    Raises:
        StreamRPNError: it is not there, or does not answer.
    """
    if not is_url(address):
        return None
    fs, path = filesystem(address)
    with told(f"{masked(address)} cannot be read"):
        options = {"maxblocks": _BLOCKS_KEPT}
        file = fs.open(
            path, "rb", block_size=_BLOCK, cache_type="background", cache_options=options
        )
    return cast(BinaryIO, file)


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turns whatever goes wrong in reaching files into a sentence that begins with `what`."""
    try:
        yield
    except StreamRPNError:
        raise
    except Exception as error:  # each file system has exceptions of its own
        raise StreamRPNError(f"{what}: {_sentence(error)}") from error


def _sentence(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file, folder or bucket"
    if isinstance(error, PermissionError):
        return "permission denied"
    text = reason(error) if isinstance(error, OSError) else str(error)
    return " ".join(text.split()) or type(error).__name__


class Store:
    """A folder of results, local or not.

    Args:
        address: of the folder; it need not be there yet.

    Raises:
        StreamRPNError: nothing here knows such addresses.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/") or "/"
        self.name = masked(self.address)
        self._fs, self._root = filesystem(self.address)
        protocol = self._fs.protocol
        protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        self.is_local = "file" in protocols
        self._appears_whole = bool(protocols & _APPEAR_WHOLE)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def put(self, name: str, write: Callable[[Path], None]) -> None:
        """Lets `write` make a file, and gives it its name once it is whole.

        Raises:
            StreamRPNError: it cannot be written; nothing is there under the name then.
        """
        final = self._path(name)
        with told(f"cannot write {self.name}/{name}"):
            if self.is_local:
                _put_locally(Path(final), write)
                return
            with signals.temporary_folder("stream-rpn-") as folder:
                made = folder / "made"
                with told(f"cannot write in {tempfile.gettempdir()}"):
                    write(made)
                partial = final if self._appears_whole else f"{final}.{uuid.uuid4().hex}{PARTIAL}"
                if not self._appears_whole:
                    self._fs.makedirs(os.path.dirname(final), exist_ok=True)
                self._fs.put_file(str(made), partial)
                if not self._appears_whole:
                    self._fs.mv(partial, final)

    def put_text(self, name: str, text: str) -> None:
        """Makes a file of a text, see `put`."""

        def write(path: Path) -> None:
            path.write_text(text, encoding="utf-8")

        self.put(name, write)

    def read(self, name: str) -> bytes | None:
        """Returns what is in a file; None where there is none.

        Raises:
            StreamRPNError: it cannot be read.
        """
        with told(f"cannot read {self.name}/{name}"):
            try:
                content: bytes = self._fs.cat_file(self._path(name))
            except FileNotFoundError:
                return None
        return content

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO | None]:
        """Opens a file for reading a little of it; None where there is none."""
        with told(f"cannot read {self.name}/{name}"):
            self._fs.invalidate_cache()
            try:
                file = self._fs.open(self._path(name), "rb", block_size=1 << 18)
            except FileNotFoundError:
                file = None
            try:
                yield file
            finally:
                if file is not None:
                    file.close()

    def names(self, folder: str) -> list[str]:
        """Returns the names of the files in a folder; none where there is no folder.

        Raises:
            StreamRPNError: it cannot be looked at.
        """
        with told(f"cannot read {self.name}/{folder}"):
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(self._path(folder), detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def remove(self, name: str) -> None:
        """Removes a file, if it is there.

        Raises:
            StreamRPNError: it cannot be removed.
        """
        with told(f"cannot remove {self.name}/{name}"), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))


def _put_locally(final: Path, write: Callable[[Path], None]) -> None:
    """Writes beside the final name, under one that readers pass over, and renames."""
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(f".{final.name}.{uuid.uuid4().hex}{PARTIAL}")
    with signals.undone(partial):
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, final)
        folder = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def short_name(source: str) -> str:
    """Returns the name of a source's folder of results: readable, and like no other's."""
    from stream_rpn.sources import address

    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in address.stem(source))[:80]
    return f"{stem}-{hashlib.sha256(source.encode(errors='surrogateescape')).hexdigest()[:12]}"
