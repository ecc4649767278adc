"""`stream-rpn explain`: the proposal network opened up on one frame of a source."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stream_rpn.commands.arguments import (
    add_model_arguments,
    add_proposal_arguments,
    load_options,
    moment,
    natural,
    numbers,
)
from stream_rpn.commands.checks import check_model, check_readable, check_sources
from stream_rpn.commands.outputs import check_file
from stream_rpn.commands.parser import examples
from stream_rpn.commands.progress import say, under_way
from stream_rpn.commands.tables import print_table
from stream_rpn.frame import StreamRPNError
from stream_rpn.sinks import check_place
from stream_rpn.sinks.folder import Folder
from stream_rpn.sinks.place import reason, write_whole

if TYPE_CHECKING:
    from stream_rpn.explanation.facts import Explanation

# What a run records as its own in a directory.
FACTS = "facts.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `stream-rpn explain`."""
    parser.epilog = examples(
        "stream-rpn explain video.mp4 --time 12 --at 300,200    # why this box, and not that one",
        "stream-rpn explain picture.jpg --gt instances.json -o report.html",
    )
    parser.add_argument("source", metavar="SOURCE", help="a video, a picture, a folder of pictures")
    which = parser.add_argument_group("what is looked at")
    frame = which.add_mutually_exclusive_group()
    frame.add_argument("--frame", type=natural, metavar="N", help="the frame, from 0 (default: 0)")
    frame.add_argument(
        "--time",
        type=moment,
        metavar="T",
        help="the first frame from then on (seconds or HH:MM:SS)",
    )
    which.add_argument(
        "--at",
        type=_point,
        metavar="X,Y",
        help="the point, in pixels of the frame (default: the first object that was missed, or "
        "where the best proposal comes from)",
    )
    which.add_argument(
        "--gt",
        metavar="FILE",
        help="ground truth: COCO instances (.json) of pictures, MOTChallenge (.txt) of a video",
    )
    out = parser.add_argument_group("results")
    out.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="report.html: a page that opens from disk; DIR/: its figures as PNG and the facts as "
        "JSON (default: the facts, in the terminal)",
    )
    out.add_argument("--overwrite", action="store_true", help="replace an existing output")
    out.add_argument("--quiet", action="store_true", help="print errors only")
    add_model_arguments(parser, computed=False)
    add_proposal_arguments(parser)


def _point(text: str) -> tuple[float, float]:
    """Returns the point that "X,Y" stands for."""
    values = numbers(text)
    if len(values) != 2:
        raise argparse.ArgumentTypeError(f"must be X,Y, got '{text}'")
    return values[0], values[1]


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code.

    Raises:
        StreamRPNError: something cannot be read or written, or does not fit.
    """
    output: str | None = arguments.output
    check_sources([arguments.source])
    check_model(arguments)
    check_readable(arguments.gt, "--gt")
    time = arguments.time
    if output is not None:
        _check(output, arguments.source, overwrite=arguments.overwrite)

    def facts() -> Explanation:
        with under_way(f"explaining {arguments.source}", quiet=arguments.quiet):
            from stream_rpn.explanation.explain import explain

            return explain(
                arguments.source,
                model=arguments.model,
                frame=arguments.frame,
                time=time,
                at=arguments.at,
                gt=arguments.gt,
                threads=arguments.threads,
                **load_options(arguments),
            )

    if output is None:
        from stream_rpn.explanation import terminal

        print_table(terminal.page(facts()))
        return 0
    if output.endswith("/"):
        _write_folder(output, facts, replace=arguments.overwrite)
    else:
        from stream_rpn.explanation import page

        page.environment()  # which says what is not installed, before the work
        write_whole(output, page.render(facts()).encode(), replace=arguments.overwrite)
    if not arguments.quiet:
        say(f"{output} is written")
    return 0


def _check(output: str, source: str, *, overwrite: bool) -> None:
    if output.endswith("/"):
        check_place(output, overwrite=overwrite, in_place=False)
    elif Path(output).suffix.lower() in (".html", ".htm"):
        check_file(output, [source], [], overwrite=overwrite)
    else:
        raise StreamRPNError(
            f"output {output!r} is neither a page nor a directory; name it report.html or DIR/"
        )


def _write_folder(output: str, facts: Callable[[], Explanation], *, replace: bool) -> None:
    from stream_rpn.explanation import charts, figures

    charts.matplotlib()
    found = facts()
    files = figures.pngs(found)
    record = {"files": list(files), **found.record()}
    try:
        place = Folder(output, replace=replace, record=FACTS, members=_files_in)
        try:
            place.make()
            text = json.dumps(record, ensure_ascii=False, indent=1) + "\n"
            for name, data in {FACTS: text.encode(), **files}.items():
                place.put(name, partial(Path.write_bytes, data=data))
            place.commit()
        finally:
            place.abandon()
    except OSError as error:
        raise StreamRPNError(f"cannot write {output!r}: {reason(error)}") from error


def _files_in(directory: Path) -> list[str]:
    """Returns the names of the figures that the facts in a directory tell of."""
    files: list[str] = json.loads((directory / FACTS).read_text(encoding="utf-8"))["files"]
    if not all(Path(name).name == name and name.endswith(".png") for name in files):
        raise ValueError("not a name of ours")
    return files
