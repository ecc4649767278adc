"""`stream-rpn train`: options → `TrainConfig`, and a display while it runs."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from stream_rpn.frame import StreamRPNError

# Defaults are those of TrainConfig; torch is imported only when training starts.
_NUMBERS: dict[str, tuple[type, str]] = {
    "epochs": (int, "passes over the images; with --minutes the upper bound"),
    "minutes": (float, "let the schedule follow the clock and end after this long"),
    "batch-size": (int, "images per step"),
    "learning-rate": (float, "at its highest, of weights that start at random"),
    "backbone-rate": (float, "factor of it for weights from --init"),
    "weight-decay": (float, "of weights, not of biases"),
    "warmup-steps": (int, "steps of linear warm-up"),
    "clip-norm": (float, "largest norm of the gradient"),
    "ema-decay": (float, "of the averaged weights, which are the result"),
    "fg-iou-thresh": (float, "classic: IoU from which an anchor is positive"),
    "bg-iou-thresh": (float, "classic: IoU below which an anchor is negative"),
    "batch-size-per-image": (int, "classic: anchors per image in the loss"),
    "positive-fraction": (float, "classic: their share of positives, at most"),
    "plain-fraction": (float, "share of the run, at its end, without mosaics"),
    "val-every": (int, "epochs between two measurements"),
    "val-limit": (int, "images to measure on meanwhile; the last measurement takes all"),
    "checkpoint-every": (int, "steps between two checkpoints"),
    "seed": (int, "of weights, order, augmentation and sampling"),
}
_AUGMENTATION: dict[str, tuple[type, str]] = {
    "size": (int, "side of the square training images"),
    "mosaic": (float, "probability that four images share the square"),
    "flip": (float, "probability of a horizontal flip"),
    "photometric": (float, "largest relative change of brightness, contrast and saturation"),
    "aliased": (float, "probability of scaling without a filter"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `stream-rpn train`."""
    data = parser.add_argument_group("data")
    data.add_argument("--annotations", required=True, metavar="COCO.json")
    data.add_argument("--images", required=True, metavar="DIR[,TAR…]")
    data.add_argument("--val-annotations", default="", metavar="COCO.json")
    data.add_argument("--val-images", metavar="DIR[,TAR…]", help="default: those of --images")
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="tiny", metavar="NAME", help="default: tiny")
    model.add_argument(
        "--init",
        default="",
        metavar="FILE",
        help="weights to start from: a whole model, or a torchvision classifier (.npz, .pth, …)",
    )
    model.add_argument(
        "--freeze",
        default="",
        metavar="PREFIX[,…]",
        help="parameters whose names begin so are not trained",
    )
    model.add_argument("-o", "--output", required=True, metavar="MODEL.safetensors")
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument(
        "--assignment",
        choices=("classic", "quality"),
        help="classic: fixed IoU thresholds, sampled cross-entropy, smooth L1; "
        "quality: ATSS, objectness learns the IoU, generalised IoU",
    )
    recipe.add_argument("--optimizer", choices=("adamw", "sgd"))
    recipe.add_argument(
        "--ignore-crossing",
        action="store_true",
        default=None,
        help="classic: leave out anchors that cross the border",
    )
    recipe.add_argument(
        "--scale", type=float, nargs=2, metavar=("MIN", "MAX"), help="scale jitter of single images"
    )
    for name, (kind, text) in {**_NUMBERS, **_AUGMENTATION}.items():
        recipe.add_argument(f"--{name}", type=kind, metavar="N", help=text)
    run = parser.add_argument_group("run")
    run.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    run.add_argument(
        "--float32",
        action="store_true",
        help="train in float32 where bfloat16 would be used (hardware that has it)",
    )
    run.add_argument("--half", action="store_true", help="write the weights in half precision")
    run.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    run.add_argument("--overwrite", action="store_true", help="replace an existing output")
    run.add_argument("--quiet", action="store_true", help="no progress display")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code.

    Raises:
        StreamRPNError: something cannot be read or does not fit, or the loss is not finite.
    """
    from stream_rpn import compute
    from stream_rpn.training.augment import Augmentation
    from stream_rpn.training.config import TrainConfig
    from stream_rpn.training.loop import train

    output = Path(arguments.output)
    if output.suffix != ".safetensors":
        raise StreamRPNError(f"the output must end in .safetensors, got '{output}'")
    if not output.parent.is_dir():
        raise StreamRPNError(f"there is no folder '{output.parent}' to write '{output}' into")
    if output.exists() and not arguments.overwrite:
        raise StreamRPNError(f"'{output}' exists; --overwrite replaces it")
    device = compute.choose_device(arguments.device)
    given = _given(arguments, [*_NUMBERS, "assignment", "optimizer", "ignore-crossing"])
    augmentation = _given(arguments, [*_AUGMENTATION, "scale"])
    if "scale" in augmentation:
        augmentation["scale"] = tuple(augmentation["scale"])
    try:
        config = TrainConfig(
            annotations=arguments.annotations,
            images=_split(arguments.images),
            val_annotations=arguments.val_annotations,
            val_images=_split(arguments.val_images or ""),
            output=str(output),
            model=arguments.model,
            init=arguments.init,
            frozen=_split(arguments.freeze),
            augmentation=Augmentation(**augmentation),
            mixed_precision=not arguments.float32 and compute.native_bfloat16(device),
            device=str(device),
            half=arguments.half,
            **given,
        )
    except ValueError as error:
        raise StreamRPNError(str(error)) from error
    console = Console(stderr=True)
    display: AbstractContextManager[Any] = nullcontext()
    if not arguments.quiet:
        display = _Display(console, config.epochs, config.minutes)
    with display as show:
        train(config, resume=arguments.resume, progress=show or (lambda row: None))
    console.print(f"{output} is written; metrics and curves are in {config.folder}")
    return 0


def _given(arguments: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    attributes = [name.replace("-", "_") for name in names]
    values = {name: getattr(arguments, name) for name in attributes}
    return {name: value for name, value in values.items() if value is not None}


def _split(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


class _Display:
    """A bar with the losses on a terminal, elsewhere now and then a line."""

    LINE_EVERY = 50

    def __init__(self, console: Console, epochs: int, minutes: float) -> None:
        self.console = console
        self.total = 60 * minutes if minutes else float(epochs)
        self.by_clock = bool(minutes)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("starting", total=self.total)

    def __enter__(self) -> _Display:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def __call__(self, row: dict[str, Any]) -> None:
        if "AR@100" in row:
            numbers = ("AR@100", "AR@1000", "R50@300", "R50@1000")
            recall = ", ".join(f"{name} {row[name]:.3f}" for name in numbers)
            self.console.print(f"epoch {row['epoch']:.2f}: {recall} ({row['images']} images)")
            return
        if "initialised" in row:
            self.console.print(
                f"{row['initialised']} of {row['parameters']} parameters start from given weights"
            )
            return
        text = (
            f"epoch {row['epoch']:.2f} step {row['step']} "
            f"objectness {row['objectness_loss']:.3f} box {row['box_loss']:.3f}"
        )
        done = row["elapsed_seconds"] if self.by_clock else row["epoch"]
        self.progress.update(self.task, completed=done, description=text)
        if not self.console.is_terminal and row["step"] % self.LINE_EVERY == 0:
            self.console.print(text)
