"""The head at one cell: its channels, their values, and the 1×1 convolution as a dot product."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from stream_rpn.explanation.look import Look
from stream_rpn.models.gfl_head import GFLHead
from stream_rpn.rpn import RPNHead


@dataclass(frozen=True)
class Dot:
    """How a 1×1 convolution gives an anchor's score at one cell: weights · features + bias.

    Attributes:
        row: what the row of weights is for, e.g. "object 1 − background 1".
        weights: [C] float32.
        features: [C] float32, what the 3×3 window became.
        bias: added to the sum.
        total: weights · features + bias.
        rest: what the head adds to that: 0, or of a head of generalised focal loss how sure the
            sides of its box are.
        rest_name: what that is, "" for nothing.
    """

    row: str
    weights: np.ndarray
    features: np.ndarray
    bias: float
    total: float
    rest: float = 0.0
    rest_name: str = ""


@dataclass(frozen=True)
class Channels:
    """What the channels of a head's outputs are.

    Attributes:
        objectness: names of the A or 2A channels, in order.
        deltas: names of the 4A channels, in order.
        note: how the head makes them where it is not two 1×1 convolutions.
    """

    objectness: list[str]
    deltas: list[str]
    note: str = ""


def channels(look: Look) -> Channels:
    """Returns the layout of a head's output."""
    head = look.rpn.head
    numbers = range(1, head.num_anchors + 1)
    objectness = [f"object {i}" for i in numbers]
    if head.softmax:
        objectness = [name for i in numbers for name in (f"background {i}", f"object {i}")]
    deltas = [f"{name} {i}" for i in numbers for name in ("dx", "dy", "dw", "dh")]
    note = ""
    if isinstance(head, GFLHead):
        outputs = head.predictors()[0].out_channels
        note = (
            f"Its 1×1 convolution has {outputs} outputs: {head.classes} class logits, the best of "
            f"which counts as objectness, and {outputs - head.classes} bins, 8 for each side of "
            "the box, whose mean is how far away that side is. Both become one anchor's channels."
        )
    return Channels(objectness, deltas, note)


def dot_product(look: Look, level: int, a: int, row: int, column: int) -> Dot | None:
    """Returns how an anchor's score comes about at a cell; None of a head of one's own.

    Args:
        look: the look.
        level: number of the level.
        a: which anchor of the cell.
        row: of the cell.
        column: of the cell.
    """
    head = look.rpn.head
    if not look.hidden:
        return None
    features = look.hidden[level][0, :, row, column].float()
    if isinstance(head, RPNHead):
        weights, biases = _rows(head.cls_logits)
        if head.softmax:
            name = f"object {a + 1} − background {a + 1}"
            weight = weights[2 * a + 1] - weights[2 * a]
            bias = float(biases[2 * a + 1] - biases[2 * a])
        else:
            name, weight, bias = f"object {a + 1}", weights[a], float(biases[a])
        return _dot(name, weight, features, bias)
    if isinstance(head, GFLHead):
        weights, biases = _rows(head.predictors()[level])
        logits = weights[: head.classes] @ features + biases[: head.classes]
        best = int(logits.argmax())
        dot = _dot(f"class {best + 1} of {head.classes}, the best", weights[best], features,
                   float(biases[best]))  # fmt: skip
        rest = float(look.heads.objectness[level][0, 0, row, column]) - dot.total
        return Dot(**{**vars(dot), "rest": rest, "rest_name": "how sure the box's sides are"})
    return None


def _rows(layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Returns the weights [outputs, C] and biases [outputs] of a 1×1 convolution."""
    weights = layer.weight.detach().flatten(1).float()
    bias = layer.bias
    return weights, weights.new_zeros(len(weights)) if bias is None else bias.detach().float()


def _dot(name: str, weight: Tensor, features: Tensor, bias: float) -> Dot:
    total = float(weight @ features) + bias
    return Dot(name, weight.numpy().copy(), features.numpy().copy(), bias, total)
