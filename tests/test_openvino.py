"""The engine OpenVINO: the same proposals as by torch, without torch where the graph is there."""

import copy
import os
import subprocess
import sys
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import stream_rpn  # before openvino: see there

pytest.importorskip("openvino")

from stream_rpn import StreamRPNError, api, engines, preprocess
from stream_rpn.frame import Proposals
from stream_rpn.input_spec import InputSpec
from stream_rpn.kernels.proposals import ProposalSpec
from stream_rpn.models import MODELS, graphs
from stream_rpn.models.checkpoint import load_model
from stream_rpn.network import openvino as engine
from stream_rpn.network.converted import Converted, UnconvertibleError
from stream_rpn.network.openvino import OpenVINONetwork
from stream_rpn.pipeline import Pipeline
from stream_rpn.rpn import RPN, RPNHead
from stream_rpn.sources import open_source
from stream_rpn.timing import StageTimes
from tests.agreement import Selection, assert_same_selection, expectations

SMALL = {"mobilenet_v3_large_fpn": 160, "vgg16": 96}


@pytest.fixture(scope="module")
def frames():
    with open_source("synthetic:320x180@10,4") as source:
        return list(source)


@cache
def lively(name: str) -> RPN:
    """A model at a small size; random weights where its own must be fetched.

    For all tests, as converting takes seconds: `stream_rpn.load` gives one that may be changed.
    """
    fetched = not MODELS[name].weights.endswith(".safetensors")
    return stream_rpn.load(name, "random" if fetched else None, size=SMALL.get(name, 128), top=100)


def by_openvino(model: RPN | Converted, frames, cores: int = 2) -> list[Proposals]:
    converted = model if isinstance(model, Converted) else Converted.of(model)
    network = OpenVINONetwork(converted, "float32", cores, images=False)
    with network.queues(frames, StageTimes()) as queues:
        return list(queues)


def selection(found: Proposals) -> Selection:
    columns = (found.input_boxes, found.scores, found.levels, found.anchors)
    return Selection(*(torch.from_numpy(column) for column in columns))


@pytest.mark.numeric
@pytest.mark.skipif(
    os.environ.get("ONEDNN_MAX_CPU_ISA") == "SSE41",
    reason="OpenVINO chooses by the true processor what oneDNN then refuses",
)
# detectron2's is made of the same layers as torchvision's, and converting takes long.
@pytest.mark.parametrize("name", [name for name in MODELS if name != "resnet50_fpn_detectron2"])
def test_proposals_are_those_of_torch_up_to_ties(frames, name):
    rpn = lively(name)
    images, sizes = preprocess.to_input(frames[:1], rpn.input_spec)
    with torch.inference_mode():
        maps = list(rpn.features(images).values())
        strides = rpn.strides(images, maps)

        def heads():
            return rpn.head(list(rpn.features(images).values()))

        spec = rpn.proposal_spec
        limits, candidates = expectations(
            heads,
            rpn.base_anchors,
            strides,
            sizes,
            pre_nms_top_n=spec.pre_nms_top_n,
            post_nms_top_n=spec.post_nms_top_n,
            nms_thresh=spec.nms_thresh,
            min_size=spec.min_size,
        )[0]
        kept = rpn(images, sizes)
    n = int(kept.count)
    expected = Selection(
        kept.boxes[0, :n], kept.scores[0, :n], kept.levels[0, :n], kept.anchors[0, :n]
    )
    (found,) = by_openvino(rpn, frames[:1])
    assert found.strides == strides
    assert len(found)
    pairs = assert_same_selection(selection(found), expected, limits, candidates)
    assert len(pairs) >= 0.8 * n


def test_the_same_frames_give_the_same_bits_whatever_runs_beside(frames):
    rpn = lively("nanodet_m")
    once, again = by_openvino(rpn, frames * 4), by_openvino(rpn, frames * 4, cores=1)
    for one, other in zip(once, again, strict=True):
        for name in ("boxes", "scores", "levels", "anchors", "input_boxes"):
            assert getattr(one, name).tobytes() == getattr(other, name).tobytes()


def test_frames_of_many_shapes_get_what_each_gets_alone(frames, monkeypatch):
    """By graphs of their own and by the one for all shapes, from run to run the same bits."""
    monkeypatch.setattr(engine, "PATIENCE", 1)
    monkeypatch.setattr(engine, "MAX_SHAPES", 2)
    model = Converted.of(lively("nanodet_m"))
    mixed = [frames[0]]
    for size in ("180x320", "240x240", "200x120"):
        with open_source(f"synthetic:{size}@10,2") as source:
            mixed += list(source)
    mixed = [mixed[i] for i in (0, 1, 3, 5, 2, 4, 6)]
    once, again = by_openvino(model, mixed), by_openvino(model, mixed)
    for frame, found, same in zip(mixed, once, again, strict=True):
        (expected,) = by_openvino(model, [frame])
        assert found.anchors.tolist() == expected.anchors.tolist()
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
        assert found.boxes.tobytes() == same.boxes.tobytes()
        assert (found.width, found.height) == (frame.width, frame.height)


@pytest.fixture(scope="module")
def tiny() -> Converted:
    return Converted.of(stream_rpn.load(lively("tiny")))


@pytest.mark.parametrize(
    "limits",
    [
        {"score_thresh": 0.4},
        {"min_size": 20.0},
        {"nms_thresh": 0.3},
        {"pre_nms_top_n": 50},
        {"post_nms_top_n": 7},
        {"score_thresh": 1.0},
    ],
    ids=str,
)
def test_every_limit_counts(frames, limits, tiny):
    rpn = stream_rpn.load(lively("tiny")).override(**limits)
    images, sizes = preprocess.to_input(frames[:1], rpn.input_spec)
    with torch.inference_mode():
        kept = rpn(images, sizes)
    (found,) = by_openvino(copy.copy(tiny).override(**limits), frames[:1])
    n = int(kept.count)
    assert found.anchors.tolist() == kept.anchors[0, :n].tolist()
    assert found.levels.tolist() == kept.levels[0, :n].tolist()
    np.testing.assert_allclose(found.input_boxes, kept.boxes[0, :n], atol=1e-2)


def test_no_limit_is_forgotten():
    tried = {
        name
        for mark in test_every_limit_counts.pytestmark
        for limits in mark.args[1]
        for name in limits
    }
    assert tried == {field.name for field in fields(ProposalSpec)}


class Backbone(nn.Module):
    def __init__(self, scale=lambda x: 1.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=8, padding=1)
        self.scale = scale

    def forward(self, x):
        return self.conv(x) * self.scale(x)


def own(backbone: nn.Module, **options) -> RPN:
    anchors = [torch.tensor([[-16.0, -16.0, 16.0, 16.0]])]
    spec = InputSpec(min_size=96, max_size=200, size_divisor=8, **options)
    return RPN(
        backbone, RPNHead(8, 1), anchors, input_spec=spec, proposal_spec=ProposalSpec(50, 20)
    )


class TestOwnModels:
    @pytest.mark.parametrize("antialias", [False, True])
    def test_are_converted(self, frames, antialias):
        rpn = own(Backbone(), antialias=antialias)
        assert Pipeline(rpn, device="cpu").engine == "openvino"
        # Which format is the default is up to the processor.
        by_openvino, by_torch = (
            Pipeline(rpn, engine=name, device="cpu", dtype="float32")
            for name in ("openvino", "torch")
        )
        (found,) = by_openvino.process([frames[:1]], StageTimes())
        (expected,) = by_torch.process([frames[:1]], StageTimes())
        np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-6)

    def test_that_depend_on_the_size_of_the_input_go_to_torch(self):
        rpn = own(Backbone(lambda x: float(x.shape[-1])))
        with pytest.raises(UnconvertibleError, match="other sizes"):
            Converted.of(rpn)
        assert Pipeline(rpn, device="cpu").engine == "torch"
        with pytest.raises(StreamRPNError, match="cannot be used"):
            Pipeline(rpn, engine="openvino", device="cpu")

    def test_that_may_do_anything_go_to_torch(self):
        class Own(RPN):
            pass

        rpn = own(Backbone())
        rpn.__class__ = Own
        assert Pipeline(rpn, device="cpu").engine == "torch"

    def test_a_hook_that_comes_later_counts(self):
        rpn = own(Backbone())
        Converted.of(rpn)
        rpn.head.cls_logits.register_forward_hook(lambda layer, given, found: found + 1)
        with pytest.raises(UnconvertibleError, match="hooks"):
            Converted.of(rpn)

    def test_that_cannot_be_converted_are_tried_once(self, monkeypatch):
        from stream_rpn.network import converted

        rpn, tries = own(Backbone(lambda x: float(x.shape[-1]))), []
        convert = converted._convert
        monkeypatch.setattr(converted, "_convert", lambda r: (tries.append(r), convert(r))[1])
        # In another format than its own it would be another model the next time.
        for _ in range(2):
            pipeline = Pipeline(stream_rpn.load(rpn), device="cpu", dtype="float32")
            assert pipeline.engine == "torch"
        assert len(tries) == 1

    def test_stay_as_they_are(self):
        rpn = own(Backbone()).to(torch.bfloat16)
        before = {name: tensor.clone() for name, tensor in rpn.state_dict().items()}
        Pipeline(rpn, device="cpu", engine="openvino")
        for name, tensor in rpn.state_dict().items():
            assert tensor.dtype == before[name].dtype
            assert torch.equal(tensor, before[name])

    def test_do_not_change_under_way(self, frames):
        rpn = own(Backbone())
        pipeline = Pipeline(rpn, device="cpu")
        (before,) = pipeline.process([frames[:1]], StageTimes())
        with torch.no_grad():
            for tensor in rpn.parameters():
                tensor.zero_()
        (after,) = pipeline.process([frames[:1]], StageTimes())
        assert after.scores.tobytes() == before.scores.tobytes()

    def test_changed_weights_are_converted_anew(self, frames):
        rpn = own(Backbone())
        (before,) = Pipeline(rpn, device="cpu").process([frames[:1]], StageTimes())
        with torch.no_grad():
            rpn.head.cls_logits.bias.data.add_(1)
        (after,) = Pipeline(rpn, device="cpu").process([frames[:1]], StageTimes())
        assert after.scores[0] > before.scores[0]


class TestFiles:
    def test_come_back_as_they_were(self, tmp_path, frames):
        converted = Converted.of(lively("tiny"))
        converted.save(tmp_path / "tiny.xml")
        again = Converted.read(tmp_path / "tiny.xml")
        for name in ("name", "trained", "input_spec", "proposal_spec"):
            assert getattr(again, name) == getattr(converted, name)
        (one,), (other,) = by_openvino(converted, frames[:1]), by_openvino(again, frames[:1])
        assert one.boxes.tobytes() == other.boxes.tobytes()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.bin", "tiny.xml"]

    @pytest.mark.parametrize("damage", ["cut", "empty", "other", "weights"])
    def test_damaged_are_as_none(self, tmp_path, damage):
        Converted.of(own(Backbone())).save(tmp_path / "own.xml")
        path = tmp_path / "own.xml"
        text = path.read_text()
        if damage == "weights":
            weights = bytearray(path.with_suffix(".bin").read_bytes())
            weights[100] ^= 1
            path.with_suffix(".bin").write_bytes(weights)
        else:
            path.write_text({"cut": text[:500], "empty": "", "other": "<net/>"}[damage])
        assert Converted.read(path) is None

    def test_are_found_by_what_they_were_made_of(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        from stream_rpn.models.checkpoint import save_weights

        rpn = load_model("tiny")
        path = str(tmp_path / "mine.safetensors")
        save_weights(rpn, path, model="tiny")
        assert graphs.find(path) is None
        graphs.keep(Converted.of(rpn), path)
        assert graphs.find(path).name == "tiny"
        with torch.no_grad():
            next(rpn.parameters()).add_(1)
        save_weights(rpn, path, model="tiny")
        assert graphs.find(path) is None

    def test_a_cache_that_cannot_be_written_is_no_error(self, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        pipeline = api.open_pipeline("classic", device="cpu")
        assert pipeline.engine == "openvino"

    def test_the_graph_that_ships_is_the_default_model(self, frames):
        from stream_rpn.models import DEFAULT_MODEL

        shipped = Converted.read(graphs.PACKAGE / "models" / f"{DEFAULT_MODEL}.xml")
        rpn = stream_rpn.load()
        shipped.override(post_nms_top_n=300)
        assert (shipped.input_spec, shipped.proposal_spec) == (rpn.input_spec, rpn.proposal_spec)
        (found,), (expected,) = by_openvino(shipped, frames[:1]), by_openvino(rpn, frames[:1])
        assert found.anchors.tolist() == expected.anchors.tolist()
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)


class TestChoice:
    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"device": "cuda"}, "on the CPU here, not on cuda"),
            ({"features": True}, "feature maps"),
            ({"dtype": "float16"}, "not in float16"),
        ],
    )
    def test_what_openvino_cannot_do_is_torchs(self, options, sentence):
        assert engines.choose_engine(**options) == "torch"
        with pytest.raises(StreamRPNError, match=sentence):
            engines.choose_engine("openvino", **options)

    def test_unknown_engines_are_refused(self):
        with pytest.raises(StreamRPNError, match="no engine 'tensorrt'; choose auto, torch"):
            engines.choose_engine("tensorrt")

    def test_without_openvino_torch_computes(self, monkeypatch):
        monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
        assert engines.choose_engine(device="cpu") == "torch"
        with pytest.raises(StreamRPNError, match="pip install openvino"):
            engines.choose_engine("openvino", device="cpu")

    @pytest.mark.parametrize(("takes", "expected"), [(True, "openvino"), (False, "torch")])
    def test_bfloat16_only_where_the_processor_has_it(self, takes, expected, monkeypatch):
        monkeypatch.setattr(engines, "takes_bfloat16", lambda: takes)
        assert engines.choose_engine(device="cpu", dtype="bfloat16") == expected


class _Core:
    """OpenVINO's, which also does `hinder` when asked to compile with a folder for its graphs."""

    def __init__(self, hinder):
        self._real, self._hinder = engine.core(), hinder
        self.asked = []

    def __getattr__(self, name):
        return getattr(self._real, name)

    def compile_model(self, graph, device, config):
        self.asked.append("CACHE_DIR" in config)
        if self.asked[-1]:
            self._hinder(Path(config["CACHE_DIR"]))
        return self._real.compile_model(graph, device, config)


def propose_twice() -> None:
    clip = "synthetic:64x64@10,2"
    assert len(list(stream_rpn.stream(clip, size=64, engine="openvino"))) == 2


class TestKeptGraphs:
    @pytest.fixture
    def kept(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        return tmp_path / "stream-rpn" / "compiled"

    def test_graphs_appear_whole_and_are_never_written_in_place(self, kept, monkeypatch):
        """Another process may have a file in its memory: cut off under it, it is killed."""
        seen = []
        core = _Core(seen.append)
        monkeypatch.setattr(engine, "core", lambda: core)
        propose_twice()
        (graph,) = kept.iterdir()
        first = graph.read_bytes(), graph.stat().st_ino
        propose_twice()
        assert (graph.read_bytes(), graph.stat().st_ino) == first
        assert kept not in seen
        # One that is damaged is made anew, in another file; who reads this one may go on.
        whole = graph.read_bytes()
        graph.unlink()
        graph.write_bytes(whole[:1000])
        with graph.open("rb") as reader:
            propose_twice()
            assert reader.read() == whole[:1000]
        assert len(graph.read_bytes()) > 1000
        assert list(kept.iterdir()) == [graph]

    def test_only_the_latest_stay_and_nothing_of_the_killed(self, kept, monkeypatch):
        propose_twice()
        (graph,) = kept.iterdir()
        for number in range(30):
            (kept / f"{number}.blob").touch()
            os.utime(kept / f"{number}.blob", (number, number))
        (kept / "of-a-killed-one").mkdir()
        os.utime(kept / "of-a-killed-one", (0, 0))
        propose_twice()
        assert sorted(path.name for path in kept.iterdir()) == sorted(
            [graph.name, *(f"{number}.blob" for number in range(7, 30))]
        )

    @pytest.mark.parametrize("error", [RuntimeError("No such file"), OSError("no space")])
    def test_a_cache_that_fails_is_done_without(self, kept, monkeypatch, error):
        def fail(folder):
            raise error

        core = _Core(fail)
        monkeypatch.setattr(engine, "core", lambda: core)
        propose_twice()
        assert core.asked == [True, False]
        assert list(kept.iterdir()) == []


def test_what_cannot_be_compiled_is_told_in_a_sentence(tmp_path):
    """As on a processor that OpenVINO has no code for."""
    code = """
import os
os.environ["ONEDNN_MAX_CPU_ISA"] = "SSE41"
from stream_rpn import cli, engines
engines.has_gpu = lambda: False
cli.main(["synthetic:64x64@10,1", "--size", "64", "-o", "null"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr
    assert "the engine torch" in done.stderr or "1 frame," in done.stderr


def run(code: str, tmp_path: Path) -> str:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment, timeout=300
    )
    return done.stdout.strip()


def test_numbers_beyond_any_graph_are_no_error(frames):
    rpn = stream_rpn.load(lively("tiny"), top=10**20, pre_nms=10**20)
    (found,) = by_openvino(rpn, frames[:1])
    assert len(found) > 100


def test_the_default_run_on_a_cpu_starts_without_torch_and_what_only_others_need(tmp_path):
    code = f"""
import sys
from stream_rpn import cli, engines
engines.has_gpu = lambda: False
out = {str(tmp_path / "a.jsonl")!r}
assert cli.main(["synthetic:320x180@10,3", "--size", "96", "-o", out, "--quiet"]) == 0
needless = ("torch", "torchvision", "safetensors", "PIL", "asyncio", "tomllib")
print([name for name in needless if name in sys.modules])
"""
    assert run(code, tmp_path) == "[]"


def test_nobody_is_called(tmp_path):
    """Importing, converting and running send nothing, though openvino_telemetry is installed."""
    code = """
import socket, sys
def refuse(*arguments, **options):
    raise SystemExit("a socket was opened")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = refuse
socket.getaddrinfo = refuse
from stream_rpn import api
pipeline = api.open_pipeline("classic", device="cpu", size=96)
assert pipeline.engine == "openvino"
with pipeline.open("synthetic:320x180@10,2") as stream:
    print(len(list(stream)), sys.modules["openvino_telemetry"])
"""
    assert run(code, tmp_path) == "2 None"
    # Where it would keep the number that it gives a user.
    assert not (tmp_path / "intel").exists()


def test_live_sources_have_one_frame_at_a_time(frames):
    network = OpenVINONetwork(Converted.of(own(Backbone())), "float32", 2, images=False)
    with network.queues(frames, StageTimes(), latency=True) as queues:
        assert [found.frame for found in queues] == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [(180, 320), (320, 180)])
def test_pictures_are_prepared_as_by_torch(frames, size):
    turned = 0 if size == (180, 320) else 90
    frame = replace(frames[0], rotation=turned, height=size[0], width=size[1])
    rpn = stream_rpn.load(lively("nanodet_m"), size=96, top=50)
    images, sizes = preprocess.to_input([frame], rpn.input_spec)
    with torch.inference_mode():
        kept = rpn(images, sizes)
    (found,) = by_openvino(rpn, [frame])
    assert (found.height, found.width) == size
    assert found.anchors.tolist() == kept.anchors[0, : len(found)].tolist()
