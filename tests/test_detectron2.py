"""detectron2's R50-FPN weights, by names and shapes of its own and its network written out."""

import pickle
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stream_rpn.anchors import scale_major
from stream_rpn.frame import StreamRPNError
from stream_rpn.models.checkpoint import load_model, read_checkpoint

BLOCKS = {"res2": (3, 64), "res3": (4, 128), "res4": (6, 256), "res5": (3, 512)}
MODEL = "resnet50_fpn_detectron2"


def detectron2_state():
    """The tensors of a `faster_rcnn_R_50_FPN`, of random values, by detectron2's names."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def conv(name, out, in_, size, *, norm=True, gain=1.0):
        deviation = gain / (in_ * size * size) ** 0.5
        state[f"{name}.weight"] = deviation * torch.randn(out, in_, size, size, generator=generator)
        if not norm:
            state[f"{name}.bias"] = 0.1 * torch.randn(out, generator=generator)
            return
        for part in ("bias", "running_mean"):
            state[f"{name}.norm.{part}"] = 0.1 * torch.randn(out, generator=generator)
        for part in ("weight", "running_var"):
            state[f"{name}.norm.{part}"] = 0.5 + torch.rand(out, generator=generator)

    body = "backbone.bottom_up"
    conv(f"{body}.stem.conv1", 64, 3, 7, gain=0.02)
    in_ = 64
    for stage, (count, width) in BLOCKS.items():
        for index in range(count):
            block = f"{body}.{stage}.{index}"
            if index == 0:
                conv(f"{block}.shortcut", 4 * width, in_, 1)
            conv(f"{block}.conv1", width, in_, 1)
            conv(f"{block}.conv2", width, width, 3)
            conv(f"{block}.conv3", 4 * width, width, 1, gain=0.3)
            in_ = 4 * width
    for level, channels in zip(range(2, 6), (256, 512, 1024, 2048), strict=True):
        conv(f"backbone.fpn_lateral{level}", 256, channels, 1, norm=False)
        conv(f"backbone.fpn_output{level}", 256, 256, 3, norm=False)
    head = "proposal_generator.rpn_head"
    conv(f"{head}.conv", 256, 256, 3, norm=False)
    conv(f"{head}.objectness_logits", 3, 256, 1, norm=False)
    conv(f"{head}.anchor_deltas", 12, 256, 1, norm=False)
    # What is left aside: of the detector behind it, and of older versions.
    state["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(81, 1024)
    state["pixel_mean"] = torch.zeros(3, 1, 1)
    state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
    return state


def detectron2_network(state, rgb):
    """Objectness and deltas of an image [1, 3, H, W] in 0…255, as its sources compute them."""

    def conv(x, name, stride=1, padding=0):
        y = F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), stride, padding)
        if f"{name}.norm.weight" not in state:
            return y
        parts = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(y, *(state[f"{name}.norm.{part}"] for part in parts), eps=1e-5)

    x = rgb.flip(1) - torch.tensor([103.53, 116.28, 123.675])[:, None, None]
    body = "backbone.bottom_up"
    x = F.max_pool2d(conv(x, f"{body}.stem.conv1", 2, 3).relu(), 3, 2, 1)
    stages = []
    for stage, (count, _) in BLOCKS.items():
        for index in range(count):
            block = f"{body}.{stage}.{index}"
            stride = 2 if index == 0 and stage != "res2" else 1
            y = conv(x, f"{block}.conv1", stride).relu()
            y = conv(conv(y, f"{block}.conv2", 1, 1).relu(), f"{block}.conv3")
            x = (y + (conv(x, f"{block}.shortcut", stride) if index == 0 else x)).relu()
        stages.append(x)
    maps, above = [], None
    for level, c in reversed(list(enumerate(stages, start=2))):
        lateral = conv(c, f"backbone.fpn_lateral{level}")
        above = lateral if above is None else lateral + F.interpolate(above, scale_factor=2)
        maps.insert(0, conv(above, f"backbone.fpn_output{level}", padding=1))
    maps.append(F.max_pool2d(maps[-1], 1, 2))
    head = "proposal_generator.rpn_head"
    hidden = [conv(p, f"{head}.conv", padding=1).relu() for p in maps]
    return (
        [conv(h, f"{head}.objectness_logits") for h in hidden],
        [conv(h, f"{head}.anchor_deltas") for h in hidden],
    )


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def state():
    return detectron2_state()


@pytest.fixture
def part(state, tmp_path):
    """A file of the head and the stem alone, as detectron2's trainer writes it."""
    names = [name for name in state if "rpn_head" in name or "stem" in name or "res4.5" in name]
    path = tmp_path / "model_final.pth"
    torch.save({"model": {name: state[name] for name in names}, "iteration": 89999}, path)
    return path


def test_a_checkpoint_gives_what_its_own_network_computes(state, tmp_path):
    path = tmp_path / "model_final.pth"
    torch.save({"model": state, "iteration": 89999}, path)
    rpn = load_model(str(path))
    assert rpn.name == MODEL
    rgb = 255 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(v)[:, None, None] for v in (rpn.input_spec.mean, rpn.input_spec.std))
    with torch.inference_mode():
        expected = detectron2_network(state, rgb)
        found = rpn.head(list(rpn.features((rgb / 255 - mean) / std).values()))
    for theirs, ours in zip((*expected[0], *expected[1]), (*found[0], *found[1]), strict=True):
        assert theirs.shape == ours.shape
        assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()
    for level, size in enumerate((32.0, 64.0, 128.0, 256.0, 512.0)):
        expected = scale_major([size], (0.5, 1.0, 2.0))
        assert torch.equal(rpn.base_anchors[level], expected)


def test_a_file_of_the_model_zoo_is_a_pickle_of_arrays(part, tmp_path):
    zoo = tmp_path / "model_final_b275ba.pkl"
    arrays = {name: tensor.numpy() for name, tensor in torch.load(part)["model"].items()}
    zoo.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    tensors, metadata = read_checkpoint(zoo)
    assert metadata == {"model": MODEL}
    expected, _ = read_checkpoint(part)
    assert "head.cls_logits.weight" in expected
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_a_pickle_that_could_act_is_refused(tmp_path):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": {"x": np.zeros(1)}, "act": re.compile}))
    with pytest.raises(StreamRPNError, match=r"holds more than tensors"):
        read_checkpoint(path)


def test_another_architecture_of_detectron2_is_named(part):
    with pytest.raises(StreamRPNError, match=r"of another architecture: it lacks .*layer1\.0"):
        load_model(str(part))


def test_it_is_not_taken_for_torchvisions(part):
    with pytest.raises(StreamRPNError, match=r"of another architecture: it lacks .*\.body\."):
        load_model("resnet50_fpn", str(part))
