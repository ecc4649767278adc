"""Where is kept what need not be made twice."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """Returns a folder for what need not be made twice, None where there can be none.

    It is `stream-rpn` in XDG_CACHE_HOME, or in ~/.cache, and may be deleted at any time.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base) / "stream-rpn"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK) else None
