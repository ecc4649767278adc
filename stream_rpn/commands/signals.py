"""Ctrl-C and its like as a question that work asks between two steps."""

from __future__ import annotations

import signal
import threading
import types
from typing import Self


class Signals:
    """Takes note of the first signal that ends a process; the second one ends it at once.

    Attributes:
        number: the signal that came, None so far.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def came(self) -> bool:
        """Tells whether one came."""
        return self.number is not None

    @property
    def exit_code(self) -> int:
        """The exit code of a process that one ended; 0 where none came."""
        return 0 if self.number is None else 128 + self.number

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
