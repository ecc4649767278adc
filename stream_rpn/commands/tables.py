"""Tables on standard output."""

from __future__ import annotations

from rich.console import Console, RenderableType

from stream_rpn.frame import StreamRPNError


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # Not rich's exit with 1, which would say that something went wrong.
        raise BrokenPipeError


def print_table(table: RenderableType) -> None:
    """Prints tables on standard output; a pipe has no width, so nothing is folded there.

    Raises:
        StreamRPNError: standard output cannot be written.
    """
    console = _Console()
    try:
        _Console(width=None if console.is_terminal else 320).print(table)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StreamRPNError(f"cannot write standard output: {error.strerror}") from error
