"""Exported models, run by others: the graph, and the JSON file that tells what is around it."""

import json
import sys
from importlib import import_module, util
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

import stream_rpn
from stream_rpn import cli
from stream_rpn.anchors import AnchorSpec
from stream_rpn.frame import StreamRPNError
from stream_rpn.input_spec import InputSpec
from stream_rpn.rpn import RPN, ProposalSpec, RPNHead
from stream_rpn.sources.synthetic import SyntheticVideo

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def example():
    spec = util.spec_from_file_location("onnx_runtime", EXAMPLES / "onnx_runtime.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def runner(path):
    """What maps images to outputs by name, by the runtime that reads such files."""
    if path.suffix == ".onnx":
        session = import_module("onnxruntime").InferenceSession(str(path))
        names = [output.name for output in session.get_outputs()]
        return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))
    openvino = import_module("openvino")
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", config)
    return lambda images: {
        output.get_any_name(): values for output, values in compiled({"images": images}).items()
    }


def own_rpn(backbone=None, *, softmax=True):
    torch.manual_seed(0)
    return RPN(
        backbone or nn.Sequential(nn.Conv2d(3, 8, 3, stride=8, padding=1), nn.ReLU()),
        RPNHead(8, 2, softmax=softmax),
        AnchorSpec(((16.0, 32.0),), (1.0,), order="scale-major", centre=4.0),
        input_spec=InputSpec(min_size=96, max_size=200, size_divisor=8, antialias=True),
        proposal_spec=ProposalSpec(pre_nms_top_n=100, post_nms_top_n=30, score_thresh=0.4),
    )


def shipped_rpn():
    return stream_rpn.load(size=128, top=100)


PICTURES = [
    PIL.Image.fromarray(SyntheticVideo(width=width, height=height).image(0)[..., :3])
    for width, height in ((320, 180), (120, 200))
]


@pytest.mark.parametrize("make", [shipped_rpn, own_rpn])
@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("m.onnx", ("onnx", "onnxruntime")),
        ("m.onnx", ("onnx", "openvino")),
        ("m.xml", ("openvino",)),
    ],
    ids=["ONNX Runtime", "OpenVINO of ONNX", "OpenVINO"],
)
def test_other_runtimes_find_the_same_proposals_at_any_size(tmp_path, make, name, packages):
    for package in packages:
        pytest.importorskip(package)
    if make is shipped_rpn:
        # It takes a while: where they test with the tools of others, and once.
        pytest.importorskip("onnx")
    rpn = make()
    files = rpn.export(tmp_path / name)
    assert sorted(files) == sorted(tmp_path.iterdir())
    description = json.loads((tmp_path / f"{name}.json").read_text())
    if packages[-1] == "openvino" and name == "m.onnx":
        (tmp_path / name).rename(tmp_path / "m")
        openvino = import_module("openvino")
        openvino.save_model(openvino.Core().read_model(tmp_path / "m"), tmp_path / "m.xml", False)
        name = "m.xml"
    run = runner(tmp_path / name)
    for picture in PICTURES:
        # The network's input is made here: how the example resizes is for the next test.
        wanted = stream_rpn.propose(picture, model=rpn)
        images, sizes = stream_rpn.preprocess.image_to_input(np.asarray(picture), rpn.input_spec)
        size = tuple(sizes[0].tolist())
        boxes, scores = example().proposals(
            run(images.numpy()), description, images.shape[2:], size
        )
        assert len(scores) == len(wanted) > 10
        np.testing.assert_allclose(scores, wanted.scores, atol=1e-4)
        np.testing.assert_allclose(boxes, wanted.input_boxes, atol=0.05)
    # Several at a time as one by one.
    both = run(np.concatenate([images.numpy(), images.numpy() / 2]))
    for level, output in run(images.numpy()).items():
        np.testing.assert_allclose(both[level][:1], output, atol=1e-3)


def test_the_example_finds_what_we_find_in_pixels_of_the_picture(tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    PICTURES[0].save("a.png")
    assert cli.main(["export", "-o", "m.onnx", "--size", "128"]) == 0
    assert "m.onnx.json" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["onnx_runtime.py", "m.onnx", "a.png"])
    example().main()
    rows = np.array([line.split() for line in capsys.readouterr().out.splitlines()], float)
    assert len(rows) == 10
    # Pillow rounds the small picture to 8 bits: what is nearly as good may come before.
    wanted = stream_rpn.propose("a.png", size=128)
    for score, *box in rows[:3]:
        distance = np.abs(wanted.boxes - box).max(axis=1)
        assert distance.min() < 4
        assert wanted.scores[distance.argmin()] == pytest.approx(score, abs=0.05)


def test_the_model_stays_as_it_is(tmp_path):
    pytest.importorskip("openvino")
    rpn = own_rpn().train()
    before = {name: tensor.clone() for name, tensor in rpn.state_dict().items()}
    rpn.export(tmp_path / "m.xml")
    assert rpn.training
    assert all(parameter.requires_grad for parameter in rpn.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in rpn.state_dict().items())


class OfOneSize(nn.Module):
    """Whose layers hold a number that tracing makes a constant."""

    def forward(self, images):
        maps = nn.functional.avg_pool2d(images, 8)
        return maps.repeat(1, 3, 1, 1)[:, :8] * float(images.shape[-1])


@pytest.mark.parametrize("name", ["m.onnx", "m.xml"])
def test_layers_that_are_no_graph_are_refused_and_nothing_is_left(tmp_path, name):
    pytest.importorskip({".onnx": "onnx", ".xml": "openvino"}[Path(name).suffix])
    class_of = own_rpn(OfOneSize())
    with pytest.raises(StreamRPNError, match="compute something else on pictures of other sizes"):
        class_of.export(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_said_in_a_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rpn = own_rpn()
    with pytest.raises(StreamRPNError, match=r"must end with \.onnx or \.xml"):
        rpn.export("m.tflite")
    with pytest.raises(StreamRPNError, match="its folder does not exist"):
        rpn.export("nowhere/m.xml")
    Path("m.xml.json").touch()
    with pytest.raises(StreamRPNError, match=r"'m\.xml\.json' exists"):
        rpn.export("m.xml")
    assert cli.main(["export", "-o", "m.xml"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["m.xml.json"]
    rpn.export("m.xml", overwrite=True)
    assert json.loads(Path("m.xml.json").read_text())["graph"] == "m.xml"
