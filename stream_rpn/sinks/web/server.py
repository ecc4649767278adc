"""The HTTP server of `--serve`, in a thread of its own.

Built on aiohttp, an optional extra: one well-kept library that has the server, WebSockets and
bounds on what clients may send, runs in a thread without taking over signals, and holds a writer
back whose reader is slow, which is what bounds the memory here. (starlette would need uvicorn and a
WebSocket library beside it, and its flow control is theirs.)

What it answers is described in docs/page.md: `/` is the page, of which all files are read before
the first request, and no other file of the machine is among the routes. `admission` tells who may
ask, `feeds` what goes on, `view` what there is to be told of a source.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import ipaddress
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

from aiohttp import web

from stream_rpn.drawing import USUAL_DRAWING, DrawSpec
from stream_rpn.frame import StreamRPNError
from stream_rpn.sinks.web import feeds
from stream_rpn.sinks.web.admission import Clients, Connections, Doorkeeper
from stream_rpn.sinks.web.metrics import exposition
from stream_rpn.sinks.web.view import View

STALLED_SECONDS = 30.0
"""After so long without a result `/healthz` answers 503."""

# Pictures are encoded beside the network, which must keep the other cores.
_ENCODING_THREADS = 2

_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")

_PAGE = {
    "page.html": "text/html",
    "page.css": "text/css",
    "picture.js": "text/javascript",
    "panel.js": "text/javascript",
    "page.js": "text/javascript",
}

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_SILENT = logging.getLogger("stream_rpn.serve")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Listens from construction to `close`.

    Args:
        place: (host, port) as `parse_address` returns it; port 0 for any that is free.
        token: what clients must know, "" for nothing.
        views: the sources; read while the owner adds and removes some.
        drawing: how many boxes are drawn in pictures for other pages, unless these ask for others,
            and at the start on the page, which begins with its least score, too.

    Attributes:
        url: where the page is, without the token.

    Raises:
        OSError: the address cannot be had.
        StreamRPNError: it can be reached from other machines and there is no token.
    """

    def __init__(
        self,
        place: tuple[str, int],
        token: str,
        views: Sequence[View],
        drawing: DrawSpec = USUAL_DRAWING,
    ) -> None:
        self._views, self._boxes = views, drawing.top
        self._socket, loopback = _listen(*place, token=token)
        host, port = self._socket.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        local_names = {*_LOCAL_NAMES, place[0].lower(), host} if loopback else set()
        self._doorkeeper = Doorkeeper(token, local_names)
        self._page = _page_files(token, drawing)
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._clients = Clients()
        self._results = feeds.Results(self._clients, self._stopped)
        self._woken = False
        self._thread = threading.Thread(target=self._work, name="serve", daemon=True)
        self._thread.start()

    # Methods that the pipeline's thread calls. None of them waits.

    @property
    def has_readers(self) -> bool:
        """Whether somebody reads results, so that a line has to be made of each."""
        return self._results.read

    def wake(self) -> None:
        """Tells the viewers that a view has something newer."""
        if self._clients and not self._woken:
            self._woken = True
            self._call(self._wake)

    def publish(self, kind: str, source: str, line: bytes) -> None:
        """Passes a header, a result or an end (as a line of JSON) to the readers of results."""
        self._call(lambda: self._results.publish(kind, source, line))

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
        self._loop.set_default_executor(ThreadPoolExecutor(_ENCODING_THREADS, "encode"))
        application = web.Application(middlewares=[self._guard], client_max_size=0)
        live = feeds.Live(self._clients, self._stopped, self._views)
        mjpeg = feeds.MJPEG(self._clients, self._stopped, self._views, self._boxes)
        routes: dict[str, Handler] = {
            "/": self._file,
            **{f"/{name}": self._file for name in self._page if name != "page.html"},
            "/live": live.answer,
            "/results": self._results.answer,
            "/frame/{name}.jpg": self._still,
            "/mjpeg/{name}": mjpeg.answer,
            "/metrics": self._metrics,
            "/healthz": self._health,
        }
        application.add_routes(
            [web.get(path, handler, allow_head=False) for path, handler in routes.items()]
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
        assert runner.server is not None
        self._connections = Connections(runner.server)
        listener = await self._loop.create_server(self._connections.admit, sock=self._socket)
        beside = [asyncio.ensure_future(self._connections.sweep())]
        beside.append(asyncio.ensure_future(self._keep_history()))
        try:
            await self._stopped.wait()
        finally:
            for task in beside:
                task.cancel()
            listener.close()
            self._wake()
            await runner.cleanup()

    async def _keep_history(self) -> None:
        while True:
            for view in list(self._views):
                view.sample()
            await asyncio.sleep(feeds.STATUS_SECONDS)

    def _wake(self) -> None:
        self._woken = False
        self._clients.wake()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        with self._connections.asking(request.protocol):
            self._doorkeeper.check(request)
            return await handler(request)

    async def _file(self, request: web.Request) -> web.Response:
        name = request.path.removeprefix("/") or "page.html"
        return web.Response(
            body=self._page[name], content_type=_PAGE[name], charset="utf-8", headers=_HEADERS
        )

    async def _still(self, request: web.Request) -> web.Response:
        view = feeds.view_asked(request, self._views)
        found = await view.pictures.still(*feeds.form_asked(request, self._boxes))
        if found is None:
            raise web.HTTPServiceUnavailable(
                text=f"there is no picture of {view.name!r}\n", headers={"Retry-After": "1"}
            )
        headers = {"Cache-Control": "no-store"}
        return web.Response(body=found[1], content_type="image/jpeg", headers=headers)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=exposition(list(self._views), len(self._clients)),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _health(self, request: web.Request) -> web.Response:
        running = [view for view in list(self._views) if not view.ended]
        stalled = bool(running) and all(view.silent_seconds > STALLED_SECONDS for view in running)
        answer = {"status": "stalled" if stalled else "ok", "sources": len(self._views)}
        return web.json_response(answer, status=503 if stalled else 200)


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


def _page_files(token: str, drawing: DrawSpec) -> dict[str, bytes]:
    """Returns the files of the page by name; those that it names itself get the token."""
    folder = importlib.resources.files(__package__)
    files = {name: folder.joinpath(name).read_bytes() for name in _PAGE}
    query = f"?token={quote(token, safe='')}" if token else ""
    stands = {"?TOKEN": query, "BOXES": str(drawing.top), "SCORE": f"{max(drawing.score, 0):g}"}
    for name, value in stands.items():
        files["page.html"] = files["page.html"].replace(name.encode(), value.encode())
    return files
