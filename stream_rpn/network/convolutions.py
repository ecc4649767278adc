"""Another form of a model's convolutions, for inference; the model stays as it is."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar, cast

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
            if type(child) is nn.Conv2d and is_plain(child):
                after = following if _in_order(parent, name, next_name) else None
                replacement, both = replace(child, after)
                if replacement is not None:
                    setattr(parent, name, replacement)
                    if both:
                        setattr(parent, next_name, nn.Identity())
    return model


def _in_order(parent: nn.Module, name: str, next_name: str) -> bool:
    """Tells whether child `next_name` of `parent` gets what child `name` returns, and nobody else.

    Only identities are between them.
    """
    # Subclasses may do anything; what these two say is what they do.
    if isinstance(parent, nn.Sequential):
        return True
    # A backbone of torchvision's, which whoever has one has imported.
    utils = sys.modules.get("torchvision.models._utils")
    if utils is None or type(parent) is not utils.IntermediateLayerGetter or not next_name:
        return False
    names, taken = list(parent._modules), cast(dict[str, str], parent.return_layers)
    return not any(n in taken for n in names[names.index(name) : names.index(next_name)])


def shared_copy(model: M) -> M:
    """Returns a copy whose modules may be replaced, with the parameters of `model` itself."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in model.parameters()})


def is_plain(conv: nn.Conv2d) -> bool:
    """Tells whether a convolution is all that its numbers say, padded with zeros."""
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
