"""`stream-rpn export [MODEL] -o FILE`: a model for ONNX Runtime, OpenVINO, TensorRT and others."""

from __future__ import annotations

import argparse
from pathlib import Path

from stream_rpn.commands.arguments import add_proposal_arguments, load_options, positive
from stream_rpn.commands.checks import check_model
from stream_rpn.commands.parser import examples
from stream_rpn.commands.progress import say, under_way
from stream_rpn.models import DEFAULT_MODEL, MODELS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what to export, and where to."""
    parser.epilog = (
        "Backbone and head become one graph, for any size and number of images. FILE.json beside\n"
        "it tells the rest: size and normalisation of the input, strides, anchors, limits, and in\n"
        "words what to do with them; examples/onnx_runtime.py does it in numpy.\n\n"
    ) + examples(
        "stream-rpn export -o nanodet_m.onnx",
        "stream-rpn export mine.safetensors -o mine.xml    # weights of yours, for OpenVINO",
    )
    parser.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        metavar="MODEL",
        help=f"a model of `stream-rpn models` or a checkpoint file (default: {DEFAULT_MODEL})",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="NAME.onnx, or NAME.xml for OpenVINO (default: the model's name with .onnx)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.add_argument(
        "--weights", metavar="FILE", help="a checkpoint, or 'random' (default: the model's own)"
    )
    parser.add_argument(
        "--size", type=positive, metavar="PX", help="shorter side of the input, for the JSON file"
    )
    add_proposal_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exports the model and says what was written."""
    check_model(arguments)
    from stream_rpn.models.export import check_files

    name = arguments.model if arguments.model in MODELS else Path(arguments.model).stem
    path = Path(arguments.output or f"{name}.onnx")
    check_files(path, overwrite=arguments.overwrite)
    with under_way(f"loading {arguments.model}"):
        from stream_rpn import api

        rpn = api.load(arguments.model, **load_options(arguments))
    for file in rpn.export(path, overwrite=arguments.overwrite):
        say(f"{file} ({file.stat().st_size / 1e3:,.0f} kB)")
    return 0
