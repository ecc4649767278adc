"""Puts the proposal stage into an existing torchvision detector, and takes it out again.

>>> from torchvision.models import detection
>>> model = detection.fasterrcnn_resnet50_fpn(weights="DEFAULT").eval()  # doctest: +SKIP
>>> stream_rpn.fuse(model)  # doctest: +SKIP

Only the class of `model.rpn` changes: parameters, their names, buffers and hooks stay what they
are, so that a fused model can be saved, loaded, moved and copied like any other.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork

from stream_rpn.kernels.boxes import MAX_LOG_SCALE
from stream_rpn.kernels.generate import generate_proposals
from stream_rpn.kernels.proposals import HeadOutputs, ProposalSpec

Model = TypeVar("Model", bound=nn.Module)

# What the kernels do instead.
_RPN_METHODS = ("filter_proposals", "_get_top_n_idx")
_GENERATOR_METHODS = ("forward", "grid_anchors", "set_cell_anchors")


class FusedRegionProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]
    """torchvision's RPN whose proposals, in eval mode, come from `kernels.generate`.

    Every setting is read when it is called, so that changing one of a fused model works; where the
    kernels do not take one, or float64, the proposals are torchvision's own. Methods of one's own
    cannot be honoured: setting one is refused.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _RPN_METHODS:
            raise TypeError(
                f"a fused model.rpn does not call {name}, so it must not be replaced; take the "
                "fusion out first (stream_rpn.unfuse)"
            )
        if name == "anchor_generator":
            _check_generator(value)
        if name == "box_coder":
            _check_coder(value)
        super().__setattr__(name, value)

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` asks for first."""
        raise TypeError(
            "a fused detector cannot be scripted by TorchScript; script it before it is fused, or "
            "take the fusion out (stream_rpn.unfuse)"
        )

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Returns boxes [N, 4] per image, and the losses (in training mode, torchvision's)."""
        if self.training:
            return super().forward(images, features, targets)  # type: ignore[no-any-return]
        maps = list(features.values())
        spec = self._spec()
        if spec is None or maps[0].dtype == torch.float64:
            return super().forward(images, features)  # type: ignore[no-any-return]
        objectness, deltas = self.head(maps)
        device = images.tensors.device
        height, width = images.tensors.shape[-2:]
        # Always float32: bfloat16 would move anchors by up to two pixels.
        self.anchor_generator.set_cell_anchors(torch.float32, device)
        heads = HeadOutputs(
            objectness,
            deltas,
            self.anchor_generator.cell_anchors,
            [(height // m.shape[-2], width // m.shape[-1]) for m in maps],
            torch.tensor(images.image_sizes, device=device),
        )
        kept = generate_proposals(heads, spec)
        # torchvision's box head takes lists of unequal length: the one wait for the device.
        boxes = kept.boxes.to(deltas[0].dtype)
        return [b[:count] for b, count in zip(boxes, kept.count.tolist(), strict=True)], {}

    def _spec(self) -> ProposalSpec | None:
        """Returns the settings, None where one is beyond what the kernels take."""
        try:
            return ProposalSpec(
                pre_nms_top_n=self.pre_nms_top_n(),
                post_nms_top_n=self.post_nms_top_n(),
                nms_thresh=self.nms_thresh,
                score_thresh=self.score_thresh,
                min_size=self.min_size,
            )
        except (TypeError, ValueError):
            return None


def fuse(model: Model) -> Model:
    """Replaces the proposal stage of a torchvision detector, in place.

    In eval mode the detections are the same in float32, but that boxes go by logit where
    torchvision goes by probability, of which many logits may have the same. Training mode stays
    torchvision's. Fusing twice is fusing once; `unfuse` undoes it.

    Args:
        model: a FasterRCNN, MaskRCNN or KeypointRCNN.

    Returns:
        The model.

    Raises:
        TypeError: `model` is something else, its RPN is not built as torchvision builds it, or has
            methods of its own.
    """
    rpn = _rpn(model)
    if isinstance(rpn, FusedRegionProposalNetwork):
        return model
    if type(rpn) is not RegionProposalNetwork:
        raise TypeError(f"model.rpn must be torchvision's own RPN, got {type(rpn).__name__}")
    _check_methods(rpn, "model.rpn", ("forward", *_RPN_METHODS))
    _check_generator(rpn.anchor_generator)
    _check_coder(rpn.box_coder)
    rpn.__class__ = FusedRegionProposalNetwork
    return model


def unfuse(model: Model) -> Model:
    """Gives a detector its own proposal stage back, in place; returns the model.

    Raises:
        TypeError: `model` is no torchvision detector.
    """
    rpn = _rpn(model)
    if isinstance(rpn, FusedRegionProposalNetwork):
        rpn.__class__ = RegionProposalNetwork
    return model


def _check_generator(generator: nn.Module) -> None:
    """Refuses anchors that are placed in another way than torchvision's."""
    for name in _GENERATOR_METHODS:
        if getattr(type(generator), name, None) is not getattr(AnchorGenerator, name):
            raise TypeError(
                "model.rpn.anchor_generator must place anchors as torchvision's AnchorGenerator "
                f"does, got {type(generator).__name__}"
            )
    _check_methods(generator, "model.rpn.anchor_generator", _GENERATOR_METHODS)


def _check_coder(coder: BoxCoder) -> None:
    """Refuses boxes that are coded in another way than an RPN's."""
    if type(coder) is not BoxCoder:
        raise TypeError(
            f"model.rpn.box_coder must be torchvision's BoxCoder, got {type(coder).__name__}"
        )
    _check_methods(coder, "model.rpn.box_coder", ("decode", "decode_single"))
    if tuple(coder.weights) != (1, 1, 1, 1) or not math.isclose(
        coder.bbox_xform_clip, MAX_LOG_SCALE
    ):
        raise TypeError(
            "model.rpn.box_coder must decode with weights (1, 1, 1, 1) and the clip log(1000/16), "
            f"got {tuple(coder.weights)} and {coder.bbox_xform_clip:.4g}"
        )


def _check_methods(part: object, name: str, methods: tuple[str, ...]) -> None:
    """Refuses methods that were set on this one object."""
    own = [method for method in methods if method in vars(part)]
    if own:
        raise TypeError(f"{name} has a {own[0]} of its own, which would not be called once fused")


def _rpn(model: nn.Module) -> RegionProposalNetwork:
    if not isinstance(model, FasterRCNN):
        raise TypeError(
            "model must be a torchvision FasterRCNN, MaskRCNN or KeypointRCNN (unwrapped, not "
            f"compiled), got {type(model).__name__}"
        )
    return model.rpn
