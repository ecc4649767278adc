"""The models against torchvision's own detectors, and the facts of the classic network."""

import argparse
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from stream_rpn import StreamRPNError, anchors, load, models
from stream_rpn.input_spec import padded_size, resized_size
from stream_rpn.models import mobilenet_v2
from stream_rpn.models.checkpoint import layout, load_model, read_checkpoint, save_weights
from tests.agreement import (
    Selection,
    assert_same_selection,
    assert_within,
    expectations,
    selections,
    tolerances,
)

DETECTORS = {
    "resnet50_fpn": "fasterrcnn_resnet50_fpn",
    "resnet50_fpn_v2": "fasterrcnn_resnet50_fpn_v2",
    "mobilenet_v3_large_fpn": "fasterrcnn_mobilenet_v3_large_fpn",
    "mobilenet_v3_large_320_fpn": "fasterrcnn_mobilenet_v3_large_320_fpn",
}


def picture(height: int, width: int) -> torch.Tensor:
    """Blobs, not white noise: equal cells would give equal scores, which may come in any order."""
    blobs = nn.functional.interpolate(torch.rand(1, 3, height // 24, width // 24), (height, width))
    return blobs[0] * 0.9 + torch.rand(3, height, width) * 0.1


def enliven(head: nn.Module, features: list[torch.Tensor]) -> None:
    """Per channel, gives logits a standard deviation of 2 and deltas one of 0.3 around 0."""
    objectness, deltas = (torch.cat([m.flatten(2) for m in maps], 2) for maps in head(features))
    for layer, output, deviation in (
        (head.cls_logits, objectness, 2.0),
        (head.bbox_pred, deltas, 0.3),
    ):
        scale = deviation / output.std((0, 2))
        layer.weight *= scale[:, None, None, None]
        layer.bias.copy_(-scale * output.mean((0, 2)))


def detector(name: str, **options) -> nn.Module:
    """A torchvision detector whose random weights give lively scores and boxes."""
    torch.manual_seed(0)
    build = getattr(torchvision.models.detection, DETECTORS.get(name, name))
    model = build(weights=None, weights_backbone=None, **options).eval()
    for layer in model.backbone.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 1.5)
            layer.weight.data.uniform_(0.5, 1.0)
            layer.bias.data.normal_(std=0.1)
    with torch.no_grad():
        enliven(model.rpn.head, list(model.backbone(picture(256, 320)[None]).values()))
    return model


@pytest.fixture
def checkpoint(tmp_path):
    def write(name: str, model: nn.Module):
        path = tmp_path / f"{name}.pth"
        torch.save(model.state_dict(), path)
        return path

    return write


@pytest.mark.numeric
def test_mobilenet_v2_equals_torchvision():
    theirs = torchvision.models.mobilenet_v2(weights=None).eval()
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 1.5)
    ours = mobilenet_v2.features(theirs.state_dict())
    image = torch.randn(1, 3, 64, 96)
    expected, within = tolerances(lambda: theirs.features[: len(ours)](image))
    with torch.inference_mode():
        assert_within(ours(image), expected, within)


@pytest.mark.parametrize(
    "name",
    [
        "resnet50_fpn_v2",
        *(
            pytest.param(name, marks=pytest.mark.numeric)
            for name in DETECTORS
            if name != "resnet50_fpn_v2"  # the longest, and much like the other
        ),
    ],
)
def test_proposals_equal_torchvision(name, checkpoint):
    theirs = detector(name)
    ours = load(load_model(name, checkpoint(name, theirs), fold=False), top=None)
    images = [picture(240, 320), picture(200, 320)]
    spec = ours.input_spec
    if spec.min_size == 800:
        # Full size would take minutes here; the arithmetic is the same.
        theirs.transform.min_size, theirs.transform.max_size = (96,), 160
        ours = load(ours, size=96, top=None)
    with torch.inference_mode():
        batch, _ = theirs.transform(images)
        features = theirs.backbone(batch.tensors)
        objectness, deltas = theirs.rpn.head(list(features.values()))
        # torchvision's RPN returns no scores, so its steps are run one by one.
        all_anchors = theirs.rpn.anchor_generator(batch, list(features.values()))
        counts = [o[0].numel() for o in objectness]
        flat, flat_deltas = torchvision.models.detection.rpn.concat_box_prediction_layers(
            objectness, deltas
        )
        boxes = theirs.rpn.box_coder.decode(flat_deltas, all_anchors).view(2, -1, 4)
        boxes, scores = theirs.rpn.filter_proposals(boxes, flat, batch.image_sizes, counts)
        kept = ours(batch.tensors, torch.tensor(batch.image_sizes))
        alone = ours(batch.tensors[1:], torch.tensor(batch.image_sizes[1:]))
    assert min(len(b) for b in boxes) > 50
    expected = expectations(
        lambda: theirs.rpn.head(list(theirs.backbone(batch.tensors).values())),
        ours.base_anchors,
        ours.strides(batch.tensors, list(features.values())),
        torch.tensor(batch.image_sizes),
        **asdict(ours.proposal_spec),
    )
    found = selections(kept)
    for mine, other, its_scores, facts in zip(found, boxes, scores, expected, strict=True):
        assert_same_selection(mine, Selection(other, its_scores), *facts)
    assert_same_selection(found[1], selections(alone)[0], expected[1][0])


def test_features_and_head_equal_torchvision_after_folding(checkpoint):
    theirs = detector("resnet50_fpn")
    ours = load_model("resnet50_fpn", checkpoint("r50", theirs))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in ours.modules())
    images = torch.rand(1, 3, 96, 128)
    expected, within = tolerances(lambda: dict(theirs.backbone(images)))
    with torch.inference_mode():
        found = ours.features(images)
    assert list(found) == list(expected)
    assert_within(found, expected, within)


@pytest.mark.parametrize(
    "kind",
    ["maskrcnn_resnet50_fpn", pytest.param("keypointrcnn_resnet50_fpn", marks=pytest.mark.slow)],
)
def test_checkpoints_of_other_detectors_load_by_file(kind, checkpoint):
    theirs = detector(kind)
    ours = load_model(str(checkpoint(kind, theirs)))
    assert ours.name == "resnet50_fpn"
    torch.testing.assert_close(ours.head.cls_logits.weight, theirs.rpn.head.cls_logits.weight)


def test_a_checkpoint_that_fits_two_models_asks_which(checkpoint):
    path = checkpoint("mobile", detector("mobilenet_v3_large_fpn"))
    with pytest.raises(StreamRPNError, match=r"mobilenet_v3_large_fpn and .*320.*--model NAME"):
        load_model(str(path))


def test_our_own_files_carry_their_model(tmp_path):
    rpn = load_model("mobilenet_v3_large_320_fpn", "random", fold=False)
    save_weights(rpn, tmp_path / "mine.safetensors", model="mobilenet_v3_large_320_fpn")
    again = load_model(str(tmp_path / "mine.safetensors"), fold=False)
    assert again.name == "mobilenet_v3_large_320_fpn"
    for name, tensor in rpn.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "cannot be read|more than"),
        (lambda path: path.write_text("hello"), "cannot be read|more than"),
        (lambda path: path.write_bytes(b""), "cannot be read|more than"),
        (lambda path: torch.save({"a": torch.zeros(3)}, path), "another architecture"),
        (lambda path: torch.save([1, 2], path), "no table of named tensors"),
    ],
    ids=["cut-off", "text", "empty", "other-architecture", "no-table"],
)
def test_bad_checkpoints_get_one_sentence(tmp_path, spoil, sentence):
    path = tmp_path / "weights.pth"
    torch.save(load_model("tiny", "random", fold=False).state_dict(), path)
    spoil(path)
    with pytest.raises(StreamRPNError, match=sentence) as caught:
        load_model("tiny", path)
    assert "weights.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def reference_checkpoint(state):
    """Returns what torchvision's references/detection/train.py saves after an epoch."""
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=0.02, momentum=0.9, weight_decay=1e-4)
    weight.sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[16, 22], gamma=0.1)
    arguments = argparse.Namespace(
        data_path="coco", device="cuda", lr=0.02, lr_steps=[16, 22], rpn_score_thresh=None,
        distributed=False, amp=True, output_dir=".", weights=None, model="fasterrcnn_resnet50_fpn",
    )  # fmt: skip
    return {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "args": arguments,
        "epoch": 5,
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7},
    }


WRAPPED = {
    "DataParallel": lambda state: {"model": under("module.", state)},
    "torch.compile": lambda state: under("_orig_mod.", state),
    "both": lambda state: under("module._orig_mod.", state),
    "a compiled backbone": lambda state: {
        name.replace("backbone.", "backbone._orig_mod."): t for name, t in state.items()
    },
    "Lightning": lambda state: {
        "state_dict": under("model.", state) | {"metric.total": torch.zeros(1)},
        "pytorch-lightning_version": "2.0",
        "hyper_parameters": {"lr": 0.1},
    },
    "a deeper module": lambda state: under("network.detector.", state),
    "AveragedModel": lambda state: under("module.", state) | {"n_averaged": torch.tensor(3)},
    "torchvision's reference": lambda state: (
        reference_checkpoint(state) | {"model_ema": under("module.", state)}
    ),
    "numbers of numpy": lambda state: {"net": state, "best": np.float64(0.3), "at": np.int64(7)},
    "wrappers in wrappers": lambda state: {"checkpoint": {"model": state}},
    "arrays": lambda state: {name: tensor.numpy() for name, tensor in state.items()},
    "half precision": lambda state: {
        name: t.double() if t.is_floating_point() else t for name, t in state.items()
    },
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_weights_are_found_in_whatever_wraps_them(tmp_path, wrapping):
    theirs = detector("mobilenet_v3_large_320_fpn")
    path = tmp_path / "wrapped.pth"
    torch.save(WRAPPED[wrapping](theirs.state_dict()), path)
    ours = load_model("mobilenet_v3_large_320_fpn", path, fold=False)
    for name, tensor in ours.backbone.state_dict().items():
        torch.testing.assert_close(tensor, theirs.backbone.state_dict()[name])
    torch.testing.assert_close(ours.head.cls_logits.weight, theirs.rpn.head.cls_logits.weight)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.to("meta"), "'head.cls_logits.bias' without values"),
        (lambda t: t.to_sparse(), "'head.cls_logits.bias' sparse"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "bias' quantised"),
        (lambda t: t.to(torch.complex64), "'head.cls_logits.bias' complex"),
        (lambda t: np.array(["a"]), "no numbers in 'head.cls_logits.bias'|more than tensors"),
        (lambda t: 3, "no table of named tensors"),
        (lambda t: None, "no table of named tensors"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_plain_numbers_are_refused_by_name(tmp_path, change, sentence):
    state = dict(load_model("mobilenet_v3_large_320_fpn", "random", fold=False).state_dict())
    state["head.cls_logits.bias"] = change(state["head.cls_logits.bias"])
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(StreamRPNError, match=sentence):
        load_model("mobilenet_v3_large_320_fpn", tmp_path / "odd.pth")


def endless():
    table = {}
    table["model"] = table
    return table


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda: {0: torch.zeros(3)}, "no table of named tensors"),
        (lambda: {"model": {1: torch.zeros(3)}}, "no table of named tensors"),
        (lambda: {"model": 7}, "no table of named tensors"),
        (lambda: {}, "another architecture: it lacks"),
        (endless, "no table of named tensors"),
        (
            lambda: {"a.backbone.x": torch.zeros(3), "b.backbone.x": torch.zeros(3)},
            r"several networks, of names that begin with 'a\.' and 'b\.'",
        ),
    ],
    ids=["numbers", "numbers inside", "no table", "empty", "endless", "two networks"],
)
def test_files_of_another_shape_get_one_sentence(tmp_path, content, sentence):
    torch.save(content(), tmp_path / "odd.pth")
    with pytest.raises(StreamRPNError, match=sentence):
        load_model("mobilenet_v3_large_320_fpn", tmp_path / "odd.pth")


def test_nan_weights_are_refused_by_name(tmp_path):
    state = load_model("tiny", "random", fold=False).state_dict()
    state["head.bbox_pred.bias"][3] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(StreamRPNError, match=r"NaN.*head\.bbox_pred\.bias"):
        load_model("tiny", tmp_path / "nan.pth")


def test_a_pickle_with_code_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "code.pth")
    with pytest.raises(StreamRPNError, match="more than tensors"):
        read_checkpoint(tmp_path / "code.pth")


def test_weights_that_must_be_fetched_offline(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(StreamRPNError, match=r"could not be fetched .*--weights"):
        load_model("mobilenet_v3_large_320_fpn")


def test_unknown_model():
    with pytest.raises(StreamRPNError, match=r"no model 'resnet'.*resnet50_fpn"):
        load_model("resnet")


def test_anchors_stay_float32_when_the_network_does_not():
    rpn = load_model("mobilenet_v3_large_320_fpn", "random").to(torch.bfloat16)
    assert rpn.head.cls_logits.weight.dtype == torch.bfloat16
    assert all(base.dtype == torch.float32 for base in rpn.base_anchors)
    expected = anchors.ratio_major((32, 64, 128, 256, 512), (0.5, 1, 2))
    torch.testing.assert_close(rpn.base_anchors[0], expected, rtol=0, atol=0)


def test_anchors_equal_torchvision():
    generator = torchvision.models.detection.anchor_utils.AnchorGenerator(
        ((32,), (64,)), ((0.5, 1.0, 2.0),) * 2
    )
    images = torchvision.models.detection.image_list.ImageList(
        torch.zeros(1, 3, 96, 160), [(96, 160)]
    )
    expected = generator(images, [torch.zeros(1, 8, 24, 40), torch.zeros(1, 8, 12, 20)])[0]
    spec = anchors.AnchorSpec(((32.0,), (64.0,)), (0.5, 1.0, 2.0))
    first, second = spec.base_anchors()
    ours = torch.cat(
        (anchors.grid(first, (24, 40), (4, 4)), anchors.grid(second, (12, 20), (8, 8)))
    )
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


class TestClassic:
    """VGG16, stride 16, nine anchors, two-class softmax: the network of Ren et al. 2015."""

    @pytest.fixture(scope="class")
    @classmethod
    def rpn(cls):
        return load_model("vgg16", "random")

    @torch.inference_mode()
    def test_300_by_400_gives_18_by_25_cells_and_4050_anchors(self, rpn):
        assert padded_size(resized_size(300, 400, 300, 1000), rpn.input_spec.size_divisor) == (
            300,
            400,
        )
        images = torch.rand(1, 3, 300, 400)
        maps = list(rpn.features(images).values())
        objectness, deltas = rpn.head(maps)
        assert maps[0].shape == (1, 512, 18, 25)
        assert objectness[0].shape == (1, 18, 18, 25)
        assert deltas[0].shape == (1, 36, 18, 25)
        assert rpn.strides(images, maps) == ((16, 16),)
        grid = anchors.grid(rpn.base_anchors[0], (18, 25), (16, 16))
        assert len(grid) == 18 * 25 * 9 == 4050

    def test_equal_areas_unrounded(self):
        base = anchors.scale_major((64,), (1.0, 0.5, 2.0))
        sides = torch.stack((base[:, 3] - base[:, 1], base[:, 2] - base[:, 0]), 1)
        assert sides.round().tolist() == [[64, 64], [45, 91], [91, 45]]
        torch.testing.assert_close(sides.prod(1), torch.full((3,), 64.0**2))

    def test_600_by_1000_has_20646_anchors_8044_of_them_inside(self, rpn):
        grid = anchors.grid(rpn.base_anchors[0], (600 // 16, 1000 // 16), (16, 16))
        assert len(grid) == 20646
        assert int(anchors.inside(grid, (600, 1000)).sum()) == 8044

    @torch.inference_mode()
    def test_anchor_8_owns_objectness_channel_16_and_delta_channels_29_to_32(self, rpn):
        objectness = torch.full((1, 18, 2, 3), 0.0)
        deltas = torch.zeros(1, 36, 2, 3)
        objectness[0, 16 - 1, 1, 2] = 5.0
        deltas[0, 29 - 1 : 32, 1, 2] = torch.tensor([0.1, 0.2, 0.0, 0.0])
        kept = rpn.proposals_of_heads(
            [objectness], [deltas], [(16, 16)], torch.tensor([[4000, 4000]])
        )
        assert kept.anchors[0, 0] == (1 * 3 + 2) * 9 + (8 - 1)
        base = rpn.base_anchors[0][8 - 1]
        # Scale-major, ratios 1:1, 1:2, 2:1: the eighth is 512 at 1:2, wider than high.
        width, height = 512 * 2**0.5, 512 / 2**0.5
        shift = torch.tensor([32 + 0.1 * width, 16 + 0.2 * height]).repeat(2)
        expected = (base + shift).clamp(min=0)
        torch.testing.assert_close(kept.boxes[0, 0], expected, atol=1e-3, rtol=0)

    @torch.inference_mode()
    def test_the_object_channel_is_the_second_of_each_pair(self, rpn):
        objectness = torch.zeros(1, 18, 1, 1)
        objectness[0, 0] = 9.0  # background of anchor 1
        objectness[0, 3] = 1.0  # object of anchor 2
        kept = rpn.proposals_of_heads(
            [objectness], [torch.zeros(1, 36, 1, 1)], [(16, 16)], torch.tensor([[600, 1000]])
        )
        assert kept.anchors[0, 0] == 1
        expected = torch.tensor([0.0, 1.0]).softmax(0)[1]
        torch.testing.assert_close(kept.scores[0, 0], expected)

    @pytest.mark.numeric
    @torch.inference_mode()
    def test_a_1x1_convolution_is_a_linear_layer_at_every_cell(self, rpn):
        hidden = torch.rand(1, 512, 5, 7)
        linear, within = tolerances(
            lambda: nn.functional.linear(
                hidden.permute(0, 2, 3, 1),
                rpn.head.bbox_pred.weight[:, :, 0, 0],
                rpn.head.bbox_pred.bias,
            )
        )
        assert_within(rpn.head.bbox_pred(hidden).permute(0, 2, 3, 1), linear, within)

    @torch.inference_mode()
    def test_shifting_the_input_by_the_stride_shifts_the_outputs(self, rpn):
        images = torch.rand(1, 3, 320, 288)
        shifted = torch.roll(images, 16, dims=2)
        first, within = tolerances(lambda: rpn.head(list(rpn.features(images).values())))
        second = rpn.head(list(rpn.features(shifted).values()))
        # conv5_3 and the head see 228 pixels around a cell: 8 cells from a border are unaffected.
        margin = 8
        for a, b, far in zip(first, second, within, strict=True):
            inside = a[0][..., margin : -margin - 1, margin:-margin]
            moved = b[0][..., margin + 1 : -margin, margin:-margin]
            assert inside.numel() > 0
            assert_within(moved, inside, [far])

    def test_defaults(self, rpn):
        spec = rpn.proposal_spec
        assert (spec.pre_nms_top_n, spec.nms_thresh, spec.post_nms_top_n) == (6000, 0.7, 300)
        assert rpn.head.softmax


@pytest.mark.parametrize("name", models.MODELS)
def test_the_table_has_the_layout_of_every_model(name):
    with torch.device("meta"):
        state = models.find(name).build().state_dict()
    assert models.find(name).layout == layout(state), "after a change of the network, this one"
    widened = {**state, next(iter(state)): torch.zeros(1, device="meta")}
    renamed = {f"{key}.": tensor for key, tensor in state.items()}
    fewer = dict(list(state.items())[1:])
    assert len({layout(other) for other in (state, widened, renamed, fewer)}) == 4


def test_a_checkpoint_is_recognised_without_a_model_being_built(checkpoint, monkeypatch):
    path = checkpoint("tiny", models.find("tiny").build())
    built = []
    build = models.ModelEntry.build
    monkeypatch.setattr(
        models.ModelEntry, "build", lambda entry: built.append(entry) or build(entry)
    )
    assert load_model(str(path)).name == "tiny"
    assert built == [models.find("tiny")]


@pytest.mark.parametrize("name", models.MODELS)
def test_every_model_builds_and_runs(name):
    rpn = load(name, "random", top=20)
    size = 64 if rpn.input_spec.size_divisor > 1 else 80
    with torch.inference_mode():
        kept = rpn(torch.rand(2, 3, size, size), torch.tensor([[size, size]] * 2))
    assert kept.boxes.shape == (2, 20, 4)
    assert (kept.count > 0).all()
    stated = [int(s) for s in models.MODELS[name].strides.split()]
    maps = list(rpn.features(torch.zeros(1, 3, 256, 256)).values())
    assert [256 // m.shape[-1] for m in maps] == stated
    assert len(maps) == rpn.num_levels


def test_a_model_without_weights_of_its_own_gets_random_ones_and_is_untrained(monkeypatch):
    bare = replace(models.find("classic"), weights="", megabytes=0)
    monkeypatch.setitem(models.MODELS, "bare", bare)
    rpn, random = load_model("bare"), load_model("classic", "random")
    assert not rpn.trained
    for name, tensor in rpn.state_dict().items():
        assert torch.equal(tensor, random.state_dict()[name])


def test_weights_that_should_be_in_the_package_and_are_not_are_named(monkeypatch):
    lost = replace(models.find("classic"), weights="lost.safetensors")
    monkeypatch.setitem(models.MODELS, "lost", lost)
    with pytest.raises(StreamRPNError, match=r"no checkpoint file '.*lost\.safetensors'"):
        load_model("lost")


@pytest.mark.slow  # the default model is compiled in test_nanodet.py
@pytest.mark.parametrize("name", ["tiny", "classic"])
@torch.inference_mode()
def test_the_whole_network_compiles_as_one_graph(name):
    torch.compiler.reset()
    rpn = models.find(name).build().eval()
    images, sizes = torch.rand(2, 3, 96, 128), torch.tensor([[96, 128], [90, 100]])
    compiled = torch.compile(rpn, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(images, sizes), rpn(images, sizes), strict=True):
        assert torch.equal(one, other)
