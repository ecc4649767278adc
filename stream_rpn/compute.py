"""The device and the number format to compute with, and the reason for the choice."""

from __future__ import annotations

import torch

from stream_rpn.engines import INT8, fast_bfloat16
from stream_rpn.frame import StreamRPNError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def choose_device(name: str = "auto") -> torch.device:
    """Returns the device called `name`: auto, cpu, cuda, cuda:N or mps.

    `auto` takes CUDA where torch sees it, then Apple's GPU, then the CPU, and never fails.

    Raises:
        StreamRPNError: a device was asked for that is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not (kind == "cuda" and index.isdecimal())):
        raise StreamRPNError(f"there is no device '{name}'; choose auto, cpu, cuda, cuda:N or mps")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise StreamRPNError("device 'mps' was asked for, but torch has no Apple GPU here")
    if kind != "cuda":
        return torch.device(kind)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise StreamRPNError(
            f"device '{name}' was asked for, but torch sees no CUDA device here; "
            "`stream-rpn doctor` says what this machine has"
        )
    number = int(index) if index else torch.cuda.current_device()
    if number >= count:
        raise StreamRPNError(
            f"device '{name}' was asked for, but there are only {count} CUDA devices (from cuda:0)"
        )
    return torch.device("cuda", number)


def prefers_bfloat16(device: torch.device) -> bool:
    """Returns whether a device multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
    if device.type == "cpu":
        return fast_bfloat16()
    return False


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Returns the torch dtype called `name`; `auto` is bfloat16 where that is faster, else float32.

    Raises:
        StreamRPNError: no such number format.
    """
    if name == "auto":
        return torch.bfloat16 if prefers_bfloat16(device) else torch.float32
    if name == INT8:
        raise StreamRPNError(
            f"torch, which computes this, has no dtype '{name}'; choose auto or "
            f"{', '.join(DTYPES)}; `stream_rpn.stream` of pictures has it, on a CPU"
        )
    if name not in DTYPES:
        raise StreamRPNError(f"there is no dtype '{name}'; choose auto or {', '.join(DTYPES)}")
    return DTYPES[name]
