"""What goes on for as long as somebody takes it: results, the page's pictures, MJPEG.

Nobody is sent more than they take. Of results a slow reader loses the oldest and is told how many;
of pictures everybody gets the newest one when the last one has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
from collections import deque
from collections.abc import Sequence

from aiohttp import ClientConnectionError, WSMsgType, web

from stream_rpn.sinks.web.admission import Client, Clients
from stream_rpn.sinks.web.pictures import MAX_WIDTH
from stream_rpn.sinks.web.view import View, named

FEED_LINES = 64
"""Results kept for a slow reader of `/results`; of more the oldest are lost, and counted."""

STATUS_SECONDS = 1.0
"""So often the page is told the figures, and a reading of the history is taken."""

SEND_SECONDS = 20.0
"""Who has taken nothing for so long is given up."""

_MAX_MESSAGE_BYTES = 64
_AHEAD = 2  # pictures under way to a viewer: one is drawn while the next one travels
_WIDEST, _MOST_BOXES, _FASTEST = 7680, 1000, 100

_NO_STORE = {"Cache-Control": "no-store"}


class Results:
    """`/results`: every result as a server-sent event, to all who read.

    Attributes:
        read: whether anybody does; the pipeline's thread may ask.
    """

    def __init__(self, clients: Clients, stopped: asyncio.Event) -> None:
        self.read = False
        self._clients, self._stopped = clients, stopped
        self._readers: set[_Reader] = set()
        self._headers: dict[str, bytes] = {}

    def publish(self, kind: str, source: str, line: bytes) -> None:
        """Passes a header, a result or an end (as a line of JSON) to all who read."""
        event = _event(kind, line)
        if kind == "header":
            self._headers[source] = event
        elif kind == "end":
            self._headers.pop(source, None)
        for reader in self._readers:
            reader.put(event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Sends what is published from now on, after the headers of what goes on."""
        reader = _Reader()
        with self._clients.admitted(reader):
            self._readers.add(reader)
            self.read = True
            try:
                return await self._send(request, reader)
            finally:
                self._readers.discard(reader)
                self.read = bool(self._readers)

    async def _send(self, request: web.Request, reader: _Reader) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **_NO_STORE})
        await response.prepare(request)
        with contextlib.suppress(ClientConnectionError, TimeoutError):
            await response.write(b"".join(self._headers.values()) or b": hello\n\n")
            while True:
                reader.changed.clear()
                if events := reader.taken():
                    await _send(response, events)
                elif self._stopped.is_set():
                    break
                elif not await _happens(reader.changed):
                    # Otherwise nothing would ever show that the reader has gone.
                    await _send(response, b": still here\n\n")
        return response


class _Reader(Client):
    """Someone who reads results; slow ones lose the oldest."""

    def __init__(self) -> None:
        super().__init__()
        self.events: deque[bytes] = deque(maxlen=FEED_LINES)
        self.lost = 0

    def put(self, event: bytes) -> None:
        self.lost += len(self.events) == FEED_LINES
        self.events.append(event)
        self.changed.set()

    def taken(self) -> bytes:
        lost, self.lost = self.lost, 0
        told = [_event("lost", b'{"count":%d}' % lost)] if lost else []
        events = b"".join([*told, *self.events])
        self.events.clear()
        return events


def _event(kind: str, line: bytes) -> bytes:
    """Returns a server-sent event; results are of the kind that needs no name."""
    name = b"" if kind == "result" else b"event: %b\n" % kind.encode()
    return b"%bdata: %b\n\n" % (name, line.rstrip())


class Live:
    """`/live`: the page's WebSocket.

    The page asks for a picture by `KEY` or `KEY small`, KEY being that of the source in the figures
    that it is told every second, and gets one when there is a newer one: KEY as four bytes
    (big-endian), a byte that is 1 for a small one, and what `Pictures.packet` has. So a slow
    browser or line gets fewer of them instead of late ones.
    """

    def __init__(self, clients: Clients, stopped: asyncio.Event, views: Sequence[View]) -> None:
        self._clients, self._stopped, self._views = clients, stopped, views

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Talks with one page until it leaves."""
        viewer = _Viewer()
        with self._clients.admitted(viewer):
            # The heartbeat finds out who has vanished, or stopped reading.
            socket = web.WebSocketResponse(
                max_msg_size=_MAX_MESSAGE_BYTES, heartbeat=SEND_SECONDS, compress=False
            )
            await socket.prepare(request)
            sending = [
                asyncio.ensure_future(each)
                for each in (
                    self._send_pictures(socket, viewer),
                    self._send_figures(socket),
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
            for view, small in viewer.due(self._views):
                if found := await view.pictures.packet(small):
                    number, packet = found
                    viewer.gets(view, small, number)
                    await socket.send_bytes(struct.pack(">I?", view.key, small) + packet)
            await viewer.changed.wait()

    async def _send_figures(self, socket: web.WebSocketResponse) -> None:
        while True:
            await socket.send_str(self._figures())
            await asyncio.sleep(STATUS_SECONDS)

    def _figures(self) -> str:
        views = list(self._views)
        return json.dumps(
            {
                "sources": [view.status() for view in views],
                "viewers": len(self._clients),
                "over": bool(views) and all(view.ended for view in views),
            }
        )

    async def _close_at_the_end(self, socket: web.WebSocketResponse) -> None:
        await self._stopped.wait()
        await socket.send_str(self._figures())  # how it ended
        await socket.close(code=1001)


class _Viewer(Client):
    """Someone at the page, who asks for a picture when the last one has been drawn."""

    def __init__(self) -> None:
        super().__init__()
        self._wanted: dict[tuple[int, bool], int] = {}
        self._seen: dict[tuple[int, bool], int] = {}

    def ask(self, text: str) -> None:
        """Takes a message of the page."""
        key, _, size = text.partition(" ")
        if not key.isdecimal() or size not in ("", "small"):
            raise ValueError("a message is the key of a source, and 'small' or nothing")
        form = (int(key), size == "small")
        self._wanted[form] = min(self._wanted.get(form, 0) + 1, _AHEAD)
        self.changed.set()

    def due(self, views: Sequence[View]) -> list[tuple[View, bool]]:
        """Returns of which views it lacks the newest picture, and whether it wants a small one."""
        known = {view.key: view for view in list(views)}
        self._wanted = {form: n for form, n in self._wanted.items() if n and form[0] in known}
        self._seen = {form: n for form, n in self._seen.items() if form[0] in known}
        forms = [form for form in self._wanted if known[form[0]].number > self._seen.get(form, 0)]
        return [(known[key], small) for key, small in forms]

    def gets(self, view: View, small: bool, number: int) -> None:
        form = (view.key, small)
        self._wanted[form] -= 1
        self._seen[form] = number


class MJPEG:
    """`/mjpeg/NAME`: pictures with their boxes, one after the other, as `<img>` and FFmpeg take.

    A picture that comes while the last one is on its way takes the place of one that waits. The
    stream ends with the source, its last picture once more.
    """

    def __init__(
        self, clients: Clients, stopped: asyncio.Event, views: Sequence[View], boxes: int
    ) -> None:
        self._clients, self._stopped, self._views = clients, stopped, views
        self._boxes = boxes

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Sends pictures until the source ends, or whoever takes them leaves."""
        name = view_asked(request, self._views).name
        form = form_asked(request, self._boxes)
        fps = _number(request, "fps", _FASTEST, _FASTEST)
        client = Client()
        with self._clients.admitted(client):
            kind = "multipart/x-mixed-replace; boundary=frame"
            response = web.StreamResponse(headers={"Content-Type": kind, **_NO_STORE})
            await response.prepare(request)
            with contextlib.suppress(ClientConnectionError, TimeoutError):
                await self._send_pictures(response, client, name, form, 1 / fps)
        return response

    async def _send_pictures(
        self,
        response: web.StreamResponse,
        client: Client,
        name: str,
        form: tuple[int, int],
        pause: float,
    ) -> None:
        seen: tuple[int, int] | None = None
        part = b""
        while not self._stopped.is_set():
            client.changed.clear()
            view = named(list(self._views), name)
            if view is None:
                break
            newest = (view.key, view.number)
            if newest != seen and (found := await view.pictures.still(*form)):
                began = time.monotonic()
                number, picture = found
                seen = (view.key, number)
                # The boundary goes with the picture before it: browsers wait for that.
                start = b"" if part else b"--frame\r\n"
                part = _part(picture)
                await _send(response, start + part + b"--frame\r\n")
                await asyncio.sleep(max(0.0, began + pause - time.monotonic()))
            elif view.ended:
                break
            elif not await _happens(client.changed):
                seen = None  # once more, to find out who has gone
        # FFmpeg takes a boundary without a picture behind it for damage.
        await _send(response, part)


def _part(picture: bytes) -> bytes:
    head = b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture)
    return b"%b%b\r\n" % (head, picture)


def view_asked(request: web.Request, views: Sequence[View]) -> View:
    """Returns the view whose name stands in an address, or answers that there is none."""
    name = request.match_info["name"]
    view = named(list(views), name)
    if view is None:
        there = ", ".join(view.name for view in list(views)) or "none yet"
        raise web.HTTPNotFound(text=f"there is no source {name!r}; there are: {there}\n")
    return view


def form_asked(request: web.Request, boxes: int) -> tuple[int, int]:
    """Returns which pictures an address asks for: `width`, and how many `boxes`."""
    return (
        _number(request, "width", MAX_WIDTH, _WIDEST, least=16),
        _number(request, "boxes", boxes, _MOST_BOXES, least=0),
    )


def _number(request: web.Request, name: str, default: int, most: int, least: int = 1) -> int:
    given = request.query.get(name)
    if given is None:
        return default
    if not (given.isascii() and given.isdecimal() and least <= int(given[:9]) <= most):
        raise web.HTTPBadRequest(text=f"{name} must be a number from {least} to {most}\n")
    return int(given)


async def _send(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(SEND_SECONDS):
        await response.write(data)


async def _happens(event: asyncio.Event) -> bool:
    """Waits for an event, and returns False where it does not come."""
    try:
        async with asyncio.timeout(SEND_SECONDS):
            return await event.wait()
    except TimeoutError:
        return False
