"""What does the work, for programs of your own: a class and a function for `map_batches`.

Neither needs Ray. A video is decoded where the model runs; only proposals leave.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from stream_rpn.batch import results
from stream_rpn.batch.piece_source import PieceSource
from stream_rpn.batch.pieces import Piece, pieces_of
from stream_rpn.batch.storage import opened, version
from stream_rpn.frame import Proposals
from stream_rpn.sources.address import masked
from stream_rpn.sources.given import Given
from stream_rpn.sources.select import Selection

if TYPE_CHECKING:
    import pyarrow as pa

    from stream_rpn.pipeline import Stream

_SELECTION = tuple(Selection.__dataclass_fields__)


class Proposer:
    """A model, ready for any number of videos and pieces of videos; the actor of `map_batches`.

    Called with a batch that has a column `source` (addresses), and maybe `piece` (of `cut_video`),
    it yields tables with the columns of `results.schema()`, at most 1,000 frames each.

    Args:
        model: see `stream_rpn.load`.
        **options: those of `stream_rpn.stream`: of the model (`device`, `engine`, `dtype`, `batch`,
            `threads`, `weights`, `size`, `top`, …) and of the frames (`start`, `end`, `stride`,
            `fps`, `max_frames`, `video_stream`, `decoder`, `max_pixels`).

    Attributes:
        pipeline: what computes.
        selection: which frames are used.

    Raises:
        StreamRPNError: the model or an option does not exist or does not fit.
    """

    def __init__(self, model: str | None = None, **options: Any) -> None:
        from stream_rpn import api
        from stream_rpn.models import DEFAULT_MODEL

        chosen = {name: options.pop(name) for name in _SELECTION if name in options}
        self.selection = Selection(**chosen)
        self.pipeline = api.open_pipeline(model or DEFAULT_MODEL, **options)

    def open(self, piece: Piece, file: BinaryIO | None = None) -> Stream:
        """Opens a piece and starts decoding it; iterate what is returned in a `with`.

        Args:
            piece: which.
            file: read from this instead of the file that the address of its source names.

        Raises:
            StreamRPNError: it cannot be opened, see `PieceSource`.
        """
        if piece.cut is not None:
            source = PieceSource(
                piece.source,
                piece.cut,
                file,
                decoder="cpu" if file is not None else self.selection.decoder,
                video_stream=self.selection.video_stream,
                device=self.pipeline.device,
                max_pixels=self.selection.max_pixels,
            )
            return self.pipeline.open(source)
        if file is None:
            return self.pipeline.open(piece.source, self.selection)
        return self.pipeline.open(Given(masked(piece.source), file), self.selection)

    def propose(self, piece: Piece) -> Iterator[Proposals]:
        """Yields the proposals of a piece, frame by frame.

        Raises:
            StreamRPNError: it cannot be opened or decoded.
        """
        file = opened(piece.source)
        try:
            with self.open(piece, file) as stream:
                yield from stream
        finally:
            if file is not None:
                file.close()

    def __call__(self, batch: Mapping[str, Any] | pa.Table) -> Iterator[pa.Table]:
        """Yields tables of the proposals of a batch's videos or pieces.

        Raises:
            StreamRPNError: one cannot be opened or decoded.
        """
        for piece in _pieces(batch):
            name = results.text(masked(piece.source))
            for frames in results.groups(self.propose(piece)):
                yield results.table(frames, name)


def _pieces(batch: Mapping[str, Any] | pa.Table) -> Iterator[Piece]:
    # Tables of Arrow and data frames know their columns by other names than mappings.
    names = getattr(batch, "column_names", None) or list(batch)
    for index in range(len(batch["source"])):
        text = str(batch["piece"][index]) if "piece" in names else ""
        yield Piece.from_json(text) if text else Piece(str(batch["source"][index]))


def cut_video(row: Mapping[str, Any], chunk: float = 60.0, **frames: Any) -> list[dict[str, str]]:
    """Returns a row for each piece of a video: what `flat_map` takes, before a `Proposer`.

    Args:
        row: `source` is the video's address.
        chunk: seconds that a piece has at least.
        **frames: those options of the `Proposer` that choose frames.

    Raises:
        StreamRPNError: it cannot be opened.
    """
    source = str(row["source"])
    file = opened(source)
    try:
        found = pieces_of(source, Selection(**frames), chunk, version=version(source), file=file)
    finally:
        if file is not None:
            file.close()
    return [{"source": source, "piece": piece.to_json()} for piece in found]


def propose_batch(
    batch: Mapping[str, Any] | pa.Table, model: str | None = None, **options: Any
) -> Iterator[pa.Table]:
    """Does what `Proposer` does, as a function: the model is loaded once in a process, and stays.

    Raises:
        StreamRPNError: see `Proposer`.
    """
    yield from _proposer(model, tuple(sorted(options.items())))(batch)


@functools.lru_cache(maxsize=1)
def _proposer(model: str | None, options: tuple[tuple[str, Any], ...]) -> Proposer:
    return Proposer(model, **dict(options))
