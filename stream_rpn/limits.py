"""How much small files from strangers may make of themselves: generous, and told."""

from __future__ import annotations

from pathlib import Path

from stream_rpn.frame import StreamRPNError

MAX_PIXELS = 200_000_000
"""Pixels of a picture that is still decoded: the largest cameras of telephones give as many."""

MOST_UNPACKED = 1 << 28
MOST_RATIO = 100
"""A file may unpack to so many bytes, or else to so many times its own size."""


def check_pixels(width: int, height: int, most: int) -> None:
    """Refuses a picture that is too large, before it is decoded.

    Raises:
        StreamRPNError: it is; the sentence goes on from its name.
    """
    if width * height > most:
        raise StreamRPNError(
            f"has {width} × {height} pixels, and --max-pixels allows {most:,}; allow more if the "
            "memory is there, or scale it down"
        )


def check_unpacked(num_bytes: int, path: Path) -> None:
    """Refuses a small file that unpacks to very much, before it does.

    Raises:
        StreamRPNError: it is one.
    """
    if num_bytes > max(MOST_UNPACKED, MOST_RATIO * path.stat().st_size):
        raise StreamRPNError(
            f"{str(path)!r} would unpack to {num_bytes / 1e9:,.1f} GB, over {MOST_RATIO} times "
            "its size: it is damaged, or made to fill the memory"
        )
