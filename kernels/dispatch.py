"""Chooses between an operation's Triton form and its reference, late and loudly."""

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_broken: set[str] = set()


def opaque_op(name: str, *, writes: str = "") -> Callable[[Callable[..., Any]], Any]:
    """Registers a function as torch.ops.stream_rpn.NAME.

    As `torch.library.custom_op` does, so that torch.compile passes it by; but the first call of one
    of those imports the compiler, which takes as long as importing torch, or longer.

    Args:
        name: of the op.
        writes: the argument that it writes to; whoever calls it says so to autograd, by
            `has_changed`.
    """

    def register(function: Callable[..., Any]) -> Any:
        qualified = f"stream_rpn::{name}"
        mutates = (writes,) if writes else ()
        torch.library.define(qualified, torch.library.infer_schema(function, mutates_args=mutates))
        torch.library.impl(qualified, "default", function)
        return getattr(torch.ops.stream_rpn, name).default

    return register


def has_changed(tensor: Tensor) -> None:
    """Tells autograd that an op has written to a tensor: a backward pass that needs it raises."""
    # Inference tensors keep no count, and a compiler reads it off the op's schema.
    if not (torch.compiler.is_compiling() or tensor.is_inference()):
        torch.autograd.graph.increment_version(tensor)


def fused_or_reference(
    op: str, tensor: Tensor, fused: Callable[[], T], reference: Callable[[], T]
) -> T:
    """Returns `fused()` for a tensor on a GPU where Triton works, else `reference()`.

    Both give the same results. A Triton form that fails on a GPU (to compile, say) is reported once
    per process with its reason; from then on the reference serves. In a capture, which the failure
    spoils, it is raised instead. `fused` imports its Triton module itself, so that nothing imports
    triton where it is not used.
    """
    if tensor.is_cuda and op not in _broken and _has_triton():
        try:
            return fused()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if torch.cuda.is_current_stream_capturing():
                # Nothing can take its place in a graph, and outside of one it may well work.
                raise
            _broken.add(op)
            warnings.warn(
                f"the Triton kernel of {op} failed on {torch.cuda.get_device_name(tensor.device)} "
                f"and the slower PyTorch form runs instead for the rest of this process, without a "
                f"CUDA graph: {type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
    return reference()


def distrust(op: str, device: torch.device, result: str) -> None:
    """Has the reference serve from now on for an operation whose kernel gave something else.

    Says so, once: a RuntimeWarning.
    """
    if op in _broken:
        return
    _broken.add(op)
    warnings.warn(
        f"the Triton kernel of {op}, as compiled for {torch.cuda.get_device_name(device)}, gives "
        f"other {result} than its reference; results stay right, as the slower PyTorch form runs "
        "instead: please report this with what `stream-rpn doctor --prove` prints",
        RuntimeWarning,
        stacklevel=2,
    )


def why_reference() -> str | None:
    """Returns why a reference runs on a GPU, which waits for it; None where Triton does it all."""
    if not _has_triton():
        return "triton is not installed"
    if _broken:
        return f"the Triton kernel of {' and '.join(sorted(_broken))} failed"
    return None


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
