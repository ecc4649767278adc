"""A trial of the compiled kernels on the GPU at hand: small hard inputs, held to the references.

Compilers, drivers and chips differ, and a kernel that gives other boxes does not say so. A trial
compiles what the network launches anyway and takes a fraction of a second beyond that.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from stream_rpn.kernels.depthwise import depthwise
from stream_rpn.kernels.depthwise_reference import depthwise_reference
from stream_rpn.kernels.epilogue import ACTIVATIONS, add_bias_
from stream_rpn.kernels.epilogue_reference import add_bias_reference
from stream_rpn.kernels.nms import nms
from stream_rpn.kernels.nms_reference import nms_reference
from stream_rpn.kernels.preprocess import PlaneLayout, preprocess_batch
from stream_rpn.kernels.preprocess_reference import preprocess_reference
from stream_rpn.kernels.proposals import HeadOutputs, ProposalSpec
from stream_rpn.kernels.propose import select_candidates
from stream_rpn.kernels.propose_reference import select_candidates_reference

# Of candidates, a trial tries one more than are suppressed at a time: then the second chunk is
# tried as well.
MOST_CANDIDATES = 2049


def hard_heads(
    num_anchors: Sequence[int],
    candidates: int,
    dtype: torch.dtype = torch.float32,
    *,
    softmax: bool = False,
    seed: int = 0,
) -> HeadOutputs:
    """Returns head outputs on the CPU for two images: one ordinary, one that has everything odd.

    The second has ties, NaN, infinities and deltas beyond the clip. Memory is channels-last, as a
    network's is.

    Args:
        num_anchors: A of each level.
        candidates: each level has at least so many anchors.
        dtype: of logits and deltas.
        softmax: two logits per anchor instead of one.
        seed: for other numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    objectness, deltas, bases, strides = [], [], [], []
    for level, num in enumerate(num_anchors):
        side = math.ceil(math.sqrt(max(candidates, 1) / num)) + level
        stride = 8 << level
        logits = torch.randn(2, num * (1 + softmax), side, side, generator=generator) * 3
        offsets = torch.randn(2, 4 * num, side, side, generator=generator) * 0.3
        odd = logits[1]
        odd.round_()
        draw = torch.rand(odd.shape, generator=generator)
        odd[draw < 0.05] = torch.nan
        odd[(draw >= 0.05) & (draw < 0.1)] = -torch.inf
        odd[(draw >= 0.1) & (draw < 0.102)] = torch.inf
        offsets[1] *= 30
        offsets[1][torch.rand(offsets[1].shape, generator=generator) < 0.01] = torch.nan
        sizes = torch.arange(1, num + 1)[:, None] * 2.0 * stride
        corners = torch.tensor([-0.5, -0.7, 0.5, 0.7])
        objectness.append(logits.to(dtype, memory_format=torch.channels_last))
        deltas.append(offsets.to(dtype, memory_format=torch.channels_last))
        bases.append(sizes * corners)
        strides.append((stride, stride))
    limit = 8 * objectness[0].shape[2]
    return HeadOutputs(objectness, deltas, bases, strides, torch.tensor([[limit, limit]] * 2))


def proposals_differ(
    heads: HeadOutputs, spec: ProposalSpec, device: torch.device
) -> Iterator[tuple[str, str]]:
    """Yields (operation, result) for each result of the kernels that is not the references' bits.

    Args:
        heads: on the CPU.
        spec: the limits.
        device: the GPU.
    """
    expected = select_candidates_reference(heads, spec)
    found = select_candidates(heads.to(device), spec)
    yield from _different("select_candidates", found, expected)
    sizes = heads.level_sizes(spec.pre_nms_top_n)
    # Of the reference's candidates: whatever is wrong above, this is about the suppression.
    given = type(expected)(*(tensor.to(device) for tensor in expected))
    yield from _different("nms", nms(given, sizes, spec), nms_reference(expected, sizes, spec))


def preprocessing_differs(
    dtype: torch.dtype, device: torch.device, *, antialias: bool
) -> Iterator[tuple[str, str]]:
    """Yields ("preprocess", result) where pixels are further from the reference's than rounding."""
    data, table, matrix = _two_frames()
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    out = torch.empty(2, 3, 64, 96, dtype=dtype, memory_format=torch.channels_last)
    expected = torch.empty(2, 3, 64, 96)
    preprocess_reference(data, table, matrix, mean, std, expected, antialias=antialias)
    on_device = torch.full_like(out, torch.nan, device=device)
    data, table, matrix, mean, std = (t.to(device) for t in (data, table, matrix, mean, std))
    found = preprocess_batch(data, table, matrix, mean, std, on_device, antialias=antialias)
    tolerance = 1e-3 + 2 * torch.finfo(dtype).eps * expected.abs()
    if not bool(((found.cpu().float() - expected).abs() <= tolerance).all()):
        yield "preprocess", "pixels"


def passes_differ(dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, str]]:
    """Yields ("add_bias", result) where bias and activation of a map differ by a bit."""
    generator = torch.Generator().manual_seed(0)
    # Two widths of loads and stores, and maps that end inside a block.
    for channels in (24, 58):
        x = 4 * torch.randn(2, 17, 19, channels, generator=generator)
        x[1, 2, :5, 3] = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0])
        x = x.to(dtype).permute(0, 3, 1, 2)
        bias = torch.randn(channels, generator=generator).to(dtype)
        for activation in ACTIVATIONS:
            expected, found = x.clone(), x.to(device, copy=True)
            add_bias_reference(expected, bias, activation, 0.1)
            add_bias_(found, bias.to(device), activation, slope=0.1)
            if not torch.allclose(found.cpu(), expected, rtol=0, atol=0, equal_nan=True):
                yield "add_bias", "maps"
                return


def depthwise_differs(
    sides: Iterable[int], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, str]]:
    """Yields ("depthwise", result) where a depthwise convolution differs by a bit.

    Args:
        sides: the kernels to try are so many taps high and wide.
        dtype: of the maps.
        device: the GPU.
    """
    generator = torch.Generator().manual_seed(0)
    for side in sides:
        for channels, stride in ((24, 1), (58, 2)):
            x = torch.randn(2, 17, 19, channels, generator=generator)
            x[1, 8, 3:6, 3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
            x = x.to(dtype).permute(0, 3, 1, 2)
            weight = torch.randn(side, side, channels, generator=generator).to(dtype)
            bias = torch.randn(channels, generator=generator).to(dtype)
            padding = side // 2
            expected = depthwise_reference(x, weight, bias, "leaky_relu", 0.1, stride, padding)
            x, weight, bias = (tensor.to(device) for tensor in (x, weight, bias))
            found = depthwise(
                x, weight, bias, "leaky_relu", slope=0.1, stride=stride, padding=padding
            ).cpu()
            if not torch.allclose(found, expected, rtol=0, atol=0, equal_nan=True):
                yield "depthwise", "maps"
                return


def _different(
    op: str, found: tuple[Tensor, ...], expected: tuple[Tensor, ...]
) -> Iterator[tuple[str, str]]:
    names = type(expected)._fields  # type: ignore[attr-defined]
    for name, one, other in zip(names, found, expected, strict=True):
        if not torch.equal(one.cpu(), other):
            yield op, name


def _two_frames() -> tuple[Tensor, Tensor, Tensor]:
    """Returns an NV12 frame and a turned 4:2:0 one of ten bits: data, table and matrix."""
    generator = torch.Generator().manual_seed(0)
    height, width = 90, 120
    luma, chroma = height * width, height // 2 * (width // 2)
    first = torch.randint(16, 236, (luma + 2 * chroma,), dtype=torch.uint8, generator=generator)
    second = torch.randint(
        64, 940, (luma + 2 * chroma,), dtype=torch.int16, generator=generator
    ).view(torch.uint8)
    start = len(first)
    table = [
        PlaneLayout(0, luma, luma + 1, width, width, 2, 1, height, width, 0, 60, 80),
        PlaneLayout(
            start, start + 2 * luma, start + 2 * (luma + chroma), 2 * width, width, 2, 2,
            height, width, 90, 64, 48,
        ),
    ]  # fmt: skip
    to_rgb = torch.tensor(
        [[1.164, 0.0, 1.793, -0.97], [1.164, -0.213, -0.533, 0.3], [1.164, 2.112, 0.0, -1.13]]
    )
    scale = torch.tensor([255.0, 255.0, 255.0, 1.0])
    deep = torch.tensor([1023.0, 1023.0, 1023.0, 1.0])
    matrix = torch.stack([to_rgb / scale, to_rgb / deep])
    return torch.cat([first, second]), torch.tensor(table), matrix
