"""What `stream-rpn eval` does; its options are in `eval`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from stream_rpn.commands.arguments import load_options, split_paths
from stream_rpn.commands.outputs import check_file, resolve_outputs
from stream_rpn.commands.progress import complain
from stream_rpn.evaluation.coco import CocoDataset
from stream_rpn.evaluation.curves import draw_curves
from stream_rpn.evaluation.files import Annotated, read_mot, read_predictions
from stream_rpn.evaluation.recall import (
    AREAS,
    CURVE_LIMITS,
    LIMITS,
    Recall,
    by_image,
    enough,
)
from stream_rpn.frame import Proposals, StreamInfo, StreamRPNError
from stream_rpn.measure.plot import check_name
from stream_rpn.models import DEFAULT_MODEL
from stream_rpn.printable import printable
from stream_rpn.sinks.place import write_whole
from stream_rpn.sinks.record import make_header
from stream_rpn.sources.select import Selection

if TYPE_CHECKING:
    from stream_rpn.pipeline import Pipeline, Stream
    from stream_rpn.sinks.sink import Sink


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit code.

    Raises:
        StreamRPNError: something cannot be read, or does not fit.
    """
    names = arguments.model or ([] if arguments.results else [DEFAULT_MODEL])
    outputs = (
        resolve_outputs(
            arguments.output,
            names,
            stems=[Path(name).stem for name in names],
            overwrite=arguments.overwrite,
        )
        if arguments.output
        else []
    )
    for name in filter(None, (arguments.json, arguments.curves)):
        read = [arguments.annotations, *arguments.results]
        check_file(name, read, outputs, overwrite=arguments.overwrite)
    if arguments.curves:
        check_name(arguments.curves)
    if arguments.annotations.endswith(".txt"):
        data: _Data = _Video(arguments)
    else:
        data = _Images(arguments)
    if not any(map(len, data.ground_truth.values())):
        raise StreamRPNError(f"{arguments.annotations}: there is no object in it to be found")
    # First, so that a file that does not fit is told before a model has run for an hour.
    saved = {path: read_predictions(path, data.images) for path in arguments.results}
    predictions: dict[str, dict[int, np.ndarray]] = {}
    with ExitStack() as stack:
        opened = [(output, stack.enter_context(output.open())) for output in outputs]
        for index, name in enumerate(names):
            chosen = [sink for output, sink in opened if index in output.sources]
            predictions[name] = by_image(data.propose(name, chosen))
    for path, found in saved.items():
        missing = len(data.images) - len(found)
        if 2 * missing > len(data.images):
            complain(
                f"'{path}' has no proposals for {missing} of {len(data.images)} annotated images; "
                "their objects count as missed"
            )
    recalls = {
        name: Recall(boxes, data.ground_truth, sorted({*LIMITS, *CURVE_LIMITS}))
        for name, boxes in (predictions | saved).items()
    }
    if arguments.json:
        summaries = {name: recall.summary() for name, recall in recalls.items()}
        write_whole(arguments.json, (json.dumps(summaries, indent=1) + "\n").encode())
    if arguments.curves:
        draw_curves(recalls, arguments.curves)
    # A pipe has no width; columns must not be folded there.
    console = Console(stderr="-" in arguments.output)
    console.width = console.width if console.is_terminal else 160
    console.print(_table(recalls, data.scale))
    for name, recall in recalls.items():
        if recall.average(max(LIMITS)) > 0:
            console.print(
                f"{_shown(name)}: {enough(recall)} proposals find 95 % of what {max(LIMITS):,} find"
            )
    return 0


class _Data:
    """Annotated frames, and how models see them.

    Attributes:
        ground_truth: boxes [G, 4] by image id or frame index.
        images: what is known of each, by the same number.
        scale: the size of the images, for people.
    """

    ground_truth: dict[int, np.ndarray]
    images: dict[int, Annotated]
    scale: str

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments

    def propose(self, name: str, outputs: list[Sink]) -> Iterator[Proposals]:
        """Yields a model's proposals, up to the largest limit a frame, and writes them."""
        from stream_rpn import api

        arguments = self.arguments
        pipeline = api.open_pipeline(
            name,
            engine=arguments.engine,
            device=arguments.device,
            dtype=arguments.dtype,
            threads=arguments.threads,
            top=max(LIMITS),
            **load_options(arguments),
        )
        info, results = self._open(pipeline)
        header = make_header(info, **pipeline.provenance(Selection()))
        for output in outputs:
            output.begin(header, info)
        started, count = time.perf_counter(), 0
        for proposals in track(
            results,
            description=_shown(name),
            total=len(self.ground_truth),
            console=Console(stderr=True, quiet=self.arguments.quiet),
        ):
            for output in outputs:
                output.write(proposals)
            count += 1
            yield proposals
        for output in outputs:
            elapsed = round(time.perf_counter() - started, 3)
            output.end({"frames": count, "complete": True, "elapsed_seconds": elapsed})

    def _open(self, pipeline: Pipeline) -> tuple[StreamInfo, Iterable[Proposals]]:
        raise NotImplementedError


class _Images(_Data):
    """COCO annotations."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments)
        self._dataset = CocoDataset(
            arguments.annotations, split_paths(arguments.images), cache_bytes=0
        )
        self.ground_truth = self._dataset.ground_truth()
        self.images = self._dataset.images()
        sides = [min(size) for size in self._dataset.sizes()]
        self.scale = f"shorter side {int(np.median(sides)) if sides else 0} (median)"

    def _open(self, pipeline: Pipeline) -> tuple[StreamInfo, Iterable[Proposals]]:
        from stream_rpn.evaluation.propose import propose_dataset

        path = self.arguments.annotations
        # Without a size of its own, every line carries that of its image.
        info = StreamInfo(source=path, stem=Path(path).stem, width=0, height=0)
        return info, propose_dataset(pipeline, self._dataset)


class _Video(_Data):
    """MOTChallenge ground truth of a video."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments)
        from stream_rpn.sources import open_source

        with open_source(arguments.images) as source:
            width, height = source.info.width, source.info.height
        self.ground_truth = read_mot(arguments.annotations, width, height)
        self.images = dict.fromkeys(self.ground_truth, Annotated("", width, height))
        self.scale = f"{width}x{height}"

    def _open(self, pipeline: Pipeline) -> tuple[StreamInfo, Iterable[Proposals]]:
        stream = pipeline.open(self.arguments.images)
        return stream.info, _closing(stream)


def _closing(stream: Stream) -> Iterator[Proposals]:
    with stream:
        yield from stream


def _shown(name: str) -> str:
    """Returns the name of a model or file as rich may print it: brackets are no markup of ours."""
    return escape(printable(name))


def _table(recalls: dict[str, Recall], scale: str) -> Table:
    """Returns a column per name: recall of all objects, then average recall by object size."""
    first = next(iter(recalls.values()))
    table = Table(
        title=f"{first.num_images} images, {first.num_objects()} objects; images: {scale}",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("")
    for name in recalls:
        table.add_column(_shown(name), justify="right")

    def row(label: str, values: list[float]) -> None:
        table.add_row(label, *(f"{value:.3f}" for value in values))

    for limit in LIMITS:
        row(f"AR@{limit}", [r.average(limit) for r in recalls.values()])
    for thresh in (0.5, 0.7):
        table.add_section()
        for limit in LIMITS:
            row(f"R{thresh * 100:.0f}@{limit}", [r.at(thresh, limit) for r in recalls.values()])
    for area in list(AREAS)[1:]:
        table.add_section()
        for limit in (100, 1000):
            count = first.num_objects(area)
            label = f"AR@{limit} {area} ({count} objects)"
            row(label, [r.average(limit, area) for r in recalls.values()])
    return table
