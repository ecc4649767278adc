"""`stream-rpn batch SOURCE … --to DIR`: any number of videos, here or on a cluster of Ray."""

from __future__ import annotations

import argparse
import re
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from stream_rpn.commands.arguments import (
    add_frame_arguments,
    add_model_arguments,
    add_proposal_arguments,
    frame_options,
    load_options,
    positive,
    rate,
)
from stream_rpn.commands.checks import check_model
from stream_rpn.commands.parser import examples
from stream_rpn.commands.progress import complain, say
from stream_rpn.frame import StreamRPNError
from stream_rpn.sources.select import Selection

if TYPE_CHECKING:
    from stream_rpn.batch.job import Outcome
    from stream_rpn.batch.pieces import Piece

WHOLE, NOTHING, PARTLY = 0, 2, 3
PLAIN_SECONDS = 60.0

_EPILOG = f"""\
{
    examples(
        "stream-rpn batch 'clips/**/*.mp4' --to results/",
        "stream-rpn batch s3://bucket/clips/ --to s3://bucket/results --address auto --chunk 10m",
    )
}

sources, each of any storage that fsspec knows (s3://, gs://, https://, …, or here):
  video.mp4, a folder (s3://bucket/clips/), a quoted pattern ('clips/**/*.mp4'),
  @FILE with an address a line, a table .parquet or .csv with a column of addresses

results:
  DIR/proposals/          a Parquet data set, a row a frame; read it with any reader of Parquet
  DIR/manifest.parquet    a row a video: frames, damage, drops, seconds, workers, checksum
  DIR/failures.parquet    a row for each piece that was given up, and why
  Give the same command again to go on where it was stopped or killed, or to try failures anew.

exit codes:
  0 whole   2 nothing could be produced   3 results, but something failed or was damaged
  130 after Ctrl-C   143 after SIGTERM
"""


def duration(text: str) -> float:
    """Returns the seconds that "60", "60s", "5m" or "1h" stand for."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?)(s|m|h|)", text.strip())
    seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600, "": 1}[match[2]] if match else 0.0
    if not seconds:
        raise argparse.ArgumentTypeError(f"must be a time such as 60s, 5m or 1h, got '{text}'")
    return seconds


def chunk(text: str) -> float | None:
    """Returns the seconds of a piece; None for "off"."""
    return None if text == "off" else duration(text)


def amount(text: str) -> float:
    """Returns the number, 0 or more, that an argument stands for."""
    return 0.0 if re.fullmatch(r"0+(\.0*)?", text) else rate(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what to read, where to, with what, and how."""
    parser.epilog = _EPILOG
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="what to read, see below")
    parser.add_argument(
        "--to",
        required=True,
        metavar="DIR|URL",
        help="the folder of results, which may hold those of an earlier run of the same job",
    )
    parser.add_argument(
        "--column", metavar="NAME", help="the column of addresses in tables (source, url, path, …)"
    )
    parser.add_argument(
        "--chunk",
        type=chunk,
        default=60.0,
        metavar="T|off",
        help="cut longer videos into pieces of this length, at key frames (default: 60s)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and do nothing"
    )
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    ray = parser.add_argument_group("workers")
    ray.add_argument(
        "--address",
        default="local",
        metavar="A",
        help="local starts Ray on this machine, for this job; auto is the cluster this machine is "
        "of; or ray://HOST:10001",
    )
    ray.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="videos and pieces at a time (as many as there is room for)",
    )
    ray.add_argument(
        "--cpus-per-worker",
        type=rate,
        default=1.0,
        metavar="N",
        help="cores that each takes, and computes on (1)",
    )
    ray.add_argument(
        "--gpus-per-worker",
        type=amount,
        metavar="F",
        help="GPUs that each takes; 0.5 lets two share one (1 where there are any)",
    )
    ray.add_argument(
        "--memory-per-worker",
        type=rate,
        metavar="GB",
        help="a video that needs more is given up (its share of four fifths of the machine's)",
    )
    ray.add_argument(
        "--time-limit",
        type=duration,
        default=300.0,
        metavar="T",
        help="a piece that gives no frame for so long is given up (default: 300s)",
    )
    add_model_arguments(parser)
    add_proposal_arguments(parser)
    add_frame_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs the job and returns its exit code.

    Raises:
        StreamRPNError: nothing could be produced.
    """
    from stream_rpn.batch.listing import listed
    from stream_rpn.batch.storage import Store

    work, resources = _job(arguments)
    sources = listed(arguments.sources, arguments.column)
    store = Store(arguments.to)
    if arguments.dry_run:
        return _dry_run(sources, store, arguments)
    _require_ray()
    from stream_rpn.batch import folder as results_folder
    from stream_rpn.batch import job
    from stream_rpn.sinks.claim import Claim

    with ExitStack() as stack:
        if store.is_local:
            folder = Path(store.address).absolute()
            try:
                folder.mkdir(parents=True, exist_ok=True)
                claim = Claim(folder / ".batch", store.name)
            except FileExistsError as error:
                raise StreamRPNError(f"{store.name} is a file; --to names a folder") from error
            except OSError as error:
                raise StreamRPNError(f"cannot write {store.name}: {error.strerror}") from error
            stack.callback(claim.release)
        results_folder.check_job(store, work)
        if arguments.address == "local":  # all who write there end before that
            stack.callback(results_folder.clear, store)
        progress = stack.enter_context(_Progress(len(sources), quiet=arguments.quiet))
        outcome = job.run(sources, work, resources, progress.tell)
        results_folder.conclude(store, sources, outcome)
    for failure in outcome.failures:
        complain(failure["why"])
    damaged = _tell_damage(outcome)
    if not arguments.quiet:
        say(progress.summary(outcome, store.name))
    if not outcome.records:
        return NOTHING
    return PARTLY if outcome.failures or damaged else WHOLE


def _job(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Returns what is done with each video, and with what."""
    from stream_rpn.batch.job import Resources
    from stream_rpn.batch.work import Work

    check_model(arguments)
    selection = Selection(**frame_options(arguments))
    names = ("engine", "device", "dtype", "batch")
    options: dict[str, Any] = {
        "model": arguments.model,
        **{name: getattr(arguments, name) for name in names},
        "threads": arguments.threads or max(int(arguments.cpus_per_worker), 1),
        **{name: value for name, value in load_options(arguments).items() if value is not None},
        **{name: getattr(selection, name) for name in Selection.__dataclass_fields__},
    }
    memory = arguments.memory_per_worker
    return (
        Work(arguments.to, options, selection, arguments.chunk),
        Resources(
            address=arguments.address,
            workers=arguments.workers,
            cpus=arguments.cpus_per_worker,
            gpus=arguments.gpus_per_worker,
            limit=arguments.time_limit,
            memory=None if memory is None else int(memory * 1e9),
        ),
    )


def _require_ray() -> None:
    import importlib.util

    if importlib.util.find_spec("ray") is None:
        raise StreamRPNError(
            "`stream-rpn batch` needs Ray; `pip install 'stream-rpn[ray]'` provides it"
        )


def _dry_run(sources: list[str], store: Any, arguments: argparse.Namespace) -> int:
    from stream_rpn.batch.storage import short_name
    from stream_rpn.sources.address import masked

    done = {name.removeprefix("video=") for name in store.names("proposals")}
    begun = [source for source in sources if short_name(source) in done]
    for source in sources:
        print(masked(source).encode(errors="backslashreplace").decode())
    length = "whole" if arguments.chunk is None else f"in pieces of {arguments.chunk:g} s"
    workers = arguments.workers or "as many workers as there is room for"
    say(
        f"{len(sources)} videos {length} → {store.name}, of which {len(begun)} were begun before; "
        f"Ray: {arguments.address}, {workers} at a time. Nothing was done (--dry-run)."
    )
    return WHOLE


def _tell_damage(outcome: Outcome) -> bool:
    """Says which videos are damaged."""
    from stream_rpn.batch import results

    found = False
    for source, done in outcome.records.items():
        row = results.manifest_row(source, list(done.values()))
        if row["damaged_packets"] or row["corrupt_frames"] or row["drops"]:
            lost = ", ".join(f"{d['count'] or '?'} × {d['reason']}" for d in row["drops"])
            lost = lost or f"{row['corrupt_frames']} × frame with errors in its picture"
            complain(f"{row['source']}: the video is damaged ({lost}); all that decodes was used")
            found = True
    return found


def _short(value: float) -> str:
    """Returns a number of three digits or more, so that a line has room for the largest."""
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


class _Progress:
    """Videos, hours of video, frames a second, time left and failures: a line, or one a minute."""

    def __init__(self, num_videos: int, *, quiet: bool) -> None:
        self._num_videos = num_videos
        self._quiet = quiet
        self._started = time.monotonic()
        self._next = self._started + PLAIN_SECONDS
        self._done: dict[str, float] = {}
        self._seconds = 0.0
        self._new_frames = self._reused = self._failures = 0
        self._rich: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._rich = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[state]}", markup=False),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._rich.add_task("starting Ray", total=self._num_videos, state="")
            self._rich.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._rich is not None:
            self._rich.stop()

    def tell(self, outcome: Outcome, piece: Piece) -> None:
        """Counts a piece that is done, or was given up."""
        record = outcome.records.get(piece.source, {}).get(piece.number)
        self._failures = len(outcome.failures)
        self._done[piece.source] = self._done.get(piece.source, 0.0) + 1 / piece.count
        if record is not None:
            self._seconds += record["seconds"] or 0.0
            self._new_frames += record["frames"] if outcome.reused == self._reused else 0
        self._reused = outcome.reused
        now = time.monotonic()
        if self._rich is not None:
            self._rich.update(
                self._task,
                completed=sum(self._done.values()),
                description=self._videos(),
                state=self._state(now),
            )
        elif not self._quiet and now >= self._next:
            self._next = now + PLAIN_SECONDS
            say(f"{self._videos()}, {self._state(now)}, {self._left(now)}")

    def _videos(self) -> str:
        whole = sum(share > 1 - 1e-6 for share in self._done.values())
        return f"{whole:,} of {self._num_videos:,} videos"

    def _state(self, now: float) -> str:
        fps = self._new_frames / max(now - self._started, 1e-9)
        hours = _short(self._seconds / 3600)
        return f"{hours} h of video, {_short(fps)} frames/s, {self._failures:,} failed"

    def _left(self, now: float) -> str:
        share = sum(self._done.values()) / self._num_videos
        seconds = (now - self._started) * (1 - share) / max(share, 1e-9)
        return f"about {max(seconds, 0.0) / 60:.0f} min left"

    def summary(self, outcome: Outcome, to: str) -> str:
        """Returns the sentence that closes a run."""
        now = time.monotonic()
        again = f", {outcome.reused:,} pieces from before" if outcome.reused else ""
        whole = sum(map(outcome.complete, outcome.records))
        frames = sum(r["frames"] for done in outcome.records.values() for r in done.values())
        return (
            f"{to}: {whole:,} of {self._num_videos:,} videos whole, {frames:,} frames, "
            f"{self._state(now)}, {now - self._started:.1f} s{again}"
        )
