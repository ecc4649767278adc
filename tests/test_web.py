"""`--serve` over real sockets: what it answers, to whom, and that no viewer costs the pipeline."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import aiohttp
import av
import numpy as np
import pytest

from stream_rpn import cli
from stream_rpn.frame import Color, Drop, Proposals, StreamInfo, StreamRPNError
from stream_rpn.sinks import SinkOptions, jpeg, make_header
from stream_rpn.sinks.canvas import COLORSPACES
from stream_rpn.sinks.web import server as web_server
from stream_rpn.sinks.web.sink import WebSink
from tests.browser import Browser, until

ROOT = Path(__file__).resolve().parents[1]
FAST = ("--model", "tiny", "--weights", "random", "--size", "96")
COLOR = Color("bt709", full_range=False, tagged=True)
WIDTH, HEIGHT = 320, 240
BOX = (64.0, 48.0, 256.0, 192.0)
STATUS = {
    "source": "camera",
    "frames": 7,
    "held": 4,
    "fps": 12.5,
    "decoder": "h264 (software)",
    "device": "cpu",
    "dtype": "float32",
    "batch": 1,
    "model": "tiny",
    "stages": {"decode": {"p50_ms": 1.0, "p95_ms": 2.0, "total_seconds": 0.5}},
    "drops": {"stale": 3, 'odd "reason"\n': 1},
    "damaged_packets": 2,
    "corrupt_frames": 0,
    "queued": 1,
    "frames_in": 11,
    "reconnects": 0,
    "age_ms": {"p50": 40.0, "p95": 90.0, "p99": 120.0},
}


def picture(number):
    """A gray picture with a white bar that moves."""
    planes = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
    planes[:HEIGHT] = 90
    left = 8 * number % (WIDTH - 16)
    planes[:24, left : left + 16] = 235
    return av.VideoFrame.from_ndarray(planes, format="yuv420p")


def proposals(number, source="camera", count=3):
    boxes = np.array([BOX] * count, np.float32)
    boxes[1:] = np.linspace((10, 10, 20, 20), (100, 100, 140, 140), count - 1)
    return Proposals(
        frame=number,
        pts=number,
        pts_seconds=number / 25,
        width=WIDTH,
        height=HEIGHT,
        boxes=boxes,
        scores=np.linspace(0.9, 0.3, count, dtype=np.float32),
        levels=np.zeros(count, np.int32),
        anchors=np.zeros(count, np.int32),
        input_boxes=boxes,
        image=picture(number),
        color=COLOR,
        source=source,
        drops=(Drop("stale", 2, None),) if number == 5 else (),
    )


class Camera:
    """A sink that is fed at 50 frames per second by a thread, as by a pipeline."""

    def __init__(self, place="127.0.0.1:0", *, token="", count=3, sources=("camera",), first=0):
        self.sink = WebSink(f"serve:{place}", SinkOptions(token=token)).open()
        self.url = self.sink.url
        self.slowest = 0.0
        self.number = first
        self._sources = sources
        self._count = count
        self._stopped = threading.Event()
        for source in sources:
            info = StreamInfo(source, source, WIDTH, HEIGHT, color=COLOR)
            self.sink.watch(lambda source=source: {**STATUS, "source": source})
            self.sink.begin(make_header(info, model="tiny"), info)
        self._thread = threading.Thread(target=self._feed)

    def _feed(self):
        while not self._stopped.wait(0.02):
            for source in self._sources:
                record = proposals(self.number, source, self._count)
                began = time.perf_counter()
                self.sink.write(record)
                self.slowest = max(self.slowest, time.perf_counter() - began)
            self.number += 1

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stopped.set()
        self._thread.join()
        self.sink.close()


def get(url, **headers):
    """Returns (status, body) of a request."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as r:
            return r.status, r.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def get_quietly(url):
    """Returns the status of a request, None where there was no answer."""
    with contextlib.suppress(OSError):
        return get(url)[0]


def address(url):
    host, port = re.match(r"http://(.*):(\d+)/", url).groups()
    return host, int(port)


def exchange(place, request, *, seconds=120):
    """Sends bytes and returns the head of what comes back."""
    with socket.create_connection(place, timeout=seconds) as connection:
        connection.sendall(request)
        answer = b""
        with contextlib.suppress(TimeoutError):
            while b"\r\n\r\n" not in answer and (part := connection.recv(65536)):
                answer += part
        return answer


def events(url, number, **headers):
    """Returns the first events of the feed as (kind, data)."""
    found, kind = [], "result"
    request = urllib.request.Request(url + "results", headers=headers)
    with urllib.request.urlopen(request, timeout=60) as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"
        for line in stream:
            if line.startswith(b"event: "):
                kind = line[7:].strip().decode()
            elif line.startswith(b"data: "):
                found.append((kind, json.loads(line[6:])))
                kind = "result"
                if len(found) == number:
                    return found
    return found


class TestAnswers:
    def test_page_is_whole_in_itself(self):
        with Camera() as camera:
            status, page = get(camera.url)
        assert status == 200
        assert "<canvas" in page
        assert not re.search(r"(src|href)=\"(?!data:)|https?://(?!www\.w3\.org)|@import", page)

    def test_results_are_the_lines_of_a_result_file(self):
        with Camera() as camera:
            (kind, header), *results = events(camera.url, 4)
        assert kind == "header"
        info = StreamInfo("camera", "camera", WIDTH, HEIGHT, color=COLOR)
        assert header == {**make_header(info, model="tiny"), "started": header["started"]}
        numbers = [result["frame"] for _, result in results]
        assert numbers == list(range(numbers[0], numbers[0] + 3))
        for kind, result in results:
            assert kind == "result"
            assert (result["source"], result["width"], result["height"]) == ("camera", 320, 240)
            assert result["boxes"][0] == list(BOX)
            assert result["scores"][0] == pytest.approx(0.9)

    def test_the_end_of_a_source_is_told(self):
        sink = WebSink("serve:127.0.0.1:0", SinkOptions()).open()
        info = StreamInfo("camera", "camera", WIDTH, HEIGHT, color=COLOR)
        sink.begin(make_header(info, model="tiny"), info)
        found = []
        reader = threading.Thread(target=lambda: found.extend(events(sink.url, 3)))
        reader.start()
        asyncio.run(until(lambda: sink._server.has_readers))
        sink.write(proposals(0))
        sink.end({"frames": 1})
        sink.close()
        reader.join()
        assert [kind for kind, _ in found] == ["header", "result", "end"]
        assert found[-1][1] == {"end": {"frames": 1}, "source": "camera"}

    def test_of_many_sources_that_have_ended_a_few_are_kept(self):
        sink = WebSink("serve:127.0.0.1:0", SinkOptions()).open()
        for number in range(40):
            name = f"{number}.mp4"
            info = StreamInfo(name, name, WIDTH, HEIGHT, color=COLOR)
            sink.watch(lambda name=name: {**STATUS, "source": name})
            sink.begin(make_header(info, model="tiny"), info)
            if number < 39:
                sink.write(proposals(number, name))
                sink.end({"frames": 1})
        text = get(sink.url + "metrics")[1]
        [(kind, header)] = events(sink.url, 1)
        sink.close()
        shown = re.findall(r'stream_rpn_up\{source="(\d+).mp4"\} (\d)', text)
        assert shown == [*((str(number), "0") for number in range(23, 39)), ("39", "1")]
        assert (kind, header["source"]) == ("header", "39.mp4")

    def test_metrics_are_read_by_prometheus_own_parser(self):
        from prometheus_client.parser import text_string_to_metric_families

        with Camera(sources=("camera", "other")) as camera:
            status, text = get(camera.url + "metrics")
        assert status == 200
        values = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert values["stream_rpn_frames_total", "camera"] == 7
        assert values["stream_rpn_frames_total", "other"] == 7
        assert values["stream_rpn_held_total", "camera"] == 4
        assert values["stream_rpn_frames_per_second", "camera"] == 12.5
        assert values["stream_rpn_drops_total", "camera", "stale"] == 3
        assert values["stream_rpn_drops_total", "camera", 'odd "reason"\n'] == 1
        assert values["stream_rpn_stage_seconds", "0.95", "camera", "decode"] == 0.002
        assert values["stream_rpn_stage_seconds_sum", "camera", "decode"] == 0.5
        assert values["stream_rpn_age_seconds", "0.99", "camera"] == pytest.approx(0.12)
        assert values["stream_rpn_frames_in_total", "camera"] == 11
        assert values["stream_rpn_up", "camera"] == 1
        assert values["stream_rpn_viewers",] == 0

    def test_health(self, monkeypatch):
        with Camera() as camera:
            assert get(camera.url + "healthz")[0] == 200
            monkeypatch.setattr(web_server, "STALLED_SECONDS", -1.0)
            status, body = get(camera.url + "healthz")
            assert (status, json.loads(body)["status"]) == (503, "stalled")

    def test_picture_has_the_colours_of_the_frame(self):
        # Pure red in limited-range BT.709; read as BT.601 it would have 23 of green.
        planes = np.empty((72, 64), np.uint8)
        planes[:48], planes[48:60], planes[60:] = 63, 102, 240
        image = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        data = jpeg.encode(image, colorspace=COLORSPACES["bt709"], full_range=False, size=(32, 24))
        decoder = av.CodecContext.create("mjpeg", "r")
        [frame] = decoder.decode(av.Packet(data))
        assert (frame.width, frame.height) == (32, 24)
        pixel = frame.to_ndarray(format="rgb24")[12, 16].astype(int)
        assert np.abs(pixel - (255, 0, 0)).max() < 12


class TestWhoMayAsk:
    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example"]
    )
    def test_a_name_pointed_here_is_turned_away(self, host):
        with Camera() as camera:
            port = address(camera.url)[1]
            for path in ("", "live", "results", "metrics", "healthz"):
                assert get(camera.url + path, Host=host.format(port=port))[0] == 403
            for good in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost", f"[::1]:{port}"):
                assert get(camera.url + "healthz", Host=good)[0] == 200

    def test_the_page_of_another_site_is_turned_away(self):
        with Camera() as camera:
            for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://[", ""):
                assert get(camera.url + "live", Origin=origin)[0] == 403
            assert get(camera.url + "healthz", Origin=camera.url.rstrip("/"))[0] == 200

    def test_token_in_header_or_query(self):
        with Camera(token="correct horse") as camera:
            url = camera.url.partition("?")[0]
            for path in ("", "live", "results", "metrics", "healthz", "nothing"):
                assert get(url + path)[0] == 401
                assert get(url + path + "?token=wrong")[0] == 401
                assert get(url + path, Authorization="Bearer wrong")[0] == 401
            assert get(url + "healthz", Authorization="Bearer correct horse")[0] == 200
            assert get(url + "healthz?token=correct%20horse")[0] == 200
            assert get(url + "healthz", Authorization="Bearer caf\xe9")[0] == 401

    def test_idle_connections_shut_nobody_out(self):
        with Camera() as camera:
            port = int(camera.url.rstrip("/").rpartition(":")[2])
            idle = [
                socket.create_connection(("127.0.0.1", port))
                for _ in range(2 * web_server.MAX_CONNECTIONS)
            ]
            try:
                assert get(camera.url + "healthz")[0] == 200
            finally:
                for each in idle:
                    each.close()

    def test_an_idle_connection_is_ended(self, monkeypatch):
        monkeypatch.setattr(web_server, "IDLE_SECONDS", 0.4)
        with Camera() as camera:
            port = int(camera.url.rstrip("/").rpartition(":")[2])
            idle = socket.create_connection(("127.0.0.1", port), timeout=10)
            with idle, contextlib.suppress(ConnectionResetError):
                assert idle.recv(1) == b""

    def test_ill_formed_requests_leave_no_word(self, capfd):
        with Camera(token="correct horse") as camera:
            port = int(camera.url.partition("/?")[0].rpartition(":")[2])
            for begun in (b"\x16\x03\x01", b"GET", b"GET / HTTP/9\r\n", b"\r\n" * 999):
                with socket.create_connection(("127.0.0.1", port)) as wrong:
                    wrong.sendall(begun + b" /?token=correct%20horse\xff\r\n\r\n")
                    with contextlib.suppress(OSError):
                        wrong.recv(1)
            assert get(camera.url.replace("/?", "/healthz?"))[0] == 200
        assert capfd.readouterr().err == ""

    def test_other_hosts_need_a_token(self):
        with pytest.raises(StreamRPNError, match="--serve-token"):
            WebSink("serve:0.0.0.0:0", SinkOptions()).open()
        with Camera("0.0.0.0:0", token="auto") as camera:
            host, port = address(camera.url)
            made_up = camera.url.partition("?token=")[2]
            assert (host, len(made_up)) == ("0.0.0.0", 32)
            assert get(f"http://127.0.0.1:{port}/healthz")[0] == 401
            there = {"Host": "a.machine.example", "Authorization": f"Bearer {made_up}"}
            assert get(f"http://127.0.0.1:{port}/healthz", **there)[0] == 200

    def test_ipv6(self):
        try:
            camera = Camera("[::1]:0")
        except StreamRPNError:
            pytest.skip("needs IPv6")
        with camera:
            assert re.match(r"http://\[::1\]:\d+/$", camera.url)
            assert get(camera.url + "healthz")[0] == 200
            assert get(camera.url + "healthz", Host="evil.example")[0] == 403

    def test_loopback_means_no_other_address(self):
        with Camera() as camera, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))  # sends nothing; chooses our outward address
            except OSError:
                pytest.skip("needs a network interface")
            with pytest.raises(OSError, match="refused"):
                socket.create_connection((probe.getsockname()[0], address(camera.url)[1]), 2)

    @pytest.mark.parametrize(
        "path",
        [
            "/../pyproject.toml",
            "/etc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "//etc/passwd",
            "/page.html",
        ],
    )
    def test_no_file_is_reachable(self, path):
        with Camera() as camera:
            request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            assert b" 404 " in exchange(address(camera.url), request.encode()).split(b"\r\n")[0]

    def test_what_clients_send_is_bounded(self, capfd):
        with Camera() as camera:
            place = address(camera.url)
            host = b"Host: localhost\r\n"
            long = b"a" * 100_000
            assert b" 400 " in exchange(place, b"GET /" + long + b" HTTP/1.1\r\n" + host + b"\r\n")
            assert b" 400 " in exchange(place, b"GET / HTTP/1.1\r\n" + host + b"X: " + long)
            assert b" 400 " in exchange(place, b"\x16\x03\x01 nonsense\r\n\r\n")
            body = b"Content-Length: 1000000000\r\n"
            assert b" 405 " in exchange(place, b"POST / HTTP/1.1\r\n" + host + body + b"\r\n")
            assert get(camera.url + "healthz")[0] == 200
        assert capfd.readouterr().err == ""

    def test_what_the_page_may_say_is_bounded(self):
        async def say(url, message):
            async with aiohttp.ClientSession() as session, session.ws_connect(url + "live") as link:
                await link.send_str(message)
                async with asyncio.timeout(60):
                    async for _ in link:
                        pass
                return link.close_code

        with Camera() as camera:
            assert asyncio.run(say(camera.url, "hello")) == 1003
            assert asyncio.run(say(camera.url, "1" * 1000)) == 1009
            assert asyncio.run(say(camera.url, '{"source":1}')) == 1003

    def test_connections_that_say_nothing_are_bounded(self, monkeypatch):
        monkeypatch.setattr(web_server, "MAX_CONNECTIONS", 3)
        with Camera() as camera, contextlib.ExitStack() as stack:
            place = address(camera.url)
            # Within less than what ends idle ones anyway, though they come all at once.
            mute = [stack.enter_context(socket.create_connection(place, 10)) for _ in range(9)]
            # The newest take the places of those idle longest.
            for ended in mute[:6]:
                with contextlib.suppress(ConnectionResetError):
                    assert ended.recv(1) == b""

    def test_connections_in_use_are_not_ended_for_new_ones(self, monkeypatch):
        monkeypatch.setattr(web_server, "MAX_CONNECTIONS", 3)
        with Camera(count=10_000) as camera, contextlib.ExitStack() as stack:
            readers = [
                stack.enter_context(urllib.request.urlopen(camera.url + "results", timeout=30))
                for _ in range(3)
            ]
            another = socket.create_connection(address(camera.url), 30)
            with another, contextlib.suppress(ConnectionResetError):
                assert another.recv(1) == b""
            for reader in readers:
                assert reader.readline()

    def test_there_are_only_so_many_viewers(self, monkeypatch):
        monkeypatch.setattr(web_server, "MAX_CLIENTS", 2)
        with Camera() as camera, contextlib.ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(urllib.request.urlopen(camera.url + "results", timeout=60))
            assert get(camera.url + "results")[0] == 503
            assert get(camera.url + "healthz")[0] == 200


@pytest.mark.parametrize(
    "text", ["", ":", "x", "localhost", ":8000", "a:b", "1:2:3", "70000", "-1"]
)
def test_addresses_that_are_none(text):
    with pytest.raises(StreamRPNError, match=r"\[HOST:\]PORT"):
        web_server.parse_address(text)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("8000", ("127.0.0.1", 8000)),
        ("localhost:80", ("localhost", 80)),
        ("[::1]:8000", ("::1", 8000)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
    ],
)
def test_addresses(text, place):
    assert web_server.parse_address(text) == place


class TestViewers:
    @staticmethod
    async def _ask(link, index=0):
        """Asks for a picture and returns (result, picture) when it comes."""
        await link.send_str(str(index))
        async with asyncio.timeout(60):
            while True:
                message = await link.receive()
                if message.type == aiohttp.WSMsgType.BINARY:
                    length = int.from_bytes(message.data[:4], "big")
                    return json.loads(message.data[4 : 4 + length]), message.data[4 + length :]

    def test_each_question_gets_the_newest_picture(self):
        async def watch(camera):
            live = camera.url + "live"
            async with aiohttp.ClientSession() as session, session.ws_connect(live) as link:
                first, data = await self._ask(link)
                await until(lambda: camera.number > first["frame"] + 15)
                second, _ = await self._ask(link)
                other, _ = await self._ask(link, 1)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(self._ask_nobody(link), 2.5)
                return first, data, second, other

        with Camera(sources=("camera", "other")) as camera:
            first, data, second, other = asyncio.run(watch(camera))
        assert second["frame"] - first["frame"] >= 15, "old pictures were kept for the viewer"
        assert (first["source"], other["source"]) == ("camera", "other")
        assert data.startswith(b"\xff\xd8")

    @staticmethod
    async def _ask_nobody(link):
        """Waits for a picture that was not asked for."""
        while True:
            message = await link.receive()
            if message.type == aiohttp.WSMsgType.BINARY:
                return

    def test_nothing_is_encoded_while_nobody_watches(self, monkeypatch):
        calls = []
        encode = jpeg.encode
        monkeypatch.setattr(jpeg, "encode", lambda *a, **k: calls.append(1) or encode(*a, **k))

        async def two_viewers(url):
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(url + "live") as a,
                session.ws_connect(url + "live") as b,
            ):
                for _ in range(5):
                    await asyncio.gather(self._ask(a), self._ask(b))

        with Camera() as camera:
            events(camera.url, 10)
            assert calls == []
            asyncio.run(two_viewers(camera.url))
            seen = len(calls)
            time.sleep(0.2)
            assert len(calls) == seen

    def test_a_picture_is_encoded_once_for_all_viewers(self, monkeypatch):
        calls = []
        encode = jpeg.encode
        monkeypatch.setattr(jpeg, "encode", lambda *a, **k: calls.append(1) or encode(*a, **k))

        async def many_viewers(url):
            async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as stack:
                links = [
                    await stack.enter_async_context(session.ws_connect(url + "live"))
                    for _ in range(5)
                ]
                return await asyncio.gather(*map(self._ask, links))

        sink = WebSink("serve:127.0.0.1:0", SinkOptions()).open()
        info = StreamInfo("camera", "camera", WIDTH, HEIGHT, color=COLOR)
        sink.begin(make_header(info, model="tiny"), info)
        sink.write(proposals(3))
        found = asyncio.run(many_viewers(sink.url))
        sink.close()
        assert [result["frame"] for result, _ in found] == [3] * 5
        assert len(calls) == 1

    def test_one_who_stops_reading_costs_nothing(self, monkeypatch):
        """Neither time nor memory: what it does not take is replaced by what is newer."""
        monkeypatch.setattr(web_server, "_SEND_SECONDS", 5.0)
        monkeypatch.setattr(web_server, "_STATUS_SECONDS", 0.001)
        key = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        key += b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        with Camera(count=1000) as camera, contextlib.ExitStack() as stack:
            for path, more in (("live", key), ("results", b"")):
                stuck = stack.enter_context(socket.socket())
                stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                stuck.connect(address(camera.url))
                stuck.sendall(
                    b"GET /%b HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (path.encode(), more)
                )
            clients = camera.sink._server._clients
            asyncio.run(until(lambda: len(clients) == 2))
            [reader] = camera.sink._server._readers
            asyncio.run(until(lambda: reader.lost > 0, seconds=120))
            assert len(reader.events) <= web_server.FEED_LINES
            assert camera.slowest < 4  # nothing waits until they are given up
            # Both are given up in the end.
            asyncio.run(until(lambda: not clients, seconds=120))
            before = camera.number
            asyncio.run(until(lambda: camera.number - before > 10))

    def test_a_slow_reader_is_told_what_it_lost(self, monkeypatch):
        monkeypatch.setattr(web_server, "FEED_LINES", 4)
        sink = WebSink("serve:127.0.0.1:0", SinkOptions()).open()
        info = StreamInfo("camera", "camera", WIDTH, HEIGHT, color=COLOR)
        sink.begin(make_header(info, model="tiny"), info)
        with urllib.request.urlopen(sink.url + "results", timeout=60) as stream:
            asyncio.run(until(lambda: sink._server.has_readers))
            # All at once, while the server's thread is held.
            held = threading.Event()
            sink._server._call(held.wait)
            for number in range(10):
                sink.write(proposals(number))
            held.set()
            text = b""
            while b'"frame":9' not in text:
                text += stream.readline()
        sink.close()
        assert b'event: lost\ndata: {"count":6}\n' in text
        assert re.findall(rb'"frame":(\d+)', text) == [b"6", b"7", b"8", b"9"]

    def test_closing_leaves_no_thread_and_frees_the_port(self):
        before = set(threading.enumerate())
        with Camera() as camera:
            place = "{}:{}".format(*address(camera.url))
            watching = urllib.request.urlopen(camera.url + "results", timeout=60)
            began = time.perf_counter()
        assert time.perf_counter() - began < 60
        watching.read()
        watching.close()
        assert set(threading.enumerate()) == before
        with Camera(place) as camera:
            assert get(camera.url + "healthz")[0] == 200


class TestCommand:
    def test_a_port_in_use(self, capfd, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            code = cli.main([*FAST, "synthetic:64x64@10,3", "-o", "x.jsonl", "--serve", str(port)])
        assert code == 2
        assert re.search(rf"cannot listen at {port}: .*in use", capfd.readouterr().err)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("given", "kept", "said"),
        [
            ("a", None, "at least 8 characters"),
            ("@nowhere", None, "cannot be read from 'nowhere': No such file"),
            ("@empty", None, "'empty' of --serve-token is empty"),
            ("@binary", None, "cannot be read from 'binary': it is no text"),
            ("@short", None, "at least 8 characters"),
            ("", "b", "at least 8 characters"),
        ],
    )
    def test_tokens_that_are_none(self, given, kept, said, tmp_path, monkeypatch, capfd):
        monkeypatch.chdir(tmp_path)
        Path("empty").write_text("\n")
        Path("binary").write_bytes(b"\xff\xfe\xfd")
        Path("short").write_text("1234567\n")
        if kept is not None:
            monkeypatch.setenv("STREAM_RPN_TOKEN", kept)
        options = ["--serve-token", given] if given else []
        assert cli.main([*FAST, "synthetic:64x64@10,3", "--serve", "0", *options]) == 2
        assert said in capfd.readouterr().err

    @pytest.mark.parametrize("place", ["file", "environment"])
    def test_a_token_that_no_process_list_shows(self, place, tmp_path, monkeypatch, capfd):
        monkeypatch.chdir(tmp_path)
        options = []
        if place == "file":
            Path("token").write_text("s&cret token?\n")
            options = ["--serve-token", "@token"]
        else:
            monkeypatch.setenv("STREAM_RPN_TOKEN", "s&cret token?")
        assert cli.main([*FAST, "synthetic:64x64@10,3", "--serve", "0", *options]) == 0
        assert "/?token=s%26cret%20token%3F\n" in capfd.readouterr().err

    def test_a_token_for_nothing(self, capfd):
        assert cli.main([*FAST, "synthetic:64x64@10,3", "--serve-token", "auto"]) == 2
        assert "--serve-token is for --serve" in capfd.readouterr().err

    def test_without_the_extra(self, capfd, monkeypatch):
        monkeypatch.setitem(sys.modules, "aiohttp", None)
        monkeypatch.delitem(sys.modules, "stream_rpn.sinks.web.server")
        assert cli.main([*FAST, "synthetic:64x64@10,3", "--serve", "0"]) == 2
        assert "pip install 'stream-rpn[serve]'" in capfd.readouterr().err

    def test_watched_from_start_to_ctrl_c(self, tmp_path):
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "stream_rpn", *FAST, "synthetic:128x96@10,100000"),
                *("--serve", "0", "-o", "x.jsonl", "--json-summary", "s.json"),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            url = None
            for line in process.stderr:
                if found := re.match(r"watch at (http://127\.0\.0\.1:\d+/)$", line):
                    url = found[1]
                    break
            (_, header), *results = events(url, 6)
            metrics = get(url + "metrics")[1]
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=300)
        finally:
            process.kill()
        assert process.returncode == 130
        assert header["source"] == "synthetic:128x96@10,100000"
        written = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
        assert [e["boxes"] for _, e in results] == [
            written[1 + e["frame"]]["boxes"] for _, e in results
        ]
        assert "end" in written[-1]
        assert f'stream_rpn_up{{source="{header["source"]}"}} 1.0' in metrics
        assert json.loads((tmp_path / "s.json").read_text())["outputs"] == ["x.jsonl", "serve:0"]


class TestBrowser:
    PIXEL = "[...canvas.getContext('2d').getImageData({x}, {y}, 1, 1).data].slice(0, 3)"

    async def _watch(self, folder):
        async with Browser(folder) as browser:
            with Camera() as camera:
                host, port = address(camera.url)
                await browser.open(camera.url)
                await browser.wait_for("canvas.dataset.frame > 5")
                assert await browser.run("part('connection').textContent") == "live"
                assert await browser.run("[canvas.width, canvas.height]") == [WIDTH, HEIGHT]
                # The best box is red, on a gray ground; inside it is the picture.
                red, green, blue = await self._pixel(browser, BOX[0], (BOX[1] + BOX[3]) / 2)
                assert red > 180
                assert max(green, blue) < 120
                ground = await self._pixel(browser, 200, 100)
                assert np.abs(np.array(ground) - (90 - 16) * 255 / 219).max() < 2.5
                # The picture moves, and is that of the boxes' frame.
                first = int(await browser.run("canvas.dataset.frame"))
                await browser.wait_for(f"canvas.dataset.frame > {first + 10}")
                bar = await self._pixel(browser, "8 * canvas.dataset.frame % 304 + 8", 5)
                assert min(bar) > 200, "the bar is not where that frame has it"
                # Sliders.
                assert await browser.run("canvas.dataset.boxes") == "3"
                await browser.run(
                    "part('score').value = 0.5, part('score').dispatchEvent(new Event('input'))"
                )
                assert await browser.run("canvas.dataset.boxes") == "2"
                await browser.run(
                    "part('top').value = 0, part('top').dispatchEvent(new Event('input'))"
                )
                assert await browser.run("canvas.dataset.boxes") == "0"
                red, green, blue = await self._pixel(browser, BOX[0], (BOX[1] + BOX[3]) / 2)
                assert abs(red - green) < 10, "a box is still drawn"
                await browser.wait_for("document.body.innerText.includes('decode')")
                text = await browser.run("document.body.innerText")
                assert "h264 (software)" in text
                assert re.search(r"stale\s+3", text)
                assert "40 · 90 · 120" in text
            # The server has gone, and comes back at the same place.
            await browser.wait_for("part('connection').textContent.startsWith('not connected')")
            with Camera(f"{host}:{port}", first=10_000):
                await browser.wait_for("part('connection').textContent == 'live'")
                await browser.wait_for("canvas.dataset.frame > 10000")

    async def _pixel(self, browser, x, y):
        return await browser.run(self.PIXEL.format(x=x, y=y))

    def test_boxes_over_the_moving_picture_sliders_and_reconnect(self, tmp_path):
        asyncio.run(self._watch(tmp_path))

    def test_token_and_several_sources(self, tmp_path):
        async def watch():
            async with Browser(tmp_path) as browser:
                with Camera(token="s&cret?", sources=("a", "<b>b")) as camera:
                    url = camera.url.replace("s&cret?", "s%26cret%3F")
                    await browser.open(url)
                    await browser.wait_for("canvas.dataset.frame > 1")
                    await browser.wait_for(
                        "document.querySelectorAll('#sources button').length == 2"
                    )
                    assert await browser.run("shown.result.source") == "a"
                    await browser.run("document.querySelectorAll('#sources button')[1].click()")
                    await browser.wait_for("shown.result.source == '<b>b'")
                    await browser.wait_for("document.title.startsWith('<b>b')")

        asyncio.run(watch())
