"""The videos of a batch: paths, patterns, lists and tables of addresses, on any storage."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from stream_rpn import sources
from stream_rpn.batch.storage import filesystem, told
from stream_rpn.frame import StreamRPNError
from stream_rpn.sources.address import is_device, is_url, local_path, masked

COLUMNS = ("source", "url", "uri", "path", "address", "video")
"""Names by which a table's column of addresses is known, where none is named."""

_TABLES = (".parquet", ".csv")


def listed(names: Sequence[str], column: str | None = None) -> list[str]:
    """Returns the address of each video once, in order; those of files here are absolute.

    Args:
        names: files, folders, patterns, addresses, "@FILE" for a list, .parquet or .csv tables.
        column: of tables, the one with addresses; None for the first of `COLUMNS` that is there.

    Raises:
        StreamRPNError: there is nothing of that name, or it is no video that ends.
    """
    found: dict[str, None] = {}
    for name in names:
        for address in _expanded(name, column):
            found[address] = None
    return list(found)


def _expanded(name: str, column: str | None, *, named: bool = True) -> Iterator[str]:
    """Yields the addresses that a name stands for; what a list names may be missing."""
    if name.startswith("@"):
        for line in _lines(name[1:]):
            yield from _expanded(line, column, named=False)
    elif name.lower().endswith(_TABLES):
        for address in _addresses(name, column):
            yield from _expanded(address, column, named=False)
    elif is_url(name):
        yield from _remote(name)
    elif not (named or glob.has_magic(name) or os.path.exists(local_path(name))):
        yield _local(name)
    else:
        yield from map(_local, sources.expand([name]))


def _local(name: str) -> str:
    if name == "-" or is_device(name) or sources.is_live(name):
        raise StreamRPNError(f"{name} has no end; a batch is of files")
    return name if name.startswith(tuple(sources.OPENERS)) else str(local_path(name).absolute())


def _remote(name: str) -> list[str]:
    if sources.address.is_streaming(name):
        raise StreamRPNError(f"{masked(name)} has no end; a batch is of files")
    is_folder = name.endswith("/")
    # In the address of a page "?" begins its query.
    is_pattern = glob.has_magic(name.replace("?", "") if "://" in name else name)
    if not (is_folder or is_pattern):
        return [name]
    fs, path = filesystem(name)
    with told(f"{masked(name)} cannot be listed"):
        paths = fs.find(path) if is_folder else fs.glob(path)
    videos = [p for p in sorted(paths) if PurePosixPath(p).suffix.lower() in sources.VIDEOS]
    if not videos:
        raise StreamRPNError(f"{masked(name)} holds no videos")
    return [fs.unstrip_protocol(p) for p in videos]


def _lines(name: str) -> list[str]:
    """Returns the addresses that a text file lists, without empty lines and those after "#"."""
    fs, path = filesystem(name)
    with told(f"the list of sources {masked(name)!r} cannot be read"):
        lines = fs.cat_file(path).decode("utf-8-sig").splitlines()
    found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise StreamRPNError(f"the list of sources {masked(name)!r} is empty")
    return found


def _addresses(name: str, column: str | None) -> list[str]:
    """Returns the addresses that a table holds."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.dataset

    fs, path = filesystem(name)
    with told(f"the table {masked(name)!r} cannot be read"):
        form = "csv" if name.lower().endswith(".csv") else "parquet"
        data = pa.dataset.dataset(path, filesystem=fs, format=form)
        names = data.schema.names
        wanted = column or next((known for known in COLUMNS if known in names), None)
        if wanted is None and len(names) == 1:
            wanted = names[0]
        if wanted not in names:
            what = f"no column {column!r}" if column else "no column that is called source or url"
            raise StreamRPNError(
                f"the table {masked(name)!r} has {what}; --column names one of {', '.join(names)}"
            )
        values = data.to_table(columns=[wanted])[wanted].to_pylist()
    addresses = [str(value).strip() for value in values if value is not None]
    if not any(addresses):
        raise StreamRPNError(f"the table {masked(name)!r} holds no addresses")
    return [address for address in addresses if address]
