"""Finds accesses to one place that nothing orders, whatever order they happened to come in here.

Every granule of a memory has a stamp of who wrote it, one of who read it and one of who added to
it atomically. A stamp holds a program, its epoch (the barriers that it has passed) and a warp. Two
accesses are ordered if they are one warp's, or one program's in different epochs. What is not
ordered must not meet, unless both read, both are atomic, or both write the same.
"""

from __future__ import annotations

import numpy as np

from tests.ptx.parse import Fault

Array = np.ndarray

NOBODY = np.int64(-1)
# As a warp: several of that program's in one epoch. As a stamp: several programs.
SEVERAL_WARPS = np.int64(255)
SEVERAL = np.int64(2**62)
EPOCH_SHIFT, PROGRAM_SHIFT = np.int64(8), np.int64(32)


def stamps(programs: Array, epochs: Array, warps: Array) -> Array:
    return (programs << PROGRAM_SHIFT) | (epochs << EPOCH_SHIFT) | warps


class Shadow:
    """The stamps of a memory.

    Args:
        granules: how many there are.
    """

    def __init__(self, granules: int) -> None:
        self._wrote = np.full(granules, NOBODY)
        self._read = np.full(granules, NOBODY)
        self._added = np.full(granules, NOBODY)

    def initialised(self, places: Array) -> Array:
        return (self._wrote[places] != NOBODY) | (self._added[places] != NOBODY)

    def read(self, places: Array, stamp: Array) -> None:
        _refuse(self._wrote[places], stamp, "reads", "writes")
        _refuse(self._added[places], stamp, "reads", "adds to atomically")
        _note(self._read, places, stamp)

    def write(self, places: Array, stamp: Array, unchanged: Array) -> None:
        """Notes a write; `unchanged` where it wrote what was there."""
        _refuse(self._read[places], stamp, "writes", "reads")
        _refuse(self._added[places], stamp, "writes", "adds to atomically")
        _refuse(self._wrote[places], stamp, "writes", "writes", unchanged)
        self._wrote[places] = stamp

    def add(self, places: Array, stamp: Array) -> None:
        """Notes an atomic operation."""
        _refuse(self._read[places], stamp, "adds atomically to", "reads")
        _refuse(self._wrote[places], stamp, "adds atomically to", "writes")
        _note(self._added, places, stamp)


def _refuse(
    old: Array, stamp: Array, verb: str, other_verb: str, unchanged: Array | None = None
) -> None:
    """Raises where somebody else's access in `old` is not ordered with that of `stamp`."""
    met = (old != NOBODY) & (old != stamp)
    if unchanged is not None:
        met &= ~unchanged
    if not met.any():
        return
    other_program = met & ((old ^ stamp) >> PROGRAM_SHIFT != 0)
    if other_program.any():
        raise Fault(f"one program {verb} what another program {other_verb}")
    other_warp = met & ((old ^ stamp) >> EPOCH_SHIFT == 0)
    if other_warp.any():
        raise Fault(f"one warp {verb} what another warp {other_verb}, and no barrier is between")


def _note(held: Array, places: Array, stamp: Array) -> None:
    """Merges stamps into those held, of which many may be for one place."""
    old = held[places]
    if (old == stamp).all():
        return
    held[places] = _merged(old, stamp)
    # Where lanes meet in one place, one of them has been noted; the others are merged into that.
    left = held[places]
    warps = ((left ^ stamp) >> EPOCH_SHIFT == 0) & (left != stamp)
    if warps.any():
        held[places[warps]] |= SEVERAL_WARPS
    programs = (left ^ stamp) >> PROGRAM_SHIFT != 0
    if programs.any():
        held[places[programs]] = SEVERAL


def _merged(old: Array, stamp: Array) -> Array:
    same_program = (old ^ stamp) >> PROGRAM_SHIFT == 0
    same_epoch = (old ^ stamp) >> EPOCH_SHIFT == 0
    several = np.where(same_epoch, old | SEVERAL_WARPS, SEVERAL)
    later = same_program & ~same_epoch
    return np.where((old == NOBODY) | (old == stamp) | later, stamp, several)
