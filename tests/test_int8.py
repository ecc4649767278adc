"""The default model in int8: where it is chosen; nearly float32's boxes, or a sentence."""

import hashlib
import json

import numpy as np
import pytest
import torch

import stream_rpn  # before openvino: see there

pytest.importorskip("openvino")

from stream_rpn import StreamRPNError, api, cli, compute, engines, pipeline
from stream_rpn.kernels.boxes import iou
from stream_rpn.models import DEFAULT_MODEL, IN_INT8, graphs
from stream_rpn.models.provenance import Weights
from stream_rpn.network import openvino as engine
from stream_rpn.pipeline import Pipeline
from stream_rpn.sources import open_source
from stream_rpn.timing import StageTimes

CLIP = "synthetic:640x360@10,3"
BEST = 20


@pytest.fixture(scope="module")
def by_dtype():
    """The proposals of a clip by the number format that computed them, with vectors."""
    found = {}
    for dtype in ("float32", "int8"):
        made = api.open_pipeline(engine="openvino", device="cpu", dtype=dtype, embed=True)
        with made.open(CLIP) as stream:
            found[dtype] = (made, list(stream))
    return found


def test_the_best_boxes_are_those_of_float32_but_for_a_few(by_dtype):
    import torch

    shares = []
    for one, other in zip(by_dtype["float32"][1], by_dtype["int8"][1], strict=True):
        best = torch.from_numpy(one.boxes[:BEST])
        near = iou(best, torch.from_numpy(other.boxes)).amax(1) > 0.7
        shares.append(float(near.float().mean()))
        assert not np.array_equal(one.boxes, other.boxes)
    assert np.mean(shares) >= 0.85
    assert min(shares) >= 0.7


def test_vectors_are_nearly_those_of_float32(by_dtype):
    """Of boxes that both have."""
    import torch

    for one, other in zip(by_dtype["float32"][1], by_dtype["int8"][1], strict=True):
        same, partner = iou(torch.from_numpy(one.boxes), torch.from_numpy(other.boxes)).max(1)
        both = np.flatnonzero(same.numpy() > 0.9)
        left = one.embeddings[both].astype(np.float32)
        right = other.embeddings[partner.numpy()[both]].astype(np.float32)
        assert len(both) >= BEST
        assert np.median((left * right).sum(1)) > 0.9


def test_what_computes_is_told(by_dtype):
    pipeline, _ = by_dtype["int8"]
    assert (pipeline.facts()["engine"], pipeline.facts()["dtype"]) == ("openvino", "int8")


def test_the_header_of_results_names_it(tmp_path):
    out = tmp_path / "a.jsonl"
    command = [CLIP, "--device", "cpu", "--dtype", "int8", "--size", "96", "--max-frames", "1"]
    assert cli.main([*command, "-o", str(out), "--quiet"]) == 0
    header = json.loads(out.read_text().splitlines()[0])
    assert (header["engine"], header["dtype"]) == ("openvino", "int8")
    assert header["weights"]["file"] == "nanodet_m.safetensors"


def test_small_frames_of_many_shapes_have_graphs_of_their_own(monkeypatch):
    """By the one for all shapes OpenVINO crashes with AMX, and the tests with it."""
    made = api.open_pipeline(engine="openvino", device="cpu", dtype="int8", size=64, top=20)
    compiled = []
    compile_ = made.network._compile
    monkeypatch.setattr(made.network, "_compile", lambda s: (compiled.append(s), compile_(s))[1])
    frames = []
    sizes = [(64, 64), (128, 64), (64, 128), (192, 64), (256, 64), (640, 64), (320, 64)]
    for width, height in sizes:
        with open_source(f"synthetic:{width}x{height}@10,1") as source:
            frames += [list(source)]
    found = list(made.process(frames, StageTimes()))
    assert [(each.width, each.height) for each in found] == sizes
    small = [(64, 64), (64, 128), (128, 64), (64, 192), (64, 256)]
    assert compiled == [*small, (64, 640), engine.ANY_SHAPE]


def test_the_graph_that_ships_is_made_of_the_weights_that_ship():
    """Where it fails the weights have changed: python -m bench.quantise."""
    weights = graphs.PACKAGE / "models" / f"{DEFAULT_MODEL}.safetensors"
    found = graphs.find_int8(DEFAULT_MODEL)
    assert found is not None
    assert found.quantised == hashlib.sha256(weights.read_bytes()).hexdigest()
    plain = graphs.find(DEFAULT_MODEL)
    assert plain.quantised is None
    for name in ("name", "input_spec", "proposal_spec"):
        assert getattr(found, name) == getattr(plain, name)
    types = [node.get_type_name() for node in found.heads.get_ops()]
    assert types.count("FakeQuantize") > 50


def test_two_products_fit_16_bits():
    """Processors without VNNI add them there; depthwise convolutions do not."""
    largest = []
    for node in graphs.find_int8(DEFAULT_MODEL).heads.get_ops():
        if node.get_type_name() == "Convolution":
            weights = node.input_value(1).get_node()
            while weights.get_input_size():
                weights = weights.input_value(0).get_node()
            if weights.data.dtype == np.int8:
                largest.append(np.abs(weights.data.astype(int)).max())
    assert len(largest) > 50
    assert 2 * 255 * max(largest) < 2**15


def test_every_graph_that_ships_is_offered_and_none_else():
    files = {path.name for path in (graphs.PACKAGE / "models").glob("*.int8.xml")}
    assert files == {graphs.int8_file(name).name for name in IN_INT8}
    for name in IN_INT8:
        path = graphs.int8_file(name)
        assert path.stat().st_size + path.with_suffix(".bin").stat().st_size < 2_000_000


def test_a_graph_of_other_weights_is_refused(monkeypatch):
    monkeypatch.setattr(Weights, "of", lambda *_: Weights("nanodet_m.safetensors", "0" * 64))
    assert graphs.find_int8(DEFAULT_MODEL) is None
    with pytest.raises(StreamRPNError, match=r"not of the weights that do; install .* anew"):
        api.open_pipeline(device="cpu", dtype="int8")


@pytest.mark.parametrize(
    ("machine", "bfloat16", "options", "dtype"),
    [
        ("x86_64", False, {}, "int8"),
        ("AMD64", False, {"size": 96, "top": 10, "embed": True}, "int8"),
        ("x86_64", False, {"dtype": "float32"}, "float32"),
        ("x86_64", False, {"weights": "random"}, "float32"),
        ("x86_64", False, {"model": "tiny"}, "float32"),
        ("x86_64", False, {"engine": "torch"}, "float32"),
        ("x86_64", True, {}, "bfloat16"),
        ("aarch64", False, {}, "float32"),
        ("arm64", False, {}, "float32"),
    ],
)
def test_auto_chooses_it_where_it_is_the_fastest(machine, bfloat16, options, dtype, monkeypatch):
    monkeypatch.setattr(engines.platform, "machine", lambda: machine)
    for module in (engines, pipeline):
        monkeypatch.setattr(module, "prefers_bfloat16", lambda: bfloat16)
    monkeypatch.setattr(compute, "prefers_bfloat16", lambda device: bfloat16)
    assert api.open_pipeline(device="cpu", **options).dtype == dtype


@pytest.mark.parametrize(
    ("vendor", "flags", "fast"),
    [
        ("GenuineIntel", "avx2 avx512f avx512_vnni", False),
        ("GenuineIntel", "avx512f avx512_bf16 avx512_vnni", False),
        ("GenuineIntel", "avx512f avx512_bf16 amx_bf16 amx_tile amx_int8", True),
        ("AuthenticAMD", "avx2 fma", False),
        ("AuthenticAMD", "avx512f avx512_bf16 avx512_vnni", True),
    ],
)
def test_bfloat16_is_chosen_where_it_is_faster(vendor, flags, fast, monkeypatch, tmp_path):
    info = tmp_path / "cpuinfo"
    core = (
        f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: a\nflags\t\t: {flags}\nbugs\t: x\n\n"
    )
    info.write_text(core * 2)
    monkeypatch.setattr(engines, "_CPU_INFO", info)
    assert compute.choose_dtype("auto", torch.device("cpu")) == (
        torch.bfloat16 if fast else torch.float32
    )
    # OpenVINO says that it takes bfloat16 wherever there is AVX-512.
    monkeypatch.setattr(engines, "takes_bfloat16", lambda: True)
    monkeypatch.setattr(engines.platform, "machine", lambda: "x86_64")
    assert api.open_pipeline(device="cpu").dtype == ("bfloat16" if fast else "int8")
    assert api.open_pipeline("tiny", device="cpu").dtype == ("bfloat16" if fast else "float32")


def test_bfloat16_that_openvino_does_not_take_is_not_chosen(monkeypatch):
    monkeypatch.setattr(engines, "fast_bfloat16", lambda: True)
    monkeypatch.setattr(engines, "takes_bfloat16", lambda: False)
    assert not engines.prefers_bfloat16()


def test_without_a_cpuinfo_bfloat16_is_not_chosen(monkeypatch, tmp_path):
    monkeypatch.setattr(engines, "_CPU_INFO", tmp_path / "none")
    assert not engines.fast_bfloat16()


def test_without_its_graph_auto_computes_in_float32(monkeypatch):
    monkeypatch.setattr(engines, "prefers_bfloat16", lambda: False)
    monkeypatch.setattr(pipeline, "prefers_bfloat16", lambda: False)
    monkeypatch.setattr(graphs, "find_int8", lambda model: None)
    assert api.open_pipeline(device="cpu").dtype == "float32"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--model tiny", "no int8 form of the model 'tiny', only of nanodet_m with the weights"),
        ("--weights random", "'nanodet_m' with the weights 'random'"),
        ("--engine torch", "the engine torch does not compute in int8; leave out the engine or"),
        ("--device cuda", "only the engine openvino computes in int8, and it computes on the"),
        ("--engine openvino --device cuda:1", "on the CPU here, not on cuda:1"),
    ],
)
@pytest.mark.parametrize("command", ["{clip} -o null", "bench {clip}", "batch {clip} --to out"])
def test_what_has_no_int8_is_refused_in_a_sentence(
    command, options, sentence, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    line = f"{command.format(clip=CLIP)} --dtype int8 {options}"
    assert cli.main(line.split()) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_without_openvino_there_is_no_int8(monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StreamRPNError, match=r"computes in int8, and it is not installed"):
        engines.choose_engine(device="cpu", dtype="int8")


def test_a_model_of_ones_own_has_no_int8_and_an_int8_model_nothing_else():
    with pytest.raises(StreamRPNError, match="'nanodet_m' as it was given has no int8 form"):
        api.open_pipeline(stream_rpn.load(), device="cpu", dtype="int8")
    with pytest.raises(StreamRPNError, match="as it was given computes in int8 and in nothing"):
        Pipeline(graphs.find_int8(DEFAULT_MODEL), device="cpu", dtype="float32")
