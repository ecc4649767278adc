"""Convolutions for an NVIDIA GPU: bias, activation and residual sum within, or in one pass.

Called plainly, a convolution of cuDNN's writes its map, torch adds the bias in a pass over the map
of its own, and a ReLU or the sum at the end of a residual block is one pass more: in ResNet-50 as
many bytes as the convolutions themselves move. Two operators of torch's do it in one go, which its
compiler would use, too; but compiling takes a minute for every shape:

* `cudnn_convolution_relu` and `cudnn_convolution_add_relu`, for ReLU only;
* in 16 bits a 1×1 convolution of a map that lies channels last is a product of matrices, to which
  cuBLAS adds a bias, and applies ReLU, as it stores it.

What they do not know (groups, other activations, few channels as in the first layer and the last
ones) gets its bias and its activation in one pass over the map, by a kernel of ours, where torch
takes one for each. A 1×1 convolution with another activation than ReLU keeps that as a pass, as its
bias costs none.

A depthwise convolution is a kernel of ours as a whole. cuDNN takes 75 ms to choose its own for each
such layer, for each shape of its input and in each thread that calls it anew: of the 43 in the
default model that made three seconds before the first result, and for every picture of a new shape.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stream_rpn.kernels.depthwise import depthwise
from stream_rpn.kernels.epilogue import DTYPES, add_bias_
from stream_rpn.network.convolutions import is_plain, replaced, shared_copy

M = TypeVar("M", bound=nn.Module)

# Tensor cores take channels by this many; for other numbers the fused kernels are the slower ones.
CHANNELS = 8

# The widest depthwise kernels in use; the taps of a row are unrolled.
MOST_TAPS = 7 * 7

# The name of each activation that the pass knows, and its slope below zero.
_ACTIVATIONS: dict[type[nn.Module], Callable[[Any], tuple[str, float]]] = {
    nn.ReLU: lambda _: ("relu", 0.0),
    nn.ReLU6: lambda _: ("relu6", 0.0),
    nn.LeakyReLU: lambda layer: ("leaky_relu", layer.negative_slope),
    nn.Hardswish: lambda _: ("hardswish", 0.0),
}


class FusedConv2d(nn.Module):
    """A convolution with bias, perhaps a sum and a ReLU after it, all rounded once."""

    def __init__(self, conv: nn.Conv2d, *, relu: bool) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self._stride, self._padding = conv.stride, conv.padding
        self._dilation, self._groups = conv.dilation, conv.groups
        self._relu = relu
        self._pointwise = _is_pointwise(conv)
        self._fused = True

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Returns the convolution of x; with `residual` (and ReLU only), that of their sum."""
        if self._fused:
            try:
                return self._in_one(x, residual)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                if x.is_cuda and torch.cuda.is_current_stream_capturing():
                    # Nothing can take its place in a graph.
                    raise
                self._fused = False
                warnings.warn(
                    f"a convolution of {list(x.shape)} by {list(self.weight.shape)} runs without "
                    f"its activation, which is slower: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
        y = nn.functional.conv2d(
            x, self.weight, self.bias, self._stride, self._padding, self._dilation, self._groups
        )
        if residual is not None:
            y += residual
        return y.relu_() if self._relu else y

    def _in_one(self, x: Tensor, residual: Tensor | None) -> Tensor:
        # The two operators want the stride first.
        geometry: tuple[Any, ...] = (self._stride, self._padding, self._dilation, self._groups)
        if residual is not None:
            return torch.cudnn_convolution_add_relu(
                x, self.weight, residual, None, self.bias, *geometry
            )
        if self._pointwise:
            return self._product(x)
        return torch.cudnn_convolution_relu(x, self.weight, self.bias, *geometry)

    def _product(self, x: Tensor) -> Tensor:
        # Views, of a map that lies channels last.
        rows, weight = x.permute(0, 2, 3, 1).flatten(0, 2), self.weight.flatten(1).t()
        assert self.bias is not None
        multiplied = (torch._addmm_activation if self._relu else torch.addmm)(
            self.bias, rows, weight
        )
        return multiplied.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)


class EpilogueConv2d(nn.Module):
    """A convolution whose bias, and perhaps the activation after it, is one pass over its map."""

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self._stride, self._padding = conv.stride, conv.padding
        self._dilation, self._groups = conv.dilation, conv.groups
        self._activation, self._slope = _activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the result of the convolution and the activation for x."""
        # New memory, which nobody else knows yet; copied only where images lie otherwise.
        y = nn.functional.conv2d(
            x, self.weight, None, self._stride, self._padding, self._dilation, self._groups
        )
        y = y.contiguous(memory_format=torch.channels_last)
        assert self.bias is not None
        return add_bias_(y, self.bias, self._activation, slope=self._slope)


class DepthwiseConv2d(nn.Module):
    """A convolution of each channel by itself, its bias and perhaps the activation after it."""

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None) -> None:
        super().__init__()
        channels_last = conv.weight.detach().permute(2, 3, 0, 1).squeeze(-1).contiguous()
        self.weight = nn.Parameter(channels_last, requires_grad=False)
        self.bias = conv.bias
        self._stride, self._padding = conv.stride[0], int(conv.padding[0])
        self._activation, self._slope = _activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the result of the convolution and the activation for x."""
        assert self.bias is not None
        return depthwise(
            x.contiguous(memory_format=torch.channels_last),
            self.weight,
            self.bias,
            self._activation,
            slope=self._slope,
            stride=self._stride,
            padding=self._padding,
        )


class FusedBlock(nn.Module):
    """A residual block of torchvision's ResNets whose batch norms have been folded.

    The order of its layers stands in the code of its `forward` only, so it is replaced as a whole.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        *first, last = _convolutions(block)
        self.first = nn.Sequential(*(FusedConv2d(conv, relu=True) for conv in first))
        self.last = FusedConv2d(last, relu=True)
        self.shortcut: nn.Parameter | None = None
        if block.downsample is not None:
            conv = block.downsample[0]
            self.shortcut = conv.weight
            self._geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
            # Of two biases in a sum one may be added where it costs nothing.
            both = (last.bias + conv.bias).detach()
            self.last.bias = nn.Parameter(both, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's map of x."""
        identity = x
        if self.shortcut is not None:
            identity = nn.functional.conv2d(x, self.shortcut, None, *self._geometry)
        y: Tensor = self.last(self.first(x), identity)
        return y


def fused(model: M) -> M:
    """Returns a model on a GPU with fused convolutions, for inference; `model` stays as it is.

    Where torch or the GPU lacks the operators for its number format, `model` itself; and where
    torch is to be deterministic, of which these operators take no notice.
    """
    weight = next(model.parameters())
    if torch.backends.cudnn.deterministic or torch.are_deterministic_algorithms_enabled():
        return model
    if not works(weight.dtype, weight.device):
        return model
    model = shared_copy(model)
    blocks = _residual_blocks()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in blocks and _can_be_fused(child):
                setattr(parent, name, FusedBlock(child))
    return replaced(model, _fused)


def _fused(conv: nn.Conv2d, following: nn.Module | None) -> tuple[nn.Module | None, bool]:
    relu = type(following) is nn.ReLU
    if _is_fusable(conv) and (relu or _is_pointwise(conv)):
        return FusedConv2d(conv, relu=relu), relu
    # The kernel's reference takes more passes than torch does.
    if conv.bias is None or conv.bias.dtype not in DTYPES or find_spec("triton") is None:
        return None, False
    activation = following if type(following) in _ACTIVATIONS else None
    form = DepthwiseConv2d if is_depthwise(conv) else EpilogueConv2d
    return form(conv, activation), activation is not None


def _activation(layer: nn.Module | None) -> tuple[str, float]:
    """Returns an activation's name and its slope below zero."""
    return _ACTIVATIONS[type(layer)](layer) if layer is not None else ("none", 0.0)


def _is_fusable(conv: nn.Conv2d) -> bool:
    channels = (conv.in_channels, conv.out_channels)
    return (
        is_plain(conv)
        and conv.groups == 1
        and conv.bias is not None
        and all(count % CHANNELS == 0 for count in channels)
    )


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Tells whether a convolution is one that `DepthwiseConv2d` computes."""
    height, width = conv.kernel_size
    return (
        is_plain(conv)
        and conv.groups == conv.in_channels == conv.out_channels
        and height == width
        and height * width <= MOST_TAPS
        and all(len(set(pair)) == 1 for pair in (conv.stride, conv.padding))
        and conv.dilation == (1, 1)
    )


def _is_pointwise(conv: nn.Conv2d) -> bool:
    # In float32 cuDNN may use TensorFloat-32 where products of matrices must not.
    return (
        conv.weight.dtype in (torch.bfloat16, torch.float16)
        and conv.kernel_size == conv.stride == (1, 1)
        and conv.padding == (0, 0)
        and conv.groups == 1
    )


def _residual_blocks() -> tuple[type[nn.Module], ...]:
    # Whoever has built such a model has imported it; for others that would take a second.
    resnet = sys.modules.get("torchvision.models.resnet")
    return () if resnet is None else (resnet.Bottleneck, resnet.BasicBlock)


def _convolutions(block: Any) -> list[nn.Conv2d]:
    return [getattr(block, f"conv{i}") for i in (1, 2, 3) if hasattr(block, f"conv{i}")]


def _can_be_fused(block: Any) -> bool:
    convolutions = _convolutions(block)
    norms = [getattr(block, f"bn{i + 1}") for i in range(len(convolutions))]
    if block.downsample is not None:
        conv, *norm = block.downsample
        convolutions.append(conv)
        norms += norm
    return all(type(norm) is nn.Identity for norm in norms) and all(
        type(conv) is nn.Conv2d and _is_fusable(conv) for conv in convolutions
    )


@cache
def works(dtype: torch.dtype, device: torch.device) -> bool:
    """Tells whether torch and the device have the fused operators for a number format."""
    conv = nn.Conv2d(16, 16, 3, padding=1, dtype=dtype, device=device)
    one = nn.Conv2d(16, 16, 1, dtype=dtype, device=device)
    x = torch.zeros(1, 16, 8, 8, dtype=dtype, device=device)
    x = x.to(memory_format=torch.channels_last)
    try:
        with torch.inference_mode():
            for layer in (FusedConv2d(conv, relu=True), FusedConv2d(one, relu=True)):
                layer._in_one(x, x)
                layer._in_one(x, None)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AttributeError):
        return False
    return True
