"""The work measured: named shapes of the proposal stage, and the same done by others.

Peers get the same head outputs, anchors and numbers, in the dtype that the head gives:

* `torchvision_rpn`: its RegionProposalNetwork with a head that hands over the outputs, run eagerly
  or under torch.compile, which splits it where its lengths depend on the data;
* `compiled`: our reference's selection and decoding under torch.compile, and the reference's
  suppression, which walks on the host (its length depends on the data: no one graph holds it);
* `detectron2_style`: the order of detectron2's `find_top_rpn_proposals`: decode every anchor, top-k
  per level, clip, then per image one NMS with the levels kept apart by offsets to the coordinates;
* `mmdetection_style`: the order of mmdetection's `RPNHead`: per image and level a sigmoid, a full
  sort, decoding of what is kept, then one NMS of the same kind.

The last two are written here from those programs' order of work, on torchvision's functions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork

from stream_rpn import anchors as anchor_ops
from stream_rpn.kernels import boxes as box_ops
from stream_rpn.kernels.generate import generate_proposals
from stream_rpn.kernels.nms_reference import nms_reference
from stream_rpn.kernels.proposals import HeadOutputs, ProposalBatch, ProposalSpec
from stream_rpn.kernels.propose_reference import select_candidates_reference


@dataclass(frozen=True)
class Workload:
    """A network's head outputs and how many boxes are taken from them.

    Attributes:
        name: for rows and predictions.
        image_size: (height, width) of the padded input.
        inside: (height, width) of the image in it.
        grids: per level (H, W).
        sizes: per level the anchor sizes.
        pre_nms_top_n: per level.
        post_nms_top_n: per image.
    """

    name: str
    image_size: tuple[int, int]
    inside: tuple[int, int]
    grids: tuple[tuple[int, int], ...]
    sizes: tuple[tuple[int, ...], ...]
    pre_nms_top_n: int
    post_nms_top_n: int

    @property
    def num_anchors(self) -> int:
        """Anchors of an image, all levels together."""
        return sum(3 * len(s) * h * w for s, (h, w) in zip(self.sizes, self.grids, strict=True))

    @property
    def strides(self) -> list[tuple[int, int]]:
        """Per level (y, x) pixels per cell."""
        height, width = self.image_size
        return [(height // h, width // w) for h, w in self.grids]

    @property
    def spec(self) -> ProposalSpec:
        """The limits."""
        return ProposalSpec(self.pre_nms_top_n, self.post_nms_top_n, min_size=1e-3)


_FPN_GRIDS = ((192, 336), (96, 168), (48, 84), (24, 42), (12, 21))
_FPN_SIZES = ((32,), (64,), (128,), (256,), (512,))

WORKLOADS = (
    Workload("fpn1000", (768, 1344), (749, 1333), _FPN_GRIDS, _FPN_SIZES, 1000, 1000),
    Workload("vgg6000", (600, 1000), (600, 1000), ((37, 62),), ((128, 256, 512),), 6000, 300),
    Workload("fpn2000", (768, 1344), (749, 1333), _FPN_GRIDS, _FPN_SIZES, 2000, 1000),
    Workload("vgg12000", (600, 1000), (600, 1000), ((37, 62),), ((128, 256, 512),), 12000, 2000),
)
SMALL = (
    Workload("small-fpn", (96, 160), (93, 160), ((24, 40), (12, 20)), ((32,), (64,)), 100, 100),
    Workload("small-vgg", (96, 160), (96, 160), ((6, 10),), ((32, 64, 96),), 120, 50),
)


# What a head's logits may look like; "objects" is what is timed.
CASES = ("objects", "noise", "equal", "coarse", "not-finite", "huge-deltas")


def head_outputs(
    workload: Workload,
    batch: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    case: str = "objects",
) -> HeadOutputs:
    """Returns random head outputs.

    "objects" has what trained heads give: logits far below zero, and bumps around some places where
    neighbouring anchors all point at the same box, so that suppression has chains to walk.
    """
    generator = torch.Generator().manual_seed(seed)
    objectness, deltas, bases = [], [], []
    for sizes, (height, width) in zip(workload.sizes, workload.grids, strict=True):
        num = 3 * len(sizes)
        logits = torch.randn(batch, num, height, width, generator=generator) * 1.5 - 4
        offsets = torch.randn(batch, 4 * num, height, width, generator=generator) * 0.2
        if case == "objects":
            coarse = torch.randn(batch, 1, -(-height // 8), -(-width // 8), generator=generator)
            logits += 3 * nn.functional.interpolate(coarse, (height, width), mode="bilinear")
        elif case == "equal":
            logits = torch.zeros_like(logits)
        elif case == "coarse":
            logits = logits.round()
        elif case == "not-finite":
            draw = torch.rand(logits.shape, generator=generator)
            logits[draw < 0.2] = float("nan")
            logits[(draw >= 0.2) & (draw < 0.4)] = -float("inf")
            logits[(draw >= 0.4) & (draw < 0.401)] = float("inf")
            offsets[torch.rand(offsets.shape, generator=generator) < 0.01] = float("nan")
        elif case == "huge-deltas":
            offsets *= 30
        objectness.append(logits.to(device, dtype))
        deltas.append(offsets.to(device, dtype))
        bases.append(anchor_ops.ratio_major(sizes, (0.5, 1.0, 2.0)).to(device))
    sizes_of_images = torch.tensor([workload.inside] * batch, device=device)
    return HeadOutputs(objectness, deltas, bases, workload.strides, sizes_of_images)


def ours(workload: Workload, heads: HeadOutputs) -> ProposalBatch:
    """Returns what the library gives: the kernels on a GPU, the references elsewhere."""
    return generate_proposals(heads, workload.spec)


def reference(
    workload: Workload, heads: HeadOutputs, select: Any = select_candidates_reference
) -> ProposalBatch:
    """Returns the references' result, on whatever device the inputs are."""
    sizes = heads.level_sizes(workload.pre_nms_top_n)
    return nms_reference(select(heads, workload.spec), sizes, workload.spec)


def compiled(workload: Workload) -> Callable[[HeadOutputs], ProposalBatch]:
    """Returns the reference with its first half under torch.compile."""
    select = torch.compile(select_candidates_reference, dynamic=False)
    return functools.partial(reference, workload, select=select)


class _GivenHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.outputs: tuple[list[Tensor], list[Tensor]] = ([], [])

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return self.outputs


def torchvision_rpn(
    workload: Workload, device: torch.device, *, compiled: bool = False
) -> Callable[[HeadOutputs], list[Tensor]]:
    """Returns torchvision's own proposal stage for the workload, under torch.compile if wanted."""
    counts = {"pre_nms_top_n": workload.pre_nms_top_n, "post_nms_top_n": workload.post_nms_top_n}
    ratios = ((0.5, 1.0, 2.0),) * len(workload.sizes)
    head = _GivenHead()
    rpn = RegionProposalNetwork(
        AnchorGenerator(workload.sizes, ratios),
        head,
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        nms_thresh=0.7,
        **{name: {"training": n, "testing": n} for name, n in counts.items()},
    ).eval()
    stage = torch.compile(rpn) if compiled else rpn

    def run(heads: HeadOutputs) -> list[Tensor]:
        head.outputs = heads.objectness, heads.deltas
        batch = len(heads.image_sizes)
        pixels = torch.empty(1, device=device).expand(batch, 3, *workload.image_size)
        images = ImageList(pixels, [workload.inside] * batch)
        features = {str(i): o[:, :1] for i, o in enumerate(heads.objectness)}
        boxes: list[Tensor] = stage(images, features)[0]
        return boxes

    return run


def detectron2_style(workload: Workload, heads: HeadOutputs) -> list[Tensor]:
    """Returns each image's boxes as detectron2 finds them: decode everything, then select."""
    logits, boxes, levels = [], [], []
    batch = len(heads.image_sizes)
    for level, (objectness, deltas, base, stride) in enumerate(
        zip(heads.objectness, heads.deltas, heads.base_anchors, heads.strides, strict=True)
    ):
        height, width = objectness.shape[2:]
        flat = objectness.permute(0, 2, 3, 1).flatten(1)
        split = (
            deltas.view(batch, -1, 4, height, width).permute(0, 3, 4, 1, 2).reshape(batch, -1, 4)
        )
        anchors = anchor_ops.grid(base, (height, width), stride)
        decoded = box_ops.decode(split.float(), anchors.expand(batch, -1, -1))
        best, index = flat.topk(min(workload.pre_nms_top_n, flat.shape[1]), dim=1)
        logits.append(best.float())
        boxes.append(decoded.gather(1, index[..., None].expand(-1, -1, 4)))
        levels.append(torch.full_like(index[0], level))
    all_logits, all_boxes, of_anchor = torch.cat(logits, 1), torch.cat(boxes, 1), torch.cat(levels)
    results = []
    for image in range(batch):
        clipped = torchvision.ops.clip_boxes_to_image(all_boxes[image], workload.inside)
        valid = clipped.isfinite().all(1) & all_logits[image].isfinite()
        valid &= (clipped[:, 2:] - clipped[:, :2] > 0).all(1)
        found, score, of_level = clipped[valid], all_logits[image][valid], of_anchor[valid]
        keep = torchvision.ops.boxes._batched_nms_coordinate_trick(found, score, of_level, 0.7)
        results.append(found[keep[: workload.post_nms_top_n]])
    return results


def mmdetection_style(workload: Workload, heads: HeadOutputs) -> list[Tensor]:
    """Returns each image's boxes as mmdetection finds them: sort probabilities, then decode."""
    results = []
    for image in range(len(heads.image_sizes)):
        boxes, scores, levels = [], [], []
        for level, (objectness, deltas, base, stride) in enumerate(
            zip(heads.objectness, heads.deltas, heads.base_anchors, heads.strides, strict=True)
        ):
            size = objectness.shape[2:]
            flat = objectness[image].permute(1, 2, 0).reshape(-1).sigmoid()
            best, order = flat.sort(descending=True)
            order = order[: workload.pre_nms_top_n]
            split = deltas[image].permute(1, 2, 0).reshape(-1, 4)[order].float()
            anchors = anchor_ops.grid(base, (size[0], size[1]), stride)[order]
            decoded = box_ops.decode(split, anchors)
            boxes.append(torchvision.ops.clip_boxes_to_image(decoded, workload.inside))
            scores.append(best[: workload.pre_nms_top_n])
            levels.append(torch.full_like(order, level))
        all_boxes, all_scores, of_level = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
        valid = (all_boxes[:, 2:] - all_boxes[:, :2] > 0).all(1)
        found, score, of_level = all_boxes[valid], all_scores[valid], of_level[valid]
        keep = torchvision.ops.boxes._batched_nms_coordinate_trick(found, score, of_level, 0.7)
        results.append(found[keep[: workload.post_nms_top_n]])
    return results
