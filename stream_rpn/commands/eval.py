"""`stream-rpn eval`: recall of models, or of saved results, on annotated images or a video."""

from __future__ import annotations

import argparse

from stream_rpn.commands.arguments import add_model_arguments, add_proposal_arguments
from stream_rpn.commands.checks import check_model, check_readable
from stream_rpn.commands.parser import examples
from stream_rpn.commands.progress import under_way


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `stream-rpn eval`."""
    parser.epilog = examples(
        "stream-rpn eval --annotations instances.json --images val/ --model nanodet_m --model tiny",
        "stream-rpn eval --annotations gt.txt --images video.mp4 --results video.jsonl",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--annotations",
        required=True,
        metavar="FILE",
        help="COCO instances (.json), or MOTChallenge ground truth (.txt) of a video",
    )
    data.add_argument(
        "--images",
        required=True,
        metavar="DIR[,TAR…]",
        help="folders and tar files of images, separated by commas; with MOT, the video",
    )
    add_model_arguments(parser, several=True)
    add_proposal_arguments(parser, "pre-nms", "nms")
    saved = parser.add_argument_group("saved proposals, beside models or alone")
    saved.add_argument(
        "--results",
        action="append",
        default=[],
        metavar="FILE",
        help="COCO results, detectron2 proposals (.pkl) or ours; repeatable",
    )
    out = parser.add_argument_group("results")
    out.add_argument(
        "-o",
        "--output",
        action="append",
        default=[],
        metavar="OUT",
        help="write the proposals, as stream-rpn does; repeatable; {stem} is the model's name",
    )
    out.add_argument("--json", metavar="FILE", help="write all numbers")
    out.add_argument("--curves", metavar="PNG", help="draw recall over IoU and over proposals")
    out.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    out.add_argument("--quiet", action="store_true", help="no progress display")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code.

    Raises:
        StreamRPNError: something cannot be read, or does not fit.
    """
    check_model(arguments)
    for path in (arguments.annotations, *arguments.results):
        check_readable(path, "--annotations" if path == arguments.annotations else "--results")
    with under_way("reading annotations", quiet=arguments.quiet):
        from stream_rpn.commands import recall
    return recall.run(arguments)
