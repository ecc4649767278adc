"""The configuration of a training run, all that it depends on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from stream_rpn.training.augment import Augmentation

ASSIGNMENTS = ("classic", "quality")
OPTIMIZERS = ("adamw", "sgd")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a training run depends on.

    Attributes:
        annotations: COCO instances JSON.
        images: folders and tar files.
        output: the safetensors file of the averaged weights.
        model: a name of the table of models.
        val_annotations: measured now and then; "" for never.
        val_images: its folders and tar files, those of training by default.
        init: weights to start from, see `load_init`; "" for none.
        frozen: parameters whose names begin so keep the values that `init` gave.
        epochs: passes over the images; with `minutes`, only the upper bound.
        minutes: the learning rate follows the clock and reaches its end after this long; 0 for the
            reproducible schedule, which follows the steps.
        batch_size: images per step.
        optimizer: "adamw" or "sgd" (momentum 0.9).
        learning_rate: of pyramid and head, at its highest.
        backbone_rate: factor of it for weights that `init` gave.
        weight_decay: of weights, not of biases.
        warmup_steps: steps of linear warm-up.
        clip_norm: largest norm of the gradient.
        ema_decay: of the averaged weights, which are the result.
        assignment: "classic" (Ren et al. 2015) or "quality" (ATSS matching, IoU as the target).
        fg_iou_thresh: classic: positives.
        bg_iou_thresh: classic: negatives.
        batch_size_per_image: classic: anchors per image in the loss.
        positive_fraction: classic: their share of positives, at most.
        ignore_crossing: classic: leave out anchors that cross the image's border.
        augmentation: how training images are made.
        plain_fraction: share of the run, at its end, without mosaics.
        mixed_precision: bfloat16 in the network; slow where the hardware has none.
        channels_last: memory format.
        val_every: epochs between two measurements.
        val_limit: images to measure on; the last measurement takes all.
        checkpoint_every: steps between two checkpoints.
        seed: of weights, order, augmentation and sampling.
        device: of torch, e.g. "cpu" or "cuda:1".
        half: write the weights in half precision.
    """

    annotations: str
    images: tuple[str, ...]
    output: str
    model: str = "tiny"
    val_annotations: str = ""
    val_images: tuple[str, ...] = ()
    init: str = ""
    frozen: tuple[str, ...] = ()
    epochs: int = 40
    minutes: float = 0.0
    batch_size: int = 8
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    backbone_rate: float = 0.2
    weight_decay: float = 0.02
    warmup_steps: int = 200
    clip_norm: float = 5.0
    ema_decay: float = 0.9995
    assignment: str = "quality"
    fg_iou_thresh: float = 0.7
    bg_iou_thresh: float = 0.3
    batch_size_per_image: int = 256
    positive_fraction: float = 0.5
    ignore_crossing: bool = False
    augmentation: Augmentation = field(default_factory=Augmentation)
    plain_fraction: float = 0.15
    mixed_precision: bool = True
    channels_last: bool = True
    val_every: int = 5
    val_limit: int = 100
    checkpoint_every: int = 200
    seed: int = 0
    device: str = "cpu"
    half: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("assignment", ASSIGNMENTS), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        for name in ("epochs", "batch_size", "batch_size_per_image", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def folder(self) -> Path:
        """The folder of checkpoints, metrics and curves: beside the output."""
        return Path(self.output).with_suffix(".training")
