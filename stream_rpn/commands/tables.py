"""Tables on standard output."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from stream_rpn.frame import StreamRPNError

if TYPE_CHECKING:
    from rich.console import RenderableType

# A pipe has no width; nothing is folded there.
_PIPE_WIDTH = 320


def print_table(table: RenderableType) -> None:
    """Prints tables on standard output: as wide as the terminal, elsewhere without any padding.

    Raises:
        StreamRPNError: standard output cannot be written.
    """
    # Not at the top: `--help` does without.
    from rich.console import Console

    if sys.stdout is not None and sys.stdout.isatty():
        Console().print(table)
        return
    text = io.StringIO()
    Console(file=text, width=_PIPE_WIDTH).print(table)
    print_text("".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines()))


def print_json(value: Any) -> None:
    """Prints a value on standard output as JSON.

    Raises:
        StreamRPNError: standard output cannot be written.
    """
    print_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_text(text: str) -> None:
    """Prints text on standard output as it is.

    Raises:
        StreamRPNError: standard output cannot be written.
    """
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        # What could not be written must not be tried again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise StreamRPNError(f"cannot write standard output: {error.strerror}") from error
