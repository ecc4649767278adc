"""The parser of a command: what is wrong in one sentence, defaults and examples in its help."""

from __future__ import annotations

import argparse
import difflib
import re
from typing import Any, NoReturn

from stream_rpn.commands.progress import complain

_OF_ARGUMENT = re.compile(r"^argument ([^:]+): ")
_UNKNOWN = "unrecognized arguments: "


class Parser(argparse.ArgumentParser):
    """argparse's; options are never shortened, as a script's would change its meaning one day."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Formatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Ends the process with one sentence and 2."""
        if message.startswith(_UNKNOWN):
            unknown = message.removeprefix(_UNKNOWN).split()
            message = f"unknown: {' '.join(unknown)}"
            near = difflib.get_close_matches(unknown[0], self._option_string_actions, n=1)
            if near:
                message += f"; did you mean {near[0]}?"
        message = _OF_ARGUMENT.sub(r"\1: ", message).replace(": must be ", " must be ", 1)
        if not message.endswith("?"):
            message += f"; `{self.prog} --help` tells more"
        complain(message)
        self.exit(2)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Leaves the lines around the options as they are, and ends an option with its default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, value = action.help, action.default
        if not text or "default" in text or value in (None, False, "", [], argparse.SUPPRESS):
            return text
        if action.nargs == 0:  # A switch, which says itself what it is for.
            return text
        shown = value if isinstance(value, str) else f"{value:,}".removesuffix(".0")
        return f"{text.removesuffix(f' ({shown})')} (default: {shown})"


def examples(*lines: str) -> str:
    """Returns what ends a help: commands to try, each with what it does behind two blanks."""
    return "\n".join(["examples:", *(f"  {line}" for line in lines)])
