"""`stream-rpn`, and `python -m stream_rpn`: where the process begins."""

import signal
import sys

# Python's own answer to Ctrl-C is an exception, which among imports is a traceback, or gets lost.
# As long as there is nothing to put in order, the process just ends. What a shell starts in the
# background ignores it, and so it stays.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from stream_rpn import cli, signals


def main() -> int:
    """Runs the command line and returns its exit code."""
    try:
        return cli.main()
    finally:
        # Nothing is left to put in order: a signal while Python ends is a traceback otherwise.
        for number in signals.numbers():
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
