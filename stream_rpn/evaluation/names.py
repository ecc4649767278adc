"""File names that are the same though one of them has more folders in front."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Generic, TypeVar

from stream_rpn.frame import StreamRPNError

T = TypeVar("T")


class NameIndex(Generic[T]):
    """Finds things by the names of their files.

    Two names match where one is the end of the other: "camA/1.jpg" is "frames/camA/1.jpg" and
    "1.jpg", but not "camB/1.jpg".
    """

    def __init__(self) -> None:
        self._whole: dict[str, T] = {}
        self._ends: dict[str, list[tuple[str, T]]] = {}

    def add(self, name: str, thing: T) -> None:
        """Adds a thing under its name."""
        whole, *ends = _ends(name)
        self._whole.setdefault(whole, thing)
        for end in (whole, *ends):
            self._ends.setdefault(end, []).append((whole, thing))

    def find(self, name: str) -> T | None:
        """Returns the thing of that name, or None.

        Raises:
            StreamRPNError: the name is the end of several others.
        """
        whole, *shorter = _ends(name)
        if whole in self._whole:
            return self._whole[whole]
        found = self._ends.get(whole, [])
        if len(found) > 1:
            raise StreamRPNError(
                f"'{name}' may be {found[0][0]} or {found[1][0]}; name it with its folder"
            )
        if found:
            return found[0][1]
        return next((self._whole[end] for end in shorter if end in self._whole), None)


def _ends(name: str) -> list[str]:
    """Returns "a/b/c", "b/c" and "c" of "./a/b/c"."""
    parts = [part for part in PurePosixPath(name).parts if part != "/"]
    return ["/".join(parts[start:]) for start in range(len(parts))] or [name]
