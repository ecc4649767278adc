"""What signals do to a command: it unwinds, so that nothing half-written stays behind."""

from __future__ import annotations

import os
import signal
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Self


def numbers() -> list[signal.Signals]:
    """Returns the signals that end a command; those that are ignored stay so, as by `nohup`."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    known = [signal.Signals[name] for name in names if hasattr(signal, name)]
    return [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]


def unwind(number: int, frame: types.FrameType | None) -> None:
    """Ends the process by an exception, or at once in the middle of an import.

    There an exception may come out as another one, or not at all: extension modules in C import
    others, and tell of their own failure only.
    """
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
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
