"""Options that commands share, and what the values of options must be."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable
from typing import Any

from stream_rpn.engines import ENGINES, INT8
from stream_rpn.frame import StreamRPNError
from stream_rpn.limits import MAX_PIXELS
from stream_rpn.models import DEFAULT_MODEL, DEFAULT_TOP, MODELS

DTYPES = ("auto", "float32", "bfloat16", "float16", INT8)

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def add_model_arguments(
    parser: argparse.ArgumentParser,
    *,
    several: bool = False,
    computed: bool = True,
    batch: str | None = "auto",
    batch_type: Callable[[str], Any] | None = None,
    batch_help: str = "frames per call of torch, or auto",
) -> None:
    """Adds the options that say which model runs, and where.

    Args:
        parser: gets them as a group.
        several: `--model` may be given more than once; and frames are not batched.
        computed: whether it may be said what computes, and in which number format.
        batch: the default of `--batch`.
        batch_type: what its value must be: a number from 1 up or auto, unless given.
        batch_help: what is said of it.
    """
    model = parser.add_argument_group("model")
    help_text = "a model of `stream-rpn models` or a checkpoint file"
    if several:
        model.add_argument(
            "--model",
            action="append",
            default=[],
            metavar="NAME|FILE",
            help=f"{help_text}; repeatable (default: {DEFAULT_MODEL})",
        )
    else:
        model.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME|FILE", help=help_text)
    model.add_argument(
        "--weights",
        metavar="FILE",
        help="a checkpoint, or 'random' to measure speed only (default: the model's own)",
    )
    if computed:
        model.add_argument(
            "--device", type=device, default="auto", help="auto, cuda, cuda:N, mps or cpu"
        )
        model.add_argument(
            "--dtype",
            choices=DTYPES,
            default="auto",
            help="the number format; auto: bfloat16 where it is the faster one, else int8 for the "
            "default model on a CPU by OpenVINO, else float32",
        )
        model.add_argument(
            "--engine",
            choices=ENGINES,
            default="auto",
            help="what computes; auto: OpenVINO on a CPU, where it can, else torch",
        )
    if computed and not several:
        model.add_argument(
            "--batch",
            type=batch_type or count_or_auto,
            default=batch,
            metavar="N",
            help=batch_help,
        )
    model.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="cores to compute on, on a CPU (default: all that this process may use)",
    )
    model.add_argument(
        "--size",
        type=positive,
        metavar="PX",
        help="shorter side of the network's input (default: the model's, see `stream-rpn models`)",
    )


def add_proposal_arguments(parser: argparse.ArgumentParser, *names: str) -> None:
    """Adds the options that say which proposals are kept: those named, or all."""
    group = parser.add_argument_group("proposals")
    for name in names or _PROPOSAL_OPTIONS:
        group.add_argument(f"--{name}", **_PROPOSAL_OPTIONS[name])


_FRAME_OPTIONS = (
    "start",
    "end",
    "stride",
    "fps",
    "max_frames",
    "video_stream",
    "decoder",
    "max_pixels",
)


def add_frame_arguments(parser: argparse.ArgumentParser) -> Any:
    """Adds the options that say which frames of a source are used; returns their group."""
    frames = parser.add_argument_group("frames")
    frames.add_argument(
        "--start", type=moment, metavar="T", help="from this time on (seconds or HH:MM:SS)"
    )
    frames.add_argument("--end", type=moment, metavar="T", help="up to this time, exclusive")
    frames.add_argument(
        "--stride", type=positive, default=1, metavar="N", help="every N-th frame by index"
    )
    frames.add_argument("--fps", type=rate, metavar="F", help="at most F frames a second, by time")
    frames.add_argument(
        "--max-frames", type=positive, metavar="N", help="stop after N results of each source"
    )
    frames.add_argument(
        "--video-stream",
        "--stream",
        type=natural,
        metavar="N",
        help="which video stream of a file, from 0",
    )
    frames.add_argument(
        "--decoder", choices=("auto", "cpu", "nvdec"), default="auto", help="what decodes"
    )
    frames.add_argument(
        "--max-pixels",
        type=positive,
        default=MAX_PIXELS,
        metavar="N",
        help="refuse frames and pictures of more than N pixels (200,000,000)",
    )
    return frames


def frame_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the keywords of a `Selection` that the options of `add_frame_arguments` stand for."""
    return {name: getattr(arguments, name) for name in _FRAME_OPTIONS}


def load_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the keywords of `stream_rpn.load` that a command's options stand for.

    What is given goes before what a preset says.

    Raises:
        StreamRPNError: nobody knows how many `--top auto` are.
    """
    names = ["weights", "size", *(name.replace("-", "_") for name in _PROPOSAL_OPTIONS)]
    options = {name: getattr(arguments, name) for name in names if name in arguments}
    preset = {"top": DEFAULT_TOP, **PRESETS.get(getattr(arguments, "preset", None) or "", {})}
    for name, value in preset.items():
        if name in options and options[name] is None:
            options[name] = value
    if options.get("top") == "auto":
        options["top"] = _enough(arguments)
    return options


def _enough(arguments: argparse.Namespace) -> int:
    """Returns how many proposals `--top auto` stands for, with the weights that were measured."""
    entry = MODELS.get(arguments.model) if isinstance(arguments.model, str) else None
    if entry is None or not entry.enough or arguments.weights is not None:
        known = ", ".join(name for name, one in MODELS.items() if one.enough)
        raise StreamRPNError(
            f"--top auto is known of {known}, with their own weights; `stream-rpn eval` tells how "
            "many proposals of another are enough, for --top N"
        )
    return entry.enough


def count_or_auto(text: str) -> int | str:
    """Returns "auto", or the whole number from 1 up that an argument stands for."""
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be auto or a number from 1 up, got '{text}'")
    return int(text)


def positive(text: str) -> int:
    """Returns the whole number from 1 up that an argument stands for."""
    value = natural(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def natural(text: str) -> int:
    """Returns the whole number from 0 up that an argument stands for."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, got '{text}'")
    return int(text)


def rate(text: str) -> float:
    """Returns the finite number above 0 that an argument stands for."""
    return _number(text, "above 0", lambda value: 0 < value < math.inf)


def device(text: str) -> str:
    """Returns the name of a device, which need not be there."""
    if not _DEVICE.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"there is no device '{text}'; choose auto, cpu, cuda, cuda:N or mps"
        )
    return text


def moment(text: str) -> float:
    """Returns the seconds that an argument stands for: 12.5 or HH:MM:SS."""
    from stream_rpn.sources.select import parse_time

    try:
        return parse_time(text)
    except StreamRPNError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def share(text: str) -> float:
    """Returns the number from 0 to 1 that an argument stands for."""
    return _number(text, "from 0 to 1", lambda value: 0 <= value <= 1)


def overlap(text: str) -> float:
    """Returns the number above 0 up to 1 that an argument stands for."""
    return _number(text, "above 0, at most 1", lambda value: 0 < value <= 1)


def length(text: str) -> float:
    """Returns the finite number from 0 up that an argument stands for."""
    return _number(text, "from 0 up", lambda value: 0 <= value < math.inf)


def _number(text: str, what: str, fits: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not fits(value):
        raise argparse.ArgumentTypeError(f"must be a number {what}, got '{text}'")
    return value


def level(text: str) -> str | float:
    """Returns "off", "auto", or the finite number above 0 that an argument stands for."""
    if text in ("off", "auto"):
        return text
    try:
        return rate(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"must be off, auto or a number above 0, got '{text}'"
        ) from None


def numbers(text: str) -> list[float]:
    """Returns the numbers that an argument lists, separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be numbers separated by commas, got '{text}'"
        ) from None


def lengths(text: str) -> list[float]:
    """Returns the finite numbers above 0 that an argument lists, separated by commas."""
    values = numbers(text)
    if not all(0 < value < math.inf for value in values):
        raise argparse.ArgumentTypeError(f"must be numbers above 0, got '{text}'")
    return values


# By recall and precision on COCO (`python -m bench.presets`): `annotate` balances them best (F1 at
# IoU 0.5), its `top` bounds crowded pictures only; `recall` has the highest AR@1000, of NMS 0.5 to
# 0.8. They were chosen on the images that their numbers are told of.
PRESETS: dict[str, dict[str, Any]] = {
    "annotate": {"top": 100, "nms": 0.5, "score_thresh": 0.25},
    "recall": {"top": 1000, "nms": 0.8, "score_thresh": 0.0},
}

# By name, as `ArgumentParser.add_argument` takes them; `stream_rpn.load` has a keyword for each.
_PROPOSAL_OPTIONS: dict[str, dict[str, Any]] = {
    "top": {
        "type": count_or_auto,
        "metavar": "N|auto",
        "help": "proposals per frame; auto: as many as find 95 %% of what 1,000 find "
        f"(default: {DEFAULT_TOP})",
    },
    "pre-nms": {
        "type": positive,
        "metavar": "N",
        "help": "candidates per level before NMS (default: the model's, 5000 for nanodet_m)",
    },
    "nms": {
        "type": overlap,
        "metavar": "T",
        "help": "IoU above which NMS suppresses (default: 0.7)",
    },
    "score-thresh": {
        "type": share,
        "metavar": "T",
        "help": "least score kept (default: 0; 0.05 for mobilenet_…)",
    },
    "min-size": {
        "type": length,
        "metavar": "PX",
        "help": "least side kept, in network pixels (default: 0.001)",
    },
    "anchor-sizes": {
        "type": lengths,
        "metavar": "A,B,…",
        "help": "other anchor sizes, as many as the model has per level or in all (default: the "
        "model's, see `stream-rpn models`)",
    },
    "anchor-ratios": {
        "type": lengths,
        "metavar": "A,B,…",
        "help": "other ratios height/width, as many as the model has (default: the model's)",
    },
}


def split_paths(text: str) -> list[str]:
    """Returns the paths of a list with commas; one that exists may have commas of its own."""
    parts, paths = text.split(","), []
    while parts:
        ends = range(len(parts), 0, -1)
        end = next((end for end in ends if os.path.exists(",".join(parts[:end]))), 1)
        paths.append(",".join(parts[:end]))
        del parts[:end]
    return [path for path in paths if path]
