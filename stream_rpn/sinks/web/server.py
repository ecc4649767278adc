"""The HTTP server of `--serve`, in a thread of its own.

Built on aiohttp, an optional extra: one well-kept library that has the server, WebSockets and
bounds on what clients may send, runs in a thread without taking over signals, and holds a writer
back whose reader is slow, which is what bounds the memory here. (starlette would need uvicorn and a
WebSocket library beside it, and its flow control is theirs.)

What it answers is described for users in docs/cameras.md: `/` the page and `/live` its WebSocket,
`/results` every result as server-sent events, `/metrics` for Prometheus, `/healthz` for a
supervisor. Files of the machine are not among it: the routes are fixed, and the page is the only
file that is ever read.

Who may ask:

* At a loopback address, whoever can connect, if the Host header names this machine: a web page
  that made its own name point here (DNS rebinding) is turned away.
* At any other address, and wherever there is a token, who knows it: `Authorization: Bearer TOKEN`
  or `?token=TOKEN`.
* A browser says by Origin which page asks; it must be ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import importlib.resources
import ipaddress
import json
import logging
import math
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import cast

from aiohttp import ClientConnectionError, WSMsgType, web

from stream_rpn.frame import StreamRPNError
from stream_rpn.sinks.web.metrics import exposition
from stream_rpn.sinks.web.view import View

MAX_CLIENTS = 32
"""Viewers and readers of results together; one more is told to come back."""

MAX_CONNECTIONS = 128
"""Those that have asked for nothing yet included: they must not use up the process's files. One
more takes the place of the one that has been idle longest."""

IDLE_SECONDS = 20.0
"""A connection without a request is ended after so long."""

FEED_LINES = 64
"""Results kept for a slow reader of `/results`; of more the oldest are lost, and counted."""

STALLED_SECONDS = 30.0
"""After so long without a result `/healthz` answers 503."""

_MAX_MESSAGE_BYTES = 64
_AHEAD = 2  # pictures under way to a viewer: one is drawn while the next one travels
_STATUS_SECONDS = 1.0
_SEND_SECONDS = 20.0
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_SILENT = logging.getLogger("stream_rpn.serve")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _abort(connection: asyncio.BaseProtocol) -> None:
    if (transport := getattr(connection, "transport", None)) is not None:
        transport.abort()


class _Refusal(asyncio.Protocol):
    """Ends a connection at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()


class _Reader:
    """Someone who reads results; slow ones lose the oldest."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.events: deque[bytes] = deque(maxlen=FEED_LINES)
        self.lost = 0

    def put(self, event: bytes) -> None:
        self.lost += len(self.events) == FEED_LINES
        self.events.append(event)
        self.changed.set()


class _Viewer:
    """Someone at the page, who asks for a picture when the last one has been drawn."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.index = 0
        self.wanted = 0
        self.seen: tuple[View | None, int] = (None, 0)

    def ask(self, text: str) -> None:
        """Takes a message of the page: the index of the source it wants a newer picture of."""
        if not text.isdecimal():
            raise ValueError("a message is the index of a source")
        self.index = int(text)
        self.wanted = min(self.wanted + 1, _AHEAD)
        self.changed.set()


class Server:
    """Listens from construction to `close`.

    Args:
        place: (host, port) as `parse_address` returns it; port 0 for any that is free.
        token: what clients must know, "" for nothing.
        views: the sources; read while the owner adds and removes some.

    Attributes:
        url: where the page is, without the token.

    Raises:
        OSError: the address cannot be had.
        StreamRPNError: it can be reached from other machines and there is no token.
    """

    def __init__(self, place: tuple[str, int], token: str, views: Sequence[View]) -> None:
        self._views = views
        self._token = token.encode()
        self._socket, loopback = _listen(*place, token=token)
        host, port = self._socket.getsockname()[:2]
        self._local_names = {*_LOCAL_NAMES, place[0].lower(), host} if loopback else set()
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        self._page = importlib.resources.files(__package__).joinpath("page.html").read_bytes()
        self._clients: set[_Viewer | _Reader] = set()
        self._readers: tuple[_Reader, ...] = ()
        self._headers: dict[str, bytes] = {}
        # Connections without a request, by the time since when; the one idle longest first.
        self._idle: dict[asyncio.BaseProtocol, float] = {}
        self._woken = False
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._work, name="serve", daemon=True)
        self._thread.start()

    # Methods that the pipeline's thread calls. None of them waits.

    @property
    def has_readers(self) -> bool:
        """Whether somebody reads results, so that a line has to be made of each."""
        return bool(self._readers)

    def wake(self) -> None:
        """Tells the viewers that a view has something newer."""
        if self._clients and not self._woken:
            self._woken = True
            self._call(self._wake)

    def publish(self, kind: str, source: str, line: bytes) -> None:
        """Passes a header, a result or an end (as a line of JSON) to the readers of results."""
        self._call(lambda: self._publish(kind, source, _event(kind, line)))

    def close(self) -> None:
        """Says goodbye to all clients and waits until the thread has ended."""
        self._call(self._stopped.set)
        self._thread.join()

    def _call(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(function)

    # Methods that run in the server's thread.

    def _work(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        application = web.Application(middlewares=[self._guard], client_max_size=0)
        application.add_routes(
            [
                web.get(path, handler, allow_head=False)
                for path, handler in {
                    "/": self._index,
                    "/live": self._live,
                    "/results": self._results,
                    "/metrics": self._metrics,
                    "/healthz": self._health,
                }.items()
            ]
        )
        # Both logs would hold tokens, and ill-formed requests would fill them.
        runner = web.AppRunner(
            application,
            access_log=None,
            logger=_SILENT,
            handle_signals=False,
            shutdown_timeout=0.5,
        )
        await runner.setup()
        server = runner.server
        assert server is not None

        def admit() -> asyncio.BaseProtocol:
            # Those accepted in the same turn of the loop are not among the server's yet.
            count = len({*self._idle, *server.connections})
            if count >= MAX_CONNECTIONS and not self._end_idle(-math.inf, 1):
                return _Refusal()
            connection = server()
            self._idle[connection] = time.monotonic()
            return connection

        listener = await self._loop.create_server(admit, sock=self._socket)
        sweeping = asyncio.ensure_future(self._sweep())
        try:
            await self._stopped.wait()
        finally:
            sweeping.cancel()
            listener.close()
            self._wake()
            await runner.cleanup()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(IDLE_SECONDS / 4)
            self._end_idle(IDLE_SECONDS)

    def _end_idle(self, seconds: float, most: int = MAX_CONNECTIONS) -> int:
        """Ends connections that have had no request for so long, and returns how many."""
        before = time.monotonic() - seconds
        ended = [each for each, since in self._idle.items() if since < before][:most]
        for connection in ended:
            del self._idle[connection]
            # One that was accepted in this turn of the loop gets its transport in the next.
            _abort(connection)
            self._loop.call_later(0.1, _abort, connection)
        return len(ended)

    def _wake(self) -> None:
        self._woken = False
        for client in self._clients:
            client.changed.set()

    def _publish(self, kind: str, source: str, event: bytes) -> None:
        if kind == "header":
            self._headers[source] = event
        elif kind == "end":
            self._headers.pop(source, None)
        for reader in self._readers:
            reader.put(event)

    @contextlib.contextmanager
    def _admitted(self, client: _Viewer | _Reader) -> Iterator[None]:
        if len(self._clients) >= MAX_CLIENTS:
            raise web.HTTPServiceUnavailable(text="too many viewers\n")
        self._clients.add(client)
        self._count_readers()
        try:
            yield
        finally:
            self._clients.discard(client)
            self._count_readers()

    def _count_readers(self) -> None:
        self._readers = tuple(c for c in self._clients if isinstance(c, _Reader))

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = request.protocol
        self._idle.pop(connection, None)
        try:
            self._check(request)
            return await handler(request)
        finally:
            self._idle[connection] = time.monotonic()

    def _check(self, request: web.Request) -> None:
        if self._local_names and _host_name(request.host) not in self._local_names:
            raise web.HTTPForbidden(text="the Host header does not name this machine\n")
        origin = request.headers.get("Origin")
        if origin is not None and origin.lower().partition("://")[2] != request.host.lower():
            raise web.HTTPForbidden(text="the page of another site asks\n")
        if self._token:
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer":
                given = request.query.get("token", "")
            if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token):
                raise web.HTTPUnauthorized(
                    text="a token is needed: ?token=… or Authorization: Bearer …\n",
                    headers={"WWW-Authenticate": "Bearer"},
                )

    async def _index(self, request: web.Request) -> web.Response:
        return web.Response(
            body=self._page, content_type="text/html", charset="utf-8", headers=_HEADERS
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=exposition(self._views, len(self._clients)),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _health(self, request: web.Request) -> web.Response:
        running = [view for view in self._views if not view.ended]
        stalled = bool(running) and all(view.silent_seconds > STALLED_SECONDS for view in running)
        answer = {"status": "stalled" if stalled else "ok", "sources": len(self._views)}
        return web.json_response(answer, status=503 if stalled else 200)

    async def _results(self, request: web.Request) -> web.StreamResponse:
        reader = _Reader()
        with self._admitted(reader):
            response = web.StreamResponse(
                headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
            )
            await response.prepare(request)
            with contextlib.suppress(ClientConnectionError, TimeoutError):
                await response.write(b"".join(self._headers.values()) or b": hello\n\n")
                while True:
                    reader.changed.clear()
                    lost, reader.lost = reader.lost, 0
                    events = [_event("lost", b'{"count":%d}' % lost)] if lost else []
                    events += reader.events
                    reader.events.clear()
                    if events:
                        async with asyncio.timeout(_SEND_SECONDS):
                            await response.write(b"".join(events))
                        continue
                    if self._stopped.is_set():
                        break
                    try:
                        async with asyncio.timeout(_SEND_SECONDS):
                            await reader.changed.wait()
                    except TimeoutError:
                        # Otherwise nothing would ever show that the reader has gone.
                        async with asyncio.timeout(_SEND_SECONDS):
                            await response.write(b": still here\n\n")
            return response

    async def _live(self, request: web.Request) -> web.StreamResponse:
        viewer = _Viewer()
        with self._admitted(viewer):
            # The heartbeat finds out who has vanished, or stopped reading.
            socket = web.WebSocketResponse(
                max_msg_size=_MAX_MESSAGE_BYTES, heartbeat=_SEND_SECONDS, compress=False
            )
            await socket.prepare(request)
            sending = [
                asyncio.ensure_future(each)
                for each in (
                    self._send_pictures(socket, viewer),
                    self._send_status(socket),
                    self._close_at_the_end(socket),
                )
            ]
            try:
                async for message in socket:
                    if message.type != WSMsgType.TEXT:
                        break
                    viewer.ask(message.data)
            except ValueError:
                await socket.close(code=1003)
            finally:
                for task in sending:
                    task.cancel()
                await asyncio.gather(*sending, return_exceptions=True)
            return socket

    async def _send_pictures(self, socket: web.WebSocketResponse, viewer: _Viewer) -> None:
        while True:
            viewer.changed.clear()
            views = list(self._views)
            view = views[viewer.index] if viewer.index < len(views) else None
            if viewer.wanted and view and view.number and (view, view.number) != viewer.seen:
                viewer.wanted -= 1
                number, packet = await view.packet()
                viewer.seen = (view, number)
                await socket.send_bytes(packet)
            else:
                await viewer.changed.wait()

    async def _send_status(self, socket: web.WebSocketResponse) -> None:
        while True:
            states = [view.status() for view in list(self._views)]
            await socket.send_str(json.dumps({"sources": states, "viewers": len(self._clients)}))
            await asyncio.sleep(_STATUS_SECONDS)

    async def _close_at_the_end(self, socket: web.WebSocketResponse) -> None:
        await self._stopped.wait()
        await socket.close(code=1001)


def parse_address(text: str) -> tuple[str, int]:
    """Returns (host, port) of "[HOST:]PORT"; an IPv6 address stands in brackets.

    Raises:
        StreamRPNError: it is not of that form.
    """
    host, _, port = text.rpartition(":")
    if not host and not text.startswith(":"):
        host = "127.0.0.1"
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not host or not port.isdecimal() or int(port) > 65535:
        raise StreamRPNError(f"--serve takes [HOST:]PORT, e.g. 8000, got {text!r}")
    return host, int(port)


def _listen(host: str, port: int, *, token: str) -> tuple[socket.socket, bool]:
    """Returns a socket that listens, and whether only this machine can reach it."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    loopback = ipaddress.ip_address(address[0]).is_loopback
    if not loopback and not token:
        raise StreamRPNError(
            f"--serve {host}:{port} can be reached from other machines; it needs "
            "--serve-token TOKEN, or 'auto' for one that is made up"
        )
    return socket.create_server(address, family=family), loopback


def _host_name(host: str) -> str:
    """Returns the name in a Host header, without its port."""
    name, _, port = host.rpartition(":")
    return (name if name and port.isdecimal() else host).strip("[]").lower()


def _event(kind: str, line: bytes) -> bytes:
    """Returns a server-sent event; results are of the kind that needs no name."""
    name = b"" if kind == "result" else b"event: %b\n" % kind.encode()
    return b"%bdata: %b\n\n" % (name, line.rstrip())
