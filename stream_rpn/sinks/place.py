"""The place of an output among files: held by one run, and replaced only when the new is whole.

An old result is never touched before there is a whole new one. What grows while it lies there has
`partial` in its name: `x.partial.jsonl` beside `x.jsonl`, `_partial` within a directory.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

from stream_rpn import signals
from stream_rpn.frame import StreamRPNError
from stream_rpn.sinks.claim import Claim
from stream_rpn.sinks.formats import ending_of


class Place:
    """Where an output lies: claimed at once, made when there are results, then committed or not.

    A signal is answered before or after each of these steps, not within it; what is neither
    committed nor abandoned when the process ends is abandoned then.

    This class itself is for pipes and devices, which are written through and hold nothing.

    Attributes:
        path: where to write.
        kept: where results lie at the end; "" while or where there are none.
    """

    _made: os.stat_result | None = None

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

    @signals.held()
    def __init__(self, name: str, *, replace: bool) -> None:
        super().__init__(name)
        # A link stays a link: what it points to is replaced.
        self._final = Path(os.path.realpath(name))
        self._replace = replace
        self._partial = self._final.with_name(partial_name(self._final.name))
        self._claim = Claim(self._final.with_name(f".{self._final.name}.part"), name, self.abandon)
        self.folder = self._claim.folder
        if not replace and os.path.lexists(self._final):
            self._claim.release()
            raise StreamRPNError(f"output {name!r} exists; --overwrite replaces it")

    @signals.held()
    def commit(self, *, stopped: bool = False) -> None:
        """Gives the file its name; where it must not replace another, one that says so."""
        to_disk(self.path)
        there = os.path.lexists(self._final)
        aside = there and (stopped or not self._replace)
        os.replace(self.path, self._partial if aside else self._final)
        to_disk(self._final.parent)
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

    @signals.held()
    def abandon(self) -> None:
        """Removes the unfinished file."""
        self._claim.release()


class GrowingFile(_File):
    """A file that is readable while it grows: under its name, or beside an old result."""

    @signals.held()
    def __init__(self, name: str, *, replace: bool) -> None:
        super().__init__(name, replace=replace)
        self.path = self._partial if os.path.lexists(self._final) else self._final

    @signals.held()
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

    @signals.held()
    def commit(self, *, stopped: bool = False) -> None:
        """Lets the file stand, or puts it in the place of the old one."""
        self.check()
        if self.path == self._final:
            to_disk(self.path)
            to_disk(self.path.parent)
            self.kept = self.name
            self._claim.release()
        else:
            super().commit(stopped=stopped)

    @signals.held()
    def abandon(self) -> None:
        """Leaves what was written, if that is anything."""
        if not self.kept and self._is_there():
            if self.path.stat().st_size:
                whole = self.path == self._final
                self.kept = self.name if whole else self._beside(self.path)
            else:
                self.path.unlink()
        self._claim.release()


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
    if error.errno == errno.ENAMETOOLONG:
        return (
            "its name is too long, with what is added to it while it is written; give it a shorter "
            "one"
        )
    return str(error.strerror or error)


def partial_name(name: str) -> str:
    """Returns the name of a file that is not whole, with the ending that tells its format."""
    ending = ending_of(name) or Path(name).suffix
    return f"{name[: len(name) - len(ending)]}.partial{name[len(name) - len(ending) :]}"


def to_disk(path: Path) -> None:
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
