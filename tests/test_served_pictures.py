"""Pictures for other pages and programs behind `--serve`: stills and MJPEG, states and history."""

import asyncio
import contextlib
import re
import socket
import time
import urllib.error
import urllib.request

import av
import numpy as np
import pytest

from stream_rpn.drops import DropKind, DropReason, count_of
from stream_rpn.frame import StreamInfo
from stream_rpn.sinks import SinkOptions, jpeg, make_header
from stream_rpn.sinks.web import admission, feeds
from stream_rpn.sinks.web.history import READINGS, History
from stream_rpn.sinks.web.sink import WebSink
from stream_rpn.sinks.web.view import View
from tests.served import BOX, COLOR, HEIGHT, STATUS, WIDTH, Camera, address, get, proposals, until


def fetched(url, **headers):
    """Returns (headers, body) of an answer, whose status must be 200."""
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
        return answer.headers, answer.read()


def decoded(data):
    """Returns a JPEG file as an array [H, W, 3] of RGB."""
    [frame] = av.CodecContext.create("mjpeg", "r").decode(av.Packet(data))
    return frame.to_ndarray(format="rgb24").astype(int)


def opened(names=("camera",), ended=()):
    """A sink whose sources have begun; some have had one result and come to their end."""
    options = SinkOptions(names={f"/clips/{name}.mp4": name for name in names})
    sink = WebSink("serve:127.0.0.1:0", options).open()
    for name in ended:
        source = f"/clips/{name}.mp4"
        info = StreamInfo(source, name, WIDTH, HEIGHT, color=COLOR)
        sink.watch(lambda source=source: {**STATUS, "source": source})
        sink.begin(make_header(info, model="tiny"), info)
        sink.write(proposals(3, source))
        sink.end({"frames": 1, "source": source})
    return sink


class TestStills:
    def test_the_newest_picture_with_its_boxes(self):
        with Camera() as camera:
            asyncio.run(until(lambda: camera.number > 2))
            headers, data = fetched(camera.url + "frame/camera.jpg")
            plain = decoded(fetched(camera.url + "frame/camera.jpg?boxes=0")[1])
            small = decoded(fetched(camera.url + "frame/camera.jpg?width=160&boxes=1")[1])
        assert headers["Content-Type"] == "image/jpeg"
        assert headers["Cache-Control"] == "no-store"
        shown = decoded(data)
        assert shown.shape == (HEIGHT, WIDTH, 3)
        left, middle = int(BOX[0]), int(BOX[1] + BOX[3]) // 2
        red, green, blue = shown[middle, left : left + 2].mean(axis=0)
        assert red > max(green, blue) + 60
        assert np.ptp(plain[middle, left]) < 10
        assert small.shape == (HEIGHT // 2, WIDTH // 2, 3)

    def test_names_are_short_and_told_where_there_is_no_such(self):
        sink = opened(("a b", "ü"), ended=("a b",))
        try:
            assert fetched(sink.url + "frame/a%20b.jpg")[1].startswith(b"\xff\xd8")
            assert get(sink.url + "frame/x.jpg") == (
                404,
                "there is no source 'x'; there are: a b, ü\n",
            )
            # One that has not begun: to be asked again.
            assert get(sink.url + "frame/%C3%BC.jpg")[0] == 503
        finally:
            sink.close()

    @pytest.mark.parametrize(
        "query", ["width=0", "width=99999", "boxes=-1", "boxes=x", "width=²", "boxes=1e9"]
    )
    def test_what_is_no_number_is_refused(self, query):
        sink = opened(ended=("camera",))
        status, said = get(sink.url + "frame/camera.jpg?" + query.replace("²", "%C2%B2"))
        sink.close()
        assert status == 400
        assert re.match(r"(width|boxes) must be a number from \d+ to \d+\n", said)

    def test_the_page_of_another_site_needs_a_token(self):
        foreign = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
        with Camera() as camera:
            asyncio.run(until(lambda: camera.number > 1))
            status, said = get(camera.url + "frame/camera.jpg", **foreign)
            assert (status, "--serve-token" in said) == (403, True)
            followed = {**foreign, "Sec-Fetch-Mode": "navigate"}
            assert get(camera.url, **followed)[0] == 200
        with Camera(token="correct horse") as camera:
            asyncio.run(until(lambda: camera.number > 1))
            url = camera.url.replace("?token=correct%20horse", "frame/camera.jpg")
            assert fetched(url + "?token=correct%20horse", **foreign)[1]


class TestMJPEG:
    def test_ffmpeg_reads_it_and_comes_to_its_end(self):
        """The pictures are those of the frames, and the stream ends with the source."""
        form = "mjpeg/camera?width=160"
        with Camera() as camera, av.open(camera.url + form, timeout=60) as container:
            assert container.format.name == "mpjpeg"
            frames = container.decode(video=0)
            bars = [next(frames).to_ndarray(format="rgb24")[2].mean(axis=1) for _ in range(5)]
            camera.silent.add("camera")
            camera.sink.end({"frames": camera.number, "source": "camera"})
            assert len(list(frames)) < 200
        assert all(len(bar) == WIDTH // 2 and bar.max() > 200 for bar in bars)
        assert len({int(bar.argmax()) for bar in bars}) > 1, "the picture does not move"

    def test_the_rate_can_be_bounded(self):
        with Camera() as camera, av.open(camera.url + "mjpeg/camera?fps=4", timeout=60) as stream:
            began = time.monotonic()
            packets = stream.demux(video=0)
            for _ in range(4):
                next(packets)
            assert time.monotonic() - began > 0.5
        assert camera.number > 20

    def test_one_who_stops_reading_delays_nobody(self, monkeypatch):
        monkeypatch.setattr(feeds, "SEND_SECONDS", 1.0)
        monkeypatch.setattr(jpeg, "encode", lambda *_, **__: bytes(1 << 20))
        with Camera() as camera, socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.connect(address(camera.url))
            stuck.sendall(b"GET /mjpeg/camera HTTP/1.1\r\nHost: localhost\r\n\r\n")
            clients = camera.sink._server._clients
            asyncio.run(until(lambda: len(clients) == 1))
            asyncio.run(until(lambda: len(clients) == 0))  # given up in the end
            assert camera.slowest < 1

    def test_there_are_only_so_many(self, monkeypatch):
        monkeypatch.setattr(admission, "MAX_CLIENTS", 2)
        with Camera() as camera, contextlib.ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(urllib.request.urlopen(camera.url + "mjpeg/camera", timeout=60))
            assert get(camera.url + "mjpeg/camera")[0] == 503
            assert get(camera.url + "healthz")[0] == 200

    def test_one_that_failed_before_its_first_picture_has_an_end(self):
        sink = opened(("camera",))
        sink.lacks("/clips/camera.mp4", "failed")
        _, data = fetched(sink.url + "mjpeg/camera")
        sink.close()
        assert data == b""


class TestStates:
    def test_sources_are_there_from_the_start_in_their_order(self):
        sink = opened(("b", "a", "c"), ended=("c", "a"))
        try:
            states = {view.name: view.status()["state"] for view in sink._views}
            assert list(states.items()) == [("b", "waiting"), ("a", "finished"), ("c", "finished")]
            sink.lacks("/clips/b.mp4", "failed")
            assert sink._views[0].status()["state"] == "failed"
            connected = re.findall(r'connected\{.*?(\w)\.mp4"\} (\d)', get(sink.url + "metrics")[1])
            assert connected == [("b", "0"), ("a", "0"), ("c", "0")]
        finally:
            sink.close()

    def test_a_lost_connection_is_told_until_the_end(self):
        status = {**STATUS, "reconnecting_seconds": 3.5}
        view = View("rtsp://camera", "camera")
        info = StreamInfo("rtsp://camera", "camera", WIDTH, HEIGHT, color=COLOR, live=True)
        view.begin({"source": "rtsp://camera"}, info, lambda: status)
        assert (view.status()["state"], view.status()["seconds"]) == ("reconnecting", 3.5)
        status["reconnecting_seconds"] = None
        assert view.status()["state"] == "live"
        view.finish("interrupted")
        assert view.status()["state"] == "stopped"

    def test_the_same_source_once_more_keeps_its_name(self):
        sink = opened(("a",), ended=("a", "a"))
        names = [(view.name, view.ended) for view in sink._views]
        sink.close()
        assert names == [("a", True)]

    def test_what_nobody_wanted_is_not_lost(self):
        drops = {DropReason.STALE: 2, "damaged packet": 3, "not wanted": 5}
        assert count_of(drops, DropKind.DAMAGE, DropKind.POLICY) == 5

    def test_metrics_have_every_reason_from_the_start(self):
        with Camera() as camera:
            text = get(camera.url + "metrics")[1]
        for reason in set(DropReason) - {DropReason.STALE}:
            assert f'stream_rpn_drops_total{{reason="{reason}",source="camera"}} 0.0' in text


class TestHistory:
    def test_the_rate_is_smooth_though_results_come_in_gusts(self):
        history = History()
        rates = []
        for second in range(20):
            # Ten results every other second.
            history.add(float(second), 10 * (second // 2), None, 0)
            rates.append(history.rate)
        assert rates[5:] == [5.0] * 15

    def test_a_minute_is_kept_and_losses_are_those_of_a_second(self):
        history = History()
        for second in range(100):
            history.add(float(second), second, 0.04 if second % 2 else None, 3 * second)
        record = history.record()
        assert {len(readings) for readings in record.values()} == {READINGS}
        assert record["lost"] == [3] * READINGS
        assert record["age_ms"][-2:] == [None, 40]
