"""The process in which videos are decoded: what crashes it, fills it or hangs in it takes it alone.

    python -m stream_rpn.batch.child FD

Requests come and answers go as Python objects through the socket with that number; `guard` is the
other end. It ends when the other end does.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from stream_rpn import signals
from stream_rpn.batch import results
from stream_rpn.batch.pieces import Piece, pieces_of
from stream_rpn.batch.storage import Store, opened, version
from stream_rpn.batch.work import Answer, Work
from stream_rpn.frame import Proposals, StreamRPNError
from stream_rpn.sinks import make_header

if TYPE_CHECKING:
    from stream_rpn.batch.worker import Proposer
    from stream_rpn.pipeline import Stream

_ALIVE_SECONDS = 0.5


class _Failed(Exception):
    """A video that could not be read, decoded or looked at; not the fault of those it came to."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind, self.why = kind, why


class _Child:
    def __init__(self, connection: Connection, work: Work) -> None:
        self._connection = connection
        self._work = work
        self._store = Store(work.store)
        self._proposer: Proposer | None = None
        self._told = 0.0

    def plan(self, source: str) -> list[Piece]:
        now = version(source)
        try:
            file = opened(source)
            try:
                return pieces_of(
                    source, self._work.selection, self._work.chunk, version=now, file=file
                )
            finally:
                if file is not None:
                    file.close()
        except StreamRPNError:
            return [Piece(source, now)]  # whose turn will tell why

    def load(self) -> None:
        from stream_rpn.batch.worker import Proposer

        try:
            self._proposer = Proposer(**self._work.options)
        except StreamRPNError as error:
            raise _Failed("job", str(error)) from error

    def propose(self, piece: Piece) -> dict[str, Any]:
        """Writes the file of a piece, and returns its record."""
        if self._proposer is None:
            self.load()
        with _blamed_on_the_video():
            # Nobody knows it of one whose planning failed, nor of pictures.
            if piece.version and version(piece.source) != piece.version:
                raise _Failed("changed", f"{piece.source} has changed while it was worked on")
            file = opened(piece.source)
        record: dict[str, Any] = {}
        try:
            try:
                self._store.put(
                    results.file_of(piece),
                    lambda path: results.write_piece(
                        path, piece, *self._frames(piece, file, record)
                    ),
                )
            except StreamRPNError as error:
                cause = error.__cause__
                if isinstance(cause, _Failed):
                    raise cause from error
                raise _Failed("job", str(error)) from error
        finally:
            if file is not None:
                file.close()
        return record

    def _frames(
        self, piece: Piece, file: Any, record: dict[str, Any]
    ) -> tuple[Iterator[Proposals], dict[str, Any]]:
        """Returns the proposals of a piece, and what is to stand in the footer when they came."""
        assert self._proposer is not None
        proposer, started = self._proposer, time.perf_counter()
        with _blamed_on_the_video():
            stream = proposer.open(piece, file)
        header = make_header(stream.info, **proposer.pipeline.provenance(proposer.selection))
        about: dict[str, Any] = {
            "run": f"{piece.version} {piece.count}",
            "part": piece.number,
            "headers": [header],
            "ends": [],
            "piece": record,
        }

        def frames() -> Iterator[Proposals]:
            checksum = results.Checksum()
            with _blamed_on_the_video(), stream:
                for proposals in stream:
                    checksum.add(proposals)
                    self._alive()
                    yield proposals
                if not stream.num_results:
                    raise _Failed("error", "no frame lies between --start and --end")
            about["ends"].append(stream.end())
            record.update(_record(piece, stream, checksum, time.perf_counter() - started))

        return frames(), about

    def _alive(self) -> None:
        now = time.monotonic()
        if now > self._told + _ALIVE_SECONDS:
            self._told = now
            self._connection.send(None)


def _record(
    piece: Piece, stream: Stream, checksum: results.Checksum, seconds: float
) -> dict[str, Any]:
    """Returns what a piece's file says of it."""
    declared = piece.seconds if piece.seconds is not None else stream.info.duration_seconds
    return {
        "plan": piece.to_json(),
        "frames": stream.num_results,
        "seconds": declared,
        "complete": not stream.stopped,
        "damaged_packets": stream.damaged_packets,
        "corrupt_frames": stream.corrupt_frames,
        "drops": {str(reason): count for reason, count in stream.drops.items()},
        "busy_seconds": round(seconds, 3),
        "checksum": f"{checksum.value:016x}",
        "worker": f"{os.uname().nodename}:{os.getppid()}",
    }


class _blamed_on_the_video:
    """Turns what goes wrong within into `_Failed`."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        from stream_rpn.batch.piece_source import UnlikePlanError

        if isinstance(error, _Failed) or not isinstance(error, Exception):
            return
        if isinstance(error, UnlikePlanError):
            raise _Failed("unlike", str(error)) from error
        if isinstance(error, StreamRPNError):
            raise _Failed("error", str(error)) from error
        if isinstance(error, MemoryError) or "alloc" in str(error) or "out of memory" in str(error):
            raise _Failed("memory", "the memory is full") from error
        raise _Failed("error", f"{type(error).__name__}: {error}") from error


def _end_with_parent() -> None:
    """Ends the process when the one that started it is gone, however busy it is."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        signals.undo_unfinished()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """Answers requests until there is nobody left to ask."""
    _end_with_parent()
    connection = Connection(int(sys.argv[1]))
    try:
        child = _Child(connection, connection.recv())
        while True:
            name, *arguments = connection.recv()
            try:
                answer = Answer(getattr(child, name)(*arguments))
            except _Failed as failed:
                answer = Answer(kind=failed.kind, why=failed.why)
            except StreamRPNError as error:
                answer = Answer(kind="error", why=str(error))
            except MemoryError:
                answer = Answer(kind="memory", why="the memory is full")
            connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 0


if __name__ == "__main__":
    sys.exit(main())
