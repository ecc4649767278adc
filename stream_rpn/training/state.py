"""The checkpoint that an interrupted run goes on from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from stream_rpn import signals
from stream_rpn.frame import StreamRPNError
from stream_rpn.training.config import CHANGEABLE, TrainConfig


def write_state(config: TrainConfig, state: dict[str, Any]) -> None:
    """Writes a run's state and its configuration, whole or not at all.

    Raises:
        OSError: it cannot be written; the one before is still there.
    """
    path = config.checkpoint
    try:
        with signals.replaced(path) as beside:
            torch.save({**state, "config": json.dumps(asdict(config))}, beside)
    except (OSError, RuntimeError) as error:  # the second is torch's of a full disk
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise OSError(None, reason, str(path)) from error


def read_state(config: TrainConfig) -> dict[str, Any]:
    """Returns the state of a run that goes on with a configuration.

    Raises:
        StreamRPNError: there is none, it cannot be read, or it is of another run.
    """
    path = config.checkpoint
    if not path.is_file():
        raise StreamRPNError(f"there is no checkpoint '{path}' to resume from")
    try:
        state: dict[str, Any] = torch.load(path, map_location=config.device, weights_only=True)
        then = dict(json.loads(state.pop("config")))
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise _unusable(path, f"cannot be read ({reason})") from error
    now = json.loads(json.dumps(asdict(config)))
    changed = [name for name in now if name not in CHANGEABLE and now[name] != then.get(name)]
    if changed:
        raise StreamRPNError(
            f"the run in {config.folder} had another {', '.join(changed)}; resume it with the "
            "options it was started with"
        )
    return state


@contextmanager
def restoring(config: TrainConfig) -> Iterator[None]:
    """Around what takes up a state: one that is not of such a run becomes a sentence.

    Raises:
        StreamRPNError: something is missing in it, or of another kind or shape.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        if isinstance(error, KeyError):
            reason = f"{reason} is missing"
        raise _unusable(config.checkpoint, f"is not of this run ({reason})") from error


def _unusable(path: Path, why: str) -> StreamRPNError:
    return StreamRPNError(f"the checkpoint '{path}' {why}; --overwrite begins anew")
