"""What a cell can see, and what it looks at: the theoretical and the effective receptive field.

The theoretical one is read off the operations that run: for every map that comes by, which rows and
which columns of the input each of its rows and columns depends on. The effective one (Luo et al.
2016) is the gradient of a cell's objectness with respect to the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stream_rpn.explanation.look import Look, hidden_maps
from stream_rpn.rpn import RPN

# An input so long that a cell in its middle sees no border; it can be low, which costs little. What
# sees nearly all of it sees everything.
ENDLESS = 4096


class Span(NamedTuple):
    """Along one axis, for each of n positions the input pixels low … high - 1 that it depends on.

    Attributes:
        low: [n] int64.
        high: [n] int64.
    """

    low: np.ndarray
    high: np.ndarray

    def at(self, first: np.ndarray, last: np.ndarray) -> Span:
        """Returns the span of positions that read those from `first` to `last`, clipped."""
        end = len(self.low) - 1
        return Span(self.low[first.clip(0, end)], self.high[last.clip(0, end)])

    def joined(self, other: Span) -> Span:
        """Returns the span of what reads both, position by position; one of them may be single."""
        return Span(np.minimum(self.low, other.low), np.maximum(self.high, other.high))

    def all(self, length: int) -> Span:
        """Returns the span of positions that each read all of these."""
        return Span(np.full(length, self.low.min()), np.full(length, self.high.max()))


Spans = tuple[Span, Span]
"""Of the rows and of the columns of a map."""

Reads = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
"""From the lengths of an axis before and after, which positions each one after reads."""


class _Following(TorchFunctionMode):
    """Follows which input pixels every map [B, C, H, W] that is computed depends on."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        read = [s for x in _tensors(args) if (s := spans_of(x)) is not None]
        for result in _tensors([out]) if read else []:
            if result.ndim == 4:
                spans = _after(_name(function), args, kwargs, read, result)
                if [len(span.low) for span in spans] == list(result.shape[-2:]):
                    result._spans = spans  # type: ignore[attr-defined]
        return out


def spans_of(tensor: Tensor) -> Spans | None:
    """Returns what a map's rows and columns depend on, None where that was not followed."""
    found: Spans | None = getattr(tensor, "_spans", None)
    return found


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", "")).strip("_")


def _tensors(args: Sequence[Any]) -> list[Tensor]:
    flat = [x for arg in args for x in (arg if isinstance(arg, list | tuple) else [arg])]
    return [x for x in flat if isinstance(x, Tensor)]


def _after(
    name: str, args: Sequence[Any], kwargs: dict[str, Any], read: Sequence[Spans], out: Tensor
) -> Spans:
    """Returns what the rows and columns of an operation's result depend on."""

    def given(position: int, key: str, default: Any) -> tuple[int, int]:
        value = kwargs.get(key, args[position] if len(args) > position else default)
        value = default if value is None else value
        pair = list(value) if isinstance(value, Sequence) else [value]
        return int(pair[0]), int(pair[-1])

    rows, columns = read[0]
    if name == "conv2d":
        kernel = (int(args[1].shape[-2]), int(args[1].shape[-1]))
        window = kernel, given(3, "stride", 1), given(4, "padding", 0), given(5, "dilation", 1)
        return _each_axis(read[0], out, [_window(*axis) for axis in zip(*window, strict=True)])
    if name in ("max_pool2d", "avg_pool2d"):
        kernel = given(1, "kernel_size", 1)
        window = kernel, given(2, "stride", kernel), given(3, "padding", 0), (1, 1)
        return _each_axis(read[0], out, [_window(*axis) for axis in zip(*window, strict=True)])
    if name in ("adaptive_avg_pool2d", "mean"):
        return rows.all(out.shape[-2]), columns.all(out.shape[-1])
    if name == "interpolate":
        mode = kwargs.get("mode", "nearest")
        return _each_axis(read[0], out, [_nearest if mode == "nearest" else _linear] * 2)
    for other in read[1:]:
        rows, columns = rows.joined(other[0]), columns.joined(other[1])
    return rows, columns


def _each_axis(spans: Spans, out: Tensor, reads: Sequence[Reads]) -> Spans:
    (rows, columns), (height, width) = spans, out.shape[-2:]
    return (
        rows.at(*reads[0](len(rows.low), height)),
        columns.at(*reads[1](len(columns.low), width)),
    )


def _window(kernel: int, stride: int, padding: int, dilation: int) -> Reads:
    def reads(_: int, after: int) -> tuple[np.ndarray, np.ndarray]:
        first = np.arange(after) * stride - padding
        return first, first + (kernel - 1) * dilation

    return reads


def _nearest(before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    source = np.arange(after) * before // after
    return source, source


def _linear(before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    centre = (np.arange(after) + 0.5) * before / after - 0.5
    return np.floor(centre).astype(int), np.ceil(centre).astype(int)


@dataclass(frozen=True)
class Fields:
    """Receptive fields of every level for an input of one size.

    Attributes:
        maps: per level the rows and columns that a cell of the feature map depends on.
        windows: the same of a cell of the head, whose window reads several cells of the map.
    """

    maps: list[Spans]
    windows: list[Spans]

    def box(self, level: int, row: int, column: int) -> tuple[int, int, int, int]:
        """Returns x1, y1, x2, y2 of what the head depends on at a cell, in input pixels."""
        rows, columns = self.windows[level]
        return (
            int(columns.low[column]),
            int(rows.low[row]),
            int(columns.high[column]),
            int(rows.high[row]),
        )


@torch.inference_mode()
def fields(rpn: RPN, images: Tensor) -> Fields:
    """Returns the receptive fields of a network for an input [1, 3, H, W], by running it."""
    images = images.clone()
    height, width = images.shape[-2:]
    sides = (np.arange(side) for side in (height, width))
    images._spans = tuple(Span(side, side + 1) for side in sides)  # type: ignore[attr-defined]
    with _Following():
        maps = list(rpn.features(images).values())
        with hidden_maps(rpn.head, len(maps)) as hidden:
            rpn.head(maps)
    everything = [Span(np.zeros(1, int), np.full(1, side)) for side in (height, width)]

    def known(found: Sequence[Tensor]) -> list[Spans]:
        # A backbone of one's own may do what is not followed: then it may depend on everything.
        return [
            spans_of(f) or (everything[0].all(m.shape[-2]), everything[1].all(m.shape[-1]))
            for f, m in zip(found, maps, strict=True)
        ]

    return Fields(known(maps), known(hidden or maps))


def nominal(rpn: RPN) -> tuple[list[int | None], list[int | None]]:
    """Returns per level the side of the receptive field far from any border, in input pixels.

    Of the feature map, and of the head's window; None where a cell sees the whole picture, as
    behind a global average. Where cells differ, as behind an upsampling, the largest counts.
    """
    low = max(rpn.input_spec.size_divisor, 32)
    found = fields(rpn, torch.zeros(1, 3, low, ENDLESS))

    def side(spans: Spans) -> int | None:
        span = spans[1]
        middle = len(span.low) // 2
        near = slice(max(middle - 8, 0), middle + 8)
        widest = int((span.high[near] - span.low[near]).max())
        return None if widest >= ENDLESS * 0.9 else widest

    return [side(spans) for spans in found.maps], [side(spans) for spans in found.windows]


@dataclass(frozen=True)
class Effective:
    """What a cell looks at on this frame.

    Attributes:
        heat: [H, W] float32, the gradient's share of each pixel of the input, padding included;
            its sum is 1, or 0 where nothing reaches the input.
        half: side of the square around the cell that holds half of it, in input pixels.
        most: side of the square that holds 90 % of it.
    """

    heat: np.ndarray
    half: int
    most: int


def effective(look: Look, cells: Sequence[tuple[int, int, int, int]]) -> list[Effective]:
    """Returns the effective receptive field of the objectness of each (level, a, row, column)."""
    # The input was made in inference mode, of which no gradient can be taken.
    images = look.images.clone().requires_grad_(True)
    rpn = look.rpn
    with torch.enable_grad():
        objectness, _ = rpn.head(list(rpn.features(images).values()))
        per_anchor = 2 if rpn.head.softmax else 1
        found = []
        for number, (level, a, row, column) in enumerate(cells):
            values = objectness[level][0, per_anchor * a : per_anchor * (a + 1), row, column]
            logit = values[-1] - values[0] if per_anchor == 2 else values[0]
            last = number == len(cells) - 1
            (gradient,) = torch.autograd.grad(logit, images, retain_graph=not last)
            centre = [
                (place + 0.5) * side
                for place, side in zip((row, column), look.strides[level], strict=True)
            ]
            found.append(_effective(gradient[0].abs().sum(0).numpy(), centre))
    return found


def _effective(gradient: np.ndarray, centre: Sequence[float]) -> Effective:
    heat = gradient / max(float(gradient.sum()), 1e-30)
    y, x = (np.abs(np.arange(side) + 0.5 - at) for side, at in zip(heat.shape, centre, strict=True))
    reach = np.maximum(y[:, None], x[None])
    shares = np.bincount(reach.astype(int).ravel(), heat.ravel()).cumsum()

    def side(share: float) -> int:
        return int(2 * (np.searchsorted(shares, share * shares[-1]) + 1))

    return Effective(heat.astype(np.float32), side(0.5), side(0.9))
