"""Which engine computes the network: PyTorch everywhere, OpenVINO on CPUs, where it is faster."""

from __future__ import annotations

import importlib.util
import platform
import sys
from itertools import takewhile
from pathlib import Path

from stream_rpn.frame import StreamRPNError

ENGINES = ("auto", "torch", "openvino")
# A dtype that is a graph of its own, which ships for some models.
INT8 = "int8"

_CPU_INFO = Path("/proc/cpuinfo")

# What a driver of NVIDIA's or AMD's puts there. Where none is, torch need not be asked, and on a
# CPU its import alone would take longer than everything else before the first proposal.
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")


def choose_engine(
    name: str = "auto", *, device: str = "auto", dtype: str = "auto", features: bool = False
) -> str:
    """Returns the engine called `name`: "torch" or "openvino".

    `auto` is OpenVINO where it is installed and computes what is asked for, torch otherwise.

    Args:
        name: auto, torch or openvino.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto, float32, bfloat16, float16 or int8, which only OpenVINO computes in.
        features: whether feature maps are wanted.

    Raises:
        StreamRPNError: there is no such engine, or OpenVINO was asked for and cannot.
    """
    if name not in ENGINES:
        raise StreamRPNError(f"there is no engine '{name}'; choose {', '.join(ENGINES)}")
    if name == "torch":
        if dtype == INT8:
            raise StreamRPNError(
                "the engine torch does not compute in int8; leave out the engine or the dtype int8"
            )
        return "torch"
    reason = why_not_openvino(device=device, dtype=dtype, features=features)
    if reason is None:
        return "openvino"
    if name == "openvino":
        raise StreamRPNError(f"the engine openvino cannot be used: {reason}")
    if dtype == INT8:
        raise StreamRPNError(f"only the engine openvino computes in int8, and {reason}")
    return "torch"


def why_not_openvino(
    *, device: str = "auto", dtype: str = "auto", features: bool = False
) -> str | None:
    """Returns what keeps OpenVINO from computing this; None where nothing does."""
    if device not in ("auto", "cpu"):
        return f"it computes on the CPU here, not on {device}"
    if features:
        return "it keeps no feature maps"
    if importlib.util.find_spec("openvino") is None:
        return "it is not installed (pip install openvino)"
    if dtype not in ("auto", "float32", "bfloat16", INT8):
        return f"it computes in float32, bfloat16 or int8, not in {dtype}"
    if dtype == "bfloat16" and not takes_bfloat16():
        return "this processor has no bfloat16"
    if device == "auto" and has_gpu():
        return "there is a GPU (the device cpu leaves it alone)"
    return None


def fast_bfloat16() -> bool:
    """Returns whether this processor multiplies bfloat16 faster than float32, as far as is known.

    Those with tiles for it do (AMX), and AMD's with AVX512-BF16. On Intel's with AVX512-BF16 alone
    float32 was the faster one; where AVX-512 is without, bfloat16 takes three times as long.
    """
    try:
        with _CPU_INFO.open() as lines:
            # Of the first core: to tell of hundreds Linux takes its time.
            words = "".join(takewhile(str.strip, lines)).split()
    except OSError:  # not Linux
        return False
    return "amx_bf16" in words or ("avx512_bf16" in words and "AuthenticAMD" in words)


def takes_bfloat16() -> bool:
    """Returns whether OpenVINO computes in bfloat16 on this processor, however slowly."""
    from stream_rpn.network.openvino import core

    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def prefers_bfloat16() -> bool:
    """Returns whether OpenVINO computes faster in bfloat16 than in float32 on this processor."""
    return fast_bfloat16() and takes_bfloat16()


def prefers_int8() -> bool:
    """Returns whether int8 is what OpenVINO computes fastest in here, where there is such a graph.

    It is on processors of Intel's and AMD's on which bfloat16 is not: about a third faster than
    float32 on an EPYC with AVX2, more with VNNI, for little recall. With AVX-512 and no VNNI it
    gains a quarter where frames come one at a time, next to nothing where several are computed.
    """
    return platform.machine().lower() in ("x86_64", "amd64") and not prefers_bfloat16()


def has_gpu() -> bool:
    """Returns whether torch has a GPU here; it is asked only where there may be one."""
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    if not (apple or sys.platform == "win32" or any(Path(name).exists() for name in _GPU_DEVICES)):
        return False
    from stream_rpn.compute import choose_device

    return choose_device().type != "cpu"


def choose_batch(name: str, device: str) -> int:
    """Returns the batch size called `name`: a number, or `auto`: 8 on CUDA, 1 elsewhere.

    On a CPU a batch of one frame keeps the intermediate maps in the caches.

    Raises:
        StreamRPNError: not a positive number.
    """
    if name == "auto":
        return 8 if device == "cuda" else 1
    if not name.isdecimal() or int(name) < 1:
        raise StreamRPNError(f"the batch must be auto or a whole number from 1 up, got '{name}'")
    return int(name)
