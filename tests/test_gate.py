"""The gate: what is a change and what is none, and the order of what is looked at and held."""

import itertools
import json
import re
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import stream_rpn
from stream_rpn import sinks
from stream_rpn.cli import main
from stream_rpn.drops import Drop
from stream_rpn.frame import Color, Frame, Proposals, StreamRPNError
from stream_rpn.gate import BLOCKS, Gate, GateSpec, block_means
from stream_rpn.input_spec import InputSpec
from stream_rpn.multiplex import Lane, Multiplexer
from stream_rpn.network.eager import batches
from stream_rpn.network.gated import ROOM, ROOM_FOR_IMAGES, GatedNetwork
from stream_rpn.network.gpu import GPUNetwork
from stream_rpn.network.network import Network
from stream_rpn.pipeline import Pipeline
from stream_rpn.queues import Queues, map_in_order, prefetch
from stream_rpn.timing import StageTimes
from tests.records import INFO, make_proposals
from tests.waiting import eventually

COLOR = Color("bt709", full_range=False, tagged=True)
RATE = 25

pytestmark = pytest.mark.usefixtures("own_folder", "no_thread_is_left")


def image_of(luma: np.ndarray, pixels: str = "yuv420p") -> av.VideoFrame:
    """Returns a picture of that luma; of ten bits the values are those of ten bits."""
    height, width = luma.shape
    image = av.VideoFrame(width, height, pixels)
    plane = image.planes[0]
    kind = np.uint16 if "10" in pixels else np.uint8
    rows = np.frombuffer(plane, kind).reshape(plane.height, -1)
    rows[:height, :width] = luma
    rows[:height, width:] = 77  # what lies beyond the picture counts for nothing
    return image


def frame_of(luma: np.ndarray, index: int = 0, pixels: str = "yuv420p", **more) -> Frame:
    fields = {"pts_seconds": index / RATE, "width": luma.shape[1], "height": luma.shape[0]}
    return Frame(
        index=index, pts=index, rotation=0, color=COLOR, image=image_of(luma, pixels),
        **(fields | more),
    )  # fmt: skip


def scene(width: int = 640, height: int = 360, seed: int = 0) -> np.ndarray:
    """Returns the luma of a street: smooth parts, edges, fine texture; float32."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(40, 200, (height // 40 + 1, width // 40 + 1))
    blocks = np.kron(coarse, np.ones((40, 40)))[:height, :width]
    return (blocks + rng.normal(0, 6, (height, width))).astype(np.float32)


def whole(luma: np.ndarray) -> np.ndarray:
    return luma.round().clip(0, 255).astype(np.uint8)


def looks(lumas, spec: GateSpec | None = None, gate: Gate | None = None) -> list[bool]:
    """Returns which of the pictures are looked at."""
    gate = gate or Gate(spec or GateSpec(hold_seconds=1e6))
    return [gate.looks(frame_of(whole(luma), index)) for index, luma in enumerate(lumas)]


class TestWhatIsAChange:
    def test_a_picture_that_stays_is_looked_at_once(self):
        assert looks([scene()] * 20) == [True] + [False] * 19

    @pytest.mark.parametrize("sigma", [0.5, 1, 2, 4, 6, 8])
    def test_noise_of_the_sensor_is_none(self, sigma):
        rng = np.random.default_rng(1)
        still = scene()
        seen = looks(still + rng.normal(0, sigma, still.shape) for _ in range(60))
        # The first two are needed to know the noise.
        assert seen[0]
        assert sum(seen[2:]) == 0

    def test_an_exposure_that_changes_a_little_is_none(self):
        still = scene() * 0.8 + 10
        assert sum(looks(still * gain + 3 for gain in (1, 1.02, 1.05, 1.1, 1.05, 0.95))) == 1

    def test_a_light_that_is_switched_off_is_one(self):
        assert looks([scene(), scene() * 0.5]) == [True, True]

    def test_a_cut_is_one(self):
        assert looks([scene(), scene(), scene(seed=5), scene(seed=5)]) == [True, False, True, False]

    @pytest.mark.parametrize("sigma", [0, 3])
    @pytest.mark.parametrize("contrast", [40, -40])
    def test_an_object_of_a_hundredth_of_the_width_is_one_within_a_frame(self, sigma, contrast):
        rng = np.random.default_rng(2)
        still = scene(1920, 1080)
        for _ in range(6):
            gate = Gate(GateSpec(hold_seconds=1e6))
            left, top = rng.integers(0, 1800), rng.integers(0, 1000)
            pictures = [still + rng.normal(0, sigma, still.shape) for _ in range(6)]
            for picture in pictures[4:]:
                picture[top : top + 38, left : left + 19] += contrast
            seen = looks(pictures, gate=gate)
            assert seen[2:5] == [False, False, True]

    def test_an_object_too_pale_for_one_block_is_one_where_it_fills_many(self):
        still = np.full((360, 640), 100, np.float32)
        pale = still.copy()
        pale[100:160, 200:260] += 3
        assert looks([still, still, pale]) == [True, False, True]

    def test_what_changes_slowly_adds_up(self):
        still = scene()
        pictures = []
        for index in range(120):
            picture = still.copy()
            picture[100:180, 200:240] += index * 0.25  # it comes out of the fog
            pictures.append(picture)
        seen = looks(pictures)
        # Each step alone is none.
        assert not any(seen[1:5])
        assert 4 <= sum(seen) <= 40

    def test_a_pan_is_not_taken_for_noise(self):
        wide = scene(1200, 360)
        seen = looks(wide[:, 2 * index : 2 * index + 640] for index in range(150))
        assert all(seen)

    def test_a_level_asks_for_more_or_less(self):
        still = scene()
        changed = still.copy()
        changed[100:116, 200:216] += 8
        assert looks([still, still, changed], GateSpec(0.5))[-1]
        assert looks([still, still, changed], GateSpec(1.0))[-1]
        assert not looks([still, still, changed], GateSpec(8.0))[-1]


class TestWhenItLooksAnyway:
    def test_after_the_hold_time(self):
        seen = looks([scene()] * (4 * RATE), GateSpec(hold_seconds=1.0))
        assert [i for i, look in enumerate(seen) if look] == [0, 25, 50, 75]

    def test_when_the_clock_goes_back(self):
        gate = Gate(GateSpec())
        luma = whole(scene())
        times = [0.0, 0.04, 100.0, 0.0, 0.04]
        seen = [gate.looks(frame_of(luma, pts_seconds=seconds)) for seconds in times]
        assert seen == [True, False, True, True, False]

    def test_by_the_time_of_arrival_of_what_is_live(self):
        gate = Gate(GateSpec(hold_seconds=5.0))
        luma = whole(scene())
        frames = [frame_of(luma, pts_seconds=None, arrived=1000.0 + 2 * i) for i in range(5)]
        assert [gate.looks(frame) for frame in frames] == [True, False, False, True, False]

    def test_where_nothing_tells_the_time(self):
        gate = Gate(GateSpec())
        frames = [frame_of(whole(scene()), pts_seconds=None) for _ in range(3)]
        assert all(gate.looks(frame) for frame in frames)
        assert gate.blind == "frames have no times"

    def test_at_surfaces_of_a_gpu(self):
        gate = Gate(GateSpec())
        image = SimpleNamespace(sw_format=SimpleNamespace(name="nv12"), width=640, height=360)
        frame = replace(frame_of(whole(scene())), image=image)
        assert gate.looks(frame)
        assert gate.looks(frame)
        assert "NVDEC" in gate.blind

    @pytest.mark.parametrize(
        "change",
        [{"rotation": 180}, {"mirrored": True}, {"color": replace(COLOR, matrix="bt601")}],
    )
    def test_when_the_picture_is_another_kind(self, change):
        gate = Gate(GateSpec())
        frames = [frame_of(whole(scene()), index) for index in range(4)]
        frames[2:] = [replace(frame, **change) for frame in frames[2:]]
        assert [gate.looks(frame) for frame in frames] == [True, False, True, False]

    def test_when_the_size_changes(self):
        gate = Gate(GateSpec())
        pictures = [scene(), scene(), scene(320, 240), scene(320, 240), scene()]
        assert looks(pictures, gate=gate) == [True, False, True, False, True]


class TestBlockMeans:
    @settings(max_examples=80, deadline=None)
    @given(
        width=st.integers(2, 700),
        height=st.integers(2, 300),
        pixels=st.sampled_from(["yuv420p", "yuvj420p", "nv12", "yuv420p10le", "p010le"]),
        seed=st.integers(0, 99),
    )
    def test_are_those_of_the_samples(self, width, height, pixels, seed):
        width, height = width // 2 * 2, height // 2 * 2
        rng = np.random.default_rng(seed)
        eight = rng.integers(0, 256, (height, width))
        factor = {"yuv420p10le": 4, "p010le": 256}.get(pixels, 1)
        white = {"yuv420p10le": 1023, "p010le": 65472}.get(pixels, 255)
        kind = np.uint16 if factor > 1 else np.uint8
        means = block_means(frame_of((eight * factor).astype(kind), pixels=pixels))
        if min(width, height) < 4:
            assert means is None
            return
        rows, columns = means.shape
        side = width // columns if columns > 1 else height // rows
        side = 1 << (side.bit_length() - 1)
        while height // side != rows or width // side != columns:
            side *= 2
            assert side <= 512
        across, down = (8, 2) if side >= 8 else (4, 4)
        samples = eight[: rows * side : side // down, : columns * side : side // across]
        expected = samples.reshape(rows, down, columns, across).mean((1, 3))
        expected = expected * factor * 255 / white
        np.testing.assert_allclose(means, expected, rtol=1e-5)

    @pytest.mark.parametrize("width", [320, 640, 1280, 1920, 3840, 7680])
    def test_are_about_as_many_across_whatever_the_size(self, width):
        _, columns = block_means(frame_of(np.zeros((64, width), np.uint8))).shape
        assert BLOCKS / 1.5 <= columns <= BLOCKS * 1.5

    @pytest.mark.parametrize(("width", "height"), [(2, 2), (4, 4), (6, 2), (16, 6), (1920, 8)])
    def test_tiny_pictures_pass(self, width, height):
        luma = np.full((height, width), 90, np.uint8)
        changed = luma.copy()
        changed[:, : width // 2] = 200
        seen = looks([luma, luma, changed])
        assert seen[0]
        assert seen[2]


class TestSpec:
    def test_parses(self):
        assert GateSpec.parse("off") is None
        assert GateSpec.parse("auto") == GateSpec(1.0, 5.0)
        assert GateSpec.parse("2.5", 1.0) == GateSpec.parse(2.5, 1.0) == GateSpec(2.5, 1.0)

    @pytest.mark.parametrize("gate", ["on", "", "nan", "inf", "-1", 0, -2.0, None])
    def test_refuses_what_is_no_level(self, gate):
        with pytest.raises(StreamRPNError, match=r"gate.*number above 0"):
            GateSpec.parse(gate)

    def test_refuses_what_is_no_hold_time(self):
        with pytest.raises(StreamRPNError, match="hold time must be a number above 0, got 0"):
            GateSpec.parse("auto", 0)


# Two pictures between which everything changes; and no exposure can do that.
SIDES = [np.repeat([[50], [200]], 8, axis=0).repeat(16, axis=1).astype(np.uint8)]
SIDES.append(SIDES[0][::-1].copy())


class Camera:
    """Makes frames of one source that are looked at or not, as it is told."""

    def __init__(self, source: int = 0, *, live: bool = False) -> None:
        self._source, self._live = source, live
        self._side = self._count = 0
        self._first = True

    def frame(self, look: bool, **more) -> Frame:
        self._side ^= look and not self._first
        self._first = False
        index, self._count = self._count, self._count + 1
        arrived = time.monotonic() if self._live else None
        return frame_of(
            SIDES[self._side], index, source_index=self._source, arrived=arrived, **more
        )


class Looking(Network):
    """A network whose boxes say which frame they are of; batches, workers and failures as given."""

    def __init__(self, batch: int = 1, *, workers: int = 2, fail_at: int | None = None) -> None:
        self.batch, self._workers, self._fail_at = batch, workers, fail_at
        self.seen: list[tuple[int, int]] = []
        self.batches: list[int] = []

    def queues(self, frames, times, *, latency=False):
        computed = map_in_order(self._look, self._grouped(frames), self._workers, behind=frames)
        results = itertools.chain.from_iterable(computed)
        return Queues(frames, last=prefetch(results, 2 * self.batch, name="propose"))

    def process(self, frames, times):
        return itertools.chain.from_iterable(map(self._look, frames))

    def _grouped(self, frames):
        def noted():
            for frame in frames:
                if frame is not None:
                    self.seen.append((frame.source_index, frame.index))
                yield frame

        return batches(noted(), self.batch, InputSpec(min_size=64, max_size=128))

    def _look(self, frames):
        self.batches.append(len(frames))
        if self._fail_at is not None and any(frame.index == self._fail_at for frame in frames):
            raise StreamRPNError("the network broke")
        return [
            Proposals.of(
                frame,
                boxes=np.full((1, 4), 1000 * frame.source_index + frame.index, np.float32),
                scores=np.ones(1, np.float32),
                levels=np.zeros(1, np.int32),
                anchors=np.zeros(1, np.int32),
                input_boxes=np.zeros((1, 4), np.float32),
                keep_image=True,
            )
            for frame in frames
        ]


def gated(network: Looking, frames, *, images: bool = False, spec: GateSpec | None = None):
    spec = spec or GateSpec(hold_seconds=1e6)
    return GatedNetwork(network, spec, network.batch, images=images).queues(frames, StageTimes())


def within(seconds: float, work):
    """Returns what `work` does, which must not take for ever."""
    done = []
    thread = threading.Thread(target=lambda: done.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert done, "it hangs, or failed"
    return done[0]


class TestOrder:
    @settings(max_examples=60, deadline=None)
    @given(
        steps=st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.booleans()), max_size=60),
        batch=st.integers(1, 8),
        workers=st.integers(1, 3),
        images=st.booleans(),
    )
    def test_every_frame_has_its_result_in_its_order(self, steps, batch, workers, images):
        cameras = [Camera(source) for source in range(3)]
        given_frames, expected, looked = [], [], {}
        for number, (source, look, pause) in enumerate(steps):
            drops = (Drop("stale", number, None),) if number % 5 == 0 else ()
            frame = cameras[source].frame(look, drops=drops, name=f"{number}")
            if look or source not in looked:
                looked[source] = frame.index
            held = None if looked[source] == frame.index else looked[source]
            expected.append((source, frame.index, frame.pts_seconds, drops, f"{number}", held))
            given_frames += [frame, None] if pause else [frame]
        network = Looking(batch, workers=workers)

        def run():
            with gated(network, iter(given_frames), images=images) as results:
                return list(results)

        results = within(60, run)
        found = [(p.source_index, p.frame, p.pts_seconds, p.drops, p.name, p.held) for p in results]
        assert found == expected
        for p in results:
            of = p.frame if p.held is None else p.held
            assert p.boxes[0, 0] == 1000 * p.source_index + of
        assert network.seen == [e[:2] for e in expected if e[5] is None]
        if images:
            by_name = {f.name: f.image for f in given_frames if f is not None}
            assert all(p.image is by_name[p.name] for p in results)
        else:
            assert all(p.image is None for p in results if p.held is not None)

    @pytest.mark.parametrize("batch", [1, 4])
    @pytest.mark.parametrize("taken", [0, 1, 7])
    def test_leaving_early_ends_all_threads(self, batch, taken):
        camera = Camera()
        endless = (camera.frame(index % 3 == 0) for index in itertools.count())

        def run():
            decoded = prefetch(endless, 4, name="decode")
            with gated(Looking(batch), decoded) as results:
                return len(list(itertools.islice(results, taken)))

        assert within(60, run) == taken

    @pytest.mark.parametrize("batch", [1, 4])
    @pytest.mark.parametrize("look", [True, False])
    def test_a_source_that_breaks_does_so_after_the_results_before_it(self, batch, look):
        camera = Camera()

        def frames():
            for index in range(9):
                yield camera.frame(index % 2 == 0)
            yield camera.frame(look)
            raise StreamRPNError("the source broke")

        seen = []

        def run():
            with gated(Looking(batch), prefetch(frames(), 4, name="decode")) as results:
                try:
                    for p in results:
                        seen.append(p.frame)
                except StreamRPNError as error:
                    return str(error)

        assert within(60, run) == "the source broke"
        assert seen == list(range(10))

    @pytest.mark.parametrize("batch", [1, 4])
    @pytest.mark.parametrize("after", ["held frames", "silence"])
    def test_a_network_that_breaks_is_heard_whatever_comes_after(self, batch, after):
        camera, released = Camera(), threading.Event()

        def frames():
            yield camera.frame(True)
            yield camera.frame(True)  # at which it breaks
            if after == "silence":
                released.wait(60)
            while True:
                yield camera.frame(False)

        def run():
            decoded = prefetch(frames(), 4, name="decode")
            try:
                with gated(Looking(batch, fail_at=1), decoded) as results:
                    for p in results:
                        assert p.frame == 0
            except StreamRPNError as error:
                released.set()
                return str(error)
            finally:
                released.set()

        if after == "silence":
            # It ends when the source lets go, as without a gate.
            threading.Timer(0.3, released.set).start()
        assert within(30, run) == "the network broke"

    @pytest.mark.parametrize("images", [False, True])
    def test_memory_is_bounded_where_nobody_takes_the_results(self, images):
        made, camera = [], Camera()

        def frames():
            for index in itertools.count():
                made.append(index)
                yield camera.frame(index == 0)

        with gated(Looking(2), frames(), images=images) as results:
            next(iter(results))
            room = 8 + (ROOM_FOR_IMAGES if images else ROOM)
            assert eventually(lambda: len(made) >= room)
            time.sleep(0.1)
            assert len(made) <= room + 8

    def test_pictures_that_nobody_asked_for_are_let_go(self):
        camera, images = Camera(), []

        def frames():
            for index in range(30):
                frame = camera.frame(index == 0)
                images.append(frame.image)
                yield frame

        with gated(Looking(1), frames()) as results:
            held = [p for p in results if p.held is not None]
        assert len(held) == 29
        assert all(p.image is None for p in held)

    def test_held_frames_do_not_wait_for_a_batch_to_fill(self):
        camera = Camera()
        waits = threading.Event()

        def frames():
            yield camera.frame(True)
            for _ in range(40):
                yield camera.frame(False)
            waits.wait(60)

        with gated(Looking(8), frames()) as results:
            found = within(30, lambda: [p.frame for p in itertools.islice(results, 41)])
            waits.set()
        assert found == list(range(41))


class TestLive:
    @pytest.mark.parametrize("batch", [1, 4])
    @pytest.mark.parametrize("held", [1, 3, 6])
    def test_results_come_at_once_whatever_comes_next(self, batch, held):
        camera, over = Camera(live=True), threading.Event()

        def frames():
            for look in (True, *[False] * held, True):
                yield camera.frame(look)
                time.sleep(0.01)
            over.wait(60)

        lanes = Multiplexer(
            [(Lane(), frames())], size=4, batch=batch, shape=lambda frame: (16, 16),
            max_age=30.0, batch_wait=0.2, stopped=lambda: False,
        )  # fmt: skip
        try:
            with gated(Looking(batch), lanes) as results:
                found = within(30, lambda: list(itertools.islice(results, held + 2)))
                over.set()
        finally:
            over.set()
        assert [p.held for p in found] == [None, *[0] * held, None]

    def test_a_still_source_leaves_the_network_to_the_others(self):
        still, busy = Camera(0, live=True), Camera(1, live=True)

        def frames():
            for _ in range(20):
                yield still.frame(False)
                yield busy.frame(True)

        network = Looking(1)
        with gated(network, frames()) as results:
            assert len(list(results)) == 40
        assert [source for source, _ in network.seen] == [0, *[1] * 20]


def clip(path, seconds: float = 3.0) -> str:
    """Writes a clip of a still scene into which an object comes after half of the time."""
    still = scene(320, 192)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 320, 192, "yuv420p"
        stream.options = {"crf": "18", "preset": "veryfast"}
        count = int(seconds * RATE)
        for index in range(count):
            luma = still.copy()
            if index >= count // 2:
                luma[60:120, 100 + index : 130 + index] = 230
            image = image_of(whole(luma))
            for plane in image.planes[1:]:
                np.frombuffer(plane, np.uint8)[:] = 128
            image.pts = index
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    return str(path)


OPTIONS = {"size": 96, "top": 20, "device": "cpu"}


class TestWhole:
    def test_batches_of_a_gpu_are_gated_as_well(self, tmp_path):
        path = clip(tmp_path / "clip.mp4", seconds=2.0)
        rpn = stream_rpn.load("tiny", "random", size=96, top=5)
        pipeline = Pipeline(rpn, engine="torch", device="cpu", dtype="float32", batch=4)
        cpu = torch.device("cpu")
        gpu = GPUNetwork(pipeline.model, cpu, torch.float32, 4, features=False, images=False)
        pipeline.network = GatedNetwork(gpu, GateSpec(), 4, images=False)
        with pipeline.open(path) as stream:
            results = list(stream)
        assert [p.frame for p in results] == list(range(50))
        by_frame = {p.frame: p for p in results}
        held = [p for p in results if p.held is not None]
        assert 10 <= len(held) == stream.num_held <= 25
        assert all(p.boxes is by_frame[p.held].boxes for p in held)

    def test_a_summary_says_why_nothing_was_held(self, tmp_path, capsys):
        folder = tmp_path / "pictures"
        folder.mkdir()
        for name in ("a.png", "b.png"):
            Image.fromarray(whole(scene(96, 64))).save(folder / name)
        command = [str(folder), "--gate", "auto", "--size", "96", "--device", "cpu", "-o", "null"]
        assert main(command) == 0
        said = capsys.readouterr().err
        assert "2 frames, 0 held" in said
        assert "(not gated: frames have no times)" in said

    @pytest.mark.parametrize("engine", ["openvino", "torch"])
    def test_held_results_are_those_of_the_frame_that_was_looked_at(self, tmp_path, engine):
        path = clip(tmp_path / "clip.mp4")
        model = "nanodet_m" if engine == "openvino" else "tiny"
        options = OPTIONS | {"engine": engine, "model": model, "dtype": "float32"}
        every = {p.frame: p for p in stream_rpn.stream(path, **options)}
        results = list(stream_rpn.stream(path, gate="auto", images=True, **options))
        assert [p.frame for p in results] == list(every) == list(range(75))
        for p in results:
            assert p.pts_seconds == every[p.frame].pts_seconds
            assert p.image is not None
            of = every[p.frame if p.held is None else p.held]
            np.testing.assert_allclose(p.boxes, of.boxes, atol=1e-3)
        held = [p.frame for p in results if p.held is not None]
        assert 20 <= len(held) <= 37
        # The object is seen in the very frame in which it comes.
        assert results[37].held is None

    def test_every_format_tells_what_was_held(self, tmp_path, capsys):
        path = clip(tmp_path / "clip.mp4")
        names = ["a.jsonl", "a.jsonl.gz", "a.npz", "a.parquet", "a.coco.json", "a.mot.txt", "a.mp4"]
        command = [path, "--gate", "auto", "--size", "96", "--top", "20", "--device", "cpu"]
        for name in [*names, "crops/"]:
            command += ["-o", name]
        assert main([*command, "--crops", "2", "--json-summary", "summary.json"]) == 0
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert summary["gate"] == {"level": 1.0, "hold_seconds": 5.0}
        assert 20 <= summary["held"] <= 37
        assert f"75 frames, {summary['held']} held" in capsys.readouterr().err
        for name in names[:4]:
            contents = stream_rpn.read(name)
            held = [p.held for p in contents]
            assert len(held) == 75
            assert sum(h is not None for h in held) == summary["held"]
            if name != "a.parquet":
                assert contents.header["parameters"]["gate"]["level"] == 1.0
        end = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[-1])["end"]
        assert end["held"] == summary["held"]
        assert sum(1 for _ in stream_rpn.read("a.mot.txt")) == 75
        with av.open("a.mp4") as film:
            assert sum(1 for _ in film.decode(video=0)) == 75

        index = (tmp_path / "crops" / "index.jsonl").read_text()
        lines = [line for line in map(json.loads, index.splitlines()) if "file" in line]
        assert len(lines) == 150
        assert all((tmp_path / "crops" / line["file"]).is_file() for line in lines)
        for line in lines:
            assert line["file"].startswith(f"{line.get('held', line['frame']):08d}_")
        pictures = list((tmp_path / "crops").glob("*.jpg"))
        assert len(pictures) == 2 * (75 - summary["held"])
        # What was held is replaced like the rest.
        assert main([*command, "--crops", "2", "--overwrite", "--quiet"]) == 0

    def test_without_a_gate_results_are_what_they_were(self, tmp_path):
        path = clip(tmp_path / "clip.mp4", seconds=0.4)
        command = [path, "--size", "96", "--top", "5", "--device", "cpu", "--quiet"]
        assert main([*command, *["-o", "a.jsonl", "-o", "a.npz", "-o", "a.parquet"]]) == 0
        assert main([*command, "--gate", "off", "-o", "b.jsonl"]) == 0
        first = (tmp_path / "a.jsonl").read_text().splitlines()
        second = (tmp_path / "b.jsonl").read_text().splitlines()
        assert first[1:-1] == second[1:-1]
        assert json.loads(first[0])["parameters"] == json.loads(second[0])["parameters"]
        assert "held" not in "".join(first)
        assert "gate" not in json.loads(first[0])["parameters"]
        assert "held" not in np.load(tmp_path / "a.npz").files
        pyarrow = pytest.importorskip("pyarrow.parquet")
        assert "held" not in pyarrow.read_table(tmp_path / "a.parquet").column_names

    def test_live_sources_are_gated_as_well(self, tmp_path):
        command = [clip(tmp_path / "clip.mp4"), "--loop", "--gate", "auto", "--size", "96"]
        # As many results as the clip has frames, however many of those the loading network missed.
        command += ["--max-frames", str(3 * RATE), "--device", "cpu", "--quiet", "-o", "a.jsonl"]
        assert main([*command, "--json-summary", "s.json"]) == 0
        summary = json.loads((tmp_path / "s.json").read_text())
        assert summary["held"] >= 5
        assert summary["frames_in"] == summary["frames"] + sum(summary["drops"].values())
        assert all(p.unix_seconds is not None for p in stream_rpn.read("a.jsonl"))

    @pytest.mark.parametrize(
        ("option", "value"),
        [("--gate", "0"), ("--gate", "often"), ("--gate", "nan"), ("--gate-hold", "0")],
    )
    def test_bad_values_are_refused_in_one_sentence(self, option, value, capsys):
        with pytest.raises(SystemExit) as ended:
            main(["clip.mp4", option, value])
        assert ended.value.code == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert re.search(rf"stream-rpn: {option} must be .*number above 0, got '{value}'", said)

    def test_bad_values_are_refused_before_a_model_is_loaded(self):
        with pytest.raises(StreamRPNError, match="off, auto or a number above 0, got 'always'"):
            next(stream_rpn.stream("synthetic:", gate="always"))
        with pytest.raises(StreamRPNError, match="hold time"):
            next(stream_rpn.stream("synthetic:", gate="auto", gate_hold=-1))


@pytest.mark.parametrize("held", [None, 3])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.npz", "a.parquet"])
def test_a_frame_read_back_is_held_as_it_was_written(tmp_path, name, held):
    header = sinks.make_header(INFO, model="tiny", parameters={"gate": {"level": 1.0}})
    with sinks.open_sink(str(tmp_path / name)) as sink:
        sink.begin(header, INFO)
        sink.write(make_proposals(3))
        sink.write(make_proposals(4, held=held))
        sink.end({"frames": 2})
    assert [p.held for p in stream_rpn.read(tmp_path / name)] == [None, held]
