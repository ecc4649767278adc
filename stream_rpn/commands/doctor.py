"""`stream-rpn doctor`: what this machine has, what `auto` would choose, and whether it works."""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from stream_rpn import __version__, models
from stream_rpn.commands.outputs import check_file
from stream_rpn.commands.progress import say
from stream_rpn.commands.tables import print_table
from stream_rpn.frame import StreamRPNError
from stream_rpn.sinks.place import write_whole

if TYPE_CHECKING:
    import torch

_MARKS = {True: "passed", False: "FAILED", None: "not tried"}
_PACKAGES = ("torch", "torchvision", "triton", "openvino", "av", "numpy", "pyarrow", "supervision")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `doctor`."""
    parser.add_argument(
        "--prove", action="store_true", help="try and time everything on the GPU, within a minute"
    )
    parser.add_argument("--json", metavar="FILE", help="with --prove: write what was found")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def run(arguments: argparse.Namespace) -> int:
    """Prints the report on standard output, or tries what the GPU gives."""
    if arguments.json is not None and not arguments.prove:
        raise StreamRPNError("--json goes with --prove")
    if arguments.prove:
        if arguments.json is not None:
            check_file(arguments.json, [], [], overwrite=arguments.overwrite)
        return _prove(arguments.json)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in report():
        table.add_row(name, value)
    print_table(table)
    return 0


def _prove(json_file: str | None) -> int:
    """Tries the GPU; returns 0 where all of it gives what it should, else 3."""
    import torch

    from stream_rpn import compute

    if not torch.cuda.is_available():
        raise StreamRPNError(
            f"there is nothing to prove here: GPU {dict(_gpus())['GPU']}; a CPU computes with the "
            "references themselves"
        )
    from stream_rpn.measure.prove import Proof

    with tempfile.TemporaryDirectory() as folder:
        proof = Proof(compute.choose_device(), Path(folder))
        for part in proof.run():
            say(f"{part} …")
    checks = Table("", "check", "seen", box=None, pad_edge=False)
    for check in proof.checks:
        checks.add_row(_MARKS[check.passed], check.name, check.detail)
    print_table(checks)
    times = Table("time", "here", "an H100", box=None, pad_edge=False)
    for each in proof.times:
        times.add_row(each.name, f"{each.value:.0f}", f"{each.on_h100:.0f}" if each.on_h100 else "")
    print_table(times)
    print(proof.verdict())
    if json_file is not None:
        write_whole(json_file, (json.dumps(proof.to_json(), indent=1) + "\n").encode())
    return 3 if proof.failed else 0


def report() -> Iterator[tuple[str, str]]:
    """Yields pairs of an item of the report and its finding."""
    import av
    import torch
    from av.codec.hwaccel import hwdevices_available

    from stream_rpn import compute
    from stream_rpn.cores import available_cores

    yield "stream-rpn", f"{__version__}, Python {platform.python_version()}, {platform.platform()}"
    for package in _PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, "not installed"
    capabilities = torch.cpu.get_capabilities()
    cpu = capabilities.get("cpu_name") or platform.machine()
    bfloat16 = compute.native_bfloat16(torch.device("cpu"))
    yield (
        "CPU",
        f"{cpu}, {available_cores()} of {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} torch threads, "
        f"bfloat16 {'native' if bfloat16 else 'emulated, so not used'}",
    )
    yield from _gpus()
    yield "NVDEC", _nvdec()
    yield (
        "FFmpeg",
        ", ".join(
            f"{name} {'.'.join(map(str, version))}" for name, version in av.library_versions.items()
        ),
    )
    yield "hardware decoders", ", ".join(hwdevices_available()) or "none in this build of PyAV"
    yield "Triton kernels", _kernels()
    yield "weights", _weights()
    yield from _choices()


def _gpus() -> Iterator[tuple[str, str]]:
    import torch

    if not torch.cuda.is_available():
        build = torch.version.cuda or torch.version.hip
        reason = f"torch is built for {build} but sees no device" if build else "torch's CPU build"
        yield "GPU", f"none ({reason})"
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield (
            f"cuda:{index}",
            f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, compute capability "
            f"{properties.major}.{properties.minor}, CUDA {torch.version.cuda}, driver {_driver()}",
        )
        yield from _on_gpu(torch.device("cuda", index))


def _on_gpu(device: torch.device) -> Iterator[tuple[str, str]]:
    from stream_rpn import compute
    from stream_rpn.network import cudnn, graph

    why_not = graph.why_no_capture(device)
    yield (
        f"cuda:{device.index} graphs",
        "yes, a batch costs one launch" if why_not is None else f"no ({why_not})",
    )
    dtype = compute.choose_dtype("auto", device)
    yield (
        f"cuda:{device.index} convolutions",
        "with bias and ReLU in one" if cudnn.works(dtype, device) else "plain: no fused ones here",
    )


def _driver() -> str:
    version = Path("/proc/driver/nvidia/version")
    return version.read_text().split("\n")[0].strip() if version.is_file() else "unknown"


def _nvdec() -> str:
    import torch

    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError:
        return "no (libnvcuvid.so.1 is not there)"
    return "libnvcuvid.so.1 is there" + (
        "" if torch.cuda.is_available() else ", but torch sees no device"
    )


def _kernels() -> str:
    import torch

    if importlib.util.find_spec("triton") is None:
        return "not used: triton is not installed; the PyTorch form runs, without CUDA graphs"
    if not torch.cuda.is_available():
        return "not used: no GPU; the PyTorch form runs, with the same results"
    return "used on every CUDA device"


def _weights() -> str:
    import torch

    cache = Path(torch.hub.get_dir()) / "checkpoints"
    found = []
    for name, entry in models.MODELS.items():
        if not entry.weights:
            continue
        if entry.weights.endswith(".safetensors"):
            if (resources.files(models) / entry.weights).is_file():
                found.append(f"{name} (in the package)")
            continue
        from torchvision.models import get_weight

        if (cache / Path(get_weight(entry.weights).url).name).is_file():
            found.append(f"{name} (cached)")
    return ", ".join(found) + f"; others are fetched to {cache} on first use"


def _choices() -> Iterator[tuple[str, str]]:
    from stream_rpn import compute
    from stream_rpn.engines import choose_batch, why_not_openvino

    reason = why_not_openvino()
    yield "--engine auto", "openvino" if reason is None else f"torch (not openvino: {reason})"
    device = compute.choose_device()
    yield (
        "--device auto",
        f"{device} ({'the first GPU torch sees' if device.type != 'cpu' else 'no GPU'})",
    )
    dtype = compute.choose_dtype("auto", device)
    native = "native here" if compute.native_bfloat16(device) else "emulated here"
    yield "--dtype auto", f"{str(dtype).removeprefix('torch.')} (bfloat16 is {native})"
    yield "--batch auto", str(choose_batch("auto", device.type))
    decoder = "NVDEC where it can, else the CPU" if device.type == "cuda" else "the CPU"
    yield "--decoder auto", decoder
