"""The interface of sources: a description, frames in order, and the losses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

from stream_rpn.drops import Drop
from stream_rpn.frame import Frame, StreamInfo
from stream_rpn.queues import Closing

if TYPE_CHECKING:
    from stream_rpn.clock import Clock
    from stream_rpn.tally import Tally


class Source(Closing):
    """An open source of frames. Iterate once, from one thread; close it, or use it in a `with`.

    Attributes:
        info: what is known of the source.
        tally: counts of what it gave and lost so far.
        clock: what makes the times of its frames rise.
        on_gpu: True where frames are surfaces of NVDEC, of which there are few.
    """

    info: StreamInfo
    tally: Tally
    clock: Clock
    on_gpu: bool = False

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Yields the frames in presentation order."""

    @property
    def frames_decoded(self) -> int:
        """Frames decoded so far, including those that were not chosen."""
        return self.tally.frames_decoded

    @property
    def damaged_packets(self) -> int:
        """Packets, or still images, that were lost so far."""
        return self.tally.damaged_packets

    @property
    def corrupt_frames(self) -> int:
        """Frames that were handed out so far although the decoder marked them as damaged."""
        return self.tally.corrupt_frames

    @property
    def trailing_drops(self) -> tuple[Drop, ...]:
        """Losses after the last frame; complete once iteration has ended."""
        return self.tally.trailing_drops

    @property
    def cut_short(self) -> bool:
        """Whether it ended because no more was wanted, while more might have come."""
        return False
