"""`--serve [HOST:]PORT`: the results in a browser, live; see `server`."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any, ClassVar
from urllib.parse import quote

from stream_rpn.frame import Proposals, StreamInfo, StreamRPNError
from stream_rpn.sinks.jsonl import frame_line
from stream_rpn.sinks.sink import Sink
from stream_rpn.sinks.web.view import View

PREFIX = "serve:"

# Of sources that have ended, so many can still be looked at; each holds a picture.
_KEPT_ENDED = 16


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
                "brings them"
            ) from error
        address = self.name.removeprefix(PREFIX)
        token = self.options.token
        if token == "auto":
            token = secrets.token_urlsafe(24)
        self._views: list[View] = []
        self._view_of: dict[str, View] = {}
        self._status: Callable[[], dict[str, Any]] = dict
        try:
            self._server = Server(parse_address(address), token, self._views)
        except OSError as error:
            raise StreamRPNError(
                f"cannot listen at {address}: {error.strerror}; --serve takes another [HOST:]PORT"
            ) from error
        self.url = self._server.url + (f"?token={quote(token, safe='')}" if token else "")

    def watch(self, status: Callable[[], dict[str, Any]]) -> None:
        """Receives a callable that returns the summary of the source that begins next."""
        self._status = status

    def _begin(self, header: dict[str, Any], info: StreamInfo) -> None:
        view = View(header, info.color, self._status)
        if info.source in self._view_of:
            # The same source once more takes the place of what it was.
            self._views[self._views.index(self._view_of[info.source])] = view
        else:
            self._views.append(view)
        self._view_of[info.source] = view
        self._server.publish("header", info.source, json.dumps(header).encode())

    def _write(self, proposals: Proposals) -> None:
        source = self._source_of(proposals)
        self._view_of[source].put(proposals)
        self._server.wake()
        if self._server.has_readers:
            self._server.publish("result", source, frame_line(proposals, source=source))

    def _end(self, end: dict[str, Any]) -> None:
        source = end.get("source", self._last_source)
        self._view_of[source].ended = True
        self._server.publish("end", source, json.dumps({"end": end, "source": source}).encode())
        ended = [view for view in self._views if view.ended]
        if len(ended) > _KEPT_ENDED:
            self._views.remove(ended[0])
            self._view_of = {name: v for name, v in self._view_of.items() if v is not ended[0]}

    def _close(self) -> None:
        self._server.close()

    def _abort(self) -> None:
        self._server.close()
