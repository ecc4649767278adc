"""The command line: arguments → pipeline → sinks → a summary.

Imports nothing heavy at the top: `stream-rpn --help` answers at once. Standard output carries
results only; everything else goes to standard error. Exit codes: 0 whole, 2 nothing could be
produced, 3 results but something failed, was damaged or cut off, 130 after Ctrl-C, 143 after
SIGTERM, 129 after SIGHUP, 1 a bug.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from stream_rpn.commands import COMMANDS, config, scarcity
from stream_rpn.commands.parser import Parser
from stream_rpn.commands.progress import complain, let_messages_fail, under_way
from stream_rpn.commands.stream import stream_parser
from stream_rpn.signals import undo_unfinished, unwind_on_signals


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _fill_closed_streams()
    let_messages_fail()
    try:
        if argv and argv[0] in COMMANDS:
            return _subcommand(argv[0], argv[1:])
        return _stream(argv)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a table has seen enough; flushing the rest must not fail when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (MemoryError, RuntimeError, OSError, ImportError, SystemError) as error:
        if not (lacking := scarcity.sentence(error)):
            raise
        complain(lacking)
        return 2


def _fill_closed_streams() -> None:
    """Opens the null device in place of closed standard streams, whose numbers files would take."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        # Without it, `print` would turn to standard output.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (open to the end)


def _subcommand(name: str, argv: Sequence[str]) -> int:
    module_name, summary = COMMANDS[name]
    module = importlib.import_module(module_name)
    parser = Parser(prog=f"stream-rpn {name}", description=f"{summary[0].upper()}{summary[1:]}.")
    module.add_arguments(parser)
    arguments = parser.parse_args(argv)
    return _reporting(lambda: module.run(arguments))


def _stream(argv: Sequence[str]) -> int:
    # Intermixed: a source may follow an option. argparse then parses twice, the second time without
    # the "--" behind which names may begin with a dash.
    end = argv.index("--") if "--" in argv else len(argv)
    names = [f"./{n}" if n.startswith("-") and n != "-" else n for n in argv[end + 1 :]]
    arguments = config.parse(stream_parser, [*argv[:end], *names])

    def run() -> int:
        from stream_rpn.commands.checks import check_stream

        wanted = config.completed(arguments, stream_parser())
        check_stream(wanted)
        with under_way(f"loading {wanted.model}", quiet=wanted.quiet):
            from stream_rpn.commands import runner
        return runner.run(wanted)

    return _reporting(run)


def _reporting(command: Callable[[], int]) -> int:
    """Runs a command; what is the user's to mend becomes one sentence and exit code 2."""
    from stream_rpn.frame import StreamRPNError

    # Not before: an exception that comes out of nowhere is not always what leaves argparse.
    unwind_on_signals()
    try:
        os.getcwd()
        return command()
    except StreamRPNError as error:
        complain(str(error))
        return 2
    except FileNotFoundError:
        if _folder_is_there():
            raise
        complain("the current folder has been removed; change to one that is there")
        return 2
    finally:
        undo_unfinished()


def _folder_is_there() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    sys.exit(main())
