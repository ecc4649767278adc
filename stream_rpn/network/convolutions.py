"""Another form of a model's convolutions, for inference; the model stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)

# Gets a convolution and what follows it (None where nothing tells); returns its replacement, None
# to leave it, and whether the replacement computes what follows, too.
Replace = Callable[[nn.Conv2d, nn.Module | None], tuple[nn.Module | None, bool]]


def replaced(model: M, replace: Replace) -> M:
    """Returns a copy of a model with other convolutions; parameters are shared with `model`."""
    model = shared_copy(model)
    for parent in list(model.modules()):
        # Folded batch norms left identities behind, of which there is nothing to compute.
        children = [(n, c) for n, c in parent._modules.items() if type(c) is not nn.Identity]
        for (name, child), (next_name, following) in pairwise([*children, ("", None)]):
            # Subclasses may do anything; only a Sequential's order says what follows what.
            if type(child) is nn.Conv2d and is_plain(child):
                after = following if isinstance(parent, nn.Sequential) else None
                replacement, both = replace(child, after)
                if replacement is not None:
                    setattr(parent, name, replacement)
                    if both:
                        setattr(parent, next_name, nn.Identity())
    return model


def shared_copy(model: M) -> M:
    """Returns a copy whose modules may be replaced, with the parameters of `model` itself."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in model.parameters()})


def is_plain(conv: nn.Conv2d) -> bool:
    """Tells whether a convolution is all that its numbers say, padded with zeros."""
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
