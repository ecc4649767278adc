"""Counts what a launch asks of a GPU: instructions, requests, sectors, wavefronts, barriers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray
WARP = 32
SECTOR_BYTES = 32
BANKS = 32


@dataclass
class Counts:
    """Sums over all programs of a launch.

    Attributes:
        instructions: PTX instructions, one for each warp that executes it.
        loads, stores, atomics: requests to global memory, one a warp.
        load_sectors, store_sectors, atomic_sectors: the 32-byte sectors that they touch.
        shared_requests: to shared memory, one a warp.
        shared_wavefronts: the passes that they take: more than one where lanes want different words
            of a bank, or more than 128 bytes.
        shared_atomic_passes: of each atomic request to shared memory, the most lanes on one place.
        barriers: one for each program that passes.
        divergences: branches at which the lanes of a warp part.
    """

    instructions: int = 0
    loads: int = 0
    load_sectors: int = 0
    stores: int = 0
    store_sectors: int = 0
    atomics: int = 0
    atomic_sectors: int = 0
    shared_requests: int = 0
    shared_wavefronts: int = 0
    shared_atomic_passes: int = 0
    barriers: int = 0
    divergences: int = 0

    def add(self, **numbers: int) -> None:
        for name, number in numbers.items():
            setattr(self, name, getattr(self, name) + int(number))


def in_rows(lanes: Array, values: Array, row: int) -> Array:
    """Returns `values` of these lanes [lanes / row, row], −1 for the lanes that are not among them.

    Only rows with lanes in them are returned.
    """
    rows = lanes // row
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    spread = np.full((len(starts), row), -1, np.int64)
    number = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(rows))))
    spread[number, lanes % row] = values
    return spread


def sectors(lanes: Array, addresses: Array) -> int:
    """Returns how many sectors warps touch, each warp's for itself."""
    found = np.sort(in_rows(lanes, addresses // SECTOR_BYTES, WARP), axis=1)
    new = np.diff(found, axis=1) != 0
    return int(new.sum() + (found[:, 0] >= 0).sum())


def wavefronts(lanes: Array, addresses: Array, nbytes: int) -> int:
    """Returns how many passes accesses of `nbytes` a lane to shared memory take.

    A pass serves 32 banks with a word each: 32 lanes' words, 16 lanes' pairs or 8 lanes' quads.
    """
    words = max(1, nbytes // 4)
    together = WARP // words
    first = in_rows(lanes, addresses // 4, together)
    wanted = np.where(first[..., None] < 0, -1, first[..., None] + np.arange(words))
    wanted = np.sort(wanted.reshape(len(first), -1), axis=1)
    new = np.diff(wanted, axis=1, prepend=-1) != 0
    rows = np.broadcast_to(np.arange(len(wanted))[:, None], wanted.shape)
    loads = np.bincount((rows * BANKS + wanted % BANKS)[new], minlength=len(wanted) * BANKS)
    return int(loads.reshape(-1, BANKS).max(axis=1).sum())


def most_on_one(lanes: Array, addresses: Array) -> int:
    """Returns, summed over warps, how many lanes share the address that most share."""
    found = np.sort(in_rows(lanes, addresses, WARP), axis=1)
    longest = np.zeros(len(found), np.int64)
    run = np.zeros(len(found), np.int64)
    for lane in range(WARP):
        same = found[:, lane] == (found[:, lane - 1] if lane else -2)
        run = np.where(found[:, lane] < 0, 0, np.where(same, run + 1, 1))
        longest = np.maximum(longest, run)
    return int(longest.sum())
