"""The command line: arguments → pipeline → sinks → a summary.

Imports nothing heavy at the top: `stream-rpn --help` answers at once. Standard output carries
results only; everything else goes to standard error. Exit codes: 0 whole, 2 nothing could be
produced, 3 results but something failed or was damaged, 130 after Ctrl-C, 143 after SIGTERM, 1 a
bug.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from stream_rpn import __version__

# Subcommand → (module with add_arguments(parser) and run(arguments) -> exit code, one line).
COMMANDS = {
    "eval": (
        "stream_rpn.commands.eval",
        "measure recall on annotated images",
    ),
    "train": ("stream_rpn.commands.train", "train a proposal network"),
    "bench": (
        "stream_rpn.measure.command",
        "measure speed on your video and machine, and say what limits it",
    ),
    "render": ("stream_rpn.commands.render", "draw saved results onto their video"),
    "models": ("stream_rpn.commands.models", "list the models"),
    "devices": ("stream_rpn.commands.devices", "list the cameras of this machine"),
    "doctor": (
        "stream_rpn.commands.doctor",
        "say what this machine has and what 'auto' would choose",
    ),
}

EPILOG = """\
subcommands:
{commands}
  (a file of such a name is given as ./NAME; `stream-rpn NAME --help` for each)

sources:
  video.mp4, a URL, a directory or quoted glob of videos or of images, - for a video on standard
  input, synthetic:[WxH@FPS,N] for a clip with moving objects
  live: webcam, webcam:N, /dev/videoN, screen:[DISPLAY], rtsp://, rtmp://, udp://, http(s)://
  (MJPEG, HLS), a named pipe; with one of them, or --realtime, all sources run at a time

outputs, by extension; several may be given:
  .jsonl .jsonl.gz .parquet .coco.json .mot.txt .npz   data
  .mp4 .mkv                                            annotated video
  DIR/                                                 crops of the best boxes
  -                                                    JSON lines on standard output
  rtsp://… rtmp://… udp://…                            annotated video as a live stream
  zmq:tcp://127.0.0.1:PORT                             messages to ZeroMQ subscribers
  null                                                 nothing

exit codes:
  0 whole   2 nothing could be produced   3 results, but something failed or was damaged
  130 after Ctrl-C   143 after SIGTERM   1 a bug in stream-rpn
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _fill_closed_streams()
    try:
        if argv and argv[0] in COMMANDS:
            return _subcommand(argv[0], argv[1:])
        return _stream(argv)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Who reads a table has seen enough; flushing what is left must not fail when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _fill_closed_streams() -> None:
    """Opens the null device in place of closed standard streams, whose numbers files would take."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        # Without it, `print` would turn to standard output.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (open to the end)


def _subcommand(name: str, argv: Sequence[str]) -> int:
    module_name, summary = COMMANDS[name]
    module = importlib.import_module(module_name)
    parser = argparse.ArgumentParser(
        prog=f"stream-rpn {name}", description=summary + ".", allow_abbrev=False
    )
    module.add_arguments(parser)
    with suppress(ValueError):  # in another thread than the main one
        # Unwinds, so that nothing half-written stays behind.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return _reporting(lambda: module.run(parser.parse_args(argv)))


def _stream(argv: Sequence[str]) -> int:
    # Intermixed: a source may follow an option.
    arguments = stream_parser().parse_intermixed_args(argv)
    from stream_rpn.commands import runner

    return _reporting(lambda: runner.run(arguments))


def _reporting(command: Callable[[], int]) -> int:
    """Runs a command; what is the user's to mend becomes one sentence and exit code 2."""
    from stream_rpn.frame import StreamRPNError

    try:
        return command()
    except StreamRPNError as error:
        print(f"stream-rpn: {error}", file=sys.stderr)
        return 2


def stream_parser() -> argparse.ArgumentParser:
    """Returns the parser of `stream-rpn SOURCE …`."""
    commands = "\n".join(f"  {name:<8} {summary}" for name, (_, summary) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="stream-rpn",
        description="Video in, region proposals out.",
        epilog=EPILOG.format(commands=commands),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # A script's shortened option would change its meaning when another option is added.
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"stream-rpn {__version__}")
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="what to read, see below")
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
    out.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    out.add_argument("--draw", type=natural, default=20, metavar="N", help="boxes drawn per frame")
    out.add_argument("--crops", type=natural, default=10, metavar="N", help="crops per frame")
    out.add_argument(
        "--serve",
        metavar="[HOST:]PORT",
        help="watch in a browser, with a feed of results, /metrics and /healthz "
        "(HOST: 127.0.0.1; any other needs --serve-token)",
    )
    out.add_argument(
        "--serve-token",
        default="",
        metavar="TOKEN",
        help="what clients of --serve must know; 'auto' makes one up",
    )
    out.add_argument("--json-summary", metavar="FILE", help="write the summary as JSON")
    out.add_argument("--quiet", action="store_true", help="print errors only")
    add_model_arguments(parser)
    proposals = parser.add_argument_group("proposals")
    proposals.add_argument(
        "--top", type=positive, default=300, metavar="N", help="proposals per frame"
    )
    proposals.add_argument(
        "--pre-nms", type=positive, metavar="N", help="candidates per level before NMS"
    )
    proposals.add_argument("--nms", type=float, metavar="T", help="IoU above which NMS suppresses")
    proposals.add_argument("--score-thresh", type=float, metavar="T", help="least score kept")
    proposals.add_argument(
        "--min-size", type=float, metavar="PX", help="least side kept, in network pixels"
    )
    proposals.add_argument(
        "--anchor-sizes",
        type=_numbers,
        metavar="A,B,…",
        help="other anchor sizes, as many as the model has per level or in all",
    )
    proposals.add_argument(
        "--anchor-ratios",
        type=_numbers,
        metavar="A,B,…",
        help="other ratios height/width, as many as the model has",
    )
    frames = parser.add_argument_group("frames")
    frames.add_argument("--start", metavar="T", help="from this time on (seconds or HH:MM:SS)")
    frames.add_argument("--end", metavar="T", help="up to this time, exclusive")
    frames.add_argument(
        "--stride", type=positive, default=1, metavar="N", help="every N-th frame by index"
    )
    frames.add_argument("--fps", type=_rate, metavar="F", help="at most F frames a second, by time")
    frames.add_argument("--max-frames", type=positive, metavar="N", help="stop after N results")
    frames.add_argument("--stream", type=natural, metavar="N", help="which video stream of a file")
    frames.add_argument(
        "--decoder", choices=("auto", "cpu", "nvdec"), default="auto", help="what decodes"
    )
    live = parser.add_argument_group("live sources")
    live.add_argument(
        "--max-age",
        type=_rate,
        default=0.5,
        metavar="S",
        help="drop frames that wait longer than S seconds for the network (0.5)",
    )
    live.add_argument(
        "--open-timeout",
        type=_rate,
        default=30.0,
        metavar="S",
        help="give a source S seconds to send its first packet (30)",
    )
    live.add_argument(
        "--read-timeout",
        type=_rate,
        default=10.0,
        metavar="S",
        help="a connection is lost after S seconds without a packet (10)",
    )
    live.add_argument(
        "--reconnect",
        type=natural,
        default=5,
        metavar="N",
        help="try N times in a row to get a lost connection back (5)",
    )
    live.add_argument(
        "--realtime", action="store_true", help="play files at their own pace, as if live"
    )
    return parser


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


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got '{text}'")
    return value


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be numbers separated by commas, got '{text}'"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
