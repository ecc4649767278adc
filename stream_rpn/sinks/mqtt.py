"""MQTT: results sent to a broker, `-o mqtt://broker/topic`, or `mqtts://` with TLS.

The flow never waits for the broker. A thread of the client's sends; at most WAITING_MESSAGES wait
for it. What is made while the broker is away, or when it takes less than is made, is not sent: it
is counted by its reason, and told at the end.

Results go to the topic itself. What only some want has topics below it, so that whoever subscribes
to the topic gets nothing but results: `/header` and `/end` around each source, and `/status`,
which the broker itself sets to "offline" when we are gone without a word.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import ssl
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from stream_rpn.frame import Proposals, StreamInfo, StreamRPNError
from stream_rpn.sinks.jsonl import frame_line
from stream_rpn.sinks.place import Place
from stream_rpn.sinks.sink import Sink
from stream_rpn.sources.address import masked

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessageInfo

PORTS = {"mqtt": 1883, "mqtts": 8883}

WAITING_MESSAGES = 64
"""Messages that may be on their way to the broker, not written or not acknowledged yet."""

LONGEST_MESSAGE = 1 << 20
"""Bytes of a message: what usual brokers take at most; about 15,000 boxes."""

CONNECT_SECONDS = 10.0
CLOSE_SECONDS = 5.0
_KEEPALIVE_SECONDS = 15
_LONGEST_PAUSE_SECONDS = 60

_AWAY, _SLOW, _LONG, _SILENT = (
    "the broker was away",
    "the broker took less than was sent",
    f"longer than {LONGEST_MESSAGE} bytes; a smaller --top makes them shorter",
    "not acknowledged in the end",
)


@dataclass(frozen=True, slots=True)
class Address:
    """What `mqtt://[user:password@]host[:port]/topic[?qos=…&retain=…&homeassistant=…]` says.

    Attributes:
        tls: whether the connection is encrypted, and the broker's certificate checked.
        host: the broker.
        port: 1883, with TLS 8883, where none is given.
        user: "" for none; without one in the address that of STREAM_RPN_MQTT_USER.
        password: likewise, STREAM_RPN_MQTT_PASSWORD.
        topic: where results go.
        qos: 0 (sent once), 1 (until acknowledged, maybe twice), 2 (exactly once).
        retain: whether the broker keeps the newest result for those who subscribe later.
        home_assistant: whether Home Assistant is told of the topic.
    """

    tls: bool
    host: str
    port: int
    user: str
    password: str
    topic: str
    qos: int = 0
    retain: bool = False
    home_assistant: bool = False

    @classmethod
    def of(cls, name: str) -> Self:
        """Returns what an output's name says.

        Raises:
            StreamRPNError: it is no such address.
        """
        try:
            parts = urlsplit(name)
            host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
        except ValueError as error:
            raise _wrong(name, "the port is a number up to 65535") from error
        topic = unquote(parts.path.removeprefix("/"))
        if not host:
            raise _wrong(name, "the host is missing")
        if not topic:
            raise _wrong(name, "the topic is missing")
        if "#" in name or re.search(r"[+#\0]", topic) or topic.startswith("$"):
            raise _wrong(name, "a topic has no +, # and NUL, and begins with no $")
        if len(topic.encode(errors="replace")) > 60_000:  # what MQTT allows, less our own endings
            raise _wrong(name, "the topic is too long")
        options = _options(name, parts.query)
        return cls(
            parts.scheme == "mqtts",
            host,
            port,
            unquote(parts.username or "") or os.environ.get("STREAM_RPN_MQTT_USER", ""),
            unquote(parts.password or "") or os.environ.get("STREAM_RPN_MQTT_PASSWORD", ""),
            topic,
            options.get("qos", 0),
            bool(options.get("retain", 0)),
            bool(options.get("homeassistant", 0)),
        )


def _options(name: str, query: str) -> dict[str, int]:
    allowed = {"qos": "012", "retain": "01", "homeassistant": "01"}
    given = parse_qsl(query, keep_blank_values=True)
    for key, value in given:
        if key not in allowed or len(value) != 1 or value not in allowed[key]:
            raise _wrong(name, "options are qos=0, 1 or 2, retain=0 or 1, homeassistant=0 or 1")
    return {key: int(value) for key, value in given}


def _wrong(name: str, why: str) -> StreamRPNError:
    return StreamRPNError(
        f"output {masked(name)!r} must be mqtt://HOST[:PORT]/TOPIC or mqtts://…: {why}"
    )


class _Broker(Place):
    """Holds results once a message has reached the broker, and not before."""

    def abandon(self) -> None:
        pass


class MQTTSink(Sink):
    """Publishes every result as a message; the client's thread connects, sends and comes back."""

    takes_several_sources: ClassVar[bool] = True
    opens_at_once: ClassVar[bool] = True

    _client: Client

    def _claim(self) -> Place:
        return _Broker(self.name)

    def _open(self) -> None:
        self._address = Address.of(self.name)
        try:
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError as error:
            raise StreamRPNError(
                f"output {masked(self.name)!r} needs paho-mqtt; `pip install 'stream-rpn[mqtt]'` "
                "provides it"
            ) from error
        self._num_messages = 0
        self._lost: Counter[str] = Counter()
        self._under_way: deque[MQTTMessageInfo] = deque()
        self._answered = threading.Event()
        self._refused = ""
        self._away_since: float | None = None
        self._client = Client(CallbackAPIVersion.VERSION2)
        try:
            self._connect()
        except BaseException:
            self._release()
            raise

    def _connect(self) -> None:
        client, address = self._client, self._address
        if address.user:
            client.username_pw_set(address.user, address.password or None)
        client.will_set(self._topic("status"), "offline", address.qos, retain=True)
        client.reconnect_delay_set(1, _LONGEST_PAUSE_SECONDS)
        client.connect_timeout = CONNECT_SECONDS
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        try:
            if address.tls:
                client.tls_set_context(ssl.create_default_context())
            client.connect(address.host, address.port, _KEEPALIVE_SECONDS)
        except ssl.SSLCertVerificationError as error:
            why = f"its certificate cannot be verified ({error.verify_message})"
            raise self._unreachable(why) from error
        except (OSError, ValueError) as error:
            raise self._unreachable(getattr(error, "strerror", None) or str(error)) from error
        client.loop_start()
        if not self._answered.wait(CONNECT_SECONDS):
            raise self._unreachable("it does not answer as a broker does")
        if self._refused:
            raise self._unreachable(self._refused)

    def _unreachable(self, why: str) -> StreamRPNError:
        return StreamRPNError(f"cannot connect to {masked(self.name)!r}: {why}")

    def _topic(self, below: str) -> str:
        return f"{self._address.topic}/{below}"

    # The next two are called by the client's thread.

    def _connected(self, client: Client, _data: Any, _flags: Any, code: Any, _more: Any) -> None:
        if code.is_failure:
            self._refused = str(code)
        else:
            client.publish(self._topic("status"), "online", self._address.qos, retain=True)
            if self._away_since is not None:
                away = time.monotonic() - self._away_since
                self._away_since = None
                self.options.notice(f"{masked(self.name)} is back after {away:.1f} s")
        self._answered.set()

    def _disconnected(
        self, _client: Client, _data: Any, _flags: Any, code: Any, _more: Any
    ) -> None:
        if self._is_open and self._away_since is None and code.is_failure:
            self._away_since = time.monotonic()
            self.options.notice(
                f"{masked(self.name)}: the connection was lost ({code}); trying again"
            )

    def _begin(self, header: dict[str, Any], info: StreamInfo) -> None:
        if self._address.home_assistant:
            self._announce(header)
        self._send(self._topic("header"), json.dumps(header).encode(), retain=True)

    def _write(self, proposals: Proposals) -> None:
        line = frame_line(proposals, source=self._source_of(proposals)).rstrip()
        self._send(self._address.topic, line, retain=self._address.retain)

    def _end(self, end: dict[str, Any]) -> None:
        self._settle()
        source = end.get("source", self._last_source)
        line = {"end": end, "source": source, "lost": self._lost.total()}
        self._send(self._topic("end"), json.dumps(line).encode())

    def _announce(self, header: dict[str, Any]) -> None:
        """Tells Home Assistant of a sensor: the number of boxes in the newest result."""
        topic = self._address.topic
        ours = f"stream_rpn_{re.sub('[^A-Za-z0-9_-]', '_', topic)}"
        sensor = {
            "name": "proposals",
            "unique_id": ours,
            "state_topic": topic,
            "value_template": "{{ value_json.boxes | count }}",
            "state_class": "measurement",
            "availability_topic": self._topic("status"),
            "device": {"identifiers": [ours], "name": topic, "model": header.get("model")},
            "origin": {"name": "stream-rpn", "sw_version": header.get("version")},
        }
        self._send(f"homeassistant/sensor/{ours}/config", json.dumps(sensor).encode(), retain=True)

    def _send(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Hands a message to the client's thread, or counts it as lost; never waits."""
        self._num_messages += 1
        self._settle()
        if len(payload) > LONGEST_MESSAGE:
            self._lost[_LONG] += 1
        elif not self._client.is_connected():
            self._lost[_AWAY] += 1
        elif len(self._under_way) >= WAITING_MESSAGES:
            self._lost[_SLOW] += 1
        else:
            self._under_way.append(
                self._client.publish(topic, payload, self._address.qos, retain=retain)
            )

    def _settle(self) -> None:
        """Forgets the messages that have been written, or acknowledged, or lost with a connection.

        They are so in their order, but for acknowledgements that overtake each other, which wait.
        """
        while self._under_way:
            try:
                if not self._under_way[0].is_published():
                    return
                self._place.kept = self.name
            except (RuntimeError, ValueError):
                self._lost[_AWAY] += 1
            self._under_way.popleft()

    def _close(self) -> None:
        over = time.monotonic() + CLOSE_SECONDS
        self._wait(over)
        if self._under_way:
            self._lost[_SILENT] += len(self._under_way)
            self._release()
        else:
            self._say_goodbye(over)
        if self._lost:
            why = ", ".join(f"{count} × {why}" for why, count in self._lost.items())
            raise StreamRPNError(
                f"{masked(self.name)}: {self._lost.total()} of {self._num_messages} messages were "
                f"lost ({why})"
            )

    def _wait(self, over: float) -> None:
        """Waits until no message is under way, and no longer than until a time."""
        self._settle()
        while self._under_way and (left := over - time.monotonic()) > 0:
            with contextlib.suppress(RuntimeError, ValueError):
                self._under_way[0].wait_for_publish(left)
            self._settle()

    def _say_goodbye(self, over: float) -> None:
        status = self._client.publish(
            self._topic("status"), "offline", self._address.qos, retain=True
        )
        with contextlib.suppress(RuntimeError, ValueError):
            status.wait_for_publish(max(0.0, over - time.monotonic()))
            if status.is_published():
                self._client.disconnect()
        self._release()

    def _abort(self) -> None:
        self._release()

    def _release(self) -> None:
        """Ends the connection and its thread, if they go on.

        Who has not said goodbye leaves as after a crash: the broker says "offline" for us.
        """
        self._client.on_disconnect = None
        peer: Any = self._client.socket()
        if peer is not None and self._client.is_connected():
            # The thread would wait for a broker that takes nothing any more.
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        self._client.loop_stop()
