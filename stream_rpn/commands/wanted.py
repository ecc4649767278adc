"""What is asked of each source: its address, its name, which frames, and how long it is waited for.

Options that a source of a configuration has of its own go before those of all; see `config`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from stream_rpn.commands.arguments import frame_options
from stream_rpn.frame import StreamRPNError
from stream_rpn.gate import GateSpec
from stream_rpn.multistream import LivePolicy
from stream_rpn.sources import expand, is_live, masked, stem
from stream_rpn.sources.select import Selection
from stream_rpn.views import ViewSpec


@dataclass(frozen=True)
class Wanted:
    """One source to open.

    Attributes:
        uri: as `stream_rpn.sources.open_source` takes it.
        name: in names of files and of pictures, in place of what the address would give.
        selection: which frames to use.
        policy: what to do where it does not wait.
        named: whether the name was given, and is not that of the address.
    """

    uri: str
    name: str
    selection: Selection
    policy: LivePolicy
    named: bool = False


def wanted(arguments: argparse.Namespace) -> list[Wanted]:
    """Returns the sources of a command, directories and patterns of videos as their files.

    Raises:
        StreamRPNError: one does not exist, or two that would run at a time are the same.
    """
    found: list[Wanted] = []
    for asked in arguments.asked:
        with asked.telling_where():
            selection, policy = _selection(asked.arguments), _policy(asked.arguments)
            found += [
                Wanted(uri, asked.name or stem(uri), selection, policy, bool(asked.name))
                for uri in expand([asked.address])
            ]
    # Passwords are no difference: results are told apart by names without them.
    if together(found) and len({masked(one.uri) for one in found}) < len(found):
        raise StreamRPNError(
            "a source is given twice; sources that run at a time must differ, and not by a password"
        )
    return found


def check(options: dict[str, Any]) -> None:
    """Checks values that the parser of the command line takes as they are.

    Raises:
        StreamRPNError: one of them is wrong.
    """
    ViewSpec.parse(options.get("region"), options.get("mask"), tile=options.get("tile"))


def together(found: list[Wanted]) -> bool:
    """Tells whether sources run at a time, as one of them does not wait."""
    return any(one.policy.realtime or is_live(one.uri) for one in found)


def _selection(arguments: argparse.Namespace) -> Selection:
    view = ViewSpec.parse(arguments.region, arguments.mask, arguments.region_crop, arguments.tile)
    return Selection(
        **frame_options(arguments),
        view=view,
        gate=GateSpec.parse(arguments.gate, arguments.gate_hold),
    )


def _policy(arguments: argparse.Namespace) -> LivePolicy:
    return LivePolicy(
        max_age=arguments.max_age,
        open_timeout=arguments.open_timeout,
        read_timeout=arguments.read_timeout,
        reconnect=arguments.reconnect,
        realtime=arguments.realtime or arguments.loop,
        loop=arguments.loop,
    )
