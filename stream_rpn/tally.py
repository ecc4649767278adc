"""What a source gave and lost: the one count that results, summaries, page and metrics share."""

from __future__ import annotations

from dataclasses import dataclass, field

from stream_rpn.drops import Drop, DropKind, DropReason, count_of


@dataclass
class Tally:
    """Counts what a source gave and lost, and keeps losses until a frame comes to carry them.

    Written by the thread that decodes; may be read from any other.

    Attributes:
        frames_decoded: frames handed out so far.
        corrupt_frames: frames handed out that the decoder itself marks as damaged.
        losses: packets, frames or still images that came to nothing so far, by reason; 0 stands for
            a loss of which nobody knows how many.
        missing_seconds: how much of the time that the source promised is missing at its end.
    """

    frames_decoded: int = 0
    corrupt_frames: int = 0
    losses: dict[str, int] = field(default_factory=dict)
    missing_seconds: float | None = None
    _pending: list[Drop] = field(default_factory=list)

    def lose(self, reason: DropReason, count: int = 1, first_pts: int | None = None) -> None:
        """Records a loss; losses in a row for one reason become one."""
        if self._pending and self._pending[-1].reason == reason:
            last = self._pending.pop()
            self._pending.append(Drop(reason, last.count + count, last.first_pts))
        else:
            self._pending.append(Drop(reason, count, first_pts))
        self.losses[reason] = self.losses.get(reason, 0) + count

    def lack(self, missing: Drop) -> None:
        """Records what is missing at the end."""
        self._pending.append(missing)
        self.missing_seconds = missing.seconds or self.missing_seconds
        self.losses[missing.reason] = self.losses.get(missing.reason, 0) + missing.count

    def take_drops(self) -> tuple[Drop, ...]:
        """Returns the losses since the last call."""
        if not self._pending:
            return ()
        drops = tuple(self._pending)
        self._pending.clear()
        return drops

    @property
    def trailing_drops(self) -> tuple[Drop, ...]:
        """Losses after the last frame so far; after the last of all once it has come."""
        return tuple(self._pending)

    @property
    def damaged_packets(self) -> int:
        """Packets, or still images, that could not be read or decoded, or are missing."""
        return count_of(self.losses.copy(), DropKind.DAMAGE)
