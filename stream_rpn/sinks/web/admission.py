"""Who may ask the server, and how many at a time.

* At a loopback address, whoever can connect, if the Host header names this machine: a web page
  that made its own name point here (DNS rebinding) is turned away.
* At any other address, and wherever there is a token, who knows it: `Authorization: Bearer TOKEN`
  or `?token=TOKEN`, which the address of a picture in another page can carry.
* A browser says by Origin which page asks; it must be ours. Of what a page of another site shows
  without asking, as pictures, it says so by Sec-Fetch-Site; there it needs a token.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import math
import time
from collections.abc import Collection, Iterator
from typing import cast

from aiohttp import web

MAX_CLIENTS = 32
"""Viewers and readers of results together; one more is told to come back."""

MAX_CONNECTIONS = 128
"""Those that have asked for nothing yet included: they must not use up the process's files. One
more takes the place of the one that has been idle longest."""

IDLE_SECONDS = 20.0
"""A connection without a request is ended after so long."""


class Doorkeeper:
    """Tells who may ask.

    Args:
        token: what clients must know, "" for nothing.
        local_names: the names of this machine, where the Host header must have one of them.
    """

    def __init__(self, token: str, local_names: Collection[str]) -> None:
        self._token = token.encode()
        self._local_names = local_names

    def check(self, request: web.Request) -> None:
        """Turns a request away by raising the answer."""
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
        elif (
            request.headers.get("Sec-Fetch-Site") == "cross-site"
            and request.headers.get("Sec-Fetch-Mode") != "navigate"  # a link that was followed
        ):
            raise web.HTTPForbidden(
                text="the page of another site asks; with --serve-token it may, by ?token=…\n"
            )


def _host_name(host: str) -> str:
    """Returns the name in a Host header, without its port."""
    name, _, port = host.rpartition(":")
    return (name if name and port.isdecimal() else host).strip("[]").lower()


class Client:
    """Somebody who is sent what is new as it comes.

    Attributes:
        changed: set when there may be something new.
    """

    def __init__(self) -> None:
        self.changed = asyncio.Event()


class Clients:
    """Those who are sent what is new, no more than `MAX_CLIENTS`."""

    def __init__(self) -> None:
        self._clients: set[Client] = set()

    def __len__(self) -> int:
        return len(self._clients)

    def __iter__(self) -> Iterator[Client]:
        return iter(self._clients)

    @contextlib.contextmanager
    def admitted(self, client: Client) -> Iterator[None]:
        """Counts somebody among them meanwhile, or answers that there are too many."""
        if len(self._clients) >= MAX_CLIENTS:
            raise web.HTTPServiceUnavailable(text="too many viewers\n")
        self._clients.add(client)
        try:
            yield
        finally:
            self._clients.discard(client)

    def wake(self) -> None:
        """Has all of them look for what is new."""
        for client in self._clients:
            client.changed.set()


class Connections:
    """The connections of a server, of which those that ask for nothing do not last.

    Args:
        server: makes the protocol of a new connection, and knows those in use.
    """

    def __init__(self, server: web.Server) -> None:
        self._server = server
        # Connections without a request, by the time since when; the one idle longest first.
        self._idle: dict[asyncio.BaseProtocol, float] = {}

    def admit(self) -> asyncio.BaseProtocol:
        """Returns the protocol of one that was just accepted."""
        # Those accepted in the same turn of the loop are not among the server's yet.
        count = len({*self._idle, *self._server.connections})
        if count >= MAX_CONNECTIONS and not self._end_idle(-math.inf, 1):
            return _Refusal()
        connection = self._server()
        self._idle[connection] = time.monotonic()
        return connection

    @contextlib.contextmanager
    def asking(self, connection: asyncio.BaseProtocol) -> Iterator[None]:
        """Spares a connection as long as its request lasts."""
        self._idle.pop(connection, None)
        try:
            yield
        finally:
            self._idle[connection] = time.monotonic()

    async def sweep(self) -> None:
        """Ends those that are idle for too long, for ever."""
        while True:
            await asyncio.sleep(IDLE_SECONDS / 4)
            self._end_idle(IDLE_SECONDS)

    def _end_idle(self, seconds: float, most: int | None = None) -> int:
        """Ends connections that have had no request for so long, and returns how many."""
        before = time.monotonic() - seconds
        ended = [each for each, since in self._idle.items() if since < before][:most]
        for connection in ended:
            del self._idle[connection]
            # One that was accepted in this turn of the loop gets its transport in the next.
            _abort(connection)
            asyncio.get_running_loop().call_later(0.1, _abort, connection)
        return len(ended)


class _Refusal(asyncio.Protocol):
    """Ends a connection at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()


def _abort(connection: asyncio.BaseProtocol) -> None:
    if (transport := getattr(connection, "transport", None)) is not None:
        transport.abort()
