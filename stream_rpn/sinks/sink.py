"""The interface of sinks, and their error sentences."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from stream_rpn.drawing import USUAL_DRAWING, DrawSpec
from stream_rpn.frame import Proposals, StreamInfo, StreamRPNError
from stream_rpn.log import log
from stream_rpn.sinks.place import Place, WholeFile, reason
from stream_rpn.sources.address import masked

if TYPE_CHECKING:
    from stream_rpn.sinks.canvas import Canvas

# So often a sink looks whether its file is still there.
_CHECK_SECONDS = 1.0


class ReaderGone(Exception):
    """The reader of a pipe closed it: an event, not an error; the rest is not wanted any more."""


@dataclass(frozen=True, slots=True)
class SinkOptions:
    """The options of the command line for all sinks.

    Attributes:
        draw: how annotated video and pictures show boxes.
        crops: how many of the best boxes are cut out per frame.
        draw_fps: how many pictures without a time an annotated video shows a second; None for 25.
        sound: whether the sound of a video file is copied into annotated video.
        multiple_sources: True where one output receives several sources, one after another.
        token: what clients of a server must know, "auto" for one that is made up, "" for none.
        replace: whether what lies there already may be replaced, once there is something whole.
        image_id_of: returns the id that a picture of that name has in an annotation file; None
            leaves ids as they are.
        notice: told in a sentence, by whichever thread sees it, what becomes of a connection.
        names: short names of all sources of the run, by what results call them.
    """

    draw: DrawSpec = USUAL_DRAWING
    crops: int = 10
    draw_fps: float | None = None
    sound: bool = True
    multiple_sources: bool = False
    token: str = ""
    replace: bool = False
    image_id_of: Callable[[str | None], int] | None = None
    notice: Callable[[str], None] = log.warning
    names: Mapping[str, str] = field(default_factory=dict)


class Sink:
    """Receives proposals frame by frame and writes them somewhere; used from one thread.

    The calls are `open`, then `begin`, any number of `write`, `end` for each source, then `close`.
    Files follow one another; live sources take turns, and `source` of proposals and totals says
    which one. As a context manager it closes, or aborts where an exception passes through. Failures
    of the system (a full disk, a lost permission) come out as a StreamRPNError that names the
    output.

    From its construction on, no other run can write the same file; nothing of it appears before
    `open`. See `place` for when it has its name.

    A new sink implements the methods with an underscore and adds a line to `SINKS`.

    Attributes:
        name: the output as the user named it.
        notes: what users should know of the output, in sentences that follow its name.
        kept: where results lie after `close` or `abort`, "" where there are none.
        needs_image: True where `Proposals.image` must be kept for this sink.
        takes_several_sources: True where one output can hold the results of several sources.
        writes_in_place: True where the output grows under its own name, so that it may be a pipe.
        url: where a page shows its results, with its token; "" where none does.
        opens_at_once: True where clients come to it, so that it opens before there are results.
    """

    needs_image: ClassVar[bool] = False
    takes_several_sources: ClassVar[bool] = False
    writes_in_place: ClassVar[bool] = False
    opens_at_once: ClassVar[bool] = False
    url: str = ""

    def __init__(self, name: str, options: SinkOptions) -> None:
        self.name = name
        self.options = options
        self.notes: list[str] = []
        self.kept = ""
        self._weak = self._drawn = False  # whether there were boxes, and whether one was drawn
        self._last_source = ""
        self._live: set[str] = set()
        self._stopped = self._is_open = False
        self._check_at = 0.0
        with self._naming_failures():
            self._place = self._claim()

    def open(self) -> Self:
        """Opens the output; `begin` does where nobody has.

        Raises:
            StreamRPNError: it cannot be opened.
        """
        try:
            with self._naming_failures():
                self._place.make()
                self._open()
        except BaseException:
            self.abort()
            raise
        self._is_open = True
        return self

    def watch(self, status: Callable[[], dict[str, Any]]) -> None:
        """Receives, before `begin`, a callable that returns the source's summary so far."""

    def begin(self, header: dict[str, Any], info: StreamInfo) -> None:
        """Starts the results of one source; `header` comes from `make_header`."""
        if not self._is_open:
            self.open()
        self._last_source = info.source
        if info.live:
            self._live.add(info.source)
        with self._naming_failures():
            self._begin(header, info)

    def write(self, proposals: Proposals) -> None:
        """Writes the proposals of one frame."""
        if self.options.image_id_of is not None:
            proposals = replace(proposals, image_id=self.options.image_id_of(proposals.name))
        with self._naming_failures():
            self._write(proposals)
            if (now := time.monotonic()) > self._check_at:
                self._check_at = now + _CHECK_SECONDS
                self._place.check()

    def end(self, end: dict[str, Any]) -> None:
        """Ends the results of one source with its totals (frames, elapsed_seconds, drops, …)."""
        # Live sources end in no other way.
        if "stopped" in end and end.get("source", self._last_source) not in self._live:
            self._stopped = True
        with self._naming_failures():
            self._end(end)

    def lacks(self, source: str, why: str) -> None:
        """Notes that there are no results of a source that was to come, and will be none."""
        with self._naming_failures():
            self._lacks(source, why)

    def close(self) -> None:
        """Finishes the output, which has its name from now on; or aborts where that fails."""
        if not self._is_open:
            self._place.abandon()
            return
        least = self.options.draw.score
        if self._weak and not self._drawn and self.options.draw.top:
            self.notes.append(f"no box has a score of {least:g} to be drawn; --draw-score sets it")
        try:
            with self._naming_failures():
                self._close()
                self._place.commit(stopped=self._stopped)
        except BaseException:
            self.abort()
            raise
        self.kept = self._place.kept

    def abort(self) -> None:
        """Gives up: keeps what is readable without an ending, removes temporary files.

        Never raises for reasons of the system, as something else has failed already.
        """
        with contextlib.suppress(*_failures_of_the_system()):
            if self._is_open:
                self._abort()
        with contextlib.suppress(OSError):
            self._place.abandon()
        self.kept = self._place.kept

    def _source_of(self, proposals: Proposals) -> str:
        """Returns which of the sources that were begun the proposals belong to."""
        return proposals.source or self._last_source

    def _draw(self, canvas: Canvas, proposals: Proposals) -> int:
        """Draws the boxes of a frame as the options say, and returns how many."""
        source, sources = self._source_of(proposals), list(self.options.names)
        number = sources.index(source) if source in sources else proposals.source_index
        count = self.options.draw.draw(canvas, proposals, number)
        self._drawn |= count > 0
        self._weak |= len(proposals) > 0 and proposals.track_ids is None
        return count

    def _claim(self) -> Place:
        return Place(self.name)

    def _open(self) -> None:
        pass

    def _begin(self, header: dict[str, Any], info: StreamInfo) -> None:
        pass

    def _write(self, proposals: Proposals) -> None:
        raise NotImplementedError

    def _end(self, end: dict[str, Any]) -> None:
        pass

    def _lacks(self, source: str, why: str) -> None:
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
            name = "standard output" if self.name == "-" else repr(masked(self.name))
            raise StreamRPNError(f"cannot write {name}: {reason(error)}") from error

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


class WholeFileSink(Sink):
    """A sink whose file is of use only when whole; it writes to `_file`."""

    def _claim(self) -> Place:
        return WholeFile(self.name, replace=self.options.replace)

    def _open(self) -> None:
        self._file = open(self._place.path, "wb")  # noqa: SIM115 (open until close or abort)

    def _close(self) -> None:
        self._file.close()

    def _abort(self) -> None:
        self._file.close()
