"""What a machine has, and what `auto` chooses on it, as `stream-rpn doctor` tells it."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
from contextlib import suppress
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import torch

from stream_rpn import __version__, compute, models
from stream_rpn.cores import available_cores
from stream_rpn.engines import INT8, choose_batch, prefers_int8, why_not_openvino

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")
_BY_DEVELOPERS = "dev"


def findings() -> dict[str, Any]:
    """Returns what programs are told, by `doctor --json`; documented in docs/terminal.md."""
    import av
    from av.codec.hwaccel import hwdevices_available

    capabilities = torch.cpu.get_capabilities()
    return {
        "stream_rpn": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages(),
        "cpu": {
            "name": capabilities.get("cpu_name") or platform.machine(),
            "cores": available_cores(),
            "cores_of_machine": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "bfloat16": compute.prefers_bfloat16(torch.device("cpu")),
        },
        "gpus": _gpus(),
        "why_no_gpu": why_no_gpu(),
        "why_no_nvdec": _why_no_nvdec(),
        "ffmpeg": {
            name: ".".join(map(str, version)) for name, version in av.library_versions.items()
        },
        "hardware_decoders": list(hwdevices_available()),
        "why_no_triton": _why_no_triton(),
        "weights": _weights(),
        "auto": _choices(),
    }


def packages() -> dict[str, dict[str, Any]]:
    """Returns what we use, by name: its version, None where it is not installed, and which extras.

    All that we require is there as the packaging tells it, but for what developers alone use.
    """
    found: dict[str, set[str]] = {}
    with suppress(metadata.PackageNotFoundError):
        for requirement in metadata.requires("stream-rpn") or ():
            name, extra = _NAME.match(requirement), _EXTRA.search(requirement)
            if name is None or name[0] == "stream-rpn" or (extra and extra[1] == _BY_DEVELOPERS):
                continue
            found.setdefault(name[0], set()).update([extra[1]] if extra else [])
    # Those that are needed anyway come first.
    order = sorted(found, key=lambda name: (bool(found[name]), name))
    return {name: {"version": _version(name), "extras": sorted(found[name])} for name in order}


def _version(package: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def why_no_gpu() -> str | None:
    """Returns why torch computes on no NVIDIA or AMD GPU here; None where it can."""
    if torch.cuda.is_available():
        return None
    build = torch.version.cuda or torch.version.hip
    return f"torch is built for {build} but sees no device" if build else "torch's CPU build"


def _gpus() -> list[dict[str, Any]]:
    if why_no_gpu():
        return []
    return [_gpu(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]


def _gpu(device: torch.device) -> dict[str, Any]:
    from stream_rpn.network import cudnn, graph

    properties = torch.cuda.get_device_properties(device)
    return {
        "device": str(device),
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "why_no_cuda_graphs": graph.why_no_capture(device),
        "fused_convolutions": cudnn.works(compute.choose_dtype("auto", device), device),
    }


def _driver() -> str:
    version = Path("/proc/driver/nvidia/version")
    return version.read_text().split("\n")[0].strip() if version.is_file() else "unknown"


def _why_no_nvdec() -> str | None:
    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError:
        return "libnvcuvid.so.1 is not there"
    return None if torch.cuda.is_available() else "torch sees no device"


def _why_no_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None if torch.cuda.is_available() else "no GPU"


def _weights() -> dict[str, Any]:
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    here = {}
    for name, entry in models.MODELS.items():
        if entry.weights.endswith(".safetensors"):
            if (resources.files(models) / entry.weights).is_file():
                here[name] = "package"
        elif entry.weights:
            from torchvision.models import get_weight

            if (cache / Path(get_weight(entry.weights).url).name).is_file():
                here[name] = "cache"
    return {"cache": str(cache), "here": here}


def _choices() -> dict[str, Any]:
    reason = why_not_openvino()
    device = compute.choose_device()
    return {
        "engine": "torch" if reason else "openvino",
        "why_not_openvino": reason,
        "why_not_int8": why_not_openvino(dtype=INT8),
        "device": str(device),
        "dtype": compute.DTYPE_NAMES[compute.choose_dtype("auto", device)],
        "int8": reason is None and prefers_int8(),
        "bfloat16": compute.prefers_bfloat16(device),
        "batch": choose_batch("auto", device.type),
        "decoder": "NVDEC where it can, else the CPU" if device.type == "cuda" else "the CPU",
    }
