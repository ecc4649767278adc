"""The region proposal network: backbone, head, anchors and the proposal stage, as one module.

Ren et al. 2015, §3.1: a 3×3 convolution slid over the feature map, then two 1×1 siblings, one for
objectness and one for the four deltas of every anchor. Parameter names are torchvision's
(`backbone.…`, `head.conv.0.0.weight`, `head.cls_logits`, `head.bbox_pred`), so that checkpoints of
its detectors load under their own keys.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stream_rpn.anchors import AnchorSpec
from stream_rpn.embedding import Embedding
from stream_rpn.frame import Proposals
from stream_rpn.input_spec import InputSpec, frame_boxes, padded_size, resized_size
from stream_rpn.kernels.generate import generate_proposals
from stream_rpn.kernels.proposals import HeadOutputs, ProposalBatch, ProposalSpec
from stream_rpn.model import Model
from stream_rpn.preprocess import image_to_input

__all__ = [
    "RPN",
    "Layers",
    "ProposalSpec",
    "RPNHead",
    "fold_batch_norms",
    "propose_image",
    "propose_images",
]


class Head(nn.Module):
    """What an RPN needs of a head, whatever computes it.

    Attributes:
        num_anchors: A, anchors per cell.
        softmax: two logits per anchor, background|object interleaved, instead of one.
    """

    num_anchors: int
    softmax: bool = False

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Returns objectness [B, A or 2A, H, W] and deltas [B, 4A, H, W], one each per level."""
        raise NotImplementedError

    def predictors(self) -> list[nn.Conv2d]:
        """Returns the last convolutions, whose weights are small before training."""
        raise NotImplementedError


class RPNHead(Head):
    """3×3 convolutions, then 1×1 objectness and 1×1 deltas, shared by all levels.

    Args:
        in_channels: channels of every feature map.
        num_anchors: A, anchors per cell.
        hidden_channels: channels between the convolutions, those of the input by default.
        conv_depth: number of 3×3 convolutions.
        softmax: two logits per anchor, background|object interleaved (2A channels), as in the
            paper, instead of one.
    """

    def __init__(
        self,
        in_channels: int,
        num_anchors: int,
        *,
        hidden_channels: int | None = None,
        conv_depth: int = 1,
        softmax: bool = False,
    ) -> None:
        super().__init__()
        hidden = hidden_channels or in_channels
        self.conv = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(in_channels if i == 0 else hidden, hidden, 3, padding=1),
                    nn.ReLU(inplace=True),
                )
                for i in range(conv_depth)
            )
        )
        self.cls_logits = nn.Conv2d(hidden, num_anchors * (2 if softmax else 1), 1)
        self.bbox_pred = nn.Conv2d(hidden, num_anchors * 4, 1)
        self.num_anchors = num_anchors
        self.softmax = softmax
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Returns objectness [B, A or 2A, H, W] and deltas [B, 4A, H, W], one each per level."""
        objectness, deltas = [], []
        for feature in features:
            hidden = self.conv(feature)
            objectness.append(self.cls_logits(hidden))
            deltas.append(self.bbox_pred(hidden))
        return objectness, deltas

    def predictors(self) -> list[nn.Conv2d]:
        """Returns the two siblings."""
        return [self.cls_logits, self.bbox_pred]


class RPN(nn.Module, Model):
    """Images in, proposals out.

    Args:
        backbone: maps images [B, 3, H, W] to a feature map or to a mapping of names to feature
            maps, finest first.
        head: the head for these maps.
        anchors: an AnchorSpec, or per level the base anchors [A, 4] float32 themselves.
        input_spec: how frames become the backbone's input.
        proposal_spec: how head outputs become proposals.
        strides: per level the input pixels per cell, on both axes; by default whatever the sizes of
            the maps say, which is right where maps are never rounded up.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: Head,
        anchors: AnchorSpec | Sequence[Tensor],
        *,
        input_spec: InputSpec,
        proposal_spec: ProposalSpec | None = None,
        strides: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.input_spec = input_spec
        self.proposal_spec = proposal_spec or ProposalSpec()
        # The network's name in result files, and whether its weights mean anything.
        self.name = "custom"
        self.trained = True
        self.given_strides = None if strides is None else tuple((s, s) for s in strides)
        self.set_anchors(anchors)

    def set_anchors(self, anchors: AnchorSpec | Sequence[Tensor]) -> None:
        """Replaces the anchors of every level.

        Raises:
            ValueError: not [A, 4] for the A of the head, or not finite.
        """
        self.anchor_spec = anchors if isinstance(anchors, AnchorSpec) else None
        levels = anchors.base_anchors() if isinstance(anchors, AnchorSpec) else anchors
        for level, base_anchors in enumerate(levels):
            if base_anchors.shape != (self.head.num_anchors, 4):
                raise ValueError(
                    f"the base anchors of level {level} must be [{self.head.num_anchors}, 4] to "
                    f"fit the head, got {list(base_anchors.shape)}"
                )
            if self.anchor_spec is None and not base_anchors.isfinite().all():
                raise ValueError(f"the base anchors of level {level} must be finite")
            device = next(self.parameters()).device
            name = f"base_anchors_{level}"
            self.register_buffer(name, base_anchors.float().to(device), persistent=False)
        self.num_levels = len(levels)

    @property
    def base_anchors(self) -> list[Tensor]:
        """Per level the base anchors [A, 4], on the module's device."""
        return [self.get_buffer(f"base_anchors_{level}") for level in range(self.num_levels)]

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        # `.to(dtype)` reaches every floating buffer; anchors must stay float32 (bfloat16 has steps
        # of two pixels above 256).
        anchors = self.base_anchors
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for level, before in enumerate(anchors):
            moved = self.base_anchors[level]
            self._buffers[f"base_anchors_{level}"] = before.to(moved.device)
        return self

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the backbone's feature maps by name, finest first."""
        features = self.backbone(images)
        return dict(features) if isinstance(features, Mapping) else {"0": features}

    def strides(self, images: Tensor, maps: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
        """Returns per level the (y, x) input pixels per cell: given, or padded size // map size."""
        if self.given_strides is not None:
            return self.given_strides
        height, width = images.shape[-2:]
        return tuple((height // m.shape[-2], width // m.shape[-1]) for m in maps)

    def proposals_of_heads(
        self,
        objectness: Sequence[Tensor],
        deltas: Sequence[Tensor],
        strides: Sequence[tuple[int, int]],
        image_sizes: Tensor,
    ) -> ProposalBatch:
        """Returns the kept proposals of raw head outputs; see `generate_proposals`."""
        heads = HeadOutputs(objectness, deltas, self.base_anchors, strides, image_sizes)
        # More slots than anchors would only take memory.
        anchors = self.head.num_anchors * sum(o.shape[-2] * o.shape[-1] for o in objectness)
        spec = self.proposal_spec
        top = min(spec.post_nms_top_n, max(anchors, 1))
        return generate_proposals(heads, replace(spec, post_nms_top_n=top))

    def forward(self, images: Tensor, image_sizes: Tensor) -> ProposalBatch:
        """Returns the proposals of a batch.

        Args:
            images: [B, 3, H, W], normalised and padded as `input_spec` says.
            image_sizes: [B, 2] (height, width) of each image without its padding.
        """
        maps = list(self.features(images).values())
        objectness, deltas = self.head(maps)
        return self.proposals_of_heads(objectness, deltas, self.strides(images, maps), image_sizes)

    def export(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
        """Writes backbone and head as a graph for other runtimes; see `models.export.export`.

        Args:
            path: "x.onnx", or "x.xml" for OpenVINO; "x.onnx.json" tells the rest.
            overwrite: whether files that exist may be replaced.

        Returns:
            The files.

        Raises:
            StreamRPNError: it cannot be written, or the layers cannot be exported.
        """
        from stream_rpn.models.export import export

        return export(self, path, overwrite=overwrite)


class Layers(nn.Module):
    """What of a network becomes a graph: backbone and head, from the input to the raw outputs.

    Args:
        rpn: the network.
        maps: put out the feature maps as well.
    """

    def __init__(self, rpn: RPN, *, maps: bool = False) -> None:
        super().__init__()
        self.rpn = rpn
        self.maps = maps

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        """Returns the objectness of each level, then its deltas, then its map, of images."""
        maps = list(self.rpn.features(images).values())
        objectness, deltas = self.rpn.head(maps)
        return (*objectness, *deltas, *(maps if self.maps else ()))


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Folds every batch norm that follows a convolution into it, in place; returns `module`.

    "Follows" is read off the order in which a parent registered its children, which is the order
    of execution in torchvision's backbones; a module of another order must not be passed.
    """
    previous: tuple[str, nn.Conv2d] | None = None
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d) and previous is not None:
            conv_name, conv = previous
            setattr(module, conv_name, nn.utils.fuse_conv_bn_eval(conv.eval(), child.eval()))
            setattr(module, name, nn.Identity())
        previous = (name, child) if isinstance(child, nn.Conv2d) else None
        fold_batch_norms(child)
    return module


def propose_image(rpn: RPN, image: Tensor | np.ndarray) -> Proposals:
    """Returns the proposals of an RGB image, as frame 0; see `propose_images`."""
    (proposals,) = propose_images(rpn, [image])
    return proposals


def propose_images(
    rpn: RPN,
    images: Iterable[Tensor | np.ndarray],
    *,
    batch: int = 1,
    features: bool = False,
    embed: bool = False,
) -> Iterator[Proposals]:
    """Yields the proposals of RGB images, frame after frame.

    Args:
        rpn: the network; runs on its own device in its own dtype.
        images: tensors [3, H, W] or arrays [H, W, 3]; uint8, or float in [0, 1].
        batch: images a call of the network; those in a row that share one padded input shape.
        features: attach the feature maps.
        embed: attach a feature vector of each box.

    Raises:
        TypeError: an image is neither uint8 nor floating.
        ValueError: an image has another shape, or is floating and not in [0, 1].
    """
    embedding = Embedding.of(rpn) if embed else None
    waiting: list[Tensor | np.ndarray] = []
    shape: tuple[int, ...] = ()
    first = 0
    for image in images:
        before, shape = shape, _padded_shape(image, rpn.input_spec)
        if waiting and (shape != before or len(waiting) == batch):
            yield from _propose_batch(rpn, waiting, first, features, embedding)
            first, waiting = first + len(waiting), []
        waiting.append(image)
    if waiting:
        yield from _propose_batch(rpn, waiting, first, features, embedding)


def _padded_shape(image: Tensor | np.ndarray, spec: InputSpec) -> tuple[int, ...]:
    """Returns (height, width) of the input for an image; of what is none, its own shape."""
    if image.ndim != 3 or 0 in image.shape:
        return tuple(image.shape)
    height, width = _sides(image)
    resized = resized_size(height, width, spec.min_size, spec.max_size)
    return padded_size(resized, spec.size_divisor)


def _sides(image: Tensor | np.ndarray) -> tuple[int, int]:
    height, width = image.shape[:2] if isinstance(image, np.ndarray) else image.shape[-2:]
    return height, width


@torch.inference_mode()
def _propose_batch(
    rpn: RPN,
    images: Sequence[Tensor | np.ndarray],
    first: int,
    features: bool,
    embedding: Embedding | None,
) -> list[Proposals]:
    weight = next(rpn.parameters())
    inputs, sizes = image_to_input(
        images,
        rpn.input_spec,
        device=weight.device,
        dtype=weight.dtype,
        channels_last=True,
        first=first,
    )
    maps = rpn.features(inputs)
    objectness, deltas = rpn.head(list(maps.values()))
    strides = rpn.strides(inputs, list(maps.values()))
    kept = rpn.proposals_of_heads(objectness, deltas, strides, sizes)
    vectors = None
    if embedding is not None:
        vectors = embedding.pool(list(maps.values()), kept.boxes).cpu()
    *arrays, counts = (tensor.cpu().numpy() for tensor in kept)
    results = []
    for row, image in enumerate(images):
        n = int(counts[row])
        input_boxes, scores, levels, anchors = (array[row, :n] for array in arrays)
        height, width = _sides(image)
        size = (int(sizes[row, 0]), int(sizes[row, 1]))
        results.append(
            Proposals(
                frame=first + row,
                pts=None,
                pts_seconds=None,
                width=width,
                height=height,
                boxes=frame_boxes(input_boxes, size, (height, width)),
                scores=scores,
                levels=levels,
                anchors=anchors,
                input_boxes=input_boxes,
                input_size=size,
                strides=strides,
                features={name: m[row] for name, m in maps.items()} if features else None,
                embeddings=None if vectors is None else vectors[row, :n].numpy(),
            )
        )
    return results
