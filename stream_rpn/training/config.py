"""The configuration of a training run, all that it depends on; without torch, for `--help`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from stream_rpn.models import DEFAULT_MODEL

ASSIGNMENTS = ("classic", "quality", "aligned")
OPTIMIZERS = ("adamw", "sgd")

# What may be another when a run is resumed: how long it goes on, what is measured and written
# meanwhile, and what the machine is. All else would make it another run.
CHANGEABLE = frozenset(
    {
        *("epochs", "minutes", "patience", "val_every", "val_limit", "checkpoint_every"),
        *("output", "half", "device", "workers"),
    }
)


@dataclass(frozen=True)
class Augmentation:
    """The making of a training image.

    Attributes:
        size: side of the square training images, in pixels; 0 for the model's own shorter side.
        scale: smallest and largest factor of a single image's size; at 1 its shorter side is that
            of the square, as it is where proposals are made.
        mosaic: probability that four images share the square.
        mosaic_scale: the largest factor beyond what fills a mosaic's tile.
        flip: probability of a horizontal flip.
        photometric: largest relative change of brightness, contrast and saturation.
        aliased: probability of resampling without a filter, as video frames are when they are
            scaled down quickly.
    """

    size: int = 0
    scale: tuple[float, float] = (0.6, 1.5)
    mosaic: float = 0.5
    mosaic_scale: float = 1.6
    flip: float = 0.5
    photometric: float = 0.3
    aliased: float = 0.15

    def __post_init__(self) -> None:
        _check_finite(self)
        if self.size and self.size < 32:
            raise ValueError(f"size must be at least 32, got {self.size}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be two increasing positive factors, got {self.scale}")
        if self.mosaic_scale < 1:
            raise ValueError(f"mosaic_scale must be at least 1, got {self.mosaic_scale}")
        for name in ("mosaic", "flip", "photometric", "aliased"):
            _check_share(self, name)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a training run depends on.

    Attributes:
        annotations: COCO instances JSON.
        images: folders and tar files.
        output: the safetensors file of the averaged weights.
        model: a name of the table of models.
        val_annotations: images to measure recall on; "" to hold out some of those of training.
        val_images: its folders and tar files, those of training by default.
        hold_out: share of the images with objects that are measured on instead of trained on, where
            there are no `val_annotations`; 0 to train on all and measure nothing.
        init: weights to start from: "" for the model's own, "random", or what `load_init` takes.
        freeze: parameters whose names begin so keep the values that `init` gave.
        epochs: passes over the images; with `minutes`, only the upper bound.
        minutes: the learning rate follows the clock and reaches its end after this long; 0 for the
            reproducible schedule, which follows the steps.
        patience: measurements without a better AR@100 after which the run ends; 0 for never.
        batch_size: images per step.
        optimizer: "adamw" or "sgd" (momentum 0.9).
        learning_rate: of weights that start at random, at its highest.
        backbone_rate: factor of it for weights that `init` gave.
        weight_decay: of weights, not of biases.
        warmup_steps: steps of linear warm-up, a tenth of the run at most.
        clip_norm: largest norm of the gradient.
        ema_decay: of the averaged weights, which are the result.
        assignment: "classic" (Ren et al. 2015), "quality" (ATSS matching, IoU as the target) or
            "aligned" (matching by what the network finds, else the same).
        fg_iou_thresh: classic: positives.
        bg_iou_thresh: classic: negatives.
        batch_size_per_image: classic: anchors per image in the loss.
        positive_fraction: classic: their share of positives, at most.
        ignore_crossing: classic: leave out anchors that cross the image's border.
        augmentation: how training images are made.
        plain_fraction: share of the run, at its end, without mosaics.
        float32: no bfloat16 in the network, which is taken where it is faster.
        channels_last: memory format.
        val_every: epochs between two measurements.
        val_limit: images to measure on meanwhile; the first and the last measurement take all.
        checkpoint_every: steps between two checkpoints.
        workers: threads that read images; 0 for as many as there are cores.
        seed: of weights, order, augmentation and sampling.
        device: of torch, e.g. "cpu" or "cuda:1".
        half: write the weights in half precision.
    """

    annotations: str
    images: tuple[str, ...]
    output: str
    model: str = DEFAULT_MODEL
    val_annotations: str = ""
    val_images: tuple[str, ...] = ()
    hold_out: float = 0.2
    init: str = ""
    freeze: tuple[str, ...] = ()
    epochs: int = 40
    minutes: float = 0.0
    patience: int = 0
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
    float32: bool = False
    channels_last: bool = True
    val_every: int = 5
    val_limit: int = 100
    checkpoint_every: int = 200
    workers: int = 0
    seed: int = 0
    device: str = "cpu"
    half: bool = False

    def __post_init__(self) -> None:
        _check_finite(self)
        for name, allowed in (("assignment", ASSIGNMENTS), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        for name in (
            *("epochs", "batch_size", "batch_size_per_image"),
            *("checkpoint_every", "val_every", "val_limit"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            *("minutes", "patience", "learning_rate", "backbone_rate", "weight_decay"),
            *("warmup_steps", "clip_norm", "workers", "seed"),
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in (
            *("hold_out", "ema_decay", "fg_iou_thresh", "bg_iou_thresh"),
            *("positive_fraction", "plain_fraction"),
        ):
            _check_share(self, name)
        if self.bg_iou_thresh > self.fg_iou_thresh:
            raise ValueError(
                f"bg_iou_thresh must not be above fg_iou_thresh, got {self.bg_iou_thresh} and "
                f"{self.fg_iou_thresh}"
            )

    @property
    def folder(self) -> Path:
        """The folder of checkpoints, metrics and curves: beside the output."""
        return Path(self.output).with_suffix(".training")

    @property
    def checkpoint(self) -> Path:
        """The file that an interrupted run goes on from."""
        return self.folder / "last.pt"

    @property
    def recipe(self) -> Path:
        """The file of the options that the run was started with: beside the output."""
        return Path(self.output).with_suffix(".recipe.toml")


def _check_finite(settings: object) -> None:
    for name, value in vars(settings).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}")


def _check_share(settings: object, name: str) -> None:
    if not 0 <= getattr(settings, name) <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {getattr(settings, name)}")
