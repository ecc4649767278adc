"""Holding an output, so that no other run writes it meanwhile."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from contextlib import suppress
from pathlib import Path

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

    Raises:
        StreamRPNError: another run holds it.
        OSError: it cannot be made.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        foreign = folder.is_symlink() or (
            folder.is_dir() and not (folder / _LOCK).exists() and any(folder.iterdir())
        )
        if foreign:
            raise StreamRPNError(f"cannot write {name!r}: {str(folder)!r} is in the way; move it")
        while True:
            folder.mkdir(exist_ok=True)
            try:
                self._lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:
                continue  # whoever held it has just removed it
            if not _locked(self._lock):
                os.close(self._lock)
                raise StreamRPNError(f"cannot write {name!r}: another run is writing it")
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(folder / _LOCK), os.fstat(self._lock)):
                    break
            os.close(self._lock)
        self._held = True
        self._clear()

    def release(self) -> None:
        """Removes the folder with all that is in it; may be called again."""
        if not self._held:
            return
        self._held = False
        with suppress(OSError):
            self._clear()
            # Last, as a folder without it is nobody's; one that somebody claims now stays.
            (self.folder / _LOCK).unlink()
            self.folder.rmdir()
        if sys.platform != "win32":
            with suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_UN)
        # With it the removed file ends, for which a disk may take ten milliseconds.
        threading.Thread(target=os.close, args=(self._lock,), name="release").start()

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
