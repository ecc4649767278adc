"""Chooses between an operation's Triton form and its reference, late and loudly."""

import importlib.util
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_broken: set[str] = set()


def fused_or_reference(
    op: str, tensor: Tensor, fused: Callable[[], T], reference: Callable[[], T]
) -> T:
    """Returns `fused()` for a tensor on a GPU where Triton works, else `reference()`.

    Both give the same results. A Triton form that fails on a GPU (to compile, say) is reported once
    per process with its reason; from then on the reference serves. `fused` imports its Triton
    module itself, so that nothing imports triton where it is not used.
    """
    if tensor.is_cuda and op not in _broken and importlib.util.find_spec("triton") is not None:
        try:
            return fused()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            _broken.add(op)
            warnings.warn(
                f"the Triton kernel of {op} failed on {torch.cuda.get_device_name(tensor.device)} "
                f"and the slower PyTorch form runs instead for the rest of this process: "
                f"{type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
    return reference()
