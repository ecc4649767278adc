"""Results sent to a real MQTT broker: mosquitto, which many distributions have."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time

import pytest

from stream_rpn import cli
from stream_rpn.commands.outputs import resolve_outputs
from stream_rpn.frame import StreamRPNError
from stream_rpn.sinks import formats, make_header, mqtt
from stream_rpn.sinks.mqtt import Address, MQTTSink
from stream_rpn.sinks.sink import SinkOptions
from stream_rpn.sources.address import masked
from tests.test_zeromq import INFO, proposals
from tests.waiting import eventually

client = pytest.importorskip("paho.mqtt.client", reason="needs paho-mqtt")
MOSQUITTO = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")
FAST = ("--size", "64", "--quiet")
needs_broker = pytest.mark.skipif(not MOSQUITTO, reason="needs mosquitto, the broker")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


class Broker:
    """A process of mosquitto, to be stopped, paused and started again."""

    def __init__(self, folder, *settings):
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        lines = [f"listener {self.port} 127.0.0.1", "user root", *settings]
        self._config.write_text("\n".join(lines))
        self.start()

    def start(self):
        self._process = subprocess.Popen([MOSQUITTO, "-c", self._config], stderr=subprocess.DEVNULL)
        assert eventually(self._answers)

    def _answers(self):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def stop(self):
        self._process.kill()
        self._process.wait()

    def pause(self):
        self._process.send_signal(signal.SIGSTOP)


@pytest.fixture
def broker(tmp_path):
    broker = Broker(tmp_path, "allow_anonymous true")
    yield broker
    broker.stop()


class Subscriber:
    """Keeps everything that a broker has and gets, as (topic, payload)."""

    def __init__(self, port, topic="#"):
        self.got = []
        self.retained = []
        self._client = client.Client(client.CallbackAPIVersion.VERSION2)
        self._client.on_message = self._keep
        self._client.on_connect = lambda *_: self._client.subscribe(topic, qos=1)
        subscribed = []
        self._client.on_subscribe = lambda *_: subscribed.append(True)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert eventually(lambda: subscribed)

    def _keep(self, _client, _data, message):
        self.got.append((message.topic, message.payload))
        if message.retain:
            self.retained.append(message.topic)

    def of(self, topic):
        return [payload for at, payload in list(self.got) if at == topic]

    def leave(self):
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def subscriber(broker):
    subscriber = Subscriber(broker.port)
    yield subscriber
    subscriber.leave()


def opened(broker, rest="cams/door?qos=1", scheme="mqtt", user="", **options):
    return MQTTSink(f"{scheme}://{user}127.0.0.1:{broker.port}/{rest}", SinkOptions(**options))


@needs_broker
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_subscribers_get_the_lines_of_a_result_file(broker, subscriber, qos):
    header = make_header(INFO, model="tiny")
    with opened(broker, f"cams/door?qos={qos}") as sink:
        sink.begin(header, INFO)
        for number in range(3):
            sink.write(proposals(number))
        sink.end({"frames": 3, "source": "camera"})
    assert eventually(lambda: subscriber.of("cams/door/status") == [b"online", b"offline"])
    assert sink.kept == sink.name
    assert [json.loads(line) for line in subscriber.of("cams/door/header")] == [header]
    results = [json.loads(line) for line in subscriber.of("cams/door")]
    assert [result["frame"] for result in results] == [0, 1, 2]
    assert (results[0]["source"], results[0]["width"]) == ("camera", 320)
    assert results[0]["boxes"][0] == [1, 2, 30.5, 40]
    (end,) = subscriber.of("cams/door/end")
    totals = {"frames": 3, "source": "camera"}
    assert json.loads(end) == {"end": totals, "source": "camera", "lost": 0}


@needs_broker
@pytest.mark.parametrize("retain", [0, 1])
def test_who_comes_late_gets_what_the_broker_keeps(broker, retain):
    with opened(broker, f"door?qos=1&retain={retain}") as sink:
        sink.begin(make_header(INFO, model="tiny"), INFO)
        sink.write(proposals(0))
        sink.write(proposals(1))
    late = Subscriber(broker.port)
    kept = {"door/status", "door/header", *(["door"] if retain else [])}
    assert eventually(lambda: set(late.retained) == kept)
    assert [json.loads(line)["frame"] for line in late.of("door")] == [1] * retain
    late.leave()


@needs_broker
def test_home_assistant_is_told_of_a_sensor(broker, subscriber):
    with opened(broker, "cams/front door?homeassistant=1&qos=1") as sink:
        sink.begin(make_header(INFO, model="tiny"), INFO)
    topic = "homeassistant/sensor/stream_rpn_cams_front_door/config"
    assert eventually(lambda: subscriber.of(topic))
    sensor = json.loads(subscriber.of(topic)[0])
    assert sensor["state_topic"] == "cams/front door"
    assert sensor["availability_topic"] == "cams/front door/status"
    assert sensor["device"]["model"] == "tiny"


@needs_broker
def test_the_broker_says_that_we_are_gone(broker, subscriber):
    sink = opened(broker).open()
    sink.begin({}, INFO)
    sink.abort()
    assert eventually(lambda: subscriber.of("cams/door/status") == [b"online", b"offline"])


@needs_broker
@pytest.mark.parametrize("qos", [0, 1])
def test_a_broker_that_goes_and_comes_back(broker, qos, no_thread_is_left):
    """Nothing waits for it, what was made meanwhile is counted, and the rest arrives."""
    told = []
    sink = opened(broker, f"door?qos={qos}", notice=told.append).open()
    sink.begin({}, INFO)
    sink.write(proposals(0))
    assert eventually(lambda: not sink._settle() and not sink._under_way)
    broker.stop()
    assert eventually(lambda: told)
    began = time.monotonic()
    for number in range(1, 101):
        sink.write(proposals(number))
    assert time.monotonic() - began < 5
    broker.start()
    assert eventually(lambda: len(told) == 2)
    subscriber = Subscriber(broker.port)
    sink.write(proposals(101))
    sink.end({"frames": 102})
    with pytest.raises(StreamRPNError, match=r"100 of 104 .* lost \(100 × the broker was away\)$"):
        sink.close()
    assert sink.kept
    assert eventually(lambda: subscriber.of("door/end"))
    assert json.loads(subscriber.of("door/end")[0])["lost"] == 100
    assert [json.loads(line)["frame"] for line in subscriber.of("door")] == [101]
    assert "the connection was lost" in told[0]
    assert "is back after" in told[1]
    subscriber.leave()


@needs_broker
def test_a_broker_that_takes_nothing_any_more_holds_nothing_up(broker, monkeypatch):
    monkeypatch.setattr(mqtt, "CLOSE_SECONDS", 0.3)
    sink = opened(broker, "door?qos=1").open()
    broker.pause()
    sink.begin({}, INFO)
    began = time.monotonic()
    for number in range(99):
        sink.write(proposals(number, count=300))
    with pytest.raises(StreamRPNError) as caught:
        sink.close()
    assert time.monotonic() - began < 8
    waiting = mqtt.WAITING_MESSAGES
    assert f"100 of 100 messages were lost ({100 - waiting} × the broker took" in str(caught.value)
    assert f"{waiting} × not acknowledged in the end)" in str(caught.value)
    assert sink.kept == ""


@needs_broker
def test_a_message_that_is_too_long_is_told_and_not_sent(broker, subscriber, monkeypatch):
    monkeypatch.setattr(mqtt, "LONGEST_MESSAGE", 2000)
    sink = opened(broker).open()
    sink.begin({}, INFO)
    sink.write(proposals(0, count=300))
    sink.write(proposals(1))
    with pytest.raises(StreamRPNError, match="1 of 3 messages were lost"):
        sink.close()
    assert eventually(lambda: subscriber.of("cams/door"))
    assert [json.loads(line)["frame"] for line in subscriber.of("cams/door")] == [1]


@needs_broker
def test_user_and_password_of_the_address_or_the_environment(tmp_path, monkeypatch):
    passwords = tmp_path / "passwords"
    tool = shutil.which("mosquitto_passwd")
    subprocess.run([tool, "-c", "-b", passwords, "bob", "p/w #1"], check=True, capture_output=True)
    broker = Broker(tmp_path, "allow_anonymous false", f"password_file {passwords}")
    with opened(broker, user="bob:p%2Fw%20%231@"):
        pass
    monkeypatch.setenv("STREAM_RPN_MQTT_USER", "bob")
    monkeypatch.setenv("STREAM_RPN_MQTT_PASSWORD", "p/w #1")
    with opened(broker):
        pass
    with pytest.raises(StreamRPNError, match=r"'mqtt://bob:\*\*\*@127.*: (Not|Bad)") as caught:
        opened(broker, user="bob:secret@").open()
    assert "secret" not in str(caught.value)
    broker.stop()


@needs_broker
def test_a_certificate_is_checked(tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-keyout", key, "-out", certificate, "-subj", "/CN=broker"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    settings = (f"certfile {certificate}", f"keyfile {key}", "allow_anonymous true")
    broker = Broker(tmp_path, *settings)
    with pytest.raises(StreamRPNError, match=r"its certificate cannot be verified \(self-signed"):
        opened(broker, scheme="mqtts").open()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with opened(broker, scheme="mqtts") as sink:
        sink.begin({}, INFO)
    assert sink.kept
    broker.stop()


@pytest.mark.parametrize(
    "name",
    [
        "mqtt://",
        "mqtt:///topic",
        "mqtt://broker",
        "mqtt://broker/",
        "mqtt://broker:0x/topic",
        "mqtt://broker:70000/topic",
        "mqtt://[broker/topic",
        "mqtt://broker/a/%23",
        "mqtt://broker/a#b",
        "mqtt://broker/a/#",
        "mqtt://broker/+/a",
        "mqtt://broker/$SYS/a",
        f"mqtt://broker/{'a' * 70000}",
        "mqtt://u:secret@broker/a?qos=3",
        "mqtt://broker/a?qos=",
        "mqtt://broker/a?qos=01",
        "mqtt://broker/a?retain=yes",
        "mqtt://broker/a?token=secret",
    ],
)
def test_what_is_no_address_is_refused_in_a_sentence(name):
    with pytest.raises(StreamRPNError, match="must be mqtt://HOST") as caught:
        Address.of(name)
    assert "secret" not in str(caught.value)


def test_an_address_is_read_with_its_defaults(monkeypatch):
    monkeypatch.setenv("STREAM_RPN_MQTT_USER", "me")
    monkeypatch.delenv("STREAM_RPN_MQTT_PASSWORD", raising=False)
    assert Address.of("mqtt://Broker/a/b%20c") == Address(
        False, "broker", 1883, "me", "", "a/b c", 0, False, False
    )
    assert Address.of("mqtts://u:p%40@[::1]/a?retain=1&qos=2&homeassistant=1") == Address(
        True, "::1", 8883, "u", "p@", "a", 2, True, True
    )


def test_a_topic_for_each_source_whatever_its_name():
    sources = ["x/a b#1.mp4", "x/c?.mp4", "x/\udce9.mp4"]
    outputs = resolve_outputs(["mqtt://u:p@broker/cams/{stem}"], sources)
    assert [Address.of(o.name).topic for o in outputs[1:]] == ["cams/c?", "cams/\ufffd"]
    assert masked(outputs[1].name) == "mqtt://u:***@broker/cams/c%3F"
    with pytest.raises(StreamRPNError, match="a topic has no"):
        Address.of(outputs[0].name)


def test_options_are_shown_and_secrets_are_not():
    name = "mqtts://u:p@broker/a?qos=1&retain=1&homeassistant=1&key=p"
    assert masked(name) == "mqtts://u:***@broker/a?qos=1&retain=1&homeassistant=1&key=***"
    assert {formats.sink_of(f"{scheme}://b/t") for scheme in mqtt.PORTS} == {"mqtt:MQTTSink"}


def test_a_broker_that_is_away_at_the_start_ends_the_command(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = f"mqtt://u:secret@127.0.0.1:{free_port()}/door"
    outputs = ("-o", "x.jsonl", "-o", address)
    assert cli.main([*FAST, "synthetic:64x64@10,3", *outputs]) == 2
    shown = masked(address)
    assert f"cannot connect to {shown!r}: Connection refused" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_broker_is_told_so(monkeypatch):
    monkeypatch.setattr(mqtt, "CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as other:
        sink = MQTTSink(f"mqtt://127.0.0.1:{other.getsockname()[1]}/t", SinkOptions())
        with pytest.raises(StreamRPNError, match="it does not answer as a broker does"):
            sink.open()


@needs_broker
def test_the_command_sends_what_it_writes(broker, subscriber, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = f"mqtt://127.0.0.1:{broker.port}/cams/{{stem}}?qos=1"
    outputs = ("-o", "x.jsonl", "-o", address)
    assert cli.main([*FAST, "synthetic:64x64@10,20", *outputs]) == 0
    written = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert eventually(lambda: subscriber.of("cams/synthetic/end"))
    sent = [json.loads(line) for line in subscriber.of("cams/synthetic")]
    assert len(sent) == 20
    for ours, line in zip(sent, written[1:-1], strict=True):
        assert line.items() <= ours.items()
