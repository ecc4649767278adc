"""What signals do to a process: it unwinds, so that nothing half-written stays behind.

An exception that comes from a signal may come between any two steps: also between the one that
makes a file and the one that notes that it is there to be removed. Whoever makes what must not stay
therefore does both within `held`, and leaves with `unfinished` how to undo it, which is done at the
end by whoever ends the process. `undone` is both, for what is temporary.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

_unfinished: set[Callable[[], None]] = set()
if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(after_in_child=_unfinished.clear)  # they are the parent's


def numbers() -> list[signal.Signals]:
    """Returns the signals that end a command; those that are ignored stay so, as by `nohup`."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    known = [signal.Signals[name] for name in names if hasattr(signal, name)]
    # None is what was installed by other means than Python's, and cannot be put back by them.
    return [number for number in known if signal.getsignal(number) not in (signal.SIG_IGN, None)]


def unwind(number: int, frame: types.FrameType | None) -> None:
    """Ends the process by an exception, or at once in the middle of an import.

    There an exception may come out as another one, or not at all: extension modules in C import
    others, and tell of their own failure only.
    """
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            undo_unfinished()
            os._exit(128 + number)
        frame = frame.f_back
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


@contextmanager
def handled_by(handler: Callable[[int, types.FrameType | None], None]) -> Iterator[None]:
    """Has another function answer signals meanwhile; not in another thread than the main one."""
    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers() if here}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def unwind_on_signals() -> None:
    """Has signals end this process by `unwind` from now on."""
    with suppress(ValueError):  # in another thread than the main one
        for number in numbers():
            signal.signal(number, unwind)


class Signals:
    """Takes note of the first signal, for work that asks between two steps; the second one unwinds.

    Attributes:
        number: the signal that came, None so far.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._handled = ExitStack()

    def __enter__(self) -> Self:
        self._handled.enter_context(handled_by(self._note))
        return self

    def __exit__(self, *exception: object) -> None:
        self._handled.close()

    def came(self) -> bool:
        """Tells whether one came."""
        return self.number is not None

    @property
    def exit_code(self) -> int:
        """The exit code of a process that one ended; 0 where none came."""
        return 0 if self.number is None else 128 + self.number

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        if self.number is not None:
            unwind(number, frame)
        self.number = number


@contextmanager
def held() -> Iterator[None]:
    """Has a signal answered after what goes on meanwhile, by whoever does; the second one unwinds.

    For steps that take no time. It decorates functions, too.
    """
    noted = Signals()
    try:
        with noted:
            yield
    finally:
        if noted.number is not None:
            signal.raise_signal(noted.number)


def unfinished(undo: Callable[[], None]) -> None:
    """Leaves what is to be done where nobody comes to `finished`; may be done more than once."""
    _unfinished.add(undo)


def finished(undo: Callable[[], None]) -> None:
    """Takes back what was left with `unfinished`, if it was."""
    _unfinished.discard(undo)


@atexit.register
def undo_unfinished() -> None:
    """Undoes all that is unfinished, before the process ends."""
    with held():
        for undo in list(_unfinished):
            with suppress(OSError):
                undo()
        _unfinished.clear()


@contextmanager
def undone(*paths: Path) -> Iterator[None]:
    """Removes files and folders at the end that are there no longer than meanwhile, if they are."""

    def remove() -> None:
        for path in paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    unfinished(remove)
    try:
        yield
    finally:
        with suppress(OSError):  # what matters more may be under way
            remove()
        finished(remove)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Gives a path beside a file to write to; what is written takes the file's place when whole."""
    beside = path.with_name(f".{path.name}.part")
    with undone(beside):
        yield beside
        os.replace(beside, path)


@contextmanager
def temporary_folder(prefix: str = "", within: Path | None = None) -> Iterator[Path]:
    """Makes a folder that is there no longer than meanwhile.

    Args:
        prefix: of its name.
        within: where it lies; None where the system has such.
    """
    with ExitStack() as stack:
        with held():
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=within))
            stack.enter_context(undone(folder))
        yield folder
