"""The interface of sinks, their error sentences, and files that appear only when whole."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from stream_rpn.frame import Proposals, StreamInfo, StreamRPNError
from stream_rpn.sources.address import masked


class ReaderGone(Exception):
    """The reader of a pipe closed it: an event, not an error; the rest is not wanted any more."""


@dataclass(frozen=True, slots=True)
class SinkOptions:
    """The options of the command line for all sinks.

    Attributes:
        draw: how many of the best boxes an annotated video shows per frame.
        crops: how many of the best boxes are cut out per frame.
        multiple_sources: True where one output receives several sources, one after another.
        token: what clients of a server must know, "auto" for one that is made up, "" for none.
    """

    draw: int = 20
    crops: int = 10
    multiple_sources: bool = False
    token: str = ""


class Sink:
    """Receives proposals frame by frame and writes them somewhere; used from one thread.

    The calls are `begin`, any number of `write`, `end` for each source, then `close`. Files follow
    one another; live sources take turns, and `source` of proposals and totals says which one. As a
    context manager it closes, or aborts where an exception passes through. Failures of the system
    (a full disk, a lost permission) come out as a StreamRPNError that names the output.

    A new sink implements the methods with an underscore and adds a line to `SINKS`.

    Attributes:
        name: the output as the user named it.
        needs_image: True where `Proposals.image` must be kept for this sink.
        takes_several_sources: True where one output can hold the results of several sources.
        writes_in_place: True where the output grows under its own name, so that it may be a pipe.
        opens_at_once: True where clients come to it, so that it opens before there are results.
    """

    needs_image: ClassVar[bool] = False
    takes_several_sources: ClassVar[bool] = False
    writes_in_place: ClassVar[bool] = False
    opens_at_once: ClassVar[bool] = False

    def __init__(self, name: str, options: SinkOptions) -> None:
        self.name = name
        self.options = options
        self._last_source = ""
        with self._naming_failures():
            self._open()

    def watch(self, status: Callable[[], dict[str, Any]]) -> None:
        """Receives, before `begin`, a callable that returns the source's summary so far."""

    def begin(self, header: dict[str, Any], info: StreamInfo) -> None:
        """Starts the results of one source; `header` comes from `make_header`."""
        self._last_source = info.source
        with self._naming_failures():
            self._begin(header, info)

    def write(self, proposals: Proposals) -> None:
        """Writes the proposals of one frame."""
        with self._naming_failures():
            self._write(proposals)

    def end(self, end: dict[str, Any]) -> None:
        """Ends the results of one source with its totals (frames, elapsed_seconds, drops, …)."""
        with self._naming_failures():
            self._end(end)

    def close(self) -> None:
        """Finishes the output; what was to appear only when whole appears now, or is aborted."""
        try:
            with self._naming_failures():
                self._close()
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Gives up: keeps what is readable without an ending, removes temporary files.

        Never raises for reasons of the system, as something else has failed already.
        """
        with contextlib.suppress(*_failures_of_the_system()):
            self._abort()

    def _source_of(self, proposals: Proposals) -> str:
        """Returns which of the sources that were begun the proposals belong to."""
        return proposals.source or self._last_source

    def _open(self) -> None:
        pass

    def _begin(self, header: dict[str, Any], info: StreamInfo) -> None:
        pass

    def _write(self, proposals: Proposals) -> None:
        raise NotImplementedError

    def _end(self, end: dict[str, Any]) -> None:
        pass

    def _close(self) -> None:
        pass

    def _abort(self) -> None:
        pass

    @contextlib.contextmanager
    def _naming_failures(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError as error:
            raise ReaderGone(self.name) from error
        except _failures_of_the_system() as error:
            what = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or error
            name = "standard output" if self.name == "-" else repr(masked(self.name))
            raise StreamRPNError(f"cannot write {name}: {what}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self.close()
        else:
            self.abort()


def _failures_of_the_system() -> tuple[Any, ...]:
    """Returns the exceptions of files: Python's, and FFmpeg's where it has been imported."""
    av_error = sys.modules.get("av.error")
    return (OSError, av_error.FFmpegError) if av_error else (OSError,)


class WholeFile:
    """A file that appears under its name only when `commit` is called.

    It is written as a hidden file beside its final place, so that the last step is a rename.

    Attributes:
        path: where to write.
    """

    def __init__(self, name: str) -> None:
        # A link stays a link: what it points to is replaced.
        self._final = Path(os.path.realpath(name))
        self.path = self._final.with_name(f".{self._final.name}.{os.getpid()}.part")

    def write(self, data: bytes) -> None:
        """Writes the file as a whole, or leaves nothing of it."""
        try:
            self.path.write_bytes(data)
            self.commit()
        except OSError:
            self.discard()
            raise

    def commit(self) -> None:
        """Gives the finished file its name, replacing what was there."""
        os.replace(self.path, self._final)

    def discard(self) -> None:
        """Removes the unfinished file."""
        self.path.unlink(missing_ok=True)


class WholeFileSink(Sink):
    """A sink whose file is of use only when whole; it writes to `_file`."""

    def _open(self) -> None:
        self._whole = WholeFile(self.name)
        self._file = open(self._whole.path, "wb")  # noqa: SIM115 (open until close or abort)

    def _close(self) -> None:
        self._file.close()
        self._whole.commit()

    def _abort(self) -> None:
        try:
            self._file.close()
        finally:
            self._whole.discard()
