"""The keeper of a child process: ends it where it fails, fills up or hangs, and starts another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from stream_rpn.batch.work import Answer, Work

_LOOK_SECONDS = 0.5
_LOAD_SECONDS = 600.0


class Guard:
    """A child process that is there when it is needed, and started anew after it failed.

    Args:
        work: what the child is to do.
        limit: seconds after which a child that has given no frame is ended.
        memory: bytes that a child may hold; None for any.
    """

    def __init__(self, work: Work, limit: float, memory: int | None = None) -> None:
        self._work = work
        self._limit = limit
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def ask(self, name: str, *arguments: Any) -> Answer:
        """Returns the answer to a request; whatever becomes of the child, there is one."""
        if name == "propose" and self._process is None:
            loaded = self._asked(max(self._limit, _LOAD_SECONDS), "load")
            if loaded.kind:
                return loaded
        return self._asked(self._limit, name, *arguments)

    def _asked(self, limit: float, *request: Any) -> Answer:
        connection = self._started()
        try:
            connection.send(request)
            answer = self._awaited(connection, limit)
        except (EOFError, OSError):
            answer = Answer(kind="crash", why=self._how_it_ended())
        if answer.kind in ("crash", "memory", "time"):
            self.close()
        return answer

    def _awaited(self, connection: Connection, limit: float) -> Answer:
        deadline = time.monotonic() + limit
        while True:
            if connection.poll(_LOOK_SECONDS):
                answer = connection.recv()
                if isinstance(answer, Answer):
                    return answer
                deadline = time.monotonic() + limit
            elif time.monotonic() > deadline:
                return Answer(kind="time", why=f"it gave no frame for {limit:g} seconds")
            if self._memory is not None and self._held() > self._memory:
                held = f"{self._memory / 1e9:.1f} GB"
                return Answer(kind="memory", why=f"it needs more than {held} of memory")

    def _held(self) -> int:
        """Returns the bytes of memory that the child holds; 0 where nothing tells."""
        assert self._process is not None
        try:
            pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def _started(self) -> Connection:
        if self._connection is None:
            self._connection, other = Pipe()
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "stream_rpn.batch.child", str(other.fileno())],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
            )
            other.close()
            with suppress(OSError):  # the next request tells
                self._connection.send(self._work)
        return self._connection

    def _how_it_ended(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            return "its process broke off"
        if code < 0:
            names = {number.value: number.name for number in signal.Signals}
            return f"its process was ended by {names.get(-code, f'signal {-code}')}"
        return f"its process ended with exit code {code}"

    def close(self) -> None:
        """Ends the child."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def __del__(self) -> None:
        self.close()
