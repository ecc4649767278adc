"""Weights to start a training run from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from stream_rpn import models
from stream_rpn.frame import StreamRPNError
from stream_rpn.models.checkpoint import load_model, read_checkpoint
from stream_rpn.rpn import RPN

RANDOM = "random"


@runtime_checkable
class LoadsClassifier(Protocol):
    """A backbone whose parameters have other names than the classifier it was cut from."""

    def load_classifier(self, state: Mapping[str, Tensor]) -> None:
        """Takes over features from a classifier's tensors by torchvision's names."""


def load_init(model: RPN, init: str) -> set[str]:
    """Loads weights to start from and returns the names of the parameters that they set.

    Those of a whole RPN set every parameter that has the same name and shape there, so that one
    model can start from another. Anything else is taken for a classifier's weights under
    torchvision's names and sets the backbone's features.

    Args:
        model: the model.
        init: a name of the table of models, "random", a .npz of arrays, or a checkpoint file.

    Raises:
        StreamRPNError: unreadable, or of another architecture.
    """
    if init == RANDOM:
        return set()
    state = _read(init)
    if not state:
        return set()
    parameters = dict(model.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    own = model.state_dict()
    try:
        if any(name.startswith("head.") for name in state):
            found = {n: t for n, t in state.items() if n in own and t.shape == own[n].shape}
            model.load_state_dict({**own, **found})
        elif isinstance(model.backbone, LoadsClassifier):
            model.backbone.load_classifier(state)
        else:
            own = model.backbone.state_dict()
            found = {
                name: state[key]
                for name in own
                for key in (
                    *(name, f"features.{name}", name.removeprefix("body.")),
                    f"backbone.{name}",
                )
                if key in state
            }
            model.backbone.load_state_dict({**own, **found})
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise StreamRPNError(
            f"the weights '{init}' do not fit the model's backbone ({reason})"
        ) from error
    changed = {name for name, p in parameters.items() if not torch.equal(p, before[name])}
    if not changed:
        raise StreamRPNError(f"the weights '{init}' hold nothing under the backbone's names")
    return changed


def _read(init: str) -> Mapping[str, Tensor]:
    """Returns tensors by name; none for a model of the table that has no weights."""
    if init in models.MODELS:
        return _weights_of(init)
    if not init.endswith(".npz"):
        try:
            return read_checkpoint(init)[0]
        except StreamRPNError as error:
            if "there is no" not in str(error):
                raise
            known = ", ".join(name for name, entry in models.MODELS.items() if entry.weights)
            raise StreamRPNError(
                f"{error}, nor a model of that name to start from; known are {known} and {RANDOM}"
            ) from None
    try:
        with np.load(init) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    except (OSError, ValueError) as error:
        raise StreamRPNError(f"the weights '{init}' cannot be read ({error})") from error


def _weights_of(name: str) -> Mapping[str, Tensor]:
    entry = models.find(name)
    if not entry.weights:
        return {}
    source = load_model(name, fold=False)
    for layer in source.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.eps == 0:
            # A file says nothing of an epsilon, so ours must work with the usual one.
            variance = layer.get_buffer("running_var")
            layer.weight.data *= (1 + nn.BatchNorm2d(1).eps / variance).sqrt()
    state = source.state_dict()
    if entry.backbone_only:
        state = {key: tensor for key, tensor in state.items() if key.startswith("backbone.")}
    return state
