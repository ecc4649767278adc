"""ShuffleNetV2 up to stride 32 (Ma et al. 2018, §3), batch norms folded in, without its shuffles.

Layers and their names are those of torchvision's `shufflenet_v2_x1_0` without its last two, with
LeakyReLU for ReLU, as NanoDet has it. A unit of stride 1 computes on the second half of its input,
lets the first half pass, and then *shuffles*: channels of the two halves take turns. On a CPU these
copies cost a quarter of the network's time, and they compute nothing: which channel a unit takes
up is known beforehand. So the last convolution of every unit puts out its channels sorted by the
unit that takes them up next, each unit puts the slices meant for it side by side, and what passes
stays where it is. Weights lie in that order in the module, and in the order of the plain network
in its state dict (see `keep_plain_order`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

SLOPE = 0.1
# Units of the stages of stride 8, 16 and 32.
UNITS = (4, 8, 4)
STEM = 24


def conv(
    in_channels: int, channels: int, size: int = 1, *, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Returns a convolution that keeps the size of the map but for its stride."""
    return nn.Conv2d(in_channels, channels, size, stride, padding=size // 2, groups=groups)


def activation() -> nn.LeakyReLU:
    """Returns NanoDet's activation."""
    return nn.LeakyReLU(SLOPE, inplace=True)


class Unit(nn.Module):
    """The branches of a unit (figure 3c and d); the stage says what they get and who takes it.

    Args:
        in_channels: channels that a branch gets.
        channels: channels that a branch puts out.
        stride: 2 for the first unit of a stage, which has two branches, else 1.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        # The numbers leave room for the batch norms that were there.
        if stride == 2:
            self.branch1 = nn.Sequential(
                OrderedDict(
                    {
                        "0": conv(in_channels, in_channels, 3, stride=2, groups=in_channels),
                        "2": conv(in_channels, channels),
                        "4": activation(),
                    }
                )
            )
        self.branch2 = nn.Sequential(
            OrderedDict(
                {
                    "0": conv(in_channels, channels),
                    "2": activation(),
                    "3": conv(channels, channels, 3, stride=stride, groups=channels),
                    "5": conv(channels, channels),
                    "7": activation(),
                }
            )
        )


class Routes(NamedTuple):
    """Which way the channels of a stage of n units go.

    Producers 0 and 1 are the branches of the first unit, producer k + 1 is unit k. Consumers 1 to
    n - 1 are the units after the first, consumer n is whatever follows the stage.

    Attributes:
        outputs: [n + 1, half] per producer the channels of the plain network in the order in which
            they are put out: by consumer.
        inputs: per consumer, from 1 on, positions in the plain network's input in the order in
            which the slices arrive.
        slices: per producer (consumer, channels) of its output, slice by slice.
    """

    outputs: np.ndarray
    inputs: list[np.ndarray]
    slices: list[list[tuple[int, int]]]

    @classmethod
    def of(cls, units: int, half: int) -> Routes:
        """Follows every channel of a stage of `units` units of two halves through all shuffles."""
        channels = np.arange((units + 1) * half).reshape(-1, half)
        # What the plain network has between its units, in its order.
        present = _shuffle(channels[0], channels[1])
        taken = []
        for unit in range(1, units):
            taken.append(present[half:])
            present = _shuffle(present[:half], channels[unit + 1])
        taken.append(present)
        consumers = np.empty_like(channels)
        for consumer, ids in enumerate(taken, start=1):
            consumers.flat[ids] = consumer
        slices = []
        for row in consumers:
            found, counts = np.unique(row, return_counts=True)
            slices.append(list(zip(found.tolist(), counts.tolist(), strict=True)))
        # Stable, so that slices arrive sorted by producer and channel: as ids are.
        return cls(consumers.argsort(axis=1, kind="stable"), [t.argsort() for t in taken], slices)


def _shuffle(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.stack((first, second), axis=1).ravel()


class Stage(nn.ModuleList):
    """Units of one stride, the first of which halves the map.

    Args:
        in_channels: of the map that comes.
        channels: of the map that goes.
        units: how many.
    """

    def __init__(self, in_channels: int, channels: int, units: int) -> None:
        half = channels // 2
        rest = (Unit(half, half, 1) for _ in range(units - 1))
        super().__init__([Unit(in_channels, half, 2), *rest])
        self.routes = Routes.of(units, half)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the map [B, channels, H/2, W/2] of x [B, in_channels, H, W]."""
        arrived: list[list[Tensor]] = [[] for _ in range(len(self) + 1)]

        def put_out(producer: int, y: Tensor) -> None:
            consumers, widths = map(list, zip(*self.routes.slices[producer], strict=True))
            for consumer, part in zip(consumers, torch.split(y, widths, dim=1), strict=True):
                arrived[consumer].append(part)

        first, *rest = cast(Iterable[Unit], self)
        put_out(0, first.branch1(x))
        put_out(1, first.branch2(x))
        for consumer, unit in enumerate(rest, start=1):
            put_out(consumer + 1, unit.branch2(torch.cat(arrived[consumer], dim=1)))
        return torch.cat(arrived[-1], dim=1)


class Order(NamedTuple):
    """How a tensor of the plain network lies in ours: along `dim`, its `order[i]` is our i."""

    name: str
    dim: int
    order: np.ndarray


class ShuffleNetV2(nn.Module):
    """The stem and three stages.

    Args:
        channels: of the maps of stride 8, 16 and 32.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(conv(3, STEM, 3, stride=2), activation())
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stage2, self.stage3, self.stage4 = (
            Stage(before, after, units)
            for before, after, units in zip((STEM, *channels), channels, UNITS, strict=False)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the maps of stride 8, 16 and 32 of images [B, 3, H, W]."""
        c3 = self.stage2(self.maxpool(self.conv1(images)))
        c4 = self.stage3(c3)
        return c3, c4, self.stage4(c4)

    def orders(self) -> tuple[list[Order], list[np.ndarray]]:
        """Returns the order of every tensor, and that of the channels of the three maps."""
        found: list[Order] = []
        exits = []

        def outputs(name: str, order: np.ndarray) -> None:
            found.extend(Order(f"{name}.{kind}", 0, order) for kind in ("weight", "bias"))

        def inputs(name: str, order: np.ndarray) -> None:
            found.append(Order(f"{name}.weight", 1, order))

        order = np.arange(STEM)
        for name in ("stage2", "stage3", "stage4"):
            routes = getattr(self, name).routes
            outputs(f"{name}.0.branch1.0", order)  # depthwise: what comes in goes out
            inputs(f"{name}.0.branch1.2", order)
            inputs(f"{name}.0.branch2.0", order)
            first, *rest = routes.outputs
            outputs(f"{name}.0.branch1.2", first)
            for unit, sorted_outputs in enumerate(rest):
                outputs(f"{name}.{unit}.branch2.5", sorted_outputs)
            *of_units, order = routes.inputs
            for unit, sorted_inputs in enumerate(of_units, start=1):
                inputs(f"{name}.{unit}.branch2.0", sorted_inputs)
            exits.append(order)
        return found, exits


def keep_plain_order(module: nn.Module, orders: Sequence[Order]) -> None:
    """Lets a module load and give state dicts in the plain network's order.

    Args:
        module: whatever holds the tensors that `orders` name.
        orders: how they lie in it.
    """

    def load(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: Any) -> None:
        for name, dim, order in orders:
            tensor = state.get(prefix + name)
            # What is missing or misshapen is reported by load_state_dict itself.
            if tensor is not None and tensor.shape[dim : dim + 1] == order.shape:
                state[prefix + name] = _reordered(tensor, dim, order)

    def save(_: nn.Module, state: dict[str, Tensor], prefix: str, __: Any) -> None:
        for name, dim, order in orders:
            state[prefix + name] = _reordered(state[prefix + name], dim, order.argsort())

    module.register_load_state_dict_pre_hook(load)  # type: ignore[no-untyped-call]
    module.register_state_dict_post_hook(save)  # type: ignore[no-untyped-call]


def _reordered(tensor: Tensor, dim: int, order: np.ndarray) -> Tensor:
    return tensor.index_select(dim, torch.as_tensor(order, device=tensor.device))
