"""One look of the network at one frame, with everything that passed through it kept."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from stream_rpn import anchors as anchor_ops
from stream_rpn import preprocess
from stream_rpn.cores import available_cores
from stream_rpn.frame import Frame, Proposals
from stream_rpn.input_spec import frame_boxes
from stream_rpn.kernels.proposals import HeadOutputs, ProposalSpec
from stream_rpn.rpn import RPN, Head
from stream_rpn.timing import StageTimes

# What took longer is not done a second time to see how long it takes once everything is warm.
PATIENCE_MS = 1500


@dataclass(frozen=True)
class Look:
    """What a frame became on its way through the network.

    Attributes:
        rpn: the network, on the CPU in float32, in eval mode.
        frame: the frame.
        images: [1, 3, H, W], the network's input, padding included.
        image_size: (height, width) of the frame in it, without padding.
        maps: the feature maps [1, C, H, W] by name, finest first.
        hidden: per level the map [1, C, H, W] that the head's 1×1 convolutions read; empty where a
            head of one's own does not show it.
        heads: the head's outputs, and what is needed to make proposals of them.
        proposals: what the pipeline makes of them.
        times: what each stage took.
    """

    rpn: RPN
    frame: Frame
    images: Tensor
    image_size: tuple[int, int]
    maps: dict[str, Tensor]
    hidden: list[Tensor]
    heads: HeadOutputs
    proposals: Proposals
    times: StageTimes

    @property
    def spec(self) -> ProposalSpec:
        """How the head's outputs become proposals."""
        return self.rpn.proposal_spec

    @property
    def strides(self) -> list[tuple[int, int]]:
        """Per level the (y, x) input pixels per cell."""
        return list(self.heads.strides)

    def level_anchors(self, level: int) -> Tensor:
        """Returns the anchors [H·W·A, 4] of a level, in input pixels, by anchor index."""
        height, width = self.heads.objectness[level].shape[-2:]
        return anchor_ops.grid(
            self.heads.base_anchors[level], (height, width), self.heads.strides[level]
        )

    def to_frame(self, boxes: Tensor) -> Tensor:
        """Returns boxes [N, 4] of the network's input in pixels of the displayed frame."""
        size = (self.frame.height, self.frame.width)
        return torch.from_numpy(frame_boxes(boxes.float().numpy(), self.image_size, size))

    def to_input(self, boxes: Tensor) -> Tensor:
        """Returns boxes [N, 4] of the displayed frame in pixels of the network's input."""
        size = (self.frame.height, self.frame.width)
        return torch.from_numpy(frame_boxes(boxes.float().numpy(), size, self.image_size))


def look(rpn: RPN, frame: Frame, times: StageTimes) -> Look:
    """Looks at a frame, twice where that is quick, as the first time everything is slower.

    Args:
        rpn: the network, on the CPU in float32, in eval mode.
        frame: the frame, its planes in the host's memory.
        times: what was measured before, as decoding; is not changed.

    Raises:
        StreamRPNError: the frame does not fit the network's input.
    """
    seen = _look(rpn, frame, StageTimes().including(times))
    if sum(stage.total_ms for stage in seen.times.stages.values()) < PATIENCE_MS:
        seen = _look(rpn, frame, StageTimes().including(times))
    return seen


@torch.inference_mode()
def _look(rpn: RPN, frame: Frame, times: StageTimes) -> Look:
    with times.measure("preprocess"):
        images, sizes = preprocess.to_input([frame], rpn.input_spec, channels_last=True)
    lap = times.laps()
    maps = rpn.features(images)
    lap("backbone")
    with hidden_maps(rpn.head, len(maps)) as hidden:
        objectness, deltas = rpn.head(list(maps.values()))
    lap("head")
    strides = rpn.strides(images, list(maps.values()))
    kept = rpn.proposals_of_heads(objectness, deltas, strides, sizes)
    lap("proposals")
    count = int(kept.count)
    boxes, scores, levels, anchors = (tensor[0, :count].numpy() for tensor in kept[:-1])
    height, width = sizes[0].tolist()
    proposals = Proposals.of(
        frame,
        boxes=frame_boxes(boxes, (height, width), (frame.height, frame.width)),
        scores=scores,
        levels=levels,
        anchors=anchors,
        input_boxes=boxes,
        input_size=(height, width),
        strides=strides,
        keep_image=True,
    )
    heads = HeadOutputs(objectness, deltas, rpn.base_anchors, strides, sizes)
    return Look(rpn, frame, images, (height, width), maps, list(hidden), heads, proposals, times)


@contextmanager
def hidden_maps(head: Head, levels: int) -> Iterator[list[Tensor]]:
    """Gives a list that is filled with what a head's 1×1 convolutions read, level by level.

    They are one pair for all levels, or one for each.
    """
    predictors = head.predictors()
    calls: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda module, args: calls.append((module, args[0])))
        for layer in predictors
    ]
    found: list[Tensor] = []
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    shared = [x for module, x in calls if module is predictors[0]]
    read = shared if len(shared) == levels else [x for _, x in calls]
    if len(read) == levels and all(x.ndim == 4 for x in read):
        found.extend(read)


def copy_on_cpu(rpn: RPN, threads: int | None = None) -> RPN:
    """Returns a copy of a network on the CPU in float32, in eval mode; the original stays as is.

    Args:
        rpn: the network.
        threads: cores that torch computes on from now on; by default all that there are.
    """
    # torch knows of affinity, not of quotas.
    torch.set_num_threads(threads or min(torch.get_num_threads(), available_cores()))
    twin = copy.deepcopy(rpn)
    twin.proposal_spec = replace(rpn.proposal_spec)
    return twin.to("cpu", torch.float32).eval()
