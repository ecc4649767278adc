"""The checkpoint that an interrupted run goes on from."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch

from stream_rpn.frame import StreamRPNError
from stream_rpn.training.config import CHANGEABLE, TrainConfig


def write_state(config: TrainConfig, state: dict[str, Any]) -> None:
    """Writes a run's state and its configuration, whole or not at all.

    Raises:
        OSError: it cannot be written; the one before is still there.
    """
    path = config.checkpoint
    beside = path.with_suffix(".part")
    try:
        torch.save({**state, "config": json.dumps(asdict(config))}, beside)
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:  # the second is torch's of a full disk
        with suppress(OSError):
            beside.unlink(missing_ok=True)
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
        raise StreamRPNError(
            f"the checkpoint '{path}' cannot be read ({reason}); --overwrite begins anew"
        ) from error
    now = json.loads(json.dumps(asdict(config)))
    changed = [name for name in now if name not in CHANGEABLE and now[name] != then.get(name)]
    if changed:
        raise StreamRPNError(
            f"the run in {config.folder} had another {', '.join(changed)}; resume it with the "
            "options it was started with"
        )
    return state
