"""What `stream-rpn SOURCE … --serve` does beside its sink: whose token, and how long."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from stream_rpn.frame import StreamRPNError

LEAST_TOKEN = 8


def token_of(given: str) -> str:
    """Returns the token of --serve: as given, of a file, or of the environment; "" for none.

    Raises:
        StreamRPNError: it is too short, or a file that cannot be read.
    """
    token = given or os.environ.get("STREAM_RPN_TOKEN", "")
    if token.startswith("@"):
        path = token[1:]
        try:
            token = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise StreamRPNError(f"--serve-token cannot be read from {path!r}: {why}") from error
        if not token:
            raise StreamRPNError(f"the file {path!r} of --serve-token is empty")
    if token and token != "auto" and len(token) < LEAST_TOKEN:
        raise StreamRPNError(
            f"the token of --serve must have at least {LEAST_TOKEN} characters: a shorter one can "
            "be guessed; 'auto' makes one up"
        )
    return token


def wait_for(stop: threading.Event) -> None:
    """Waits until a signal ends the page; not in the event, whose lock the handler needs."""
    while not stop.is_set():
        time.sleep(0.1)
