"""The table of models: how each is built, where its weights come from and under which licence.

A new model is one builder and one entry. Nothing here imports torch until a model is built, so that
`stream-rpn --help` and `stream-rpn models` stay quick.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stream_rpn.frame import StreamRPNError

if TYPE_CHECKING:
    from stream_rpn.rpn import RPN

DEFAULT_MODEL = "nanodet_m"
DEFAULT_TOP = 300
"""Proposals per frame of a model by name or file, where nobody says."""

# Those whose graph in int8 ships (`python -m bench.quantise`).
IN_INT8 = (DEFAULT_MODEL,)

CHECKPOINTS = (".safetensors", ".pt", ".pth", ".pkl")
"""Endings of files with weights."""


@dataclass(frozen=True)
class ModelEntry:
    """One row of the table.

    Attributes:
        builder: "module:function" returning an RPN without trained weights.
        layout: what `checkpoint.layout` makes of the names and shapes of its tensors, by which
            files without the model's name are recognised.
        weights: where trained weights come from: the name of a torchvision weights enum member,
            the name of a file in this package, or "" for none: random ones are made then.
        backbone_only: the weights are ImageNet features; the head is untrained.
        input: how frames are resized.
        strides: input pixels per cell, per level.
        anchors: sizes and ratios, for people.
        megabytes: download or package size of the weights, 0 without.
        licence: of the weights.
        summary: one line.
        enough: how many proposals find 95 % of what 1,000 find (`python -m bench.presets`), 0 where
            that was not measured.
    """

    builder: str
    layout: str
    weights: str
    input: str
    strides: str
    anchors: str
    megabytes: float
    licence: str
    summary: str
    backbone_only: bool = False
    enough: int = 0

    def build(self) -> RPN:
        """Returns the model, randomly initialised."""
        module, function = self.builder.split(":")
        model: RPN = getattr(importlib.import_module(module), function)()
        return model.eval()


_TORCHVISION_LICENCE = "BSD-3-Clause (torchvision); trained on COCO 2017"

MODELS: dict[str, ModelEntry] = {
    "nanodet_m": ModelEntry(
        builder="stream_rpn.models.nanodet_plus:nanodet_m",
        layout="f0ebe521b132",
        weights="nanodet_m.safetensors",
        input="shorter side 416, longer at most 832",
        strides="8 16 32 64",
        anchors="64 128 256 512 × 1",
        megabytes=2.4,
        licence="Apache-2.0 (RangiLyu/nanodet); trained on COCO 2017",
        summary="the default: NanoDet-Plus-m, real time on a laptop's CPU",
        enough=269,
    ),
    "nanodet_m_1.5x": ModelEntry(
        builder="stream_rpn.models.nanodet_plus:nanodet_m_1_5x",
        layout="41d303e24b19",
        weights="nanodet_m_1.5x.safetensors",
        input="shorter side 416, longer at most 832",
        strides="8 16 32 64",
        anchors="64 128 256 512 × 1",
        megabytes=4.9,
        licence="Apache-2.0 (RangiLyu/nanodet); trained on COCO 2017",
        summary="NanoDet-Plus-m-1.5x: half as wide again, for the most recall",
    ),
    "tiny": ModelEntry(
        builder="stream_rpn.models.mobilenet_v2_fpn:tiny",
        layout="087e7a6e3716",
        weights="tiny.safetensors",
        input="shorter side 320, longer at most 640",
        strides="4 8 16 32 64",
        anchors="12 24 48 96 192 × ½ 1.2 2.6",
        megabytes=3.1,
        licence="Apache-2.0; trained on COCO 2017 images",
        summary="trained here from ImageNet features, with three anchors a cell down to stride 4",
    ),
    "small": ModelEntry(
        builder="stream_rpn.models.mobilenet_v2_fpn:small",
        layout="f39202f8a51c",
        weights="small.safetensors",
        input="shorter side 512, longer at most 1024",
        strides="4 8 16 32 64 128",
        anchors="12 24 48 96 192 384 × ½ 1.2 2.6",
        megabytes=3.8,
        licence="Apache-2.0; trained on COCO 2017 images",
        summary="tiny at a larger size; nanodet_m finds more in less time",
    ),
    "classic": ModelEntry(
        builder="stream_rpn.models.classic:build",
        layout="bbd6619038eb",
        weights="classic.safetensors",
        input="shorter side 320, longer at most 640",
        strides="16",
        anchors="24 72 192 × 1 ½ 2",
        megabytes=1.5,
        licence="Apache-2.0; trained on COCO 2017 images",
        summary="the single-level network and the losses of Ren et al. 2015, to compare with",
    ),
    "resnet50_fpn": ModelEntry(
        builder="stream_rpn.models.torchvision_fpn:resnet50_fpn",
        layout="fb57e5546483",
        weights="FasterRCNN_ResNet50_FPN_Weights.COCO_V1",
        input="shorter side 800, longer at most 1333",
        strides="4 8 16 32 64",
        anchors="32 64 128 256 512 × ½ 1 2",
        megabytes=160,
        licence=_TORCHVISION_LICENCE,
        summary="the field's yardstick",
    ),
    "resnet50_fpn_detectron2": ModelEntry(
        builder="stream_rpn.models.detectron2_fpn:build",
        layout="16f0debbd7b2",
        weights="",
        input="shorter side 800, longer at most 1333",
        strides="4 8 16 32 64",
        anchors="32 64 128 256 512 × ½ 1 2",
        megabytes=0,
        licence="that of the checkpoint",
        summary="for checkpoints of detectron2's R50-FPN; it has no weights of its own",
    ),
    "resnet50_fpn_v2": ModelEntry(
        builder="stream_rpn.models.torchvision_fpn:resnet50_fpn_v2",
        layout="b0c517e5b0ad",
        weights="FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1",
        input="shorter side 800, longer at most 1333",
        strides="4 8 16 32 64",
        anchors="32 64 128 256 512 × ½ 1 2",
        megabytes=167,
        licence=_TORCHVISION_LICENCE,
        summary="batch-normed FPN, two 3×3 convolutions in the head, longer training",
    ),
    "mobilenet_v3_large_fpn": ModelEntry(
        builder="stream_rpn.models.torchvision_fpn:mobilenet_v3_large_fpn",
        layout="a0ca254ab9d4",
        weights="FasterRCNN_MobileNet_V3_Large_FPN_Weights.COCO_V1",
        input="shorter side 800, longer at most 1333",
        strides="32 32 64",
        anchors="(32 64 128 256 512 × ½ 1 2) on every level",
        megabytes=74,
        licence=_TORCHVISION_LICENCE,
        summary="a mobile backbone at full resolution",
    ),
    "mobilenet_v3_large_320_fpn": ModelEntry(
        builder="stream_rpn.models.torchvision_fpn:mobilenet_v3_large_320_fpn",
        layout="a0ca254ab9d4",
        weights="FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1",
        input="shorter side 320, longer at most 640",
        strides="32 32 64",
        anchors="(32 64 128 256 512 × ½ 1 2) on every level",
        megabytes=74,
        licence=_TORCHVISION_LICENCE,
        summary="the same at low resolution; at most 150 proposals",
    ),
    "vgg16": ModelEntry(
        builder="stream_rpn.models.vgg16:build",
        layout="105e859548e8",
        weights="VGG16_Weights.IMAGENET1K_V1",
        input="shorter side 600, longer at most 1000, unpadded",
        strides="16",
        anchors="128 256 512 × 1 ½ 2",
        megabytes=528,
        licence="BSD-3-Clause (torchvision); trained on ImageNet",
        summary="the classic of Ren et al. 2015; ImageNet features, its head is untrained",
        backbone_only=True,
    ),
}


def find(name: str) -> ModelEntry:
    """Returns the entry of the table called `name`.

    Raises:
        StreamRPNError: no such model.
    """
    if name not in MODELS:
        raise StreamRPNError(f"there is no model '{name}'; known models: {', '.join(MODELS)}")
    return MODELS[name]


def check(model: str, weights: str | Path | None = None) -> None:
    """Checks that there is such a model, and the file of its weights, without reading any.

    Args:
        model: as `stream_rpn.load` takes it.
        weights: as `stream_rpn.load` takes them.

    Raises:
        StreamRPNError: there is not, or `model` is a file and `weights` are another.
    """
    if is_checkpoint(model):
        if weights is not None:
            raise StreamRPNError(
                f"--model {model} is a checkpoint already; name the architecture with --model NAME "
                f"to load {weights} into it"
            )
        check_file(model)
    else:
        find(model)
        if weights is not None and str(weights) != "random":
            check_file(weights)


def check_int8(model: str, weights: str | Path | None = None) -> None:
    """Checks that a model can be had in int8, which is made of its own weights only.

    Args:
        model: as `stream_rpn.load` takes it.
        weights: as `stream_rpn.load` takes them.

    Raises:
        StreamRPNError: it cannot.
    """
    if model not in IN_INT8 or weights is not None:
        what = f"'{model}'" if weights is None else f"'{model}' with the weights '{weights}'"
        raise StreamRPNError(
            f"there is no int8 form of the model {what}, only of {', '.join(IN_INT8)} with the "
            "weights that ship; leave out the dtype int8"
        )


def is_checkpoint(model: str) -> bool:
    """Tells whether `model` is a file of weights, and not a name of the table."""
    return model not in MODELS and (model.endswith(CHECKPOINTS) or os.path.isfile(model))


def check_file(path: str | Path) -> None:
    """Checks that a file of weights is there.

    Raises:
        StreamRPNError: it is not.
    """
    # Unlike Path's, this answers False where a name is too long or its folder closed to us.
    if not os.path.isfile(path):
        raise StreamRPNError(f"there is no checkpoint file '{path}'")
