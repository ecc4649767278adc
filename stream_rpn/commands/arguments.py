"""Options that commands share, and what the values of options must be."""

from __future__ import annotations

import argparse
import math


def add_model_arguments(
    parser: argparse.ArgumentParser,
    *,
    batch: str | None = "auto",
    batch_help: str = "frames per call, or auto",
) -> None:
    """Adds the arguments that say which model runs, and where."""
    from stream_rpn.models import DEFAULT_MODEL

    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME|FILE",
        help=f"a model of `stream-rpn models` or a checkpoint file (default: {DEFAULT_MODEL})",
    )
    model.add_argument(
        "--weights", metavar="FILE", help="a checkpoint, or 'random' to measure speed only"
    )
    model.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    model.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    model.add_argument("--batch", default=batch, metavar="N", help=batch_help)
    model.add_argument(
        "--size", type=positive, metavar="PX", help="shorter side of the network's input"
    )


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
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got '{text}'")
    return value


def numbers(text: str) -> list[float]:
    """Returns the numbers that an argument lists, separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be numbers separated by commas, got '{text}'"
        ) from None
