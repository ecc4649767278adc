"""What was lost on the way, why, and what that says of a run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any


class DropKind(Enum):
    """What a reason for a drop says of the run.

    Attributes:
        DAMAGE: the source lacks something; of a source that is not live, the exit code says so.
        POLICY: the frame was given up for a newer one, as is done with live sources.
        WISH: the user had asked for no more; nothing is lost.
    """

    DAMAGE = "damage"
    POLICY = "policy"
    WISH = "wish"


class DropReason(StrEnum):
    """Why a packet or frame has no result; each is the string that stands in result files.

    Attributes:
        DAMAGED_PACKET: it could not be read or decoded.
        MISSING_PACKET: the file's index names it, but the file ends before it.
        CUT_OFF: the file ends before it should; nobody knows how many packets are missing.
        UNREAD: another recording follows in the same file, which FFmpeg does not read.
        NO_KEY_FRAME: the recording begins with it, and the key frame that it needs is missing.
        DAMAGED_IMAGE: a still image that could not be read or decoded.
        CONNECTION_LOST: nobody knows how many came to nothing while a live source was away.
        DECODER: the decoder was too slow for a live source.
        QUEUE_FULL: the network was too slow, and newer frames of live sources waited.
        STALE: a live frame had grown too old when its turn came.
        NOT_WANTED: it was decoded ahead when its source had given as many as were asked for, or
            when the run was stopped.
    """

    DAMAGED_PACKET = "damaged packet"
    MISSING_PACKET = "missing packet"
    CUT_OFF = "cut off"
    UNREAD = "unread recording"
    NO_KEY_FRAME = "no key frame"
    DAMAGED_IMAGE = "damaged image"
    CONNECTION_LOST = "connection lost"
    DECODER = "decoder"
    QUEUE_FULL = "queue full"
    STALE = "stale"
    NOT_WANTED = "not wanted"

    @property
    def kind(self) -> DropKind:
        """Whether that is damage, policy or the user's wish."""
        if self is DropReason.NOT_WANTED:
            return DropKind.WISH
        if self in (DropReason.DECODER, DropReason.QUEUE_FULL, DropReason.STALE):
            return DropKind.POLICY
        return DropKind.DAMAGE


def count_of(drops: Mapping[str, int], *kinds: DropKind) -> int:
    """Returns how many were lost for reasons of some kinds, of counts by reason.

    A reason that is not known here is damage.
    """
    known = frozenset(DropReason)
    return sum(
        count
        for reason, count in drops.items()
        if (DropReason(reason).kind if reason in known else DropKind.DAMAGE) in kinds
    )


@dataclass(frozen=True, slots=True)
class Drop:
    """Frames that were lost just before the frame that carries this record.

    Attributes:
        reason: why; a plain string where a file that was read knows a reason that is not known
            here.
        count: how many packets or frames; 0 where nobody can know.
        first_pts: presentation timestamp of the first one, None where unknown.
        seconds: how long a lost connection was away; how much is missing of a file cut off.
    """

    reason: DropReason | str
    count: int
    first_pts: int | None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.reason, DropReason):
            with suppress(ValueError):
                object.__setattr__(self, "reason", DropReason(self.reason))

    def record(self) -> dict[str, Any]:
        """Returns what stands in result files."""
        record = {"reason": str(self.reason), "count": self.count, "first_pts": self.first_pts}
        return record if self.seconds is None else {**record, "seconds": self.seconds}
