"""Drawing saved results onto their video again: `stream-rpn render RESULTS VIDEO -o out.mp4`."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stream_rpn import signals
from stream_rpn.commands.arguments import natural
from stream_rpn.commands.drawing import add_drawing_arguments, drawing_options
from stream_rpn.commands.outputs import resolve_outputs
from stream_rpn.commands.parser import examples
from stream_rpn.commands.progress import complain, say
from stream_rpn.frame import Frame, Proposals, StreamInfo, StreamRPNError
from stream_rpn.printable import counted
from stream_rpn.results import Results, read
from stream_rpn.sinks import make_header
from stream_rpn.sinks.record import saved_proposals
from stream_rpn.sources import expand, is_live, masked, open_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `stream-rpn render`."""
    parser.epilog = examples(
        "stream-rpn render video.proposals.jsonl video.mp4 -o top50.mp4 --draw 50",
        "stream-rpn render video.parquet video.mp4 -o sure.mp4 --score-thresh 0.5",
    )
    parser.add_argument("results", metavar="RESULTS", help="a result file, e.g. video.jsonl")
    parser.add_argument(
        "video",
        nargs="?",
        metavar="VIDEO",
        help="the video that the results are of (default: what they say themselves)",
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="annotated video (.mp4 or .mkv), annotated:DIR/ for pictures, or DIR/ for crops",
    )
    parser.add_argument(
        "--crops", type=natural, default=10, metavar="N", help="best boxes to cut (10)"
    )
    parser.add_argument(
        "--score-thresh", type=float, metavar="T", help="leave lower scores out of crops, too"
    )
    add_drawing_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def run(arguments: argparse.Namespace) -> int:
    """Runs `stream-rpn render` and returns its exit code."""
    saved = read(arguments.results)
    video = arguments.video or named_video(saved)
    rendered = render(
        saved,
        video,
        arguments.output,
        crops=arguments.crops,
        score_thresh=arguments.score_thresh or 0.0,
        overwrite=arguments.overwrite,
        **drawing_options(arguments, tracked=_have_tracks(saved)),
    )
    for sentence in rendered.notes:
        complain(f"{arguments.output!r}: {sentence}")
    if not arguments.quiet:
        frames = counted(rendered.frames, "frame")
        say(f"boxes on {rendered.with_boxes:,} of {frames} → {arguments.output}")
    if rendered.damaged_packets or rendered.corrupt_frames:
        complain(
            f"{masked(video)}: the video is damaged ({counted(rendered.damaged_packets, 'packet')} "
            f"lost, {counted(rendered.corrupt_frames, 'picture')} with errors); every frame that "
            "decodes was drawn"
        )
        return 3
    return 0


class Rendered(NamedTuple):
    """The outcome of `render`.

    Attributes:
        frames: frames written.
        with_boxes: those of them that show boxes, or would if any were to be drawn.
        damaged_packets: packets of the video that could not be decoded.
        corrupt_frames: frames that the decoder marked as damaged; they were drawn all the same.
        notes: what is to be known of the output, in sentences.
    """

    frames: int
    with_boxes: int
    damaged_packets: int
    corrupt_frames: int
    notes: list[str]


def render(
    saved: Results,
    video: str,
    output: str,
    *,
    score_thresh: float = 0.0,
    **output_options: Any,
) -> Rendered:
    """Draws saved results onto their video.

    Frames are matched by index; those that the results do not have are copied as they are.

    Args:
        saved: what `read` returns; of several sources the one named like the video counts.
        video: the video that the results are of.
        output: an annotated video, or a directory of annotated pictures or crops.
        score_thresh: boxes of lower scores are left out.
        **output_options: keywords of `resolve_outputs`.

    Raises:
        StreamRPNError: the results are not of this video, or something can't be read or written.
    """
    (target,) = resolve_outputs([output], [video], **output_options)
    if not target.needs_image:
        raise StreamRPNError(
            f"output {output!r} shows no pictures; name an .mp4, an .mkv, annotated:DIR/ or DIR/"
        )
    frames_written = with_boxes = 0
    with open_source(video, decoder="cpu") as source:
        chosen = _of_source(saved, video)
        record = next(chosen, None)
        _check_header(saved, record, source.info)
        # Noted, and answered between two frames, of which none is half in the film then.
        with signals.Signals() as signal, target.open() as sink:
            kept = ("model", "weights", "engine", "device", "dtype", "parameters")
            header = make_header(
                source.info, **{k: v for k, v in saved.header.items() if k in kept}
            )
            sink.begin(header, source.info)
            for frame in source:
                if signal.number is not None:
                    signals.unwind(signal.number, None)
                if record is not None and record.frame == frame.index:
                    _check_size(record, frame, saved.path, video)
                    shown = _shown(frame, record, score_thresh)
                    record = next(chosen, None)
                else:
                    shown = _shown(frame, None, score_thresh)
                sink.write(shown)
                frames_written += 1
                with_boxes += len(shown) > 0
            if record is not None:
                raise StreamRPNError(
                    f"{str(saved.path)!r} has results of frame {record.frame}, but {video!r} has "
                    f"only {counted(frames_written, 'frame')}: they are not of this video"
                )
            sink.end({"frames": frames_written, "complete": True})
        lost = (source.damaged_packets, source.corrupt_frames)
        return Rendered(frames_written, with_boxes, *lost, sink.notes)


def named_video(saved: Results) -> str:
    """Returns the video that results say they are of.

    Raises:
        StreamRPNError: they do not say, or name several, or one that is not to be found.
    """
    what, sources = repr(str(saved.path)), saved.sources
    if len(sources) != 1:
        held = f"is of {', '.join(map(repr, sources))}" if sources else "does not say what it is of"
        raise StreamRPNError(f"{what} {held}; name the VIDEO to draw on after it")
    (video,) = sources
    # A password is masked there.
    if video == "-" or is_live(video) or "***" in video:
        raise StreamRPNError(
            f"{what} is of {video!r}, which cannot be read again; name a recording of it after it"
        )
    try:
        expand([video])
    except StreamRPNError as error:
        raise StreamRPNError(
            f"{what} is of {video!r}, which is not there ({error}); name the VIDEO after it"
        ) from error
    return video


def _have_tracks(saved: Results) -> bool:
    return any(proposals.track_ids is not None for proposals in itertools.islice(saved, 1))


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


def _check_header(saved: Results, record: Proposals | None, video: StreamInfo) -> None:
    """Refuses the results of a video of another size before anything is written."""
    # That of the source whose first record has just been read; some formats have none.
    header = saved.headers[-1] if record is not None and saved.headers else {}
    size = (header.get("width"), header.get("height"))
    if all(size) and size != (video.width, video.height):
        raise _of_another_video(saved.path, size, "", video.source, (video.width, video.height))


def _check_size(record: Proposals, frame: Frame, results: Path, video: str) -> None:
    # COCO and MOT files do not tell the size.
    size, of_frame = (record.width, record.height), (frame.width, frame.height)
    if record.width and size != of_frame:
        raise _of_another_video(results, size, f" at frame {frame.index}", video, of_frame)


def _of_another_video(
    results: Path, size: tuple[Any, Any], where: str, video: str, of_video: tuple[int, int]
) -> StreamRPNError:
    return StreamRPNError(
        f"{str(results)!r} has results of {size[0]}x{size[1]} pixels{where}, {video!r} has "
        f"{of_video[0]}x{of_video[1]}: they are not of this video"
    )


def _shown(frame: Frame, record: Proposals | None, score_thresh: float) -> Proposals:
    """Returns the saved proposals of a frame with its picture."""
    if record is None:
        record = saved_proposals(frame.index, [], [])
    shown = record[record.scores >= score_thresh]
    drawn = Proposals.of(
        frame,
        boxes=shown.boxes,
        scores=shown.scores,
        levels=shown.levels,
        anchors=shown.anchors,
        input_boxes=shown.input_boxes,
        keep_image=True,
    )
    drawn.track_ids, drawn.source = shown.track_ids, shown.source
    return drawn
