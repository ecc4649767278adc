"""Drawing saved results onto their video again: `stream-rpn render RESULTS VIDEO -o out.mp4`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stream_rpn.commands.arguments import natural
from stream_rpn.commands.outputs import resolve_outputs
from stream_rpn.commands.parser import examples
from stream_rpn.commands.progress import say
from stream_rpn.frame import Frame, Proposals, StreamRPNError
from stream_rpn.results import Results, read
from stream_rpn.sinks import make_header
from stream_rpn.sources import open_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `stream-rpn render`."""
    parser.epilog = examples(
        "stream-rpn render video.proposals.jsonl video.mp4 -o top50.mp4 --draw 50",
        "stream-rpn render video.parquet video.mp4 -o sure.mp4 --score-thresh 0.5",
    )
    parser.add_argument("results", metavar="RESULTS", help="a result file, e.g. video.jsonl")
    parser.add_argument("video", metavar="VIDEO", help="the video that the results are of")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="annotated video (.mp4 or .mkv), or DIR/",
    )
    parser.add_argument(
        "--draw", type=natural, default=20, metavar="N", help="best boxes to draw (20)"
    )
    parser.add_argument(
        "--crops", type=natural, default=10, metavar="N", help="best boxes to cut (10)"
    )
    parser.add_argument(
        "--score-thresh", type=float, default=0.0, metavar="T", help="draw scores from T up (0)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def run(arguments: argparse.Namespace) -> int:
    """Runs `stream-rpn render` and returns its exit code."""
    rendered = render(
        arguments.results,
        arguments.video,
        arguments.output,
        draw=arguments.draw,
        crops=arguments.crops,
        score_thresh=arguments.score_thresh,
        overwrite=arguments.overwrite,
    )
    if not arguments.quiet:
        say(f"{rendered.frames} frames → {arguments.output}")
    if rendered.damaged_packets or rendered.corrupt_frames:
        print(
            f"stream-rpn: {arguments.video}: the video is damaged ({rendered.damaged_packets} "
            f"packets lost, {rendered.corrupt_frames} pictures with errors); every frame that "
            "decodes was drawn",
            file=sys.stderr,
        )
        return 3
    return 0


class Rendered(NamedTuple):
    """The outcome of `render`.

    Attributes:
        frames: frames written.
        damaged_packets: packets of the video that could not be decoded.
        corrupt_frames: frames that the decoder marked as damaged; they were drawn all the same.
    """

    frames: int
    damaged_packets: int
    corrupt_frames: int


def render(
    results: str,
    video: str,
    output: str,
    *,
    draw: int = 20,
    crops: int = 10,
    score_thresh: float = 0.0,
    overwrite: bool = False,
) -> Rendered:
    """Draws saved results onto their video.

    Frames are matched by index; those that the results do not have are copied as they are.

    Args:
        results: a file that `read` opens; of several sources the one named like the video counts.
        video: the video that the results are of.
        output: an annotated video, or a directory of crops.
        draw: how many of the best boxes to draw.
        crops: how many of the best boxes to cut out.
        score_thresh: boxes of lower scores are left out.
        overwrite: whether an existing output may be replaced.

    Raises:
        StreamRPNError: the results are not of this video, or something can't be read or written.
    """
    saved = read(results)
    (target,) = resolve_outputs([output], [video], overwrite=overwrite, draw=draw, crops=crops)
    if not target.needs_image:
        raise StreamRPNError(
            f"output {output!r} shows no pictures; name an .mp4, an .mkv or a DIR/"
        )
    frames_written = 0
    with open_source(video, decoder="cpu") as source:
        chosen = _of_source(saved, video)
        with target.open() as sink:
            kept = ("model", "weights", "engine", "device", "dtype", "parameters")
            header = make_header(
                source.info, **{k: v for k, v in saved.header.items() if k in kept}
            )
            sink.begin(header, source.info)
            record = next(chosen, None)
            for frame in source:
                if record is not None and record.frame == frame.index:
                    _check_size(record, frame, results, video)
                    sink.write(_shown(frame, record, score_thresh))
                    record = next(chosen, None)
                else:
                    sink.write(_shown(frame, None, score_thresh))
                frames_written += 1
            if record is not None:
                raise StreamRPNError(
                    f"{results!r} has results of frame {record.frame}, but {video!r} has only "
                    f"{frames_written} frames: they are not of this video"
                )
            sink.end({"frames": frames_written, "complete": True})
        return Rendered(frames_written, source.damaged_packets, source.corrupt_frames)


def _of_source(saved: Results, video: str) -> Iterator[Proposals]:
    """Returns the results of one video, in the order of its frames."""
    sources = saved.sources
    if len(sources) <= 1:
        return iter(saved)
    named = [source for source in sources if source == video] or [
        source for source in sources if Path(source).name == Path(video).name
    ]
    if len(named) != 1:
        raise StreamRPNError(
            f"{str(saved.path)!r} holds results of {', '.join(map(repr, sources))}; "
            f"{video!r} is {'more than' if named else 'not'} one of them by its name"
        )
    return (proposals for proposals in saved if proposals.source == named[0])


def _check_size(record: Proposals, frame: Frame, results: str, video: str) -> None:
    # COCO and MOT files do not tell the size.
    if record.width and (record.width, record.height) != (frame.width, frame.height):
        raise StreamRPNError(
            f"{results!r} has results of {record.width}x{record.height} pixels at frame "
            f"{frame.index}, {video!r} has {frame.width}x{frame.height}: they are not of this video"
        )


def _shown(frame: Frame, record: Proposals | None, score_thresh: float) -> Proposals:
    """Returns the saved proposals of a frame with its picture."""
    if record is None:
        none = np.zeros(0, np.float32)
        boxes, scores, levels = none.reshape(0, 4), none, none.astype(np.int32)
    else:
        kept = record.scores >= score_thresh
        boxes, scores, levels = record.boxes[kept], record.scores[kept], record.levels[kept]
    return Proposals.of(
        frame,
        boxes=boxes,
        scores=scores,
        levels=levels,
        anchors=np.full(len(scores), -1, np.int32),
        input_boxes=np.zeros((len(scores), 4), np.float32),
        keep_image=True,
    )
