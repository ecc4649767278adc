"""`stream-rpn devices`: the cameras of this machine."""

from __future__ import annotations

import argparse

from stream_rpn.commands.parser import examples
from stream_rpn.commands.progress import complain
from stream_rpn.sources.address import cameras


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: there is nothing to choose."""
    parser.epilog = examples("stream-rpn devices", "stream-rpn webcam:1    # the second of them")


def run(arguments: argparse.Namespace) -> int:
    """Prints a line per camera: what to call it as a source, and what it is."""
    found = cameras()
    if not found:
        complain("no camera found")
    for number, (name, description) in enumerate(found):
        # On Linux the device's own name is a source as it is.
        source = name if name.startswith("/dev/") else f"webcam:{number}"
        print(f"{source}  {description or name}")
    return 0
