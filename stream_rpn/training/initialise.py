"""Weights to start a training run from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from stream_rpn.frame import StreamRPNError
from stream_rpn.models.checkpoint import read_checkpoint
from stream_rpn.rpn import RPN


@runtime_checkable
class LoadsClassifier(Protocol):
    """A backbone whose parameters have other names than the classifier it was cut from."""

    def load_classifier(self, state: Mapping[str, Tensor]) -> None:
        """Takes over features from a classifier's tensors by torchvision's names."""


def load_init(model: RPN, path: str) -> set[str]:
    """Loads weights to start from and returns the names of the parameters that they set.

    A checkpoint of a whole RPN sets every parameter that has the same name and shape there, so that
    one model can start from another. Anything else is taken for a classifier's weights under
    torchvision's names and sets the backbone's features.

    Args:
        model: the model.
        path: a .npz of arrays, or a checkpoint file.

    Raises:
        StreamRPNError: unreadable, or of another architecture.
    """
    state: Mapping[str, Tensor]
    if path.endswith(".npz"):
        try:
            with np.load(path) as file:
                state = {name: torch.from_numpy(file[name]) for name in file.files}
        except (OSError, ValueError) as error:
            raise StreamRPNError(f"the weights '{path}' cannot be read ({error})") from error
    else:
        state = read_checkpoint(path)[0]
    parameters = dict(model.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    try:
        if any(name.startswith("head.") for name in state):
            model.load_state_dict(
                {
                    name: state[name] if name in state and state[name].shape == own.shape else own
                    for name, own in model.state_dict().items()
                }
            )
        elif isinstance(model.backbone, LoadsClassifier):
            model.backbone.load_classifier(state)
        else:
            own = model.backbone.state_dict()
            found = {
                name: state[key]
                for name in own
                for key in (name, f"features.{name}", name.removeprefix("body."))
                if key in state
            }
            model.backbone.load_state_dict({**own, **found})
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise StreamRPNError(
            f"the weights '{path}' do not fit the model's backbone ({reason})"
        ) from error
    changed = {name for name, p in parameters.items() if not torch.equal(p, before[name])}
    if not changed:
        raise StreamRPNError(f"the weights '{path}' hold nothing under the backbone's names")
    return changed
