"""The queue between threads, the grouping into batches, and the slots on the way to a GPU."""

import threading
import time
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stream_rpn import preprocess, sources
from stream_rpn.frame import StreamRPNError
from stream_rpn.input_spec import InputSpec
from stream_rpn.network.eager import batches
from stream_rpn.network.upload import NUM_SLOTS, Download, HostEvent, HostStream, Ring, upload
from stream_rpn.queues import map_in_order, prefetch
from stream_rpn.sources.select import select
from stream_rpn.timing import StageTimes
from tests.waiting import eventually

SPEC = InputSpec(min_size=64, max_size=128)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    left = [t for t in threading.enumerate() if t not in before and t.is_alive()]
    assert left == []


class TestPrefetch:
    @pytest.mark.parametrize("size", [1, 2, 100])
    def test_keeps_the_order_and_every_item(self, size):
        with prefetch(range(50), size, name="t") as items:
            assert list(items) == list(range(50))

    @pytest.mark.parametrize("size", [1, 3])
    def test_runs_no_further_ahead_than_its_size(self, size):
        made = []
        with prefetch((made.append(i) or i for i in range(50)), size, name="t") as items:
            # One more than it holds: the item that waits for room.
            assert eventually(lambda: len(made) == size + 1)
            time.sleep(0.02)
            assert len(made) == size + 1
            assert len(items) == size
            assert next(items) == 0
            assert eventually(lambda: len(made) == size + 2)
            time.sleep(0.02)
            assert len(made) == size + 2

    def test_an_exception_arrives_after_the_items_before_it(self):
        def upstream():
            yield from range(5)
            raise StreamRPNError("the source broke")

        seen = []
        with (
            prefetch(upstream(), 2, name="t") as items,
            pytest.raises(StreamRPNError, match="the source broke"),
        ):
            seen.extend(items)  # extends by what came before the exception
        assert seen == list(range(5))

    def test_an_exception_is_raised_once(self):
        def upstream():
            raise ValueError("once")
            yield

        with prefetch(upstream(), 1, name="t") as items:
            with pytest.raises(ValueError, match="once"):
                next(items)
            with pytest.raises(StopIteration):
                next(items)

    def test_the_end_stays_the_end(self):
        with prefetch([], 1, name="t") as items:
            for _ in range(2):
                with pytest.raises(StopIteration):
                    next(items)

    def test_closing_while_the_producer_waits_for_room(self):
        closed = []

        def upstream():
            try:
                yield from range(1000)
            finally:
                closed.append(threading.current_thread().name)

        items = prefetch(upstream(), 1, name="producer")
        assert next(items) == 0
        assert eventually(lambda: len(items) == 1)
        items.close()
        assert closed == ["producer"]
        assert list(items) == []

    def test_closing_while_a_consumer_waits_for_an_item(self):
        release = threading.Event()

        def upstream():
            release.wait(5)
            yield 1

        items = prefetch(upstream(), 1, name="t")
        result = []
        consumer = threading.Thread(target=lambda: result.extend(items))
        consumer.start()
        items.stop()
        consumer.join(5)
        assert result == []
        release.set()
        items.close()

    def test_leaving_a_chain_early(self):
        first = prefetch(iter(range(10**9)), 2, name="first")
        second = prefetch((i * 2 for i in first), 2, name="second")
        assert next(second) == 0
        for queue in (first, second):
            queue.stop()
        for queue in (second, first):
            queue.close()

    def test_closing_twice(self):
        items = prefetch(range(3), 1, name="t")
        items.close()
        items.close()

    def test_an_item_taken_is_not_kept_alive(self):
        class Item:
            pass

        with prefetch((Item() for _ in range(3)), 3, name="t") as items:
            assert eventually(lambda: len(items) == 3)
            taken = next(items)
            reference = weakref.ref(taken)
            del taken
            assert eventually(lambda: reference() is None)

    def test_size_must_be_positive(self):
        with pytest.raises(ValueError, match="size must be at least 1, got 0"):
            prefetch([], 0, name="t")


@pytest.mark.parametrize(
    "stage",
    [lambda frames: StageTimes().each("decode", frames), lambda frames: select(frames, stride=2)],
    ids=["each", "select"],
)
def test_a_frame_given_is_not_kept_alive_while_the_next_is_made(stage):
    class Item:
        drops = ()

        def __init__(self, index):
            self.index = index

    def made():
        for index in range(5):
            item = Item(index)
            last = weakref.ref(item)
            yield item
            del item
            assert last() is None

    for item in stage(made()):
        del item


def frames_of(*sources_and_counts):
    frames = []
    for uri in sources_and_counts:
        with sources.open_source(uri) as source:
            frames.extend(source)
    return frames


@pytest.fixture(scope="module")
def mixed():
    """5 frames of 96×64, 4 of 64×96, 3 of 192×128 (the first one's input shape), 1 of 96×64."""
    return frames_of(
        "synthetic:96x64@25,5",
        "synthetic:64x96@25,4",
        "synthetic:192x128@25,3",
        "synthetic:96x64@25,1",
    )


class TestInOrder:
    def test_keeps_the_order_though_later_items_may_be_done_first(self):
        def work(i: int) -> int:
            time.sleep(0.003 * (i % 3 == 0))
            return i

        assert list(map_in_order(work, range(30), 3)) == list(range(30))

    def test_works_on_several_items_at_a_time(self):
        together = threading.Barrier(3, timeout=60)
        assert len(list(map_in_order(lambda _: together.wait(), range(9), 3))) == 9

    def test_takes_an_item_only_when_a_worker_is_free(self):
        taken, go = [], threading.Event()
        results = map_in_order(lambda _: go.wait(60), (taken.append(i) or i for i in range(9)), 2)
        waiting = threading.Thread(target=next, args=(results,))
        waiting.start()
        assert eventually(lambda: len(taken) == 2)
        time.sleep(0.02)
        assert len(taken) == 2
        go.set()
        waiting.join()
        assert len(list(results)) == 8

    def test_waits_for_a_consumer_that_stops_taking(self):
        taken = []
        results = map_in_order(lambda i: i, (taken.append(i) or i for i in range(99)), 2)
        assert next(results) == 0
        time.sleep(0.05)
        assert len(taken) <= 1 + 2 + 1  # given, in the queue, waiting for room in it
        results.close()

    @pytest.mark.parametrize("where", ["function", "items"])
    def test_an_exception_comes_after_the_results_before_it(self, where):
        def items():
            yield from range(5)
            if where == "items":
                raise ValueError("broken")
            yield 5

        def work(i: int) -> int:
            time.sleep(0.002)
            if i == 5:
                raise ValueError("broken")
            return i

        seen = []
        with pytest.raises(ValueError, match="broken"):
            seen.extend(map_in_order(work, items(), 2))
        assert seen == list(range(5))

    def test_a_failure_does_not_wait_for_the_next_item(self):
        silence = threading.Event()

        def items():
            yield from range(3)
            silence.wait(60)

        def work(item):
            if item == 2:
                raise StreamRPNError("the work broke")
            return item

        seen = []
        with prefetch(items(), 2, name="t") as behind:
            began = time.monotonic()
            with pytest.raises(StreamRPNError, match="the work broke"):
                seen.extend(map_in_order(work, (item for item in behind), 2, behind=behind))
            took = time.monotonic() - began
            silence.set()
        assert seen == [0, 1]
        assert took < 30

    def test_shares_out_the_cores_and_leaves_other_threads_theirs(self):
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(4)
            # An operation first: it must not make a worker forget its share.
            counts = map_in_order(
                lambda _: (torch.ones(99_999).sum(), torch.get_num_threads())[1],
                range(8),
                2,
                share_cores=True,
            )
            assert set(counts) == {2}
            others = []
            thread = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
            thread.start()
            thread.join()
            assert [torch.get_num_threads(), *others] == [4, 4]
        finally:
            torch.set_num_threads(before)


class TestBatches:
    def test_one_input_shape_each(self, mixed):
        grouped = list(batches(mixed, 3, SPEC))
        assert [len(batch) for batch in grouped] == [3, 2, 3, 1, 3, 1]
        assert [f for batch in grouped for f in batch] == mixed

    def test_a_full_batch_does_not_wait_for_the_next_frame(self, mixed):
        taken = []
        frames = (taken.append(f) or f for f in mixed)
        next(batches(frames, 3, SPEC))
        assert len(taken) == 3

    def test_an_exception_comes_after_the_frames_before_it(self, mixed):
        def broken():
            yield from mixed[:4]
            raise StreamRPNError("broken")

        seen = []
        with pytest.raises(StreamRPNError, match="broken"):
            seen.extend(batches(broken(), 3, SPEC))
        assert [len(batch) for batch in seen] == [3, 1]

    def test_no_frames(self):
        assert list(batches([], 3, SPEC)) == []


def ring(batch=3):
    return Ring(CPU, batch, SPEC)


def contents(slot, stream):
    """What the device has of a batch: its frames' numbers, and the images as tensors."""
    packed = slot.receive(stream)
    out = torch.empty(len(packed.table), 3, *slot.shape)
    mean, std = torch.tensor(SPEC.mean), torch.tensor(SPEC.std)
    from stream_rpn.kernels.preprocess import preprocess_batch

    return preprocess_batch(*packed, mean, std, out)


class TestUpload:
    def test_what_arrives_is_what_the_frames_hold(self, mixed):
        stream = HostStream()
        expected, _ = zip(*(preprocess.to_input([f], SPEC) for f in mixed), strict=True)
        position, lengths = 0, []
        for slot in upload(mixed, ring(), StageTimes(), keep_images=True):
            images = contents(slot, stream)
            for row, frame in enumerate(slot.frames):
                assert frame is mixed[position]
                torch.testing.assert_close(images[row], expected[position][0], rtol=0, atol=0)
                position += 1
            for row in range(len(slot.frames), 3):
                torch.testing.assert_close(images[row], images[len(slot.frames) - 1])
            lengths.append(len(slot.frames))
            assert slot.sizes() == [
                (64, 96) if f.width > f.height else (96, 64) for f in slot.frames
            ]
            slot.release(stream)
        assert position == len(mixed)
        assert lengths == [3, 2, 3, 1, 3, 1]

    def test_none_sends_a_batch_before_it_is_full(self, mixed):
        same = mixed[:2]
        lengths = []
        given = [None, same[0], None, None, same[0], same[1], None]
        for slot in upload(given, ring(), StageTimes(), keep_images=True):
            lengths.append(len(slot.frames))
            slot.release(HostStream())
        assert lengths == [1, 2]
        assert [len(b) for b in batches(given, 3, SPEC)] == [1, 2]

    def test_slots_are_reused_in_turn_through_a_queue(self, mixed):
        stream, used = HostStream(), []
        around = ring(1)
        arriving = upload(mixed * 5, around, StageTimes(), keep_images=True)
        with prefetch(arriving, 1, name="upload") as uploads:
            for slot in uploads:
                used.append(around.slots.index(slot))
                time.sleep(0.001)
                slot.release(stream)
        assert used == [i % NUM_SLOTS for i in range(len(mixed) * 5)]

    def test_a_slot_still_in_use_is_never_overwritten(self, mixed):
        uploads = upload(mixed, ring(1), StageTimes(), keep_images=True)
        for _ in range(NUM_SLOTS):
            next(uploads)
        with pytest.raises(RuntimeError, match="not yet released"):
            next(uploads)

    def test_images_are_let_go_unless_wanted(self, mixed):
        frames = frames_of("synthetic:96x64@25,3")
        (slot,) = upload(frames, ring(), StageTimes(), keep_images=False)
        assert [f.image for f in slot.frames] == [None] * 3

    def test_a_larger_frame_of_the_same_input_shape_gets_a_slot_that_holds_it(self):
        spec_sized = frames_of("synthetic:96x64@25,1", "synthetic:1152x768@25,3")
        stream, sizes = HostStream(), []
        for slot in upload(spec_sized, ring(3), StageTimes(), keep_images=True):
            sizes.append((len(slot.frames), slot.capacity))
            contents(slot, stream)
            slot.release(stream)
        # Eight-bit 4:2:0, three frames, to the next power of two; a megabyte at least.
        assert sizes == [(1, 1 << 20), (3, 1 << 22)]

    def test_an_exception_comes_after_the_frames_before_it(self, mixed):
        def broken():
            yield from mixed[:4]
            raise StreamRPNError("broken")

        uploads, seen = upload(broken(), ring(), StageTimes(), keep_images=True), []
        with pytest.raises(StreamRPNError, match="broken"):
            seen.extend(len(slot.frames) for slot in uploads)
        assert seen == [3, 1]

    def test_a_ring_that_two_have_left_is_as_new(self, mixed):
        around, stream = ring(1), HostStream()
        for _ in range(3):
            uploads = upload(mixed, around, StageTimes(), keep_images=True)
            # Two are on their way when both sides leave.
            next(uploads).release(stream)
            next(uploads)
            next(uploads)
            uploads.close()
            assert [around.leave(), around.leave()] == [False, True]
            assert [slot.frames for slot in around.slots] == [[]] * NUM_SLOTS

    def test_surfaces_are_copied_without_waiting_for_any(self, monkeypatch):
        log = []

        class Stream(HostStream):
            def wait_event(self, event):
                log.append(("wait", self, event))

        class Event(HostEvent):
            def record(self, stream):
                log.append(("record", stream, self))

            def synchronize(self):
                log.append(("synchronize", None, self))

        monkeypatch.setattr("stream_rpn.network.upload.new_stream", lambda device: Stream())
        monkeypatch.setattr("stream_rpn.network.upload.new_event", lambda device: Event())
        around = ring()
        decoding = Stream()
        for slot in around.slots:
            slot._decoding = decoding
        surfaces = []
        for frame in frames_of("synthetic:96x64@25,3"):
            luma = np.full((64, 96), 50 + frame.index, np.uint8)
            image = SimpleNamespace(
                planes=[luma, np.full((32, 48, 2), 128, np.uint8)],
                format=SimpleNamespace(name="cuda"),
                sw_format=SimpleNamespace(name="nv12"),
                width=96,
                height=64,
            )
            surfaces.append(replace(frame, image=image))
        (slot,) = upload(surfaces, around, StageTimes(), keep_images=False)
        # Only `begin` waits, for what the slot was last used for.
        what = [kind for kind, *_ in log]
        assert "synchronize" not in what[what.index("wait") :]
        *_, copied, waited, started, uploaded = log
        assert copied == ("record", decoding, slot._copied)
        assert waited == ("wait", slot._copies, slot._copied)
        assert started == ("record", slot._copies, slot.started)
        assert uploaded == ("record", slot._copies, slot.uploaded)
        brightness = contents(slot, HostStream()).mean(dim=(1, 2, 3))
        assert (brightness.diff() > 0).all()

    def test_packing_is_timed_per_frame(self, mixed):
        times, stream = StageTimes(), HostStream()
        for slot in upload(mixed, ring(), times, keep_images=True):
            slot.release(stream)
        assert times.stages["pack"].count == len(mixed)


def test_downloads_own_their_memory():
    source = torch.arange(6.0)
    (copy,) = Download([source], HostStream(), CPU).wait()
    source.zero_()
    np.testing.assert_array_equal(copy.numpy(), np.arange(6))
