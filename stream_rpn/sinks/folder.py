"""The place of an output that is a directory, with the promises of `place`.

What is new grows within it, in `_partial`, where there are old results.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from stream_rpn import signals
from stream_rpn.frame import StreamRPNError
from stream_rpn.sinks.claim import Claim
from stream_rpn.sinks.place import Place, to_disk

HIDDEN_FOLDER = ".part"
"""Within a directory of results, what is held while a run writes it."""


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

    @signals.held()
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
            self._claim = Claim(self._final / HIDDEN_FOLDER, name, self.abandon)
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

    @signals.held()
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
                to_disk(temporary)
            (self.path / member).parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary, self.path / member)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        if sync:
            to_disk(self.path)

    def check(self) -> None:
        """Checks that the directory is still there."""
        try:
            there = self._made is not None and os.path.samestat(os.stat(self.path), self._made)
        except FileNotFoundError:
            there = False
        if not there or not (self.path / self._record).exists():
            raise self._lost()

    @signals.held()
    def commit(self, *, stopped: bool = False) -> None:
        """Lets the directory stand, or puts its files in the place of the old ones."""
        self.check()
        members = self._recorded(self.path)
        for member in members:  # most of which are on the disk by then
            with suppress(FileNotFoundError):  # somebody removed it
                to_disk(self.path / member)
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

    @signals.held()
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
        to_disk(folder)


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
