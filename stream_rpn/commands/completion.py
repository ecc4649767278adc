"""`stream-rpn completion SHELL`: what has a shell complete our options, by the library shtab."""

from __future__ import annotations

import argparse
import re
from importlib import import_module

from stream_rpn.commands import COMMANDS
from stream_rpn.commands.parser import examples
from stream_rpn.commands.tables import print_text
from stream_rpn.frame import StreamRPNError
from stream_rpn.models import MODELS

SHELLS = ("bash", "zsh", "tcsh", "fish")

# By what helps call their values.
_FILES = re.compile(r"FILE|OUT|PNG|DIR|ANNOTATIONS|PICTURE|SOURCE|RESULTS|VIDEO|\.\w+$")

_FISH_FILES = "(__fish_complete_path (commandline -ct))"

# Functions of shells; of bash those whose names end so get a slash behind directories.
_BASH = """
_stream_rpn_source_files() {{
  [ "$COMP_CWORD" -eq 1 ] && compgen -W "{commands}" -- "$1"
  compgen -f -- "$1"
}}
_stream_rpn_model_files() {{
  compgen -W "{models}" -- "$1"
  compgen -f -- "$1"
}}
"""
_ZSH = """
_stream_rpn_source_files() {{
  (( CURRENT == 2 )) && compadd -- {commands}
  _files
}}
_stream_rpn_model_files() {{
  compadd -- {models}
  _files
}}
# In place of shtab's, which has no commands beside sources.
_shtab_stream_rpn() {{
  local context state line curcontext="$curcontext"
  local options="_shtab_stream_rpn_${{words[2]}}_options"
  if (( CURRENT > 2 && ${{+parameters[$options]}} )); then
    shift words
    (( CURRENT -= 1 ))
    _arguments -C -s "${{(@P)options}}"
  else
    _arguments -C -s $_shtab_stream_rpn_options
  fi
}}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the shell."""
    parser.epilog = examples(
        "stream-rpn completion bash > ~/.local/share/bash-completion/completions/stream-rpn",
        'stream-rpn completion zsh > "${fpath[1]}/_stream-rpn"',
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def run(arguments: argparse.Namespace) -> int:
    """Prints the script on standard output.

    Raises:
        StreamRPNError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise StreamRPNError(
            "completion needs shtab; `pip install 'stream-rpn[completion]'` provides it"
        ) from error
    names = {"commands": " ".join(COMMANDS), "models": " ".join(MODELS)}
    preambles = {"bash": _BASH.format(**names), "zsh": _ZSH.format(**names)}
    preamble = preambles.get(arguments.shell, "")
    script = shtab.complete(whole_parser(), arguments.shell, preamble=preamble)
    print_text(f"{script}\n")
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """Returns the parser of sources with those of all commands within, to be read by shtab.

    It is not the one that parses: there a command can only be the first word.
    """
    from stream_rpn.commands.stream import stream_parser

    parser = stream_parser()
    _complete(parser)
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, prog=f"stream-rpn {name}")
        import_module(module).add_arguments(command)
        _complete(command)
    return parser


def _complete(parser: argparse.ArgumentParser) -> None:
    """Tells shtab what the values of arguments are: models, or files."""
    files = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f", "fish": _FISH_FILES}
    own = "_stream_rpn_source_files"
    sources = {**files, "bash": own, "zsh": own}
    own = "_stream_rpn_model_files"
    models = {"bash": own, "zsh": own, "tcsh": f"({' '.join(MODELS)})", "fish": " ".join(MODELS)}
    for action in parser._actions:
        complete: dict[str, str] | None = None
        if action.dest == "model":
            complete = models
        elif action.dest == "sources":
            complete = sources
        elif action.dest == "source" or _FILES.search(str(action.metavar)):
            complete = files
        if complete is not None:
            action.complete = complete  # type: ignore[attr-defined]
