"""Live sources: nothing waits for the slowest, nothing grows old, and every loss is counted."""

import contextlib
import errno
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import av
import pytest

import stream_rpn.sources.packet_queue
from bench.senders import free_port, sender
from stream_rpn import multistream, read, stream
from stream_rpn.cli import main
from stream_rpn.drops import Drop, DropKind, count_of
from stream_rpn.frame import Color, Frame, StreamRPNError
from stream_rpn.input_spec import InputSpec, input_shape
from stream_rpn.multiplex import Lane, Multiplexer
from stream_rpn.network import eager
from stream_rpn.network.eager import batches
from stream_rpn.sources import address, expand, is_live, masked, stem
from stream_rpn.sources.address import device_input
from stream_rpn.sources.live import LivePolicy, LiveSource
from stream_rpn.sources.packet_queue import Interrupted, PacketQueue
from tests.waiting import eventually

COLOR = Color("bt601", full_range=False, tagged=False)

pytestmark = pytest.mark.usefixtures("own_folder", "no_thread_is_left")


def frame(index: int, *, live: bool = True, size: tuple[int, int] = (64, 48)) -> Frame:
    arrived = time.monotonic() if live else None
    return Frame(index, index, None, *size, 0, COLOR, image=None, arrived=arrived)


def multiplexer(*upstreams, limit=None, **options) -> Multiplexer:
    settings = {
        "size": 3,
        "batch": 1,
        "shape": lambda frame: (frame.height, frame.width),
        "max_age": 10.0,
        "batch_wait": 0.02,
        "stopped": lambda: False,
    }
    return Multiplexer([(Lane(limit), frames) for frames in upstreams], **(settings | options))


def losses(drops) -> dict[str, int]:
    counts: dict[str, int] = {}
    for drop in drops:
        counts[drop.reason] = counts.get(drop.reason, 0) + drop.count
    return counts


class TestMultiplexer:
    def test_files_wait_and_keep_their_order(self):
        frames = multiplexer(frame(i, live=False) for i in range(50))
        assert [f.index for f in frames] == list(range(50))
        frames.close()

    def test_the_newest_live_frames_win_and_the_next_one_tells(self):
        frames = multiplexer([frame(i) for i in range(20)], batch=3)
        assert eventually(lambda: frames.lanes[0].finished)
        given = list(frames)
        assert [f.index for f in given] == [17, 18, 19]
        assert given[0].drops == (Drop("queue full", 17, 0),)
        assert given[1].drops == given[2].drops == ()
        assert (frames.lanes[0].frames, frames.lanes[0].taken) == (20, 3)
        frames.close()

    def test_a_burst_is_no_overload(self):
        sent, given = threading.Event(), []

        def camera():
            sent.wait(120)
            yield from (frame(i) for i in range(20))

        frames = multiplexer(camera())

        def consume():
            for each in frames:
                time.sleep(0.01)
                given.append(each.index)

        consumer = threading.Thread(target=consume)
        consumer.start()
        time.sleep(0.2)  # the network has nothing to do
        sent.set()
        consumer.join(60)
        assert given == list(range(20))
        frames.close()

    def test_many_sources_share_the_room_and_each_has_a_place(self):
        frames = multiplexer(*([frame(i) for i in range(9)] for _ in range(4)), batch=3)
        assert eventually(lambda: all(lane.finished for lane in frames.lanes))
        waiting = [len(lane.waiting) for lane in frames.lanes]
        assert sum(waiting) == 3 + 4 - 1
        assert set(waiting) <= {1, 2, 3}
        assert {lane.waiting[-1].frame.index for lane in frames.lanes} == {8}
        frames.close()

    def test_old_frames_are_dropped_when_their_turn_comes(self):
        frames = multiplexer([frame(i) for i in range(3)], max_age=0.05, batch=3)
        assert eventually(lambda: frames.lanes[0].finished)
        time.sleep(0.1)
        assert list(frames) == []
        assert frames.lanes[0].carried == (Drop("stale", 3, 0),)
        frames.close()

    def test_what_upstream_lost_is_told_with_what_was_dropped_here(self):
        given = [frame(i) for i in range(6)]
        given[0].drops = (Drop("decoder", 2, -2), Drop("connection lost", 0, None, 1.5))
        given[3].drops = (Drop("decoder", 4, 2), Drop("connection lost", 0, None, 2.5))
        frames = multiplexer(given, batch=3)
        assert eventually(lambda: frames.lanes[0].finished)
        first = next(frames)
        assert first.index == 3
        assert losses(first.drops) == {"decoder": 6, "queue full": 3, "connection lost": 0}
        assert [d.seconds for d in first.drops if d.seconds is not None] == [1.5, 2.5]
        frames.close()

    def test_sources_take_turns_and_none_waits_for_a_stalled_one(self):
        forever = threading.Event()

        def stalled():
            forever.wait(120)
            yield from ()

        frames = multiplexer(
            [frame(i) for i in range(3)], stalled(), [frame(i) for i in range(3)], batch=9
        )
        assert eventually(lambda: frames.lanes[0].finished and frames.lanes[2].finished)
        given = [next(frames) for _ in range(6)]
        assert [(f.source_index, f.index) for f in given] == [
            (0, 0), (2, 0), (0, 1), (2, 1), (0, 2), (2, 2)
        ]  # fmt: skip
        forever.set()
        assert list(frames) == []
        frames.close()

    def test_a_batch_is_of_one_shape_as_long_as_it_can(self):
        wide = [frame(i, live=False, size=(96, 48)) for i in range(4)]
        small = [frame(i, live=False) for i in range(4)]
        frames = multiplexer(small, wide, size=9, batch=2)
        assert eventually(lambda: all(lane.finished for lane in frames.lanes))
        widths = [f.width for f in frames if f is not None]
        assert widths[0::2] == widths[1::2]
        assert sorted(widths) == [64] * 4 + [96] * 4
        frames.close()

    def test_a_batch_goes_unfilled_when_nobody_else_comes_in_time(self):
        more = threading.Event()

        def slow():
            yield frame(0)
            more.wait(120)
            yield frame(1)

        frames = multiplexer(slow(), batch=4)
        groups = batches(frames, 4, InputSpec(min_size=64, max_size=128))
        assert [f.index for f in next(groups)] == [0]
        more.set()
        assert [f.index for f in next(groups)] == [1]
        frames.close()

    def test_one_that_fails_leaves_the_others_alone(self):
        def broken():
            yield frame(0)
            raise StreamRPNError("the cable is out")

        frames = multiplexer(broken(), (frame(i, live=False) for i in range(9)))
        assert len(list(frames)) == 10
        assert str(frames.lanes[0].error) == "the cable is out"
        assert frames.lanes[1].error is None
        frames.close()

    def test_one_whose_frames_fit_no_input_leaves_the_others_alone(self):
        spec = InputSpec(min_size=64, max_size=128)
        frames = multiplexer(
            (frame(i, size=(4096, 4)) for i in range(3)),
            (frame(i, live=False) for i in range(9)),
            shape=lambda frame: input_shape(frame, spec),
        )
        assert len(list(frames)) == 9
        assert "too elongated" in str(frames.lanes[0].error)
        assert frames.lanes[1].error is None
        frames.close()

    def test_the_shape_of_a_frame_is_found_once_where_it_was_decoded(self):
        found = []

        def shape(frame):
            found.append(threading.current_thread().name)
            return frame.height, frame.width

        cameras = [[frame(i, live=False) for i in range(3)] for _ in range(5)]
        frames = multiplexer(*cameras, batch=4, shape=shape)
        assert len([f for f in frames if f is not None]) == 15
        assert found == ["decode"] * 15
        frames.close()

    def test_a_stale_frame_is_never_given_though_its_lane_is_looked_at_late(self):
        late = threading.Event()

        def small():
            late.wait(120)
            yield from (frame(i, live=False) for i in range(4))

        wide = [frame(i, size=(96, 48)) for i in range(2)]
        frames = multiplexer(small(), wide, size=9, batch=2, max_age=0.05)
        assert eventually(lambda: frames.lanes[1].finished)
        late.set()
        assert eventually(lambda: frames.lanes[0].finished)
        time.sleep(0.1)
        assert [f.width for f in frames if f is not None] == [64] * 4
        assert frames.lanes[1].losses == {"stale": 2}
        frames.close()

    def test_what_waits_is_still_given_after_a_stop(self):
        stop = threading.Event()

        def endless():
            yield from (frame(0), frame(1))
            stop.wait(120)

        frames = multiplexer(endless(), stopped=stop.is_set, batch=2)
        assert eventually(lambda: len(frames) == 2)
        stop.set()
        assert [f.index for f in frames] == [0, 1]
        frames.close()

    def test_a_source_that_has_nothing_to_give_sees_that_nobody_waits(self):
        begun = threading.Event()

        def stalled():
            begun.wait(120)
            while not frames.lanes[0].closed:
                time.sleep(0.01)
            yield from ()

        frames = multiplexer(stalled())
        begun.set()
        frames.close()
        assert eventually(lambda: frames.lanes[0].finished)

    def test_what_waits_at_the_end_is_counted(self):
        frames = multiplexer(frame(i) for i in range(2))
        assert eventually(lambda: frames.lanes[0].finished)
        frames.close()
        assert losses(frames.lanes[0].carried) == {"queue full": 1, "not wanted": 1}

    @pytest.mark.parametrize("is_live", [True, False])
    def test_a_limit_counts_what_is_given(self, is_live):
        def upstream():
            for index in range(1000):
                time.sleep(0.002)
                yield frame(index, live=is_live)

        frames = multiplexer(upstream(), limit=5)
        given = []
        for each in frames:
            given.append(each)
            time.sleep(0.02)
        assert len(given) == 5
        frames.close()
        lane = frames.lanes[0]
        dropped = losses(drop for f in given for drop in f.drops)
        rest = losses(lane.carried)
        assert lane.frames == 5 + sum(dropped.values()) + sum(rest.values())
        assert is_live or not dropped


class Packet:
    """As much of PyAV's packet as the queue looks at."""

    def __init__(self, number: int, key: bool) -> None:
        self.pts, self.is_keyframe, self.size = number, key, 1
        self.opaque = None


def packet_queue(packets, **options) -> tuple[PacketQueue, list]:
    skipped: list[tuple[str, int, int | None]] = []
    settings = {
        "max_age": 0.05,
        "timeout": (5.0, 5.0),
        "intra_only": False,
        "stopped": lambda: False,
        "skip": lambda *loss: skipped.append(loss),
        "release": lambda: None,
    }
    return PacketQueue(packets, **(settings | options)), skipped


class TestPacketQueue:
    @pytest.mark.parametrize("group", [10, 30])
    def test_a_slow_decoder_loses_whole_groups_and_knows_how_much(self, group, monkeypatch):
        clock, due = SimpleNamespace(now=0.0), threading.Semaphore(4)
        monkeypatch.setattr(
            stream_rpn.sources.packet_queue, "time", SimpleNamespace(monotonic=lambda: clock.now)
        )

        def packets():
            for number in range(70):
                # Four come while one is decoded; the next group does not wait for the decoder.
                due.acquire(timeout=0.05)
                clock.now += 0.005
                yield Packet(number, number % group == 0)

        queue, skipped = packet_queue(packets())
        taken = []
        for packet in queue:
            taken.append(packet.pts)
            due.release(4)
        assert queue.close()
        assert len(taken) + sum(count for _, count, _ in skipped) <= 70
        assert skipped
        for before, after in itertools.pairwise(taken):
            # Decoding goes on with the next packet or starts anew at a key frame.
            assert after == before + 1 or after % group == 0

    def test_a_quick_decoder_gets_everything_stamped(self):
        before = time.monotonic()
        queue, skipped = packet_queue((Packet(i, i == 0) for i in range(30)), max_age=60)
        stamps = [packet.opaque for packet in queue]
        assert len(stamps) == 30
        assert stamps == sorted(stamps)
        assert before <= stamps[0] <= stamps[-1] <= time.monotonic()
        assert not skipped
        assert queue.close()

    def test_what_was_left_out_at_the_end_is_told(self):
        def packets():
            for number in range(5):
                yield Packet(number, number == 0)
                time.sleep(0.06)

        queue, skipped = packet_queue(packets())
        assert eventually(lambda: queue._finished)
        assert list(queue) == []
        assert skipped == [("decoder", 5, 0)]
        assert queue.close()

    def test_waiting_has_an_end(self):
        forever = threading.Event()

        def nothing():
            forever.wait(120)
            yield from ()

        released = threading.Event()
        queue, _ = packet_queue(nothing(), timeout=(0.15, 5.0), release=released.set)
        assert list(queue) == []
        assert isinstance(queue.error, TimeoutError)
        # The thread is stuck: it lets go of what it reads from when it is not.
        assert not queue.close()
        assert not released.is_set()
        forever.set()
        assert released.wait(60)

    def test_a_stop_ends_the_waiting(self):
        forever, stop = threading.Event(), threading.Event()

        def nothing():
            forever.wait(120)
            yield from ()

        queue, _ = packet_queue(nothing(), stopped=stop.is_set)
        threading.Timer(0.1, stop.set).start()
        with pytest.raises(Interrupted):
            next(queue)
        forever.set()
        queue.close()


def test_a_synthetic_video_that_is_left_early_ends_its_encoder():
    # One that the garbage collector comes to while Python ends has nobody left to write to.
    source = LiveSource("synthetic:64x48@25,1000", LivePolicy(realtime=True))
    next(iter(source))
    encoded = source._connection._file
    source.close()
    assert encoded.closed


class TestNames:
    @pytest.mark.parametrize(
        ("uri", "shown"),
        [
            ("rtsp://bob:secret@cam/1", "rtsp://bob:***@cam/1"),
            ("rtsp://bob:se@cr:et@cam:554/1?x=1", "rtsp://bob:***@cam:554/1?x=1"),
            ("http://cam/v?user=a&password=b&x=c", "http://cam/v?user=a&password=***&x=c"),
            ("http://cam/v?access_token=b#t", "http://cam/v?access_token=***#t"),
            ("http://cam/v?loginuse=a&loginpas=b", "http://cam/v?loginuse=a&loginpas=***"),
            ("http://cam/v?user=a&pw=b&sig=c", "http://cam/v?user=a&pw=***&sig=***"),
            ("rtsp://cam/user=a_password=b_channel=1.sdp", "rtsp://cam/user=a_password=***"),
            ("rtsp://cam/user=a&password=b&channel=1", "rtsp://cam/user=a&password=***&channel=1"),
            ("http://cam/keys/v?x=1", "http://cam/keys/v?x=1"),
            ("rtsp://cam:554/a@b:c", "rtsp://cam:554/a@b:c"),
            ("clip:1@2.mp4", "clip:1@2.mp4"),
            ("rtsp://admin:pa/ss?w#rd@cam:554/1", "rtsp://admin:***@cam:554/1"),
            ("rtsp://abcd1234@cam/1", "rtsp://***@cam/1"),
            ("http://u:p@[::1]:80/a?tcp", "http://u:***@[::1]:80/a?tcp"),
            ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
            (
                "http://cam/?p=a&code=b&jwt=c&channel=2",
                "http://cam/?p=***&code=***&jwt=***&channel=2",
            ),
            ("http://cam/v?aGVsbG8", "http://cam/v?***"),
            ("http://cam/v#session=a", "http://cam/v#session=***"),
            ("rtmp://a.youtube.com/live2/abcd-efgh", "rtmp://a.youtube.com/live2/***"),
            ("rtmp://127.0.0.1:1935/live", "rtmp://127.0.0.1:1935/live"),
            ("srt://h:9?passphrase=a&mode=caller", "srt://h:9?passphrase=***&mode=caller"),
            ("http:////u:p@h/", "http:////u:***@h/"),
            ("http:/u:p/w@h/v?token=a", "http:/u:***@h/v?token=***"),
            ("rtsp:u:p@h", "rtsp:u:***@h"),
            ("http:\\\\u:p@h\\v", "http:\\\\u:***@h\\v"),
            (" RTSP ://u:p@h", " RTSP ://u:***@h"),
            ("rtsp;//u:p@h", "rtsp;//u:***@h"),
            ("https//u:p@h/*.mp4", "https//u:***@h/*.mp4"),
            ("yolo:rtsp:u:p@h/", "yolo:rtsp:u:***@h/"),
            ("@http:/u:p@h", "@http:/u:***@h"),
            ("file:///a:b@c.mp4", "file:///a:b@c.mp4"),
            ("C:\\a:b@c.mp4", "C:\\a:b@c.mp4"),
            ("/data/http:1@2.mp4", "/data/http:1@2.mp4"),
        ],
    )
    def test_secrets_are_masked(self, uri, shown):
        assert masked(uri) == shown

    @pytest.mark.parametrize(
        "name", ["rtsp:u:secret@h", "http:\\\\u:secret@h\\*", "@http:/u:secret@h"]
    )
    def test_an_address_with_slips_keeps_its_password(self, name):
        with pytest.raises(StreamRPNError) as caught:
            expand([name])
        assert "u:***@h" in str(caught.value)
        assert "secret" not in str(caught.value) + address.stem(name)

    def test_an_address_that_is_none_is_told_in_a_sentence(self):
        with pytest.raises(StreamRPNError, match="is no address: Invalid IPv6"):
            expand(["http://u:p@[::1/x"])

    def test_secrets_name_no_files(self):
        assert stem("rtsp://cam/user=a_password=secret_channel=1.sdp") == "user=a_password="

    @pytest.mark.parametrize(
        ("platform", "expected"),
        [
            ("linux", ("/dev/video1", "v4l2", {})),
            ("darwin", ("1", "avfoundation", {"framerate": "30"})),
        ],
    )
    def test_a_camera_on_each_platform(self, platform, expected):
        assert device_input("webcam:1", platform) == expected

    def test_a_windows_camera_goes_by_its_name(self, monkeypatch):
        monkeypatch.setattr(
            "stream_rpn.sources.address.cameras", lambda platform: [("A cam", ""), ("B cam", "")]
        )
        assert device_input("webcam:1", "win32")[:2] == ("video=B cam", "dshow")
        with pytest.raises(StreamRPNError, match="stream-rpn devices"):
            device_input("webcam:2", "win32")

    def test_the_screen_needs_a_display(self, monkeypatch):
        monkeypatch.setenv("DISPLAY", ":7")
        assert device_input("screen:", "linux")[:2] == (":7", "x11grab")
        assert device_input("screen::1", "linux")[0] == ":1"
        monkeypatch.delenv("DISPLAY")
        with pytest.raises(StreamRPNError, match="DISPLAY"):
            device_input("screen:", "linux")

    def test_what_is_live(self, tmp_path):
        os.mkfifo("pipe")
        lives = ["webcam", "webcam:1", "/dev/video0", "screen:", "rtsp://a/b", "udp://a:1", "pipe"]
        lives += ["http://cam/stream", "https://cam/live.m3u8", "rtmp://a/b"]
        files = ["a.mp4", "-", "webcam.mp4", "http://a/b.mp4", "synthetic:", "webcam:x", "file://a"]
        assert [is_live(name) for name in lives + files] == [True] * 10 + [False] * 7
        assert expand(lives) == lives
        assert [stem(name) for name in lives[:6]] == [
            "webcam", "webcam-1", "video0", "screen", "b", "a"
        ]  # fmt: skip

    def test_devices_are_listed(self, monkeypatch, capsys):
        monkeypatch.setattr(
            "stream_rpn.commands.devices.cameras", lambda: [("/dev/video0", "USB cam")]
        )
        assert main(["devices"]) == 0
        assert capsys.readouterr().out == "/dev/video0  USB cam\n"

    def test_a_camera_that_is_not_there(self, capsys):
        assert main(["/dev/video99", "-o", "null"]) == 2
        sentence = capsys.readouterr().err
        assert "/dev/video99 cannot be opened" in sentence
        assert "stream-rpn devices" in sentence

    def test_a_protocol_that_pyav_lacks(self, capsys):
        assert main(["srt://127.0.0.1:9000", "-o", "null"]) == 2
        assert "does not speak srt" in capsys.readouterr().err


class TestSources:
    def test_filters_stand_in_for_a_camera(self):
        started = time.monotonic()
        policy = LivePolicy(max_age=20)
        with LiveSource("lavfi:testsrc=size=64x48:rate=20:duration=1", policy) as source:
            frames = list(source)
        assert len(frames) == 20
        assert time.monotonic() - started >= 0.9  # at its own pace
        assert all(f.arrived is not None for f in frames)
        assert all(a.arrived <= b.arrived for a, b in itertools.pairwise(frames))
        assert source.info.live
        assert source.info.codec == "wrapped_avframe"

    def test_a_named_pipe(self):
        os.mkfifo("pipe")
        clip = synthetic_ts(frames=30)

        def write():
            time.sleep(0.3)
            Path("pipe").write_bytes(clip)

        writer = threading.Thread(target=write)
        writer.start()
        with LiveSource("pipe", LivePolicy(max_age=20)) as source:
            assert [f.index for f in source] == list(range(30))
        writer.join()
        assert source.info.live

    def test_a_named_pipe_that_nobody_writes_to(self):
        os.mkfifo("pipe")
        policy = LivePolicy(open_timeout=0.3)
        with (
            LiveSource("pipe", policy) as source,
            pytest.raises(StreamRPNError, match="nobody wrote to"),
        ):
            next(iter(source))

    def test_http_may_turn_out_to_be_a_file(self, http_server):
        Path("clip").write_bytes(synthetic_ts(frames=30))
        with LiveSource(f"{http_server}/clip", LivePolicy()) as source:
            frames = list(source)
        assert len(frames) == 30
        assert not source.info.live
        assert all(f.arrived is None for f in frames)

    def test_a_file_from_http_at_its_own_pace_ends(self, http_server):
        Path("clip").write_bytes(synthetic_ts(frames=15))
        started = time.monotonic()
        with LiveSource(f"{http_server}/clip", LivePolicy(max_age=20, realtime=True)) as source:
            frames = list(source)
        assert len(frames) == 15
        assert source.info.live
        # The first may come late, and none early.
        assert frames[-1].arrived - started > 14 / 30

    def test_what_a_stopped_file_had_left_is_no_loss(self):
        synthetic_ts(frames=300)
        with av.open("clip.ts") as clip, av.open("clip.mp4", "w") as target:
            copy = target.add_stream_from_template(clip.streams.video[0])
            for packet in clip.demux(video=0):
                if packet.size:
                    packet.stream = copy
                    target.mux(packet)
        stop = threading.Event()
        policy = LivePolicy(max_age=20, realtime=True)
        with LiveSource("clip.mp4", policy, stopped=stop.is_set) as source:
            frames = iter(source)
            next(frames)
            stop.set()
            assert eventually(lambda: source._packets._finished)
            assert len(list(frames)) < 290
        assert source.trailing_drops == ()

    def test_tries_without_end_have_pauses_with_one(self, monkeypatch):
        pauses = []

        def refused(self):
            raise StreamRPNError("nobody is there")

        monkeypatch.setattr(LiveSource, "_open", refused)
        monkeypatch.setattr(LiveSource, "_pause", lambda self, seconds: pauses.append(seconds))
        source = LiveSource("udp://127.0.0.1:1", LivePolicy(reconnect=2000))
        source._last = frame(0)
        with pytest.raises(StreamRPNError, match="2000 tries"):
            next(iter(source))
        assert (pauses[0], max(pauses), len(pauses)) == (1.0, 10.0, 2000)

    def test_a_playlist_that_grows_is_played_at_its_own_pace(self, http_server):
        Path("a.ts").write_bytes(synthetic_ts(frames=30))
        head = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:0\n"
        Path("live.m3u8").write_text(head + "#EXTINF:1.0,\na.ts\n")
        policy = LivePolicy(max_age=20, open_timeout=30, read_timeout=10, reconnect=0)
        started = time.monotonic()
        with LiveSource(f"{http_server}/live.m3u8", policy) as source:
            frames = list(itertools.islice(source, 25))
        assert source.info.live
        assert frames[24].arrived - started > 24 / 30

    def test_a_live_playlist_reads_no_files_here(self, http_server, tmp_path):
        Path("private.ts").write_bytes(synthetic_ts(frames=30))
        Path("live.m3u8").write_text(
            "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n"
            f"#EXTINF:1.0,\nfile://{tmp_path}/private.ts\n"
        )
        policy = LivePolicy(open_timeout=2, reconnect=0)
        with (
            LiveSource(f"{http_server}/live.m3u8", policy) as source,
            pytest.raises(StreamRPNError),
        ):
            next(iter(source))

    def test_time_goes_on_over_a_clock_that_starts_anew(self):
        source = LiveSource("udp://127.0.0.1:1", LivePolicy())
        clocks = [(10.0, 5.0), (10.1, 5.1), (12.1, 0.0), (12.2, 0.1), (12.3, 99.0)]
        times = []
        for index, (arrived, seconds) in enumerate(clocks):
            given = frame(index)
            given.arrived, given.pts_seconds = arrived, seconds
            source._place(given, first=index == 0)
            times.append(round(given.pts_seconds, 3))
        assert times == [5.0, 5.1, 7.1, 7.2, 7.3]

    def test_from_python(self):
        policy = LivePolicy(realtime=True)
        results = list(
            stream("synthetic:64x48@20,10", policy=policy, engine="torch", size=64, device="cpu")
        )
        drops = losses(d for proposals in results for d in proposals.drops)
        assert len(results) + sum(drops.values()) == 10
        assert all(proposals.age_seconds > 0 for proposals in results)
        with pytest.raises(StreamRPNError, match="/dev/video98"):
            list(stream("/dev/video98", device="cpu"))


@pytest.fixture
def http_server(tmp_path):
    import http.server

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def synthetic_ts(frames: int) -> bytes:
    """Returns a clip as MPEG-TS."""
    from stream_rpn.sources.synthetic import SyntheticVideo

    clip = SyntheticVideo.parse(f"synthetic:64x48@30,{frames}").encoded()
    with av.open(clip) as source, av.open("clip.ts", "w", format="mpegts") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    return Path("clip.ts").read_bytes()


def run(*arguments: str, until=None) -> tuple[int, dict]:
    """Runs the command on a small input, until a Ctrl-C once `until` holds; code and summary."""
    over = threading.Event()

    def interrupt():
        eventually(lambda: over.wait(0.1) or until(), 240)
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    if until is not None:
        interrupter.start()
    try:
        code = main([*arguments, "--size", "64", "--device", "cpu", "--json-summary", "sum.json"])
    finally:
        over.set()
        if until is not None:
            interrupter.join()
    summary = json.loads(Path("sum.json").read_text()) if Path("sum.json").exists() else {}
    Path("sum.json").unlink(missing_ok=True)
    return code, summary


def written(name: str) -> list[dict]:
    """Returns the results that have been written so far."""
    if not Path(name).exists():
        return []
    lines = Path(name).read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in rows if "frame" in row]


def written_after_a_gap(name: str) -> int:
    """Returns how many results have been written since the connection came back."""
    rows = itertools.dropwhile(
        lambda row: all("seconds" not in drop for drop in row.get("drops", ())), written(name)
    )
    return len(list(rows))


def adds_up(summary: dict) -> bool:
    return summary["frames_in"] == summary["frames"] + sum(summary["drops"].values())


def sizes(name: str) -> set[tuple[int, int]]:
    return {(row.width, row.height) for row in read(name)}


@contextlib.contextmanager
def udp_camera(spec: str, *options: str, port: int | None = None):
    port = port or free_port()
    with sender("udp", str(port), spec, *options):
        yield f"udp://127.0.0.1:{port}"


# GStreamer's RTSP server, run by the system's Python, whose packages hold it (Debian:
# gir1.2-gst-rtsp-server-1.0, python3-gi, gstreamer1.0-plugins-ugly).
RTSP_SERVER = """
import gi, sys
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
assert Gst.ElementFactory.find("x264enc")
if len(sys.argv) > 1:
    server, factory = GstRtspServer.RTSPServer(), GstRtspServer.RTSPMediaFactory()
    server.set_address("127.0.0.1")
    server.set_service(sys.argv[1])
    factory.set_launch(
        "( videotestsrc is-live=true ! video/x-raw,width=160,height=96,framerate=15/1 "
        "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=15 ! rtph264pay name=pay0 )"
    )
    factory.set_shared(True)
    server.get_mount_points().add_factory("/camera", factory)
    server.attach(None)
    GLib.MainLoop().run()
"""


@contextlib.contextmanager
def rtsp_camera(port: int):
    command = ["/usr/bin/python3", "-c", RTSP_SERVER]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("needs GStreamer's RTSP server")
    with subprocess.Popen([*command, str(port)]) as server:
        try:
            yield f"rtsp://bob:secret@127.0.0.1:{port}/camera"
        finally:
            server.kill()


def test_an_rtsp_camera_that_is_switched_off_and_on(capsys):
    port = free_port(socket.SOCK_STREAM)
    over = threading.Event()

    def cameras():
        with rtsp_camera(port):
            eventually(lambda: over.wait(0.1) or len(written("a.jsonl")) > 20, 120)
        over.wait(1)
        with rtsp_camera(port):
            over.wait(240)

    with rtsp_camera(port):
        pass  # where there is none, skip
    thread = threading.Thread(target=cameras)
    thread.start()
    uri = f"rtsp://bob:secret@127.0.0.1:{port}/camera"
    try:
        code, summary = run(
            *(uri, "-o", "a.jsonl", "--reconnect", "9"),
            until=lambda: written_after_a_gap("a.jsonl") > 10,
        )
    finally:
        over.set()
    thread.join()
    assert code == 130
    assert adds_up(summary)
    assert summary["reconnects"] == 1
    assert summary["frames"] > 30
    assert "secret" not in capsys.readouterr().err


class TestScenarios:
    """Real senders, the whole command."""

    def test_a_steady_camera(self):
        began = time.time() - 1  # clocks may be set
        with udp_camera("320x180@30") as uri:
            code, summary = run(uri, "-o", "a.jsonl", "--max-frames", "60")
        assert code == 0
        assert summary["frames"] == 60
        assert adds_up(summary)
        # What may wait for half a second, and its way through the stages, in threads that may wait.
        stages = sum(stage["p50_ms"] for stage in summary["stages"].values())
        assert 0 < summary["age_ms"]["p50"] < 500 + 10 * stages
        results = read("a.jsonl")
        rows = list(results)
        assert results.complete
        assert results.header["live"]
        assert all(began < row.unix_seconds < time.time() for row in rows)
        # What the rows tell, and what came after the last one, is all that was lost.
        told = losses(drop for row in rows for drop in row.drops)
        assert all(count <= summary["drops"][reason] for reason, count in told.items())
        assert results.ends[0]["drops"] == summary["drops"]
        assert results.ends[0]["frames_in"] == summary["frames_in"]

    def test_a_model_that_is_too_slow(self, monkeypatch):
        process, taken = eager.EagerNetwork._process, []

        def slow(self, frames, times):
            began = time.monotonic()
            time.sleep(0.3)
            proposals = process(self, frames, times)
            taken.append(time.monotonic() - began)
            return proposals

        monkeypatch.setattr(eager.EagerNetwork, "_process", slow)
        with udp_camera("320x180@30") as uri:
            arguments = ("--engine", "torch", "--max-age", "0.3", "--max-frames", "20")
            code, summary = run(uri, "-o", "null", *arguments)
        assert code == 0
        assert adds_up(summary)
        assert summary["drops"]["queue full"] > 0
        assert summary["frames_in"] > 50
        # The budget, its own batch, and as much again for the threads before and behind, on a
        # machine that is as slow as it was: were nothing dropped, it would be that of all batches.
        assert summary["age_ms"]["p95"] < (0.3 + 3 * max(taken)) * 1e3

    def test_a_sender_that_dies_and_comes_back(self, capsys):
        port = free_port()
        done = threading.Event()

        def cameras():
            with udp_camera("160x96@15", port=port):
                eventually(lambda: done.wait(0.1) or len(written("a.jsonl")) > 20, 120)
            done.wait(3)
            with udp_camera("160x96@15", port=port):
                done.wait(240)

        thread = threading.Thread(target=cameras)
        thread.start()
        try:
            code, summary = run(
                *(f"udp://127.0.0.1:{port}", "-o", "a.jsonl", "--read-timeout", "2"),
                until=lambda: written_after_a_gap("a.jsonl") > 10,
            )
        finally:
            done.set()
            thread.join()
        assert code == 130
        assert adds_up(summary)
        assert summary["reconnects"] == 1
        gaps = [d.seconds for row in read("a.jsonl") for d in row.drops if d.seconds is not None]
        assert len(gaps) == 1
        assert gaps[0] > 1
        times = [row.pts_seconds for row in read("a.jsonl")]
        assert times == sorted(times)
        told = capsys.readouterr().err
        assert "the connection was lost" in told
        assert "is back" in told

    def test_lost_packets(self):
        port = free_port()
        with (
            udp_camera("320x180@30") as uri,
            sender("relay", uri.rpartition(":")[2], str(port), "--loss", "0.2"),
        ):
            code, summary = run(f"udp://127.0.0.1:{port}", "-o", "null", "--max-frames", "60")
        assert code == 0
        assert summary["frames"] == 60
        assert adds_up(summary)

    def test_a_picture_that_changes_its_size(self):
        with udp_camera("320x180@30", "--then", "160x120@30") as uri:
            code, summary = run(
                *(uri, "-o", "a.jsonl"),
                until=lambda: written("a.jsonl") and len(sizes("a.jsonl")) > 1,
            )
        assert code == 130
        assert adds_up(summary)
        assert sizes("a.jsonl") == {(320, 180), (160, 120)}

    def test_two_go_on_while_one_stalls_and_a_file_loses_nothing(self, capsys):
        def counts():
            names = [row["source"] for row in written("all.jsonl")]
            return [names.count(name) for name in (first, second, stalled, clip)]

        def gone_on():
            one, other, least, whole = counts()
            return whole == 90 and 0 < least < min(one, other) - 45

        clip, before = "synthetic:64x48@30,90", set(threading.enumerate())
        with (
            udp_camera("160x96@15") as first,
            udp_camera("160x96@15") as second,
            udp_camera("160x96@15", "--stall-after", "4") as stalled,
        ):
            code, summary = run(
                *(first, second, stalled, clip),
                *("-o", "all.jsonl", "-o", "{stem}.parquet", "--read-timeout", "3"),
                # Long enough for three senders to start on a machine with other work.
                *("--open-timeout", "60", "--reconnect", "1"),
                until=gone_on,
            )
        assert code == 130
        by_name = {s["source"]: s for s in summary["sources"]}
        assert all(adds_up(s) for s in summary["sources"])
        assert by_name[clip]["frames"] == 90
        assert by_name[clip]["drops"] == {}
        assert min(by_name[first]["frames"], by_name[second]["frames"]) > by_name[stalled]["frames"]
        assert stalled in capsys.readouterr().err
        results = read("all.jsonl")
        counted: dict[str, int] = {}
        for row in results:
            counted[row.source] = counted.get(row.source, 0) + 1
        assert counted == {name: s["frames"] for name, s in by_name.items()}
        # They were stopped; what came is all there.
        assert not results.complete
        assert len(list(read("synthetic.parquet"))) == 90
        # The thread that waits for the stalled one ends as soon as something comes.
        with udp_camera("160x96@15", port=int(stalled.rpartition(":")[2])):
            assert eventually(lambda: set(threading.enumerate()) <= before)

    def test_frames_that_nobody_wanted_are_no_damage(self, capsys):
        clip, camera = "synthetic:64x48@30,90", "lavfi:testsrc=size=64x48:rate=30"
        code, summary = run(clip, camera, "-o", "null", "--max-frames", "3")
        assert code == 0
        assert summary["failures"] == []
        by_name = {s["source"]: s for s in summary["sources"]}
        assert set(by_name[clip]["drops"]) == {"not wanted"}
        assert all(adds_up(s) for s in summary["sources"])
        assert count_of(summary["drops"], DropKind.DAMAGE) == 0
        # Of the camera frames are given up while the network loads, as long as that takes.
        given_up = count_of(summary["drops"], DropKind.POLICY)
        told = capsys.readouterr().err
        assert "damaged" not in told
        assert re.findall(r"(\S+) frames? lost", told) == ([str(given_up)] if given_up else [])
        assert told.count("lost") == (1 if given_up else 0)

    def test_what_is_damaged_behind_the_frames_that_were_wanted_is_no_damage(self):
        clip = Path("clip.mkv")
        with av.open(str(clip), "w") as container:
            stream = container.add_stream("mjpeg", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
            for _ in range(8):
                picture = av.VideoFrame(64, 48, "yuvj420p")
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
        with av.open(str(clip)) as container:
            packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
        position, size = packets[4]
        data = bytearray(clip.read_bytes())
        at = data.index(b"\xff\xd8", position)
        data[at : at + size] = bytes(size)
        clip.write_bytes(data)
        camera = "lavfi:testsrc=size=64x48:rate=30"
        code, summary = run(str(clip), camera, "-o", "null", "--max-frames", "3")
        assert code == 0
        assert all(adds_up(s) for s in summary["sources"])
        code, summary = run(str(clip), "-o", "null")
        assert code == 3
        assert summary["drops"] == {"damaged packet": 1}

    def test_network_cameras_of_jpeg_pictures(self):
        port = free_port(socket.SOCK_STREAM)
        with sender("mjpeg", str(port), "160x96@25"):
            # It is tried until somebody listens.
            code, summary = run(
                f"http://bob:secret@127.0.0.1:{port}/cam?token=t0p", "-o", "cam.jsonl",
                "--max-frames", "20",
            )  # fmt: skip
        assert (code, summary["frames"]) == (0, 20)
        assert adds_up(summary)

    def test_passwords_are_seen_nowhere(self, capfd):
        port = free_port(socket.SOCK_STREAM)
        uri = f"http://bob:secret@127.0.0.1:{port}/cam?token=t0p"
        with sender("mjpeg", str(port), "160x96@25"):
            main([uri, "-o", "cam.jsonl", "-o", "all.parquet", "--json-summary", "sum.json",
                  "--max-frames", "5", "--size", "64", "--device", "cpu"])  # fmt: skip
        assert main([uri, "-o", "null", "--open-timeout", "0.5"]) == 2
        written = [capfd.readouterr().err.encode()]
        written += [path.read_bytes() for path in Path().rglob("*") if path.is_file()]
        assert len(written) >= 4
        assert not [text for text in written if b"secret" in text or b"t0p" in text]

    def test_one_that_never_comes(self, capsys):
        uri = f"udp://127.0.0.1:{free_port()}"
        code, _ = run(uri, "-o", "a.jsonl", "--open-timeout", "1")
        assert code == 2
        assert "did not answer within 1 seconds" in capsys.readouterr().err
        assert not Path("a.jsonl").exists()

    def test_the_same_source_twice(self, capsys):
        for twice in (["synthetic:"] * 2, ["rtsp://me:one@cam/1", "rtsp://me:two@cam/1"]):
            code, _ = run(*twice, "--realtime", "-o", "null")
            assert code == 2
            assert "given twice" in capsys.readouterr().err

    def test_hardware_decoding_has_no_room_for_frames_that_wait(self, capsys):
        code, _ = run("lavfi:testsrc", "-o", "null", "--decoder", "nvdec")
        assert code == 2
        assert "cannot be decoded by NVDEC: live sources" in capsys.readouterr().err

    def test_one_of_two_that_never_comes(self, capsys):
        uri = f"udp://127.0.0.1:{free_port()}"
        code, summary = run(
            uri, "synthetic:64x48@30,9", "-o", "{stem}.jsonl", "--open-timeout", "1"
        )
        assert code == 3
        assert [s["frames"] for s in summary["sources"]] == [9]
        assert len(list(read("synthetic.jsonl"))) == 9
        assert len(summary["failures"]) == 1

    def test_an_output_that_fails_stops_its_source_only(self, monkeypatch, capsys):
        from stream_rpn.sinks.jsonl import JSONLinesSink

        write = JSONLinesSink._write

        def full(self, proposals):
            if self.name == "synthetic.jsonl" and proposals.frame >= 5:
                raise OSError(28, "No space left on device")
            write(self, proposals)

        monkeypatch.setattr(JSONLinesSink, "_write", full)
        code, summary = run(
            *("synthetic:64x48@30,60", "synthetic:96x64@30,60", "--realtime"),
            *("--max-age", "20", "-o", "{stem}.jsonl"),
        )
        assert code == 3
        assert "the disk is full" in capsys.readouterr().err
        assert all(adds_up(s) for s in summary["sources"])
        frames = [s["frames"] for s in summary["sources"]]
        assert frames[0] < 30
        assert frames[1] > frames[0]
        other = read("synthetic-2.jsonl")
        assert len(list(other)) == frames[1]
        assert other.complete

    def test_one_whose_frames_fit_no_input_leaves_no_file(self, capsys):
        thin, clip = "lavfi:testsrc=size=4096x4:rate=10:duration=1", "synthetic:64x48@30,9"
        code, summary = run(thin, clip, "-o", "{stem}.jsonl")
        assert code == 3
        assert [s["frames"] for s in summary["sources"]] == [0, 9]
        (failure,) = summary["failures"]
        assert failure.startswith(f"{thin}: a frame of 4096x4 pixels is too elongated")
        assert [path.name for path in Path().glob("*.jsonl")] == ["synthetic.jsonl"]

    def test_one_of_which_a_thin_part_is_looked_at_ends_alone(self):
        Path("two.toml").write_text(
            "realtime = true\n[[source]]\nname = 'thin'\naddress = 'synthetic:8192x64@10,9'\n"
            "region-crop = true\nregion = '0,0.5,1,0.5,1,0.51,0,0.51'\n"
            "[[source]]\naddress = 'synthetic:64x48@10,9'\n"
        )
        code, summary = run("--config", "two.toml", "-o", "{stem}.jsonl")
        assert code == 3
        (failure,) = summary["failures"]
        assert "8192x64 pixels a part is looked at" in failure
        assert [path.name for path in Path().glob("*.jsonl")] == ["synthetic.jsonl"]
        other = read("synthetic.jsonl")
        assert len(list(other)) > 0
        assert other.complete

    def test_what_the_network_cannot_do_leaves_what_it_has_done(self, monkeypatch, capsys):
        every = multistream.LiveStreams.__iter__

        def until(self):
            for proposals in every(self):
                if proposals is not None and (proposals.source_index, proposals.frame) == (0, 3):
                    raise StreamRPNError("a frame cannot be resized")
                yield proposals

        monkeypatch.setattr(multistream.LiveStreams, "__iter__", until)
        sources = ["synthetic:64x48@30,9", "lavfi:testsrc=size=64x48:rate=10"]
        code, summary = run(*sources, "-o", "{stem}.npz")
        assert code == 3
        assert summary["failures"] == [f"{', '.join(sources)}: a frame cannot be resized"]
        assert [row.frame for row in read("synthetic.npz")] == [0, 1, 2]

    def test_standard_input_that_nobody_writes_to_ends_with_the_run(self, monkeypatch, capsys):
        reading, writing = os.pipe()
        camera = "lavfi:testsrc=size=64x48:rate=10"
        with open(reading) as nothing:
            monkeypatch.setattr("sys.stdin", nothing)
            code, summary = run(
                *("-", camera, "-o", "all.jsonl"), until=lambda: written("all.jsonl")
            )
        os.close(writing)
        assert code == 130
        assert summary["failures"] == []
        assert [s["source"] for s in summary["sources"]] == [camera]

    def test_eight_at_a_time(self):
        sources = [f"lavfi:testsrc=size={64 + 16 * i}x48:rate=10:duration=2" for i in range(8)]
        code, summary = run(*sources, "-o", "null", "--max-age", "20")
        assert code == 0
        assert [s["frames_in"] for s in summary["sources"]] == [20] * 8
        assert all(adds_up(s) for s in summary["sources"])
        assert min(s["frames"] for s in summary["sources"]) > 0

    def test_a_second_signal_stops_at_once(self):
        asked = []

        def stuck(self, proposals):
            asked.append(time.monotonic())
            signal.raise_signal(signal.SIGINT)
            threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            time.sleep(60)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("stream_rpn.sinks.null.NullSink._write", stuck)
            code, _ = run("lavfi:testsrc=size=64x48:rate=10", "-o", "null")
        assert code == 130
        assert len(asked) == 1
        assert time.monotonic() - asked[0] < 55  # of the 60 for which it is stuck


def test_live_streams_report_what_a_page_shows():
    from stream_rpn.api import load

    pipeline = multistream.Pipeline(load(size=64), device="cpu")
    selection = multistream.Selection()
    uris = ["lavfi:testsrc=size=64x48:rate=20:duration=1"]
    with multistream.LiveStreams(pipeline, uris, selection, LivePolicy(max_age=20)) as streams:
        statistics = streams.streams[0]
        for proposals in streams:
            if proposals is not None:
                statistics.written(proposals)
    assert statistics.opened
    assert statistics.ended
    assert statistics.num_results + sum(statistics.drops.values()) == statistics.frames_in == 20
    assert set(statistics.stage_times.summary()) >= {"decode", "results"}
    assert statistics.ages.count == statistics.num_results


def test_a_film_that_is_played_again_goes_on_as_one():
    policy = LivePolicy(max_age=20, realtime=True, loop=True)
    with LiveSource("synthetic:64x48@50,5", policy) as source:
        frames = [frame for frame, _ in zip(source, range(12), strict=False)]
    assert [frame.index for frame in frames] == list(range(12))
    times = [frame.pts_seconds for frame in frames]
    assert times == sorted(set(times))
    assert not any(frame.drops for frame in frames)
    assert (source.reconnects, source.lost_at, source.info.num_frames) == (0, None, None)


def test_a_file_that_breaks_off_for_an_error_has_not_come_to_its_end(monkeypatch):
    def breaking(self, packets):
        yield from itertools.islice(packets, 8)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(LiveSource, "_paced", breaking)
    came = []
    with (
        LiveSource("synthetic:64x48@50,60", LivePolicy(max_age=20, realtime=True)) as source,
        pytest.raises(StreamRPNError, match=r"not be read to its end \(Input/output error\)"),
    ):
        came.extend(frame.index for frame in source)
    assert came
