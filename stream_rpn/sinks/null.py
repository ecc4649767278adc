"""A sink that keeps nothing, for timing the rest of the pipeline."""

from __future__ import annotations

from typing import ClassVar

from stream_rpn.frame import Proposals
from stream_rpn.sinks.sink import Sink


class NullSink(Sink):
    """Counts nothing, writes nothing."""

    takes_several_sources: ClassVar[bool] = True

    def _write(self, proposals: Proposals) -> None:
        pass
