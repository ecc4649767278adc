"""What a child process is told to do, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stream_rpn.sources.select import Selection


@dataclass(frozen=True)
class Work:
    """What a child is to do, for as long as it lives.

    Attributes:
        store: address of the results' folder.
        options: of the `Proposer`.
        selection: which frames are used.
        chunk: seconds of a piece at least; None never cuts.
    """

    store: str
    options: dict[str, Any] = field(default_factory=dict)
    selection: Selection = field(default_factory=Selection)
    chunk: float | None = None


@dataclass(frozen=True)
class Answer:
    """How a request ended.

    Attributes:
        value: what was asked for.
        kind: what went wrong: "error", "unlike", "changed", "memory", "crash", "time"; or "job",
            where nothing else would fare better; "" where all is well.
        why: a sentence.
    """

    value: Any = None
    kind: str = ""
    why: str = ""
