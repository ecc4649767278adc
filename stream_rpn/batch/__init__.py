"""Many videos, on many machines: pieces of videos as rows of Ray Data.

For programs of your own there are `Proposer`, `propose_batch` and `cut_video`; see docs/batch.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stream_rpn.batch.worker import Proposer, cut_video, propose_batch

__all__ = ["Proposer", "cut_video", "propose_batch"]


def __getattr__(name: str) -> Any:
    """Imports PyAV only when it is wanted."""
    if name in __all__:
        from stream_rpn.batch import worker

        return getattr(worker, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
