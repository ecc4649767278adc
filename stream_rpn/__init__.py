"""Region proposals from video: PyAV decoding, a region proposal network, fused Triton kernels.

>>> import stream_rpn
>>> for proposals in stream_rpn.stream("video.mp4", top=100):  # doctest: +SKIP
...     print(proposals.frame, proposals.pts_seconds, proposals.boxes[:3])
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Importing openvino would tell its makers so over the network, as would converting a model. Without
# this package, which is installed along with it, it does neither.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

if TYPE_CHECKING:
    from stream_rpn.api import explain, load, propose, stream
    from stream_rpn.frame import (
        Drop,
        DropKind,
        DropReason,
        Frame,
        Proposals,
        StreamInfo,
        StreamRPNError,
    )
    from stream_rpn.fusion import fuse, unfuse
    from stream_rpn.pipeline import Pipeline, Stream
    from stream_rpn.results import read
    from stream_rpn.sources.select import Selection

__version__ = "0.1.0"

# Name → module. The package itself must not import torch: `stream-rpn --help` would take seconds.
_EXPORTS = {
    "stream": "api",
    "propose": "api",
    "load": "api",
    "explain": "api",
    "read": "results",
    "fuse": "fusion",
    "unfuse": "fusion",
    "Pipeline": "pipeline",
    "Selection": "pipeline",
    "Stream": "pipeline",
    "Frame": "frame",
    "Proposals": "frame",
    "StreamInfo": "frame",
    "Drop": "frame",
    "DropKind": "frame",
    "DropReason": "frame",
    "StreamRPNError": "frame",
}

__all__ = [
    "Drop",
    "DropKind",
    "DropReason",
    "Frame",
    "Pipeline",
    "Proposals",
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
        return getattr(import_module(f"stream_rpn.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'stream_rpn' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
