"""Pickles that hold numbers, containers and numpy arrays, and nothing that could act."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any


class _ArraysOnly(pickle.Unpickler):
    """Refuses whatever else a pickle may call."""

    _ALLOWED = frozenset(
        [
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
            *(
                (module, name)
                for module in ("numpy.core.multiarray", "numpy._core.multiarray")
                for name in ("_reconstruct", "scalar")
            ),
            ("numpy._core.numeric", "_frombuffer"),
            ("numpy.core.numeric", "_frombuffer"),
        ]
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it wants to load {module}.{name}")
        return super().find_class(module, name)


def read_arrays(path: Path) -> Any:
    """Returns what a pickle holds.

    Raises:
        Exception: it is damaged, which raises anything, or holds more than numbers and arrays.
    """
    # Strings of Python 2, in which detectron's first files were written, are bytes.
    return _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
