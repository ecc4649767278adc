"""ZeroMQ: results published to whoever subscribes, `-o zmq:tcp://127.0.0.1:5556`.

Unlike MQTT (see `mqtt`) it needs no broker, which somebody has to run. A publisher never waits, and
keeps at most QUEUED_MESSAGES for each subscriber that is slow, dropping what comes later for that
one only; subscribers come, go and reconnect as they like, and there are libraries for every
language.

A message has two parts: the source's name, to subscribe by, and a line of JSON as in a `.jsonl`
file: the header, results (with `source`, `width` and `height` in each, as who comes late has no
header), the end. ZeroMQ knows no token: addresses that other machines reach are refused.
"""

from __future__ import annotations

import ipaddress
import json
from typing import Any, ClassVar
from urllib.parse import urlsplit

from stream_rpn.frame import Proposals, StreamInfo, StreamRPNError
from stream_rpn.sinks.jsonl import frame_line
from stream_rpn.sinks.sink import Sink

PREFIX = "zmq:"

QUEUED_MESSAGES = 64
"""Kept for each slow subscriber: about a megabyte of results with 300 boxes."""

# Milliseconds that closing waits for subscribers to take the queued messages.
_LINGER_MS = 1000


class ZeroMQSink(Sink):
    """Binds a PUB socket and sends every result; never waits for a subscriber.

    Attributes:
        endpoint: where subscribers connect to, with the port that was chosen where 0 was asked for.
    """

    takes_several_sources: ClassVar[bool] = True
    opens_at_once: ClassVar[bool] = True

    def _open(self) -> None:
        address = self.name.removeprefix(PREFIX)
        if not _is_local(address):
            raise StreamRPNError(
                f"output {self.name!r} must be zmq:tcp://127.0.0.1:PORT: ZeroMQ has no token that "
                "would keep other machines out"
            )
        try:
            import zmq
        except ImportError as error:
            raise StreamRPNError(
                f"output {self.name!r} needs pyzmq; `pip install 'stream-rpn[zmq]'` provides it"
            ) from error
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.sndhwm = QUEUED_MESSAGES
        self._socket.ipv6 = "[" in address
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise StreamRPNError(f"cannot publish at {address}: {error.strerror}") from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def _begin(self, header: dict[str, Any], info: StreamInfo) -> None:
        self._send(info.source, json.dumps(header).encode())

    def _write(self, proposals: Proposals) -> None:
        source = self._source_of(proposals)
        self._send(source, frame_line(proposals, source=source).rstrip())

    def _end(self, end: dict[str, Any]) -> None:
        source = end.get("source", self._last_source)
        self._send(source, json.dumps({"end": end, "source": source}).encode())

    def _send(self, source: str, line: bytes) -> None:
        self._socket.send_multipart((source.encode(), line))

    def _close(self) -> None:
        self._context.destroy(linger=_LINGER_MS)

    def _abort(self) -> None:
        self._context.destroy(linger=0)


def _is_local(address: str) -> bool:
    """Tells whether this is a TCP address that other machines cannot reach."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return False
    if parts.scheme != "tcp" or port is None or address != f"tcp://{parts.netloc}":
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
