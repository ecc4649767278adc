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
from stream_rpn.commands.serving import token_of
from stream_rpn.frame import StreamInfo, StreamRPNError
from stream_rpn.sinks import SinkOptions, jpeg, make_header
from stream_rpn.sinks.web import admission, feeds
from stream_rpn.sinks.web import server as web_server
from stream_rpn.sinks.web.sink import WebSink
from stream_rpn.yuv import COLORSPACES
from tests.served import (
    BOX,
    COLOR,
    HEIGHT,
    STATUS,
    WIDTH,
    Camera,
    address,
    events,
    get,
    proposals,
    until,
)

ROOT = Path(__file__).resolve().parents[1]
FAST = ("--model", "tiny", "--weights", "random", "--size", "96")
PATHS = ("", "page.js", "live", "results", "metrics", "healthz", "frame/camera.jpg", "mjpeg/camera")


def get_quietly(url):
    """Returns the status of a request, None where there was no answer."""
    with contextlib.suppress(OSError):
        return get(url)[0]


def exchange(place, request, *, seconds=120):
    """Sends bytes and returns the head of what comes back."""
    with socket.create_connection(place, timeout=seconds) as connection:
        connection.sendall(request)
        answer = b""
        with contextlib.suppress(TimeoutError):
            while b"\r\n\r\n" not in answer and (part := connection.recv(65536)):
                answer += part
        return answer


class TestAnswers:
    def test_page_is_whole_in_itself(self):
        """Nothing of it comes from elsewhere, and nothing has to be built."""
        with Camera() as camera:
            status, page = get(camera.url)
            named = re.findall(r"(?:src|href)=\"(?!data:|#)([^\"]*)\"", page)
            files = {name: get(camera.url + name) for name in named}
        assert status == 200
        assert "<canvas" in page
        assert set(files) == {"page.css", "picture.js", "panel.js", "page.js"}
        for status, text in [*files.values(), (200, page)]:
            assert status == 200
            assert not re.search(r"https?://(?!www\.w3\.org)|@import|\bimport ", text)

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
        for number in range(80):
            name = f"{number}.mp4"
            info = StreamInfo(name, name, WIDTH, HEIGHT, color=COLOR)
            sink.watch(lambda name=name: {**STATUS, "source": name})
            sink.begin(make_header(info, model="tiny"), info)
            if number < 79:
                sink.write(proposals(number, name))
                sink.end({"frames": 1})
        text = get(sink.url + "metrics")[1]
        [(kind, header)] = events(sink.url, 1)
        sink.close()
        shown = re.findall(r'stream_rpn_up\{source="(\d+).mp4"\} (\d)', text)
        assert shown == [*((str(number), "0") for number in range(15, 79)), ("79", "1")]
        assert (kind, header["source"]) == ("header", "79.mp4")

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
            for path in PATHS:
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
            for path in (*PATHS, "nothing"):
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
                for _ in range(2 * admission.MAX_CONNECTIONS)
            ]
            try:
                assert get(camera.url + "healthz")[0] == 200
            finally:
                for each in idle:
                    each.close()

    def test_an_idle_connection_is_ended(self, monkeypatch):
        monkeypatch.setattr(admission, "IDLE_SECONDS", 0.4)
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
        monkeypatch.setattr(admission, "MAX_CONNECTIONS", 3)
        with Camera() as camera, contextlib.ExitStack() as stack:
            place = address(camera.url)
            # Within less than what ends idle ones anyway, though they come all at once.
            mute = [stack.enter_context(socket.create_connection(place, 10)) for _ in range(9)]
            # The newest take the places of those idle longest.
            for ended in mute[:6]:
                with contextlib.suppress(ConnectionResetError):
                    assert ended.recv(1) == b""

    def test_connections_in_use_are_not_ended_for_new_ones(self, monkeypatch):
        monkeypatch.setattr(admission, "MAX_CONNECTIONS", 3)
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
        monkeypatch.setattr(admission, "MAX_CLIENTS", 2)
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
    async def _ask(link, sink, source="camera"):
        """Asks for a picture and returns (result, picture) when it comes."""
        await link.send_str(str(sink._view_of[source].key))
        async with asyncio.timeout(60):
            while True:
                message = await link.receive()
                if message.type == aiohttp.WSMsgType.BINARY:
                    length = int.from_bytes(message.data[5:9], "big")
                    return json.loads(message.data[9 : 9 + length]), message.data[9 + length :]

    def test_each_question_gets_the_newest_picture(self):
        async def watch(camera):
            live = camera.url + "live"
            async with aiohttp.ClientSession() as session, session.ws_connect(live) as link:
                first, data = await self._ask(link, camera.sink)
                await until(lambda: camera.number > first["frame"] + 15)
                second, _ = await self._ask(link, camera.sink)
                other, _ = await self._ask(link, camera.sink, "other")
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

        async def two_viewers(url, sink):
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(url + "live") as a,
                session.ws_connect(url + "live") as b,
            ):
                for _ in range(5):
                    await asyncio.gather(self._ask(a, sink), self._ask(b, sink))

        with Camera() as camera:
            events(camera.url, 10)
            assert calls == []
            asyncio.run(two_viewers(camera.url, camera.sink))
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
                return await asyncio.gather(*(self._ask(link, sink) for link in links))

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
        monkeypatch.setattr(feeds, "SEND_SECONDS", 5.0)
        monkeypatch.setattr(feeds, "STATUS_SECONDS", 0.001)
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
            [reader] = camera.sink._server._results._readers
            asyncio.run(until(lambda: reader.lost > 0, seconds=120))
            assert len(reader.events) <= feeds.FEED_LINES
            assert camera.slowest < 4  # nothing waits until they are given up
            # Both are given up in the end.
            asyncio.run(until(lambda: not clients, seconds=120))
            before = camera.number
            asyncio.run(until(lambda: camera.number - before > 10))

    def test_a_slow_reader_is_told_what_it_lost(self, monkeypatch):
        monkeypatch.setattr(feeds, "FEED_LINES", 4)
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


def started(folder, source, *options):
    """Returns a process that serves a source and writes x.jsonl into a folder."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "stream_rpn", *FAST, source),
            *("--serve", "0", "-o", "x.jsonl", *options),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )


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
            ("", "@empty", "'empty' of --serve-token is empty"),
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
        # Which is a log here, and no terminal.
        assert re.search(r"watch at http://127\.0\.0\.1:\d+/\?token=…\n", capfd.readouterr().err)
        assert token_of(options[1] if options else "") == "s&cret token?"

    def test_a_token_for_nothing(self, capfd):
        assert cli.main([*FAST, "synthetic:64x64@10,3", "--serve-token", "auto"]) == 2
        assert "--serve-token is for --serve" in capfd.readouterr().err

    def test_without_the_extra(self, capfd, monkeypatch):
        monkeypatch.setitem(sys.modules, "aiohttp", None)
        monkeypatch.delitem(sys.modules, "stream_rpn.sinks.web.server")
        assert cli.main([*FAST, "synthetic:64x64@10,3", "--serve", "0"]) == 2
        assert "pip install 'stream-rpn[serve]'" in capfd.readouterr().err

    def test_watched_from_start_to_ctrl_c(self, tmp_path):
        process = started(tmp_path, "synthetic:128x96@10,100000", "--json-summary", "s.json")
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

    @pytest.mark.slow  # a process that plays a film twice
    def test_kept_after_a_film_that_was_played_again(self, tmp_path):
        """The run is whole before anybody ends the page, and ending it is no interruption."""
        options = ("--loop", "--max-frames", "12", "--serve-keep")
        process = started(tmp_path, "synthetic:64x64@30,5", *options)
        try:
            said = []
            for line in process.stderr:
                said.append(line)
                if "the page stays until Ctrl-C" in line:
                    break
            url = re.search(r"watch at (http://\S+)", "".join(said))[1]
            _, *results, end = map(json.loads, (tmp_path / "x.jsonl").read_text().splitlines())
            connected = get(url + "metrics")[1]
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=300)
        finally:
            process.kill()
        assert process.returncode == 0
        assert end["end"]["frames"] == 12
        assert results[-1]["frame"] >= 11
        assert 'stream_rpn_connected{source="synthetic:64x64@30,5"} 0.0' in connected

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["synthetic:64x64@30,5", "--serve-keep"], "--serve-keep is for --serve"),
            (["-", "--loop"], "--loop is for videos, which '-' is not"),
            (["{pictures}", "--loop"], "--loop is for videos, which"),
        ],
    )
    def test_what_cannot_be_kept_or_played_again(self, options, said, tmp_path, capfd):
        (tmp_path / "a.png").write_bytes(b"")
        options = [each.format(pictures=tmp_path) for each in options]
        assert cli.main([*FAST, *options, "-o", "null"]) == 2
        assert said in capfd.readouterr().err
