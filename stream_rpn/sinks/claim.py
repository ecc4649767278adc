"""Holding an output, so that no other run writes it meanwhile."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from stream_rpn import signals
from stream_rpn.frame import StreamRPNError

if sys.platform != "win32":
    import fcntl

_LOCK = "lock"


class Claim:
    """A hidden folder that belongs to one living run; as long as it does, others are refused.

    It is the place of temporary files. What a run that was killed left in it is removed by the next
    run that claims it; the lock ends with its process.

    Args:
        folder: where it lies.
        name: the output as the user named it.
        abandon: done at the end of the process where it has not been released by then, as by an
            owner that a signal kept from ever knowing of it; it is to release it (default: just
            that).

    Raises:
        StreamRPNError: another run holds it.
        OSError: it cannot be made.
    """

    @signals.held()
    def __init__(self, folder: Path, name: str, abandon: Callable[[], None] | None = None) -> None:
        self.folder = folder
        foreign = folder.is_symlink() or (
            folder.is_dir() and not (folder / _LOCK).exists() and any(folder.iterdir())
        )
        if foreign:
            raise StreamRPNError(f"cannot write {name!r}: {str(folder)!r} is in the way; move it")
        self._abandon = abandon or self.release
        self._held = False
        self._lock = -1
        try:
            self._take(name)
            self._clear()
        except BaseException:  # a second Ctrl-C, among others
            self._held |= self._lock >= 0 and _locked(self._lock)
            self.release()
            with suppress(OSError):  # it is another's
                folder.rmdir()
            raise
        signals.unfinished(self._abandon)

    def _take(self, name: str) -> None:
        while not self._held:
            self.folder.mkdir(exist_ok=True)
            try:
                self._lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:
                continue  # whoever held it has just removed it
            if not _locked(self._lock):
                self._close_lock()
                raise StreamRPNError(f"cannot write {name!r}: another run is writing it")
            with suppress(FileNotFoundError):
                ours = os.fstat(self._lock)
                self._held = os.path.samestat(os.stat(self.folder / _LOCK), ours)
            if not self._held:
                self._close_lock()

    def _close_lock(self) -> None:
        lock, self._lock = self._lock, -1
        os.close(lock)

    def release(self) -> None:
        """Removes the folder with all that is in it; may be called again, if interrupted, too."""
        if self._held:
            self._remove()
        signals.finished(self._abandon)

    def _remove(self) -> None:
        with suppress(OSError):
            self._clear()
            # Last, as a folder without it is nobody's; one that somebody claims now stays.
            (self.folder / _LOCK).unlink(missing_ok=True)
            self.folder.rmdir()
        self._held = False
        if sys.platform != "win32":
            with suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_UN)
        # With it the removed file ends, for which a disk may take ten milliseconds.
        try:
            threading.Thread(target=os.close, args=(self._lock,), name="release").start()
        except RuntimeError:  # there is no memory for a thread
            os.close(self._lock)

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != _LOCK:
                path.unlink()


def _locked(descriptor: int) -> bool:
    """Takes a lock; False where another process has it."""
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # some network file systems have no locks
            return True
    return True
