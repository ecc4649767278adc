"""Frames in = results + drops, whatever a source skips, damages or loses, and however it ends."""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from unittest import mock

import av
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import stream_rpn.sources.packet_queue
from stream_rpn.clock import Clock
from stream_rpn.drops import Drop, DropReason
from stream_rpn.frame import Color, Frame, Proposals, StreamInfo, StreamRPNError
from stream_rpn.input_spec import InputSpec
from stream_rpn.multistream import LivePolicy, LiveStream, LiveStreams
from stream_rpn.pipeline import Selection, Stream
from stream_rpn.queues import Queues, prefetch
from stream_rpn.sources.packet_queue import Interrupted, PacketQueue
from stream_rpn.sources.source import Source
from stream_rpn.statistics import StreamStatistics
from stream_rpn.tally import Tally

COLOR = Color("bt601", full_range=False, tagged=False)


class SimulatedSource(Source):
    """Does what a script of (what, how much) says, as a source would that decodes."""

    def __init__(self, script: list[tuple[str, int]], *, live: bool) -> None:
        self.tally, self.clock = Tally(), Clock()
        self.info = StreamInfo("simulated", "simulated", 64, 48, live=live)
        self._script, self._live = script, live

    def __iter__(self) -> Iterator[Frame]:
        tally = self.tally
        disconnected = None
        for what, count in self._script:
            match what:
                case "slow":
                    time.sleep(count / 2000)
                case "damage":
                    tally.lose(DropReason.DAMAGED_PACKET, count, tally.frames_decoded)
                case "skip":
                    tally.lose(DropReason.DECODER, count, tally.frames_decoded)
                case "disconnect":
                    disconnected = Drop(DropReason.CONNECTION_LOST, 0, None, float(count))
                case "fail":
                    raise StreamRPNError("the cable is out")
                case "frames":
                    for _ in range(count):
                        index = tally.frames_decoded
                        tally.frames_decoded += 1
                        frame = Frame(
                            index, index, index / 25, 64, 48, 0, COLOR, av.VideoFrame(64, 48)
                        )
                        frame.drops = tally.take_drops()
                        if self._live:
                            frame.arrived = time.monotonic()
                        if disconnected is not None:
                            frame.drops, disconnected = (*frame.drops, disconnected), None
                        yield frame
        if not self._live:
            tally.lack(Drop(DropReason.CUT_OFF, 0, None, 1.0))

    def close(self) -> None:
        pass


class SimulatedNetwork:
    """Takes its time for each frame and finds nothing; breaks at a frame, if told to."""

    def __init__(self, seconds: float, breaks_at: int | None) -> None:
        self._seconds, self._breaks_at = seconds, breaks_at

    def queues(self, frames: Iterable[Frame | None], times, *, latency: bool = False) -> Queues:
        return Queues(frames, last=prefetch(self._results(frames), 2, name="propose"))

    def _results(self, frames: Iterable[Frame | None]) -> Iterator[Proposals]:
        boxes, none = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
        for number, frame in enumerate(frame for frame in frames if frame is not None):
            time.sleep(self._seconds)
            if number == self._breaks_at:
                raise RuntimeError("the device is gone")
            yield Proposals.of(
                frame,
                boxes=boxes,
                scores=np.zeros(0, np.float32),
                levels=none,
                anchors=none,
                input_boxes=boxes,
            )


def pipeline(seconds: float, breaks_at: int | None, batch: int = 1) -> SimpleNamespace:
    return SimpleNamespace(
        track=None,
        network=SimulatedNetwork(seconds, breaks_at),
        model=SimpleNamespace(input_spec=InputSpec(min_size=64, max_size=128)),
        queue_size=2 * batch + 2,
        batch=batch,
    )


SCRIPTS = st.lists(
    st.tuples(
        st.sampled_from(["frames", "frames", "frames", "slow", "damage", "skip", "disconnect"]),
        st.integers(1, 6),
    ),
    max_size=12,
).flatmap(lambda script: st.sampled_from([script, [*script, ("fail", 1)]]))

SELECTIONS = st.builds(
    Selection,
    start=st.sampled_from([None, 0.1]),
    end=st.sampled_from([None, 0.3]),
    stride=st.sampled_from([1, 1, 3]),
    fps=st.sampled_from([None, None, 10.0]),
    max_frames=st.sampled_from([None, None, 4]),
)

RUNS = {
    "seconds": st.sampled_from([0.0, 0.001]),
    "breaks_at": st.sampled_from([None, None, None, 5]),
    # The caller leaves after so many results, or the run is stopped then.
    "leaves_after": st.sampled_from([None, None, 2]),
    "stops_after": st.sampled_from([None, None, 3]),
}


def counted(drops: Iterable[Drop]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for drop in drops:
        counts[drop.reason] = counts.get(drop.reason, 0) + drop.count
    return counts


def check_end(statistics: StreamStatistics, source: Source, told: list[Drop]) -> None:
    """The sum at the end; and what results told is part of it."""
    end = statistics.end()
    assert end["frames_in"] == end["frames"] + sum(end["drops"].values())
    assert all(count >= 0 for count in end["drops"].values())
    for reason, count in counted(told).items():
        assert reason == DropReason.CONNECTION_LOST or count <= end["drops"][reason]
    assert end["damaged_packets"] == end["drops"].get(DropReason.DAMAGED_PACKET, 0)
    assert end["frames_in"] <= source.frames_decoded + sum(source.tally.losses.values())


def check_on_the_way(statistics: StreamStatistics) -> None:
    account = statistics.account()
    assert account["frames_in"] >= account["frames"] + sum(account["drops"].values())


@settings(max_examples=60, deadline=None)
@given(script=SCRIPTS, selection=SELECTIONS, **RUNS)
def test_of_a_file(script, selection, seconds, breaks_at, leaves_after, stops_after):
    source, stop, told = SimulatedSource(script, live=False), threading.Event(), []
    broken = contextlib.suppress(StreamRPNError, RuntimeError)
    with Stream(pipeline(seconds, breaks_at), source, selection, stop) as stream, broken:
        for number, proposals in enumerate(stream, 1):
            told.extend(proposals.drops)
            check_on_the_way(stream)
            if number == stops_after:
                stop.set()
            if number == leaves_after:
                break
    check_end(stream, source, told)
    to_the_end = not (breaks_at or leaves_after or stops_after or ("fail", 1) in script)
    if to_the_end:
        assert DropReason.NOT_WANTED not in stream.drops
        if selection == Selection():
            assert stream.frames_in == source.frames_decoded + sum(source.tally.losses.values())
            lost = counted((*told, *source.trailing_drops))
            lost.pop(DropReason.CONNECTION_LOST, None)
            assert lost == stream.drops


def test_damage_behind_the_last_frame_that_was_asked_for_is_no_damage():
    script = [("damage", 1), ("frames", 3), ("damage", 2), ("frames", 3)]
    source = SimulatedSource(script, live=False)
    with mock.patch.object(LiveStream, "_open", return_value=source):
        streams = LiveStreams(
            pipeline(0.01, None), ["simulated"], Selection(max_frames=3), LivePolicy()
        )
        with streams:
            assert len([p for p in streams if p is not None]) == 3
    (stream,) = streams.streams
    assert source.damaged_packets == 3
    assert stream.drops[DropReason.DAMAGED_PACKET] == stream.damaged_packets == 1
    assert set(stream.drops) == {DropReason.DAMAGED_PACKET, DropReason.NOT_WANTED}
    check_end(stream, source, [Drop(DropReason.DAMAGED_PACKET, 1, 0)])


@settings(max_examples=60, deadline=None)
@given(
    scripts=st.lists(st.tuples(SCRIPTS, st.booleans()), min_size=1, max_size=3),
    selection=SELECTIONS,
    max_age=st.sampled_from([0.002, 10.0]),
    **RUNS,
)
def test_of_several_at_a_time(
    scripts, selection, max_age, seconds, breaks_at, leaves_after, stops_after
):
    sources = [SimulatedSource(script, live=live) for script, live in scripts]
    stop = threading.Event()
    told: list[list[Drop]] = [[] for _ in sources]
    with mock.patch.object(LiveStream, "_open", lambda self: sources[self.index]):
        streams = LiveStreams(
            pipeline(seconds, breaks_at, batch=2),
            [f"simulated{index}" for index in range(len(sources))],
            selection,
            LivePolicy(max_age=max_age),
            stop=stop,
        )
        with streams, contextlib.suppress(RuntimeError):
            number = 0
            for proposals in streams:
                for stream in streams.streams:
                    check_on_the_way(stream)
                if proposals is None:
                    continue
                number += 1
                told[proposals.source_index].extend(proposals.drops)
                if number == stops_after:
                    stop.set()
                if number == leaves_after:
                    streams.end(streams.streams[0])
    for stream, source, drops in zip(streams.streams, sources, told, strict=True):
        if not stream.opened:
            stream.info = source.info
        check_end(stream, source, drops)


class Packet:
    """As much of PyAV's packet as the queue looks at."""

    def __init__(self, number: int, key: bool) -> None:
        self.pts, self.is_keyframe, self.size = number, key, 1
        self.opaque = None


@settings(max_examples=80, deadline=None)
@given(
    steps=st.lists(st.sampled_from([0.0, 0.01, 0.04, 0.2]), max_size=40),
    group=st.sampled_from([1, 4, 10, 100]),
    ending=st.sampled_from(["end", "error", "silence"]),
)
def test_of_packets_on_their_way_to_a_decoder(steps, group, ending):
    clock, skipped = SimpleNamespace(now=0.0), []
    sent, over = threading.Event(), threading.Event()

    def packets():
        for number, step in enumerate(steps):
            clock.now += step
            yield Packet(number, number % group == 0)
        # The last one lies in the queue by now.
        sent.set()
        if ending == "error":
            raise OSError("reset")
        if ending == "silence":
            over.wait(60)

    with mock.patch.object(
        stream_rpn.sources.packet_queue, "time", SimpleNamespace(monotonic=lambda: clock.now)
    ):
        queue = PacketQueue(
            packets(),
            max_age=0.05,
            timeout=(0.0, 0.0) if ending == "silence" else (None, None),
            intra_only=group == 1,
            stopped=lambda: False,
            skip=lambda reason, count, pts: skipped.append(count),
            release=lambda: None,
        )
        assert sent.wait(60)
        taken = []
        with contextlib.suppress(Interrupted):
            taken = list(queue)
        over.set()
        queue.close()
    assert len(taken) + sum(skipped) == len(steps)
