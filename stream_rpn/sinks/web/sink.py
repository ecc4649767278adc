"""`--serve [HOST:]PORT`: the results in a browser, live; see `server`."""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Callable
from typing import Any, ClassVar
from urllib.parse import quote

from stream_rpn.frame import Proposals, StreamInfo, StreamRPNError
from stream_rpn.sinks.jsonl import frame_line
from stream_rpn.sinks.record import lacking
from stream_rpn.sinks.sink import Sink
from stream_rpn.sinks.web.pictures import Pictures
from stream_rpn.sinks.web.view import View

PREFIX = "serve:"

# Of sources that have ended, so many can still be seen; each picture takes memory.
_KEPT_ENDED, _KEPT_PICTURES = 64, 16

# So many sources are shown before they begin; of thousands of files the rest appears in its turn.
_SHOWN_WAITING = 64


class WebSink(Sink):
    """Leaves the newest result of each source where the server's thread finds it, and goes on.

    No picture is encoded here, and none at all while nobody watches.

    Attributes:
        url: where the page is, with the token where there is one.
    """

    needs_image: ClassVar[bool] = True
    takes_several_sources: ClassVar[bool] = True
    opens_at_once: ClassVar[bool] = True

    def _open(self) -> None:
        try:
            from stream_rpn.sinks.web.server import Server, parse_address
        except ImportError as error:
            raise StreamRPNError(
                "--serve needs aiohttp and prometheus-client; `pip install 'stream-rpn[serve]'` "
                "provides them"
            ) from error
        address = self.name.removeprefix(PREFIX)
        token = self.options.token
        if token == "auto":
            token = secrets.token_urlsafe(24)
        names = itertools.islice(self.options.names.items(), _SHOWN_WAITING)
        self._views = [self._new(source, name) for source, name in names]
        self._view_of = {view.source: view for view in self._views}
        self._status: Callable[[], dict[str, Any]] = dict
        try:
            self._server = Server(parse_address(address), token, self._views, self.options.draw)
        except OSError as error:
            raise StreamRPNError(
                f"cannot listen at {address}: {error.strerror}; --serve takes another [HOST:]PORT"
            ) from error
        self.url = self._server.url + (f"?token={quote(token, safe='')}" if token else "")

    def watch(self, status: Callable[[], dict[str, Any]]) -> None:
        """Receives a callable that returns the summary of the source that begins next."""
        self._status = status

    def _begin(self, header: dict[str, Any], info: StreamInfo) -> None:
        self._view(info.source, info.stem).begin(header, info, self._status)
        self._server.publish("header", info.source, json.dumps(header).encode())

    def _write(self, proposals: Proposals) -> None:
        source = self._source_of(proposals)
        self._view_of[source].put(proposals)
        self._server.wake()
        if self._server.has_readers:
            self._server.publish("result", source, frame_line(proposals, source=source))

    def _end(self, end: dict[str, Any]) -> None:
        source = end.get("source", self._last_source)
        self._finish(self._view_of[source], end)

    def _lacks(self, source: str, why: str) -> None:
        self._finish(self._view(source, source), lacking(why))

    def _view(self, source: str, name: str) -> View:
        """Returns the view of a source that begins, or would have begun, now."""
        view = self._view_of.get(source)
        if view is not None and not view.header and not view.ended:
            return view
        if view is not None:
            # The same source once more takes the place of what it was.
            new = self._new(source, view.name)
            self._views[self._views.index(view)] = new
        else:
            new = self._new(source, self._free_name(self.options.names.get(source, name)))
            self._views.append(new)
        self._view_of[source] = new
        return new

    def _new(self, source: str, name: str) -> View:
        sources = list(self.options.names)
        number = sources.index(source) if source in sources else 0
        return View(source, name, Pictures(self.options.draw, number))

    def _free_name(self, name: str) -> str:
        taken = {view.name for view in self._views}
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        return next(each for each in itertools.chain([name], numbered) if each not in taken)

    def _finish(self, view: View, end: dict[str, Any]) -> None:
        view.finish(end.get("stopped", ""))
        line = json.dumps({"end": end, "source": view.source}).encode()
        self._server.publish("end", view.source, line)
        ended = [each for each in self._views if each.ended]
        for old in ended[:-_KEPT_PICTURES]:
            old.pictures.forget()
        for old in ended[:-_KEPT_ENDED]:
            self._views.remove(old)
            del self._view_of[old.source]
        self._server.wake()

    def _close(self) -> None:
        self._server.close()

    def _abort(self) -> None:
        self._server.close()
