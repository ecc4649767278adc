"""The options that say how annotated video and pictures are drawn, for all commands that draw."""

from __future__ import annotations

import argparse
from typing import Any

from stream_rpn.commands.arguments import natural, positive, rate, share
from stream_rpn.drawing import COLORS, LABELS, DrawSpec
from stream_rpn.frame import StreamRPNError


def add_drawing_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options to a parser, as a group."""
    group = parser.add_argument_group("drawing")
    group.add_argument(
        "--draw",
        type=natural,
        default=DrawSpec.top,
        metavar="N",
        help=f"best boxes to draw on a frame ({DrawSpec.top})",
    )
    group.add_argument(
        "--draw-nms",
        type=share,
        default=DrawSpec.nms,
        metavar="T",
        help="leave out boxes that overlap a better one by more than IoU T, 1 for none; results "
        f"keep them ({DrawSpec.nms})",
    )
    group.add_argument(
        "--draw-score",
        type=share,
        metavar="T",
        help="least score to draw; results keep the others "
        f"(--score-thresh where that is given, else {DrawSpec.score})",
    )
    group.add_argument(
        "--labels",
        choices=LABELS,
        default=DrawSpec.labels,
        help="what is written beside a box (auto: the id with --track, else the score)",
    )
    group.add_argument(
        "--color",
        "--colour",
        choices=COLORS,
        default=DrawSpec.color,
        help="what gives a box its colour (auto: the track with --track, else the score)",
    )
    group.add_argument(
        "--thickness",
        type=positive,
        metavar="PX",
        help="of lines (2 up to 720p, 4 at 1080p, 8 at 4K)",
    )
    group.add_argument(
        "--stamp", action="store_true", help="write the time of each frame in its corner"
    )
    group.add_argument(
        "--draw-fps",
        type=rate,
        metavar="F",
        help="pictures a second, where annotated video is of pictures (25)",
    )
    group.add_argument(
        "--no-sound",
        dest="sound",
        action="store_false",
        help="leave the sound of video files out of .mp4 and .mkv",
    )


def drawing_options(arguments: argparse.Namespace, *, tracked: bool) -> dict[str, Any]:
    """Returns the keywords of `resolve_outputs` that the options stand for.

    Args:
        arguments: of a parser with these options.
        tracked: whether the results have tracks.

    Raises:
        StreamRPNError: the tracks are to be shown, and there are none.
    """
    scores = (arguments.draw_score, arguments.score_thresh, DrawSpec.score)
    spec = DrawSpec(
        top=arguments.draw,
        nms=arguments.draw_nms,
        score=next(score for score in scores if score is not None),
        labels=arguments.labels,
        color=arguments.color,
        thickness=arguments.thickness,
        stamp=arguments.stamp,
    )
    if spec.needs_tracks and not tracked:
        what = f"--color {spec.color}" if spec.color == "track" else f"--labels {spec.labels}"
        raise StreamRPNError(f"{what} shows the tracks of --track, and these results have none")
    return {"draw": spec, "draw_fps": arguments.draw_fps, "sound": arguments.sound}
