"""The GPU's form of the pipeline, run on the CPU; tests/test_network_cuda.py runs it on a GPU."""

import gc
import threading
import warnings
import weakref
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stream_rpn import Pipeline, load, sources
from stream_rpn.commands.summary import describe, source_summary
from stream_rpn.compute import DTYPES
from stream_rpn.frame import StreamRPNError
from stream_rpn.multistream import LivePolicy, LiveStreams
from stream_rpn.network import graph
from stream_rpn.network.eager import EagerNetwork
from stream_rpn.network.gpu import GPUNetwork
from stream_rpn.network.graph import MAX_GRAPHS, PATIENCE, Graph, GraphCache, capture
from stream_rpn.network.upload import HostStream, PackedBatch
from stream_rpn.sources.select import Selection
from stream_rpn.timing import StageTimes

CLIP = "synthetic:160x120@25,11"


@pytest.fixture(scope="module")
def rpn():
    torch.manual_seed(0)
    rpn = load("tiny", "random", size=96)
    # By the same formula on both; a CPU lets swscale do it otherwise.
    rpn.input_spec = replace(rpn.input_spec, antialias=False)
    return rpn


@pytest.fixture(autouse=True)
def _same_convolutions(monkeypatch):
    # Their bits depend on how many cores share one, and on how its weights are laid out.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr("stream_rpn.network.eager.packed", lambda rpn: rpn)
    yield
    torch.set_num_threads(before)


def pipeline(rpn, form, *, batch=4, device="cpu", dtype="float32", **options):
    made = Pipeline(rpn, engine="torch", device=device, dtype=dtype, batch=batch, **options)
    if device == "cpu":
        made.network = form(
            made.model,
            torch.device(made.device),
            DTYPES[made.dtype],
            made.batch,
            features=made.features,
            images=made.images,
            embedding=made.embedding,
        )
    return made


def run(made, source=CLIP):
    with made.open(source) as stream:
        return list(stream), stream


def decoded(uri):
    with sources.open_source(uri) as source:
        return list(source)


def assert_same(ours, theirs):
    assert [p.frame for p in ours] == [p.frame for p in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert len(mine) > 0
        assert (mine.pts, mine.width, mine.height) == (other.pts, other.width, other.height)
        assert mine.input_size == other.input_size
        assert mine.strides == other.strides
        for name in ("boxes", "scores", "levels", "anchors", "input_boxes"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(other, name))


class TestFormForGPUsOnTheCPU:
    @pytest.mark.parametrize("batch", [1, 4, 16], ids=lambda b: f"batch{b}")
    def test_gives_the_same_results(self, rpn, batch):
        expected, _ = run(pipeline(rpn, EagerNetwork, batch=batch))
        found, stream = run(pipeline(rpn, GPUNetwork, batch=batch))
        assert_same(found, expected)
        assert len(found) == 11
        stages = ["decode", "pack", "upload", "preprocess", "backbone", "head", "proposals"]
        assert set(stream.times.stages) == {*stages, "results"}
        assert all(stream.times.stages[stage].count == 11 for stage in stages)

    def test_frames_that_lie_on_the_gpu_take_the_short_way(self, rpn):
        expected, _ = run(pipeline(rpn, EagerNetwork))
        made, times = pipeline(rpn, GPUNetwork), StageTimes()
        frames = decoded(CLIP)
        queues = made.network.queues(iter(frames), times)
        # Behind the decoder of surfaces there is none, and `pipeline` puts none before.
        assert len(queues._all) == 2
        assert_same(list(queues), expected)
        queues.close()

    def test_batches_without_threads(self, rpn):
        expected, _ = run(pipeline(rpn, EagerNetwork))
        made = pipeline(rpn, GPUNetwork)
        frames = decoded(CLIP)
        assert_same(list(made.process([frames[:5], frames[5:]], StageTimes())), expected)

    def test_feature_maps_and_images(self, rpn):
        expected, _ = run(pipeline(rpn, EagerNetwork, features=True, images=True))
        found, _ = run(pipeline(rpn, GPUNetwork, features=True, images=True))
        for mine, other in zip(found, expected, strict=True):
            assert mine.image.pts == other.pts
            assert mine.features.keys() == other.features.keys()
            for name, feature in other.features.items():
                torch.testing.assert_close(mine.features[name], feature, rtol=0, atol=0)

    def test_vectors_of_boxes(self, rpn):
        expected, _ = run(pipeline(rpn, EagerNetwork, embed=True))
        found, _ = run(pipeline(rpn, GPUNetwork, embed=True))
        for mine, other in zip(found, expected, strict=True):
            assert mine.embeddings.shape[0] == len(mine) > 0
            np.testing.assert_array_equal(mine.embeddings, other.embeddings)

    def test_leaving_early_leaves_no_thread(self, rpn):
        before = threading.active_count()
        with pipeline(rpn, GPUNetwork, batch=1).open("synthetic:160x120@25,500") as stream:
            next(iter(stream))
        assert threading.active_count() == before

    def test_a_source_that_breaks_gives_the_frames_before(self, rpn):
        made = pipeline(rpn, GPUNetwork)
        frames = decoded(CLIP)

        def broken():
            yield from frames[:6]
            raise StreamRPNError("broken")

        queues = made.network.queues(broken(), StageTimes())
        seen = []
        with pytest.raises(StreamRPNError, match="broken"):
            seen.extend(queues)
        assert [p.frame for p in seen] == list(range(6))
        queues.close()

    def test_live_sources_go_in_batches_that_do_not_wait(self, rpn):
        made = pipeline(rpn, GPUNetwork)
        uris = [f"lavfi:testsrc=size={size}:rate=20:duration=1" for size in ("64x48", "96x48")]
        with LiveStreams(made, uris, Selection(), LivePolicy(max_age=30)) as streams:
            results = [proposals for proposals in streams if proposals is not None]
        assert {p.source_index: p.width for p in results} == {0: 64, 1: 96}
        for stream in streams.streams:
            assert stream.failure is None
            assert stream.num_results + sum(stream.drops.values()) == stream.frames_in == 20

    def test_results_do_not_wait_for_frames_that_are_not_there(self, rpn):
        made = pipeline(rpn, GPUNetwork, batch=1)
        frames = decoded(CLIP)
        more = threading.Event()

        def live():
            yield frames[0]
            assert more.wait(30)
            yield frames[1]

        queues = made.network.queues(live(), StageTimes())
        assert next(iter(queues)).frame == 0
        more.set()
        assert next(iter(queues)).frame == 1
        queues.close()


class TestStreams:
    """Of copies and networks: torch has few, and gives the same ones out again."""

    @pytest.fixture
    def made(self, monkeypatch):
        made = []

        def new_stream(device, *, priority=0):
            made.append(priority)
            return HostStream()

        monkeypatch.setattr("stream_rpn.network.upload.new_stream", new_stream)
        monkeypatch.setattr("stream_rpn.network.gpu.new_stream", new_stream)
        return made

    def test_do_not_grow_in_number_with_sources(self, rpn, made):
        network = pipeline(rpn, GPUNetwork)
        expected, _ = run(network)
        for _ in range(5):
            assert_same(run(network)[0], expected)
        for _ in range(5):
            assert_same(list(network.process([decoded(CLIP)], StageTimes())), expected)
        # The network's goes before the one that copies.
        assert made == [-1, 0]

    def test_are_at_most_as_many_as_sources_at_a_time(self, rpn, made):
        network = pipeline(rpn, GPUNetwork)
        for _ in range(3):
            uris = [f"synthetic:{size}@25,9" for size in ("64x48", "96x48", "64x64")]
            with LiveStreams(network, uris, Selection(), LivePolicy(realtime=True)) as streams:
                assert sum(proposals is not None for proposals in streams) > 0
        assert 1 + 1 <= len(made) <= 1 + 3

    def test_left_early_or_broken_are_there_again(self, rpn, made):
        network = pipeline(rpn, GPUNetwork, batch=1)
        for _ in range(3):
            with network.open("synthetic:160x120@25,500") as stream:
                next(iter(stream))

            def broken():
                yield from decoded(CLIP)
                raise StreamRPNError("broken")

            queues = network.network.queues(broken(), StageTimes())
            with pytest.raises(StreamRPNError, match="broken"):
                list(queues)
            queues.close()
        assert made == [-1, 0]

    def test_of_another_input_size_are_others(self, rpn, made):
        network = pipeline(load(rpn), GPUNetwork)
        expected, _ = run(network)
        spec = network.network.rpn.input_spec
        network.network.rpn.input_spec = replace(spec, min_size=64)
        assert run(network)[0][0].input_size[0] == 64
        network.network.rpn.input_spec = spec
        assert_same(run(network)[0], expected)
        assert made == [-1, 0, 0]


def batch_of(value: int, size: int = 8) -> PackedBatch:
    return PackedBatch(
        torch.full((size,), value, dtype=torch.uint8),
        torch.full((2, 12), value),
        torch.full((2, 3, 4), float(value)),
    )


class Captures:
    """Stands for captures: a graph calls its function and keeps the outputs in one place."""

    def __init__(self, fail: bool = False):
        self.count, self.fail = 0, fail

    def __call__(self, function, inputs, pool):
        self.count += 1
        if self.fail:
            raise RuntimeError("operation not permitted when stream is capturing")
        outputs = function(inputs)
        return Graph(lambda: outputs.copy_(function(inputs)), inputs, outputs)


def double(batch: PackedBatch) -> torch.Tensor:
    return batch.matrix * 2


class TestGraphCache:
    def run(self, cache, key, value, size=8, capacity=16):
        graph = cache.get(key, double, batch_of(value, size), capacity)
        if graph is None:
            return None
        graph.replay()
        return float(graph.outputs[0, 0, 0])

    def test_captures_after_some_equal_batches_and_then_replays(self):
        captures = Captures()
        cache = GraphCache(capture=captures)
        values = [self.run(cache, "a", v) for v in range(PATIENCE + 3)]
        assert values[:PATIENCE] == [None] * PATIENCE
        assert values[PATIENCE:] == [2.0 * v for v in range(PATIENCE, PATIENCE + 3)]
        assert captures.count == 1

    def test_shorter_data_fills_the_front_of_the_graphs_own(self):
        cache = GraphCache(capture=Captures())
        for size in (8, 8, 8, 8, 3):
            graph = cache.get("a", double, batch_of(size, size), 16)
        assert len(graph.inputs.data) == 16
        assert graph.inputs.data[:8].tolist() == [3, 3, 3, 8, 8, 8, 8, 8]

    def test_kinds_differ_by_key_and_by_capacity(self):
        captures = Captures()
        cache = GraphCache(capture=captures)
        for _ in range(PATIENCE + 1):
            for key, capacity in (("a", 16), ("b", 16), ("a", 32)):
                self.run(cache, key, 1, capacity=capacity)
        assert captures.count == 3

    def test_the_graphs_used_last_are_kept(self):
        captures = Captures()
        cache = GraphCache(capture=captures)
        for key in range(MAX_GRAPHS):
            for _ in range(PATIENCE + 1):
                self.run(cache, key, 1)
        self.run(cache, 0, 1)
        for _ in range(PATIENCE + 1):
            self.run(cache, "new", 1)
        assert captures.count == MAX_GRAPHS + 1
        assert self.run(cache, 0, 5) == 10.0
        assert self.run(cache, 1, 5) is None

    def test_many_kinds_in_turn_do_not_capture_all_the_time(self):
        captures, rounds = Captures(), 60
        cache = GraphCache(capture=captures)
        for _ in range(rounds):
            for key in range(MAX_GRAPHS + 1):
                self.run(cache, key, 1)
        assert captures.count < 2 * MAX_GRAPHS + rounds * (MAX_GRAPHS + 1) / 16

    def test_a_failure_is_reported_once_and_everything_runs_eagerly(self):
        captures = Captures(fail=True)
        cache = GraphCache(capture=captures)
        keys = ["a"] * (PATIENCE + 3) + ["b"] * (PATIENCE + 3)
        with pytest.warns(RuntimeWarning, match="could not be captured.*not permitted") as caught:
            found = [self.run(cache, key, 1) for key in keys]
        assert found == [None] * len(keys)
        assert len(caught) == 1
        assert captures.count == 1

    def test_an_obstacle_that_was_reported_already_is_not_reported_again(self):
        captures, obstacles = Captures(), [None, "the Triton kernel of nms failed"]
        cache = GraphCache(capture=captures, obstacle=lambda: obstacles.pop(0))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = [self.run(cache, "a", 1) for _ in range(PATIENCE + 3)]
        assert found == [None] * (PATIENCE + 3)
        assert captures.count == 0
        # It is asked no more.
        assert obstacles == []
        assert cache.why_not == "the Triton kernel of nms failed"

    def test_an_obstacle_that_a_capture_meets_is_not_reported_again(self):
        captures, obstacle = Captures(fail=True), []
        cache = GraphCache(capture=captures, obstacle=lambda: (obstacle or [None])[0])

        def meets(*args):
            obstacle.append("the Triton kernel of nms failed")
            return captures(*args)

        cache._capture = meets
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(PATIENCE + 2):
                assert self.run(cache, "a", 1) is None
        assert captures.count == 1
        assert cache.why_not == "the Triton kernel of nms failed"

    def test_an_obstacle_that_comes_later_leaves_the_graphs_that_are_there(self):
        obstacle = []
        cache = GraphCache(capture=Captures(), obstacle=lambda: obstacle and "in the way")
        for value in range(PATIENCE + 1):
            self.run(cache, "a", value)
        obstacle.append(1)
        assert self.run(cache, "b", 1) is None
        assert self.run(cache, "a", 7) == 14.0

    def test_the_reason_is_one_line(self):
        def fails(*_):
            raise RuntimeError("CUDA error: not permitted\nCompile with `TORCH_USE_CUDA_DSA`")

        cache = GraphCache(capture=fails)
        with pytest.warns(
            RuntimeWarning, match=r"slower: RuntimeError: CUDA error: not permitted$"
        ):
            [self.run(cache, "a", 1) for _ in range(PATIENCE + 1)]
        assert cache.why_not == "RuntimeError: CUDA error: not permitted"

    def test_disabled(self):
        cache = GraphCache(enabled=False, capture=Captures())
        assert all(self.run(cache, "a", 1) is None for _ in range(10))

    def test_the_pipeline_reads_a_graphs_outputs_before_the_next_replay(self, rpn):
        expected, _ = run(pipeline(rpn, EagerNetwork, batch=1, features=True))
        made = pipeline(rpn, GPUNetwork, batch=1, features=True)

        class Outputs(Captures):
            def __call__(self, function, inputs, pool):
                self.count += 1
                outputs = function(inputs)

                def replay():
                    new = function(inputs)
                    kept = (*outputs.kept, *outputs.maps.values())
                    for old, value in zip(kept, (*new.kept, *new.maps.values()), strict=True):
                        old.copy_(value)

                return Graph(replay, inputs, outputs)

        captures = Outputs()
        made.network._graphs = GraphCache(capture=captures)
        found, stream = run(made)
        assert captures.count == 1
        assert_same(found, expected)
        assert stream.times.stages["network"].count == 11 - PATIENCE
        for mine, other in zip(found, expected, strict=True):
            for name, feature in other.features.items():
                torch.testing.assert_close(mine.features[name], feature, rtol=0, atol=0)


class TestCapture:
    """What is done around a capture, with stand-ins for torch's part of it."""

    @pytest.fixture
    def calls(self, monkeypatch):
        calls = SimpleNamespace(made=[], end=None, allocator=None)

        class Recording:
            def __init__(self, graph, *, pool, stream, capture_error_mode):
                assert (stream, capture_error_mode) == ("the network's", "thread_local")
                self.pool = pool

            def __enter__(self):
                calls.made.append(("begin", self.pool))

            def __exit__(self, *_):
                calls.made.append(("end", self.pool))
                error, calls.end = calls.end, None
                if error is not None:
                    raise error

        def allocator(name):
            def call(device, pool):
                calls.made.append((name, device, pool))
                if calls.allocator is not None:
                    raise calls.allocator

            return call

        zeros = torch.zeros
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=None))
        monkeypatch.setattr(torch.cuda, "graph", Recording)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the network's")
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        monkeypatch.setattr(torch, "zeros", lambda *sizes, device: zeros(*sizes))
        for name in ("endAllocateToPool", "releasePool"):
            monkeypatch.setattr(torch._C, f"_cuda_{name}", allocator(name), raising=False)
        monkeypatch.setattr(graph, "_failed", [])
        return calls

    def test_that_succeeds_runs_the_function_once_before(self, calls):
        seen = []
        made = capture(lambda batch: seen.append(len(calls.made)) or 3, batch_of(1), (0, 7))
        assert made.outputs == 3
        assert seen == [0, 1]
        assert calls.made == [("begin", (0, 7)), ("end", (0, 7))]

    def fail(self, calls):
        calls.end = RuntimeError("CUDA error: the capture was spoilt before")

        def waits(batch):
            if calls.made:
                raise RuntimeError("CUDA error: not permitted when stream is capturing")

        with pytest.raises(RuntimeError, match="not permitted"):
            capture(waits, batch_of(1), (0, 7))

    def test_that_fails_says_why_and_ends_what_torch_leaves_open(self, calls):
        self.fail(calls)
        assert calls.made == [
            ("begin", (0, 7)),
            ("end", (0, 7)),
            ("endAllocateToPool", 1, (0, 7)),
            ("releasePool", 1, (0, 7)),
            # An empty one, for the random numbers.
            ("begin", None),
            ("end", None),
        ]
        assert len(graph._failed) == 1

    def test_that_fails_leaves_be_what_torch_has_ended(self, calls):
        calls.allocator = RuntimeError("not currently recording to mempool_id")
        self.fail(calls)
        assert [name for name, *_ in calls.made] == [
            "begin", "end", "endAllocateToPool", "begin", "end",
        ]  # fmt: skip
        assert graph._failed == []

    def test_that_fails_in_its_end_only(self, calls):
        calls.end = RuntimeError("CUDA error: out of memory")
        with pytest.raises(RuntimeError, match="out of memory"):
            capture(lambda batch: 3, batch_of(1), (0, 7))
        assert ("endAllocateToPool", 1, (0, 7)) in calls.made

    def test_that_fails_in_python_is_no_graph(self, calls):
        def fails(batch):
            if calls.made:
                raise KeyError("unknown")

        with pytest.raises(KeyError):
            capture(fails, batch_of(1), (0, 7))
        assert calls.made == [("begin", (0, 7)), ("end", (0, 7))]

    def test_lets_go_of_the_tensors_of_one_that_failed(self, calls):
        class Memory:
            pass

        references = []

        def fails(batch):
            memory = Memory()
            references.append(weakref.ref(memory))
            if calls.made:
                raise RuntimeError("no")

        gc.disable()
        try:
            with suppress(RuntimeError):
                capture(fails, batch_of(1), (0, 7))
            assert [reference() for reference in references] == [None, None]
        finally:
            gc.enable()


def test_a_gpu_that_captures_nothing_says_why():
    why_not = graph.why_no_capture(torch.device("cuda", 0))
    if torch.cuda.is_available():
        assert why_not is None
    else:
        assert "\n" not in why_not
        assert len(why_not) > 10


def test_a_summary_says_that_nothing_could_be_captured_and_why(rpn):
    made = pipeline(rpn, GPUNetwork)
    assert "without_cuda_graph" not in made.facts()
    made.network._graphs.why_not = "triton is not installed"
    with made.open(CLIP) as stream:
        list(stream)
    summary = source_summary(stream, made.facts(), [], None)
    assert summary["without_cuda_graph"] == "triton is not installed"
    assert "on cpu (kernel by kernel, without a CUDA graph: triton is not" in describe(summary)


def test_host_stream_orders_nothing():
    stream = HostStream()
    stream.wait_event(None)
    stream.synchronize()
