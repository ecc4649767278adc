"""`stream-rpn SOURCE …`: its options; what they do is in `runner`."""

from __future__ import annotations

import argparse

from stream_rpn import __version__
from stream_rpn.commands import COMMANDS
from stream_rpn.commands.arguments import (
    PRESETS,
    add_frame_arguments,
    add_model_arguments,
    add_proposal_arguments,
    level,
    natural,
    rate,
)
from stream_rpn.commands.drawing import add_drawing_arguments
from stream_rpn.commands.parser import Parser, examples
from stream_rpn.tracking import TRACKERS, TrackSpec

EXAMPLES = examples(
    "stream-rpn video.mp4                                   # video.proposals.jsonl",
    "stream-rpn 'clips/*.mp4' -o '{stem}.csv' -o '{stem}-boxes.mp4'   # two files for each",
    "stream-rpn rtsp://camera/1 --serve 8000                # a camera, in the browser",
    "cat video.mp4 | stream-rpn - -o - | jq 'select(.boxes)'",
)

EPILOG = """\
{examples}

subcommands:
{commands}
  (a file of such a name is given as ./NAME; `stream-rpn NAME --help` for each)

sources:
  video.mp4, a URL, a directory or quoted glob of videos or of images, - for a video on standard
  input, synthetic:[WxH@FPS,N] for a clip with moving objects
  live: a camera by its number (0 is the first) or as webcam:N or /dev/videoN, screen:[DISPLAY],
  rtsp://, rtmp://, udp://, http(s):// (MJPEG, HLS), a named pipe; with one of them, or --realtime,
  all sources run at a time
  @FILE: those that a text file lists, one a line
  of a web page (YouTube): yt-dlp -q -f bv/b -o - URL | stream-rpn -

outputs, by extension; several may be given:
  .jsonl .jsonl.gz .parquet .npz .csv .mot.txt         data
  .coco.json .coco-results.json                        a COCO dataset; the bare list of results
  .labelstudio.json yolo:DIR/ .d2.pkl                  Label Studio, YOLO labels, detectron2
  .mp4 .mkv annotated:DIR/                             annotated video; annotated pictures
  DIR/                                                 crops of the best boxes
  -                                                    JSON lines on standard output
  rtsp://… rtmp://… udp://…                            annotated video as a live stream
  zmq:tcp://127.0.0.1:PORT                             messages to ZeroMQ subscribers
  mqtt://BROKER/TOPIC mqtts://…                        messages to an MQTT broker
  null                                                 nothing
  What exists is refused. With --overwrite it stays until the new results are whole; until then
  .jsonl .jsonl.gz .csv .mkv grow beside it as NAME.partial.EXT, .parquet and DIR/ within it in
  _partial; a run that is stopped leaves them there. The others appear when whole.

exit codes:
  0 whole   2 nothing could be produced   3 results, but something failed, was damaged or cut off
  130 after Ctrl-C   143 after SIGTERM   129 after SIGHUP   1 a bug in stream-rpn
"""


def tracker(text: str) -> str:
    """Returns the name of a tracker, which argparse may have taken from a source that follows."""
    if text not in TRACKERS:
        raise argparse.ArgumentTypeError(
            f"there is no tracker '{text}', known are {', '.join(TRACKERS)}; a SOURCE goes before "
            "a bare --track"
        )
    return text


def stream_parser() -> argparse.ArgumentParser:
    """Returns the parser of `stream-rpn SOURCE …`."""
    commands = "\n".join(f"  {name:<10} {summary}" for name, (_, summary) in COMMANDS.items())
    parser = Parser(
        prog="stream-rpn",
        description="Video in, region proposals out.",
        epilog=EPILOG.format(commands=commands, examples=EXAMPLES),
    )
    parser.add_argument("--version", action="version", version=f"stream-rpn {__version__}")
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help="what to read, see below")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="sources and options as TOML, by the names that they have here; what the command line "
        "says goes before",
    )
    out = parser.add_argument_group("results")
    out.add_argument(
        "-o",
        "--output",
        action="append",
        default=[],
        metavar="OUT",
        help="where to write; repeatable; {stem} stands for the source's name "
        "(default: {stem}.proposals.jsonl)",
    )
    out.add_argument("--overwrite", action="store_true", help="replace existing outputs, see below")
    out.add_argument("--crops", type=natural, default=10, metavar="N", help="crops per frame")
    out.add_argument(
        "--image-ids",
        metavar="ANNOTATIONS",
        help="give pictures the ids that they have in this file of COCO annotations, by file name",
    )
    out.add_argument(
        "--serve",
        metavar="[HOST:]PORT",
        help="watch in a browser; for programs pictures, MJPEG, results, /metrics and /healthz "
        "(HOST: 127.0.0.1; any other needs --serve-token)",
    )
    out.add_argument(
        "--serve-token",
        default="",
        metavar="TOKEN|@FILE",
        help="what clients of --serve must know, at least 8 characters; 'auto' makes one up "
        "(default: STREAM_RPN_TOKEN of the environment, which other users do not see)",
    )
    out.add_argument(
        "--serve-keep",
        action="store_true",
        help="leave the page there when all sources have ended, until Ctrl-C",
    )
    out.add_argument("--json-summary", metavar="FILE", help="write the summary as JSON")
    out.add_argument("--quiet", action="store_true", help="print errors only")
    add_drawing_arguments(parser)
    add_model_arguments(parser)
    add_proposal_arguments(parser)
    out.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="annotate: few boxes that do not nest, to be corrected (--top 100 --nms 0.5 "
        "--score-thresh 0.25); recall: all that may be an object (--top 1000 --nms 0.8); the "
        "options themselves go before it",
    )
    frames = add_frame_arguments(parser)
    regions = parser.add_argument_group("regions")
    regions.add_argument(
        "--region",
        action="append",
        metavar="X,Y,X,Y,…|FILE",
        help="keep proposals whose centres lie in this polygon, in pixels or in shares of 0 to 1 "
        "of the picture; or in those of a file, one a line; repeatable",
    )
    regions.add_argument(
        "--mask",
        metavar="PICTURE",
        help="keep proposals whose centres lie where this picture is white",
    )
    regions.add_argument(
        "--region-crop",
        action="store_true",
        help="show the network only the rectangle around region and mask, where small things grow",
    )
    regions.add_argument(
        "--tile",
        metavar="off|auto|N|COLUMNSxROWS",
        help="look at overlapping tiles as well, for small things in large pictures; auto: as many "
        "as the picture's size asks for",
    )
    frames.add_argument(
        "--gate",
        type=level,
        default="off",
        metavar="off|auto|LEVEL",
        help="give frames whose picture has not changed the proposals of the last one looked at: "
        "auto, or for changes of LEVEL times as much (off)",
    )
    frames.add_argument(
        "--gate-hold",
        type=rate,
        default=5.0,
        metavar="S",
        help="look again after S seconds at the latest (5)",
    )
    out.add_argument(
        "--track",
        nargs="?",
        const="bytetrack",
        type=tracker,
        metavar="NAME",
        help=f"follow objects and number them, by {', '.join(TRACKERS)} (--track=NAME; bytetrack): "
        f"of the boxes of score {TrackSpec.score} and more those that an NMS of {TrackSpec.nms} "
        "leaves, others have the id -1; needs stream-rpn[track]",
    )
    out.add_argument(
        "--embed",
        action="store_true",
        help="give every box a feature vector, for search and clustering: the column embeddings "
        "of .parquet and .npz",
    )
    live = parser.add_argument_group("live sources")
    live.add_argument(
        "--max-age",
        type=rate,
        default=0.5,
        metavar="S",
        help="drop frames that wait longer than S seconds for the network (0.5)",
    )
    live.add_argument(
        "--realtime", action="store_true", help="play files at their own pace, as if live"
    )
    live.add_argument(
        "--loop",
        action="store_true",
        help="the same, and again from the start when they end; for demonstrations",
    )
    connections = parser.add_argument_group("connections")
    connections.add_argument(
        "--open-timeout",
        type=rate,
        default=30.0,
        metavar="S",
        help="give a source S seconds to send its first packet (30)",
    )
    connections.add_argument(
        "--read-timeout",
        type=rate,
        default=10.0,
        metavar="S",
        help="a connection is lost after S seconds without a packet (10)",
    )
    connections.add_argument(
        "--reconnect",
        type=natural,
        default=5,
        metavar="N",
        help="try N times in a row to get a lost connection back (5)",
    )
    return parser
