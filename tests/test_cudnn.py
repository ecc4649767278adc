"""Fused convolutions against the plain ones they stand for.

On a CPU twins of cuDNN's operators stand in for them: what is right there is which convolution
gets which numbers, and which activation goes. On a GPU the operators themselves are compared.
"""

import copy
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.models import resnet18 as resnet18_of_torchvision
from torchvision.models._utils import IntermediateLayerGetter

from stream_rpn import load
from stream_rpn.network import cudnn
from stream_rpn.network.cudnn import (
    DepthwiseConv2d,
    EpilogueConv2d,
    FusedBlock,
    FusedConv2d,
    fused,
)
from stream_rpn.rpn import fold_batch_norms
from tests.agreement import assert_within, tolerances

CUDA = pytest.param("cuda", marks=pytest.mark.needs_cuda)
DTYPES = [torch.float32, torch.bfloat16]


def conv_relu(x, weight, bias, stride, padding, dilation, groups):
    exact = (tensor.double() for tensor in (x, weight, bias))
    y = nn.functional.conv2d(*exact, stride, padding, dilation, groups)
    return y.relu().to(x.dtype, memory_format=torch.channels_last)


def conv_add_relu(x, weight, z, alpha, bias, stride, padding, dilation, groups):
    exact = (tensor.double() for tensor in (x, weight, bias))
    y = nn.functional.conv2d(*exact, stride, padding, dilation, groups)
    y += (1.0 if alpha is None else alpha) * z.double()
    return y.relu().to(x.dtype, memory_format=torch.channels_last)


@pytest.fixture(autouse=True)
def _defaults(monkeypatch):
    backend = torch.backends.cudnn
    monkeypatch.setattr(backend, "deterministic", False)
    monkeypatch.setattr(backend, "allow_tf32", False)
    cudnn.works.cache_clear()
    yield
    cudnn.works.cache_clear()


@pytest.fixture
def twins(monkeypatch):
    monkeypatch.setattr(torch, "cudnn_convolution_relu", conv_relu)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", conv_add_relu)
    # On a CPU the kernel's reference stands in for it, which needs no Triton.
    monkeypatch.setattr(cudnn, "find_spec", lambda name: name)


@pytest.fixture(params=["cpu", CUDA])
def device(request, monkeypatch):
    if request.param == "cpu":
        request.getfixturevalue("twins")
    return request.param


def outputs(rpn, images):
    with torch.inference_mode():
        maps = list(rpn.features(images).values())
        objectness, deltas = rpn.head(maps)
    return [*maps, *objectness, *deltas]


def leave_nan_behind(device):
    """Lets what torch allocates next lie where there are NaN: nobody may read what is not there."""
    if device == "cuda":
        torch.full((1 << 28,), torch.nan, device=device)


def resnet18():
    """A backbone of one's own, of the other kind of residual block, with its batch norms folded."""
    net = resnet18_of_torchvision(weights=None).eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var.uniform_(0.5, 2)
            layer.running_mean.uniform_(-1, 1)
    return fold_batch_norms(nn.Sequential(*list(net.children())[:-2]))


# How many layers of each are fused in 32 and in 16 bits, residual blocks among them, how many are
# depthwise, and how many convolutions there are in all.
@pytest.mark.parametrize(
    ("name", "single", "half", "blocks", "depthwise", "convolutions"),
    [
        # All of the blocks, the layer before the head's last ones; and the pyramid's 1×1.
        ("resnet50_fpn", 48 + 1, 48 + 1 + 4, 16, 0, 60),
        ("resnet50_fpn_v2", 48 + 2, 48 + 2 + 4, 16, 0, 61),
        # All but the first, and the layer before the last ones.
        ("vgg16", 12 + 1, 12 + 1, 0, 0, 16),
        ("tiny", 1, 1 + 35, 0, 16, 59),
        ("mobilenet_v3_large_320_fpn", 6, 49, 0, 15, 69),
        ("nanodet_m", 0, 39, 0, 43, 110),
    ],
)
def test_which_layers_are_fused(name, single, half, blocks, depthwise, convolutions, twins):
    rpn = load(name, "random")
    for dtype, expected in ((torch.float32, single), (torch.bfloat16, half)):
        layers = list(fused(rpn.to(dtype)).modules())
        assert sum(isinstance(layer, FusedConv2d) for layer in layers) == expected
        assert sum(isinstance(layer, FusedBlock) for layer in layers) == blocks
        assert sum(isinstance(layer, DepthwiseConv2d) for layer in layers) == depthwise
        # All others have their bias, and what follows, in one pass.
        rest = sum(isinstance(layer, EpilogueConv2d) for layer in layers)
        assert rest == convolutions - depthwise - expected
        assert not any(type(layer) is nn.Conv2d for layer in layers)
        # In 32 bits no activation is left but those of squeeze and excitation, of one pixel.
        left = [layer for layer in layers if type(layer) in (nn.ReLU, nn.ReLU6, nn.LeakyReLU)]
        if dtype == torch.float32:
            excitations = sum(type(layer) is nn.Hardsigmoid for layer in layers)
            # A residual block's own is in the block's form.
            assert len(left) == excitations


@pytest.mark.numeric
@pytest.mark.parametrize(
    "name",
    ["resnet50_fpn", "resnet50_fpn_v2", "tiny", "nanodet_m", "mobilenet_v3_large_320_fpn", "vgg16"],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_fused_network_is_right(name, dtype, device):
    torch.manual_seed(0)
    layout = torch.channels_last
    rpn = load(name, "random").to(device, dtype, memory_format=layout)
    fast, exact = fused(rpn), copy.deepcopy(rpn).cpu().float()
    assert fast is not rpn
    for shape in ((1, 3, 64, 96), (2, 3, 32, 64)):
        images = torch.randn(shape).to(device, dtype, memory_format=layout)
        expected, within = tolerances(lambda i=images: outputs(exact, i.cpu().float()), dtype)
        leave_nan_behind(device)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            found = outputs(fast, images)
        assert_within([y.cpu() for y in found], expected, within)
        for one, other in zip(found, outputs(rpn, images), strict=True):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            assert one.is_contiguous(memory_format=layout) or not other.is_contiguous(
                memory_format=layout
            )


@pytest.mark.numeric
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_of_two_convolutions(dtype, device):
    torch.manual_seed(0)
    model = resnet18().to(device, dtype, memory_format=torch.channels_last)
    fast, exact = fused(model), copy.deepcopy(model).cpu().float()
    assert sum(isinstance(layer, FusedBlock) for layer in fast.modules()) == 8
    images = torch.randn(2, 3, 64, 64).to(device, dtype, memory_format=torch.channels_last)
    expected, within = tolerances(lambda: exact(images.cpu().float()), dtype)
    leave_nan_behind(device)
    with torch.inference_mode():
        assert_within(fast(images).cpu(), expected, within)


def test_the_model_stays_as_it_is(twins):
    rpn = load("resnet50_fpn", "random")
    modules = list(rpn.modules())
    before = {name: tensor.clone() for name, tensor in rpn.state_dict().items()}
    fast = fused(rpn)
    assert list(rpn.modules()) == modules
    for name, tensor in rpn.state_dict().items():
        assert torch.equal(tensor, before[name])
    first = fast.backbone.body.layer1[1].first[0]
    assert first.weight is rpn.backbone.body.layer1[1].conv1.weight


def test_batch_norms_that_were_not_folded_leave_blocks_as_they_are(twins):
    model = resnet18_of_torchvision(weights=None).eval()
    assert not any(isinstance(layer, FusedBlock | FusedConv2d) for layer in fused(model).modules())


@pytest.mark.numeric
@pytest.mark.parametrize("taken", ["conv1", "bn1", "relu"])
def test_a_backbone_gives_the_layers_that_it_was_asked_for(taken, twins):
    layers = OrderedDict(conv1=nn.Conv2d(3, 8, 3), bn1=nn.Identity(), relu=nn.ReLU())
    model = IntermediateLayerGetter(nn.Sequential(layers), {taken: "0"})
    images = torch.randn(1, 3, 16, 16)
    expected, within = tolerances(lambda: model(images))
    fast = fused(model)
    assert type(fast["conv1"]) is EpilogueConv2d
    assert fast["conv1"]._activation == ("relu" if taken == "relu" else "none")
    with torch.inference_mode():
        assert_within(fast(images), expected, within)


@pytest.mark.numeric
def test_what_is_no_plain_convolution_stays(twins):
    class Doubling(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    relu = nn.ReLU()
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        relu,
        nn.Conv2d(8, 8, 3, padding="same"),
        relu,
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        relu,
        Doubling(8, 8, 1),
        relu,
        nn.Conv2d(8, 8, 3, groups=2),
        relu,
        nn.Conv2d(8, 8, 3, bias=False),
        relu,
        nn.Conv2d(8, 8, 3),
        nn.ReLU6(),
        nn.Conv2d(8, 16, 3, stride=2, padding=(1, 2), dilation=(2, 1)),
        nn.Identity(),
        relu,
        nn.Conv2d(16, 4, 1),
    ).eval()
    images = torch.randn(1, 3, 24, 24)
    fast = fused(model)
    assert [index for index, layer in enumerate(fast) if isinstance(layer, FusedConv2d)] == [14]
    assert [i for i, layer in enumerate(fast) if type(layer) is EpilogueConv2d] == [0, 8, 12, 17]
    assert [index for index, layer in enumerate(fast) if type(layer) is nn.ReLU] == [3, 5, 7, 11]
    expected, within = tolerances(lambda: model(images))
    with torch.inference_mode():
        assert_within(fast(images), expected, within)


@pytest.mark.numeric
@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.1), nn.Hardswish(), nn.Identity(), nn.Tanh()],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
def test_bias_and_activation_are_one_pass(activation, dtype, device):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 58, 3, stride=2),
        copy.deepcopy(activation),
        nn.Conv2d(58, 58, 5, padding=2, groups=58),
        nn.Identity(),
        copy.deepcopy(activation),
        nn.Conv2d(58, 15, 1),
    ).to(device, dtype, memory_format=torch.channels_last)
    fast, exact = fused(model), copy.deepcopy(model).cpu().float()
    passes = [type(layer) for layer in fast if type(layer) is not nn.Identity]
    assert passes.count(EpilogueConv2d) == 2
    assert passes.count(DepthwiseConv2d) == 1
    assert passes.count(type(activation)) == (2 if isinstance(activation, nn.Tanh) else 0)
    for layout in (torch.channels_last, torch.contiguous_format):
        images = torch.randn(2, 3, 33, 20).to(device, dtype, memory_format=layout)
        before = images.clone()
        expected, within = tolerances(lambda i=images: exact(i.cpu().float()), dtype)
        leave_nan_behind(device)
        with torch.inference_mode():
            assert_within(fast(images).cpu(), expected, within)
        assert torch.equal(images, before)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_captured_pass_gives_what_a_launched_one_gives(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 58, 3, groups=2), nn.LeakyReLU(0.1), nn.Conv2d(58, 3, 1))
    fast = fused(model.to("cuda", dtype, memory_format=torch.channels_last))
    images = torch.randn(2, 8, 40, 50, device="cuda", dtype=dtype)
    images = images.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        fast(images)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = fast(images)
        for _ in range(3):
            images.normal_()
            expected = fast(images)
            graph.replay()
            assert torch.equal(captured, expected)


def test_without_triton_biases_and_activations_stay(twins, monkeypatch):
    monkeypatch.setattr(cudnn, "find_spec", lambda name: None)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.ReLU6(), nn.Conv2d(8, 8, 3), nn.ReLU())
    depthwise, relu6, conv, _ = fused(model)
    assert (type(depthwise), type(relu6)) == (nn.Conv2d, nn.ReLU6)
    assert type(conv) is FusedConv2d


def test_a_shape_that_has_no_fused_kernel_runs_plainly_and_says_so_once(twins, monkeypatch):
    fast = fused(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()))
    layer, images = fast[0], torch.randn(1, 8, 8, 8)
    expected = layer(images)

    def fails(*_):
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    monkeypatch.setattr(torch, "cudnn_convolution_relu", fails)
    with pytest.warns(RuntimeWarning, match="unable to find an engine"):
        found = layer(images)
    torch.testing.assert_close(found, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(layer(images), expected)


def test_lack_of_memory_is_not_the_kernels_fault(twins, monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError

    fast = fused(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()))
    monkeypatch.setattr(torch, "cudnn_convolution_relu", fails)
    with pytest.raises(torch.OutOfMemoryError):
        fast(torch.randn(1, 8, 8, 8))


def test_without_the_operators_a_model_stays():
    # A CPU has none of them.
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())
    assert fused(model) is model


def test_where_torch_is_to_be_deterministic_a_model_stays(twins, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())
    assert fused(model) is model
