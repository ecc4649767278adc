"""`stream-rpn train`: options and recipe → `TrainConfig`, and a display while it runs."""

from __future__ import annotations

import argparse
import os
import textwrap
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stream_rpn.commands.arguments import device, positive, split_paths
from stream_rpn.commands.checks import check_readable
from stream_rpn.commands.parser import examples
from stream_rpn.commands.progress import PLAIN_SECONDS, complain, say, under_way
from stream_rpn.frame import StreamRPNError
from stream_rpn.signals import Signals
from stream_rpn.training.config import ASSIGNMENTS, OPTIMIZERS, Augmentation, TrainConfig

if TYPE_CHECKING:
    from stream_rpn.training.loop import Trained
    from stream_rpn.training.recipe import Recipe

# The defaults of all of these are those of TrainConfig and Augmentation.
_NUMBERS = {
    "epochs": "passes over the images; with --minutes the upper bound",
    "minutes": "let the schedule follow the clock and end after this long; 0: by epochs",
    "patience": "measurements without a better AR@100 after which to end; 0: never",
    "batch-size": "images per step",
    "learning-rate": "at its highest, of weights that start at random",
    "backbone-rate": "factor of it for weights that --init gives",
    "weight-decay": "of weights, not of biases",
    "warmup-steps": "steps of linear warm-up, a tenth of the run at most",
    "clip-norm": "largest norm of the gradient",
    "ema-decay": "of the averaged weights, which are the result",
    "fg-iou-thresh": "classic: IoU from which an anchor is positive",
    "bg-iou-thresh": "classic: IoU below which an anchor is negative",
    "batch-size-per-image": "classic: anchors per image in the loss",
    "positive-fraction": "classic: their share of positives, at most",
    "plain-fraction": "share of the run, at its end, without mosaics",
    "val-every": "epochs between two measurements of recall",
    "val-limit": "images to measure on meanwhile; the first and the last measurement take all",
    "checkpoint-every": "steps between two checkpoints",
    "seed": "of weights, order, augmentation, sampling and the choice of --hold-out",
}
_AUGMENTATION = {
    "size": "side of the square training images; 0: the shorter side of the model's input",
    "mosaic": "probability that four images share the square",
    "mosaic-scale": "their largest factor beyond what fills their part",
    "flip": "probability of a horizontal flip",
    "photometric": "largest relative change of brightness, contrast and saturation",
    "aliased": "probability of scaling without a filter",
}
_LISTS = ("images", "val_images", "freeze")
_DEFAULTS: dict[str, Any] = {
    field.name: field.default
    for settings in (TrainConfig, Augmentation)
    for field in fields(settings)
    if field.default is not MISSING
}
_RECALL = ("AR@10", "AR@100", "AR@1000", "R50@100", "R50@1000")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `stream-rpn train`."""
    parser.epilog = textwrap.fill(
        "Beside MODEL.safetensors lie MODEL.recipe.toml, the options that were used, and "
        "MODEL.training/ with the last checkpoint, metrics.jsonl, curves.png and, where "
        "TensorBoard is installed, its events. Ctrl-C once measures and writes what there is.",
        width=80,
    )
    parser.epilog += "\n\n" + examples(
        "stream-rpn train --annotations boxes.json --images pictures/ -o mine.safetensors",
        "stream-rpn train -o mine.safetensors --resume --epochs 60    # goes on, and for longer",
    )
    data = parser.add_argument_group("data")
    data.add_argument("--annotations", metavar="COCO.json", help="boxes of the images; required")
    data.add_argument(
        "--images",
        metavar="DIR[,TAR…]",
        help="folders and tar files, in which images are found by file name; required",
    )
    data.add_argument(
        "--val-annotations",
        metavar="COCO.json",
        help="boxes of images to measure recall on (default: some of --annotations are held out)",
    )
    data.add_argument("--val-images", metavar="DIR[,TAR…]", help="default: those of --images")
    _add(
        data,
        "hold-out",
        "share of the images with objects that recall is measured on instead, without "
        "--val-annotations; 0: train on all",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        metavar="NAME",
        help=f"of `stream-rpn models` (default: {_DEFAULTS['model']})",
    )
    model.add_argument(
        "--init",
        metavar="NAME|FILE",
        help="weights to start from: of a model by its name, a checkpoint, a torchvision "
        "classifier (.npz, .pth, …), or random (default: the model's own)",
    )
    model.add_argument(
        "--freeze",
        metavar="PREFIX[,…]",
        help="parameters whose names begin so are not trained (default: none)",
    )
    model.add_argument("-o", "--output", required=True, metavar="MODEL.safetensors")
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument(
        "--config",
        metavar="RECIPE.toml",
        help="take what is not given here from the recipe of another run (default: none; with "
        "--resume that of the run)",
    )
    recipe.add_argument(
        "--assignment",
        choices=ASSIGNMENTS,
        help="classic: fixed IoU thresholds, sampled cross-entropy, smooth L1; quality: ATSS, "
        "objectness learns the IoU, generalised IoU; aligned: the same, but anchors are matched by "
        f"what the network finds (default: {_DEFAULTS['assignment']})",
    )
    recipe.add_argument(
        "--optimizer", choices=OPTIMIZERS, help=f"default: {_DEFAULTS['optimizer']}"
    )
    recipe.add_argument(
        "--ignore-crossing",
        action=argparse.BooleanOptionalAction,
        help="classic: leave out anchors that cross the border (default: no)",
    )
    low, high = _DEFAULTS["scale"]
    recipe.add_argument(
        "--scale",
        type=float,
        nargs=2,
        metavar=("MIN", "MAX"),
        help="size of single images, 1 being as large as proposals are made at "
        f"(default: {low} {high})",
    )
    for name, text in {**_NUMBERS, **_AUGMENTATION}.items():
        _add(recipe, name, text)
    run = parser.add_argument_group("run")
    run.add_argument("--device", type=device, default="auto", help="auto, cuda, cuda:N, mps or cpu")
    run.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="threads that read images (default: as many as there are cores)",
    )
    run.add_argument(
        "--float32",
        action=argparse.BooleanOptionalAction,
        help="train in float32 (default: in bfloat16 where that is faster)",
    )
    run.add_argument(
        "--half",
        action=argparse.BooleanOptionalAction,
        help="write the weights in half precision (default: no)",
    )
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint, with the options of its recipe; --epochs, --minutes "
        "and --patience may be others, so that a run can be made longer",
    )
    run.add_argument("--overwrite", action="store_true", help="replace an existing output or run")
    run.add_argument("--quiet", action="store_true", help="no progress display")


def _add(group: argparse._ArgumentGroup, name: str, text: str) -> None:
    default = _DEFAULTS[name.replace("-", "_")]
    group.add_argument(
        f"--{name}", type=type(default), metavar="N", help=f"{text} (default: {default:g})"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code.

    Raises:
        StreamRPNError: something cannot be read or does not fit, or the loss is not finite.
    """
    config = _config(arguments)
    if not arguments.resume:
        _refuse_to_replace(config, overwrite=arguments.overwrite)
    check_readable(config.annotations, "--annotations")
    check_readable(config.val_annotations or None, "--val-annotations")
    with under_way("loading torch", quiet=arguments.quiet):
        from stream_rpn import compute
        from stream_rpn.training.loop import train

    config = replace(config, device=str(compute.choose_device(arguments.device)))
    display: AbstractContextManager[Any] = nullcontext()
    if not arguments.quiet:
        display = _Display(config)
    with Signals() as signals:
        try:
            with display as show:
                trained = train(
                    config,
                    resume=arguments.resume,
                    progress=show or (lambda row: None),
                    stop=signals.came,
                )
        except KeyboardInterrupt:
            complain(f"stopped; {_goes_on(config)}")
            return signals.exit_code or 130
    _tell(config, trained)
    return signals.exit_code if trained.ended == "stopped" else 0


def _config(arguments: argparse.Namespace) -> TrainConfig:
    """Returns what the options say, then the recipe, then the defaults."""
    output = Path(arguments.output)
    if output.suffix != ".safetensors":
        raise StreamRPNError(f"the output must end in .safetensors, got '{output}'")
    if not os.path.isdir(output.parent):
        raise StreamRPNError(f"there is no folder '{output.parent}' to write '{output}' into")
    recipe = _recipe(arguments)
    given = {
        field.name: value
        for settings in (TrainConfig, Augmentation)
        for field in fields(settings)
        if (value := getattr(arguments, field.name, None)) is not None
    }
    given.pop("device")  # which one "auto" is, torch knows
    for name in _LISTS:
        if name in given:
            given[name] = tuple(split_paths(given[name]))
    if "scale" in given:
        given["scale"] = tuple(given["scale"])
    of_image = {field.name for field in fields(Augmentation)}
    values = dict(recipe.config) if recipe else {}
    values |= {name: value for name, value in given.items() if name not in of_image}
    augmentation = dict(recipe.augmentation) if recipe else {}
    augmentation |= {name: value for name, value in given.items() if name in of_image}
    for name in ("annotations", "images"):
        if not values.get(name):
            raise StreamRPNError(f"--{name} is missing{' in the recipe, too' if recipe else ''}")
    try:
        return TrainConfig(**values, augmentation=Augmentation(**augmentation))
    except ValueError as error:
        # They begin with the name of what is wrong.
        name = str(error).partition(" ")[0]
        if recipe and name not in given:
            raise StreamRPNError(f"{recipe.where(name)}{error}") from error
        raise StreamRPNError(
            f"--{name.replace('_', '-')}{str(error).removeprefix(name)}"
        ) from error


def _recipe(arguments: argparse.Namespace) -> Recipe | None:
    from stream_rpn.training.recipe import read_recipe

    if arguments.config:
        return read_recipe(arguments.config)
    path = Path(arguments.output).with_suffix(".recipe.toml")
    return read_recipe(path) if arguments.resume and os.path.isfile(path) else None


def _refuse_to_replace(config: TrainConfig, *, overwrite: bool) -> None:
    if overwrite:
        return
    if os.path.exists(config.output):
        raise StreamRPNError(
            f"'{config.output}' exists; --overwrite replaces it, --resume goes on with its run"
        )
    if os.path.exists(config.recipe) and not os.path.isfile(config.checkpoint):
        raise StreamRPNError(
            f"'{config.recipe}' exists, where the recipe of this run is to stand; name another "
            "output, or --overwrite replaces it"
        )
    if os.path.isfile(config.checkpoint):
        raise StreamRPNError(
            f"'{config.folder}' holds a run that did not end; --resume goes on with it, "
            "--overwrite begins anew"
        )


def _goes_on(config: TrainConfig) -> str:
    if not config.checkpoint.is_file():
        return "nothing was trained yet"
    return f"`stream-rpn train -o {config.output} --resume` goes on from the last checkpoint"


def _tell(config: TrainConfig, trained: Trained) -> None:
    """Says what became of a run."""
    of = f"step {trained.step} of {trained.total_steps}"
    if trained.ended == "stopped":
        complain(f"stopped at {of}; `stream-rpn train -o {config.output} --resume` goes on")
    elif trained.ended == "patience":
        say(
            f"ended at {of}: AR@100 was not better in {config.patience} measurements; "
            "--resume with more --patience goes on"
        )
    if trained.before is not None and trained.after is not None:
        say(_recall_line("before", trained.before))
        say(_recall_line("after", trained.after))
    what = f"the averaged weights of step {trained.best_step}"
    if trained.after is not None and not trained.best_step:
        what = "the weights it started from, as none that were trained since found more"
    say(
        f"{config.output} holds {what}; metrics and curves are in {config.folder}, the options in "
        f"{config.recipe}"
    )


def _recall_line(when: str, row: dict[str, float]) -> str:
    recall = "  ".join(f"{name} {row[name]:.3f}" for name in _RECALL)
    return f"{when + ':':14}{recall}  ({row['images']} images, {row['objects']} objects)"


class _Display:
    """A bar with the losses on a terminal, elsewhere now and then a line."""

    def __init__(self, config: TrainConfig) -> None:
        # Not at the top: `--help` does without.
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.config = config
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        total = 60 * config.minutes or float(config.epochs)
        self.training = self.progress.add_task("starting", total=total)
        self.reading = self.progress.add_task("", total=1, visible=False)
        self.next_line = 0.0

    def __enter__(self) -> _Display:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def __call__(self, row: dict[str, Any]) -> None:
        if "initialised" in row:
            self._print(self._start(row))
        elif "stopping" in row:
            self._print("stopping: what there is is measured and written; again leaves at once")
        elif "of" in row:
            what = "checking images" if "checked" in row else "measuring recall"
            done = row.get("checked", row.get("measured"))
            self.progress.update(
                self.reading,
                description=f"{what} {done}/{row['of']}",
                completed=done,
                total=row["of"],
                visible=done < row["of"],
            )
            self._line(f"{what}: {done} of {row['of']}")
        elif "AR@100" in row:
            when = f"epoch {row['epoch']:.1f}" if row["step"] else "at the start"
            self._print(_recall_line(when, row))
        else:
            text = (
                f"epoch {row['epoch']:.1f}/{self.config.epochs} step {row['step']} "
                f"objectness {row['objectness_loss']:.3f} box {row['box_loss']:.3f}"
            )
            done = row["elapsed_seconds"] if self.config.minutes else row["epoch"]
            self.progress.update(self.training, completed=done, description=text)
            self._line(text)

    def _start(self, row: dict[str, Any]) -> str:
        images = f"{row['train_images']} images to train on"
        if not row["val_images"]:
            images += ", none to measure recall on"
        if row["val_images"]:
            held = "" if self.config.val_annotations else " held out"
            images += f", {row['val_images']}{held} to measure recall on"
        if not row["initialised"]:
            return f"{images}; all weights start at random, which takes many images and hours"
        name = self.config.init or self.config.model
        return f"{images}; {row['initialised']} of {row['parameters']} parameters start from {name}"

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def _line(self, text: str) -> None:
        """Prints a line every ten seconds where there is no bar."""
        if not self.console.is_terminal and (now := time.monotonic()) >= self.next_line:
            self.next_line = now + PLAIN_SECONDS
            self._print(text)
