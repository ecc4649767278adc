"""The place of an output among files: held by one run, and replaced only when the new is whole.

An old result is never touched before there is a whole new one. What grows while it lies there has
`partial` in its name: `x.partial.jsonl` beside `x.jsonl`, `_partial` within a directory.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from stream_rpn.frame import StreamRPNError
from stream_rpn.sinks.claim import Claim
from stream_rpn.sinks.formats import ending_of

HIDDEN_FOLDER = ".part"
"""Within a directory of results, what is held while a run writes it."""


class Place:
    """Where an output lies: claimed at once, made when there are results, then committed or not.

    This class itself is for pipes and devices, which are written through and hold nothing.

    Attributes:
        path: where to write.
        kept: where results lie at the end; "" while or where there are none.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = Path(name)
        self.kept = ""

    def make(self) -> None:
        """Makes what is written to."""

    def check(self) -> None:
        """Checks that what is written to still has its name.

        Raises:
            StreamRPNError: it has not.
        """

    def commit(self, *, stopped: bool = False) -> None:
        """Gives a finished output its name, and makes sure that it outlives a power cut.

        Args:
            stopped: it is not whole, and so must not replace one that may be.

        Raises:
            StreamRPNError: something is in the way.
            OSError: the system failed.
        """
        self.kept = self.name

    def abandon(self) -> None:
        """Gives up: keeps what is readable, removes the rest, lets others in."""
        self.kept = self.kept or self.name

    def _lost(self) -> StreamRPNError:
        return StreamRPNError(
            f"cannot write {self.name!r}: it was removed or renamed while it was being written"
        )


class _File(Place):
    """A file, written elsewhere than under its name."""

    def __init__(self, name: str, *, replace: bool) -> None:
        super().__init__(name)
        # A link stays a link: what it points to is replaced.
        self._final = Path(os.path.realpath(name))
        self._replace = replace
        self._partial = self._final.with_name(partial_name(self._final.name))
        self._claim = Claim(self._final.with_name(f".{self._final.name}.part"), name)
        self.folder = self._claim.folder
        if not replace and os.path.lexists(self._final):
            self._claim.release()
            raise StreamRPNError(f"output {name!r} exists; --overwrite replaces it")

    def commit(self, *, stopped: bool = False) -> None:
        """Gives the file its name; where it must not replace another, one that says so."""
        _sync(self.path)
        there = os.path.lexists(self._final)
        aside = there and (stopped or not self._replace)
        os.replace(self.path, self._partial if aside else self._final)
        _sync(self._final.parent)
        self.kept = self._beside(self._partial) if aside else self.name
        self._claim.release()
        if there and not self._replace:
            raise StreamRPNError(
                f"output {self.name!r} has come into being by other hands; the results of this run "
                f"are in {self.kept!r}"
            )

    def _beside(self, path: Path) -> str:
        """Returns the path of a file beside the final one, as the user would name it."""
        return str(path if os.path.islink(self.name) else Path(self.name).with_name(path.name))


class WholeFile(_File):
    """A file of use only when whole: until then it is a temporary one.

    Attributes:
        folder: for temporary files of its own.
    """

    def __init__(self, name: str, *, replace: bool) -> None:
        super().__init__(name, replace=replace)
        self.path = self.folder / self._final.name

    def check(self) -> None:
        """Checks that the place of the unfinished file is still there."""
        if not self.folder.is_dir():
            raise self._lost()

    def abandon(self) -> None:
        """Removes the unfinished file."""
        self._claim.release()


class GrowingFile(_File):
    """A file that is readable while it grows: under its name, or beside an old result."""

    def __init__(self, name: str, *, replace: bool) -> None:
        super().__init__(name, replace=replace)
        self.path = self._partial if os.path.lexists(self._final) else self._final
        self._made: os.stat_result | None = None

    def make(self) -> None:
        """Makes the empty file; what writes to it opens it by its path."""
        new = os.O_EXCL if self.path == self._final else os.O_TRUNC
        flags = os.O_WRONLY | os.O_CREAT | new | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(self.path, flags, 0o666)
        self._made = os.fstat(descriptor)
        os.close(descriptor)

    def check(self) -> None:
        """Checks that the file still has its name."""
        if not self._is_there():
            raise self._lost()

    def _is_there(self) -> bool:
        try:
            return self._made is not None and os.path.samestat(os.stat(self.path), self._made)
        except FileNotFoundError:
            return False

    def commit(self, *, stopped: bool = False) -> None:
        """Lets the file stand, or puts it in the place of the old one."""
        self.check()
        if self.path == self._final:
            _sync(self.path)
            _sync(self.path.parent)
            self.kept = self.name
            self._claim.release()
        else:
            super().commit(stopped=stopped)

    def abandon(self) -> None:
        """Leaves what was written, if that is anything."""
        if not self.kept and self._is_there():
            if self.path.stat().st_size:
                whole = self.path == self._final
                self.kept = self.name if whole else self._beside(self.path)
            else:
                self.path.unlink()
        self._claim.release()


class Folder(Place):
    """A directory of files that grows under its name, or within, in `_partial`, beside old results.

    Old results are the files that a run recorded as its own. Whatever else lies there stays, and
    links are not followed.

    Args:
        name: the output as the user named it.
        replace: whether old results may be replaced.
        record: name of the file that says what a run wrote.
        members: returns the names of the files in a directory that its record tells of.
        ending: of the name of `_partial`.
    """

    def __init__(
        self,
        name: str,
        *,
        replace: bool,
        record: str,
        members: Callable[[Path], list[str]],
        ending: str = "",
    ) -> None:
        super().__init__(name)
        self._final = Path(os.path.realpath(name))
        self._record, self._members = record, members
        self._is_new = not self._final.exists()
        self._final.mkdir(exist_ok=True)
        try:
            self._claim = Claim(self._final / HIDDEN_FOLDER, name)
        except BaseException:
            self._remove_if_new()
            raise
        try:
            others = {path.name for path in self._final.iterdir()} - {self._claim.folder.name}
            if others and not replace:
                raise StreamRPNError(
                    f"output {name!r} is not empty; --overwrite replaces its results"
                )
            self._old = self._recorded(self._final)
        except BaseException:
            self._claim.release()
            raise
        self.path = self._final / f"_partial{ending}" if others else self._final
        self._made: os.stat_result | None = None

    def make(self) -> None:
        """Makes the directory; where it had been made before, removes what was recorded in it."""
        if self.path != self._final:
            if self.path.is_symlink():
                raise self._in_the_way(self.path.name)
            self.path.mkdir(exist_ok=True)
            self._remove(self.path, self._recorded(self.path))
            if left := next(self.path.iterdir(), None):
                raise self._in_the_way(f"{self.path.name}/{left.name}")
        self._made = os.stat(self.path)

    def put(self, member: str, write: Callable[[Path], object], *, sync: bool = True) -> None:
        """Writes a file of the directory, which appears only when whole.

        Args:
            member: its name there.
            write: writes it to a path.
            sync: whether it outlives a power cut from now on, which takes milliseconds, or when all
                is whole.
        """
        temporary = self._claim.folder / "file"
        try:
            write(temporary)
            if sync:
                _sync(temporary)
            (self.path / member).parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary, self.path / member)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        if sync:
            _sync(self.path)

    def check(self) -> None:
        """Checks that the directory is still there."""
        try:
            there = self._made is not None and os.path.samestat(os.stat(self.path), self._made)
        except FileNotFoundError:
            there = False
        if not there or not (self.path / self._record).exists():
            raise self._lost()

    def commit(self, *, stopped: bool = False) -> None:
        """Lets the directory stand, or puts its files in the place of the old ones."""
        self.check()
        members = self._recorded(self.path)
        for member in members:  # most of which are on the disk by then
            with suppress(FileNotFoundError):  # somebody removed it
                _sync(self.path / member)
        _sync_folders(self.path, members)
        aside = stopped and bool(self._old)
        if self.path != self._final and not aside:
            self._take_over()
        self.kept = str(Path(self.name) / self.path.name) if aside else self.name
        self._claim.release()

    def _take_over(self) -> None:
        new = self._recorded(self.path)
        for member in new:
            place = self._final / member
            foreign = any(
                os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir())
                for folder in _folders(self._final, member)
            )
            if foreign or (os.path.lexists(place) and not self._is_ours(member)):
                raise self._in_the_way(member)
        # Without its record a directory tells of nothing, so that one is the first to go, and comes
        # last: until then the whole new results are those of two directories.
        self._remove(self._final, self._old)
        for member in new:
            (self._final / member).parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.path / member, self._final / member)
        self._remove_empty(self.path, new)
        with suppress(OSError):  # somebody put something there
            self.path.rmdir()
        _sync_folders(self._final, new)

    def abandon(self) -> None:
        """Leaves what was written, if that is anything."""
        if not self.kept and self._made is not None:
            if (self.path / self._record).exists():
                whole = self.path == self._final
                self.kept = self.name if whole else str(Path(self.name) / self.path.name)
            elif self.path != self._final:
                with suppress(OSError):
                    self.path.rmdir()
        self._claim.release()
        self._remove_if_new()

    def _remove_if_new(self) -> None:
        if self._is_new:
            with suppress(OSError):  # it is not empty, or gone
                self._final.rmdir()

    def _recorded(self, directory: Path) -> list[str]:
        """Returns the files that a record tells of; the record itself last."""
        if not os.path.lexists(directory / self._record):
            return []
        try:
            if not stat.S_ISREG((directory / self._record).lstat().st_mode):
                raise ValueError("a link, or no file at all")
            return [*dict.fromkeys(self._members(directory)), self._record]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise StreamRPNError(
                f"cannot write {self.name!r}: {str(directory / self._record)!r} is not of "
                "stream-rpn; move it"
            ) from error

    def _is_ours(self, member: str) -> bool:
        return member in self._old and _is_plain(self._final, member)

    def _remove(self, directory: Path, members: list[str]) -> None:
        for member in reversed(members):
            if _is_plain(directory, member):
                (directory / member).unlink()
        self._remove_empty(directory, members)

    def _remove_empty(self, directory: Path, members: list[str]) -> None:
        emptied = {folder for member in members for folder in _folders(directory, member)}
        for parent in sorted(emptied, reverse=True):  # those within others first
            with suppress(OSError):  # it is a link, not empty, or gone
                parent.rmdir()

    def _in_the_way(self, member: str) -> StreamRPNError:
        where = f"; the results of this run are in {str(self.path)!r}" if self._made else ""
        return StreamRPNError(
            f"cannot write {self.name!r}: {member!r} in it is not of an earlier run; move it{where}"
        )


def _sync_folders(directory: Path, members: list[str]) -> None:
    """Waits until the names of the files of a directory are on the disk."""
    for folder in {directory, *((directory / member).parent for member in members)}:
        _sync(folder)


def _is_plain(directory: Path, member: str) -> bool:
    """Tells whether there is a regular file of that name, reached through no link."""
    path = directory / member
    try:
        linked = any(folder.is_symlink() for folder in _folders(directory, member))
        return not linked and stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _folders(directory: Path, member: str) -> list[Path]:
    """Returns the folders between a directory and what is named in it, the innermost first."""
    return [directory / folder for folder in Path(member).parents if folder != Path()]


def growing_file(name: str, *, replace: bool) -> Place:
    """Returns the place of a file that may be a pipe or a device, too."""
    return Place(name) if _is_device(name) else GrowingFile(name, replace=replace)


def _is_device(name: str) -> bool:
    """Tells whether this is a pipe or a device, which has nothing that could be lost."""
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def write_whole(name: str, data: bytes, *, replace: bool = True) -> None:
    """Writes a file at once; an old one stays where that fails.

    Raises:
        StreamRPNError: it cannot be written.
    """
    try:
        put_whole(name, data, replace=replace)
    except OSError as error:
        raise StreamRPNError(f"cannot write {name!r}: {reason(error)}") from error


def put_whole(name: str, data: bytes, *, replace: bool = True) -> None:
    """Does the same for those who have a sentence of their own.

    Raises:
        OSError: it cannot be written.
        StreamRPNError: another run is writing it.
    """
    place = Place(name) if _is_device(name) else WholeFile(name, replace=replace)
    try:
        place.path.write_bytes(data)
        place.commit()
    finally:
        place.abandon()


def reason(error: OSError) -> str:
    """Returns why the system failed, for a sentence about an output."""
    if error.errno == errno.ENOSPC:
        return "the disk is full"
    if error.errno == errno.ENOENT:
        return "its directory is not there any more"
    return str(error.strerror or error)


def partial_name(name: str) -> str:
    """Returns the name of a file that is not whole, with the ending that tells its format."""
    ending = ending_of(name) or Path(name).suffix
    return f"{name[: len(name) - len(ending)]}.partial{name[len(name) - len(ending) :]}"


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a directory, are on the disk."""
    if path.is_dir() and sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # there are disks that know no such
            raise
    finally:
        os.close(descriptor)
