"""Region proposals from video: PyAV decoding, a region proposal network, fused Triton kernels.

>>> import stream_rpn
>>> for proposals in stream_rpn.stream("video.mp4", top=100):  # doctest: +SKIP
...     print(proposals.frame, proposals.pts_seconds, proposals.boxes[:3])
"""

from __future__ import annotations

import os
import sys

# Importing openvino would tell its makers so over the network, as would converting a model. Without
# this package, which is installed along with it, it does neither.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

# stream_rpn/kernels is a symbolic link to the folder kernels beside this one. Where a checkout has
# no links, as on Windows, it is a small file, and the folder is looked for where they would lead.
if os.path.isfile(os.path.join(__path__[0], "kernels")):
    __path__.append(os.path.dirname(__path__[0]))

# Those of `typing` would take longer than all else that is imported until Ctrl-C is answered for.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from stream_rpn.api import load, propose, stream
    from stream_rpn.drops import Drop, DropKind, DropReason
    from stream_rpn.explanation.explain import explain
    from stream_rpn.frame import Frame, Proposal, Proposals, StreamInfo, StreamRPNError
    from stream_rpn.fusion import fuse, unfuse
    from stream_rpn.pipeline import Pipeline, Stream
    from stream_rpn.results import Results, read
    from stream_rpn.sources.live import LivePolicy
    from stream_rpn.sources.select import Selection

__version__ = "0.1.0"

# Name → module. The package itself must not import torch: `stream-rpn --help` would take seconds.
_EXPORTS = {
    "stream": "api",
    "propose": "api",
    "load": "api",
    "explain": "explanation.explain",
    "read": "results",
    "Results": "results",
    "LivePolicy": "sources.live",
    "fuse": "fusion",
    "unfuse": "fusion",
    "Pipeline": "pipeline",
    "Selection": "pipeline",
    "Stream": "pipeline",
    "Frame": "frame",
    "Proposal": "frame",
    "Proposals": "frame",
    "StreamInfo": "frame",
    "Drop": "drops",
    "DropKind": "drops",
    "DropReason": "drops",
    "StreamRPNError": "frame",
}

__all__ = [
    "Drop",
    "DropKind",
    "DropReason",
    "Frame",
    "LivePolicy",
    "Pipeline",
    "Proposal",
    "Proposals",
    "Results",
    "Selection",
    "Stream",
    "StreamInfo",
    "StreamRPNError",
    "explain",
    "fuse",
    "load",
    "propose",
    "read",
    "stream",
    "unfuse",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        from importlib import import_module

        return getattr(import_module(f"stream_rpn.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'stream_rpn' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
