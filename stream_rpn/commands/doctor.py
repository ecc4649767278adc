"""`stream-rpn doctor`: what this machine has, what `auto` would choose, and whether it works."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from stream_rpn import models, signals
from stream_rpn.commands.parser import examples
from stream_rpn.commands.progress import say, under_way
from stream_rpn.commands.tables import print_json, print_table
from stream_rpn.frame import StreamRPNError

_MARKS = {True: "passed", False: "FAILED", None: "not tried"}
_STANDARD_OUTPUT = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `doctor`."""
    parser.epilog = examples(
        "stream-rpn doctor",
        "stream-rpn doctor --json | jq .auto",
        "stream-rpn doctor --prove --json proof.json    # on a GPU, within a minute",
    )
    parser.add_argument(
        "--prove", action="store_true", help="try and time everything on the GPU, within a minute"
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const=_STANDARD_OUTPUT,
        metavar="FILE",
        help="write what was found as JSON, to a file or to standard output instead of the report",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def run(arguments: argparse.Namespace) -> int:
    """Prints the report on standard output, or tries what the GPU gives."""
    if arguments.json not in (None, _STANDARD_OUTPUT):
        from stream_rpn.commands.outputs import check_file

        check_file(arguments.json, [], [], overwrite=arguments.overwrite)
    if arguments.prove:
        return _prove(arguments)
    with under_way("looking at this machine"):
        from stream_rpn.commands.findings import findings

        found = findings()
    _keep(found, arguments)
    if arguments.json != _STANDARD_OUTPUT:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in report(found):
            table.add_row(name, Text(value))  # in brackets are no styles
        print_table(table)
    return 0


def _keep(found: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Writes what was found as JSON, where that is asked for."""
    if arguments.json == _STANDARD_OUTPUT:
        print_json(found)
    elif arguments.json is not None:
        from stream_rpn.sinks.place import write_whole

        text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        write_whole(arguments.json, text.encode(), replace=arguments.overwrite)


def _prove(arguments: argparse.Namespace) -> int:
    """Tries the GPU; returns 0 where all of it gives what it should, else 3."""
    from rich.table import Table

    from stream_rpn import compute
    from stream_rpn.commands.findings import why_no_gpu

    if why := why_no_gpu():
        raise StreamRPNError(
            f"there is nothing to prove here: GPU none ({why}); a CPU computes with the references "
            "themselves"
        )
    from stream_rpn.measure.prove import Proof

    with signals.temporary_folder("stream-rpn-") as folder:
        proof = Proof(compute.choose_device(), folder)
        for part in proof.run():
            say(f"{part} …")
    _keep(proof.to_json(), arguments)
    if arguments.json != _STANDARD_OUTPUT:
        checks = Table("", "check", "seen", box=None, pad_edge=False)
        for check in proof.checks:
            checks.add_row(_MARKS[check.passed], check.name, check.detail)
        print_table(checks)
        times = Table("time", "here", "an H100", box=None, pad_edge=False)
        for each in proof.times:
            on_h100 = f"{each.on_h100:.0f}" if each.on_h100 else ""
            times.add_row(each.name, f"{each.value:.0f}", on_h100)
        print_table(times)
        print(proof.verdict())
    return 3 if proof.failed else 0


def report(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields pairs of an item and what `findings.findings` found of it, for people."""
    yield "stream-rpn", f"{found['stream_rpn']}, Python {found['python']}, {found['platform']}"
    for name, package in found["packages"].items():
        extras = ", ".join(f"stream-rpn[{extra}]" for extra in package["extras"])
        yield (
            name,
            (package["version"] or "not installed") + (f"  ({extras})" if extras else ""),
        )
    cpu, auto = found["cpu"], found["auto"]
    yield (
        "CPU",
        f"{cpu['name']}, {cpu['cores']} of {cpu['cores_of_machine']} cores, "
        f"{cpu['torch_threads']} torch threads, "
        f"bfloat16 {'used' if cpu['bfloat16'] else 'not known to be faster, so not used'}",
    )
    if found["why_no_gpu"]:
        yield "GPU", f"none ({found['why_no_gpu']})"
    for gpu in found["gpus"]:
        name, why = gpu["device"], gpu["why_no_cuda_graphs"]
        yield (
            name,
            f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB, compute capability "
            f"{gpu['compute_capability']}, CUDA {gpu['cuda']}, driver {gpu['driver']}",
        )
        yield f"{name} graphs", f"no ({why})" if why else "yes, a batch costs one launch"
        fused = gpu["fused_convolutions"]
        what = "with bias and ReLU in one" if fused else "plain: no fused ones here"
        yield f"{name} convolutions", what
    yield "NVDEC", f"no ({found['why_no_nvdec']})" if found["why_no_nvdec"] else "yes"
    yield "FFmpeg", ", ".join(f"{name} {version}" for name, version in found["ffmpeg"].items())
    decoders = ", ".join(found["hardware_decoders"])
    yield "hardware decoders", decoders or "none in this build of PyAV"
    why = found["why_no_triton"]
    yield (
        "Triton kernels",
        f"not used: {why}; the PyTorch form runs" if why else "used on every CUDA device",
    )
    weights = found["weights"]
    here = ", ".join(f"{name} (in the {where})" for name, where in weights["here"].items())
    yield "weights", f"{here}; others are fetched to {weights['cache']} on first use"
    why = auto["why_not_openvino"]
    yield "--engine auto", auto["engine"] + (f" (not openvino: {why})" if why else "")
    first = "the first GPU torch sees" if auto["device"] != "cpu" else "no GPU"
    yield "--device auto", f"{auto['device']} ({first})"
    faster = "faster" if auto["bfloat16"] else "not known to be faster"
    why, only = auto["why_not_int8"], ", ".join(models.IN_INT8)
    quantised = f", int8 for {only}" if auto["int8"] else ""
    yield "--dtype auto", f"{auto['dtype']}{quantised} (bfloat16 is {faster} here)"
    yield "--dtype int8", f"not here: {why}" if why else f"for {only}"
    yield "--batch auto", str(auto["batch"])
    yield "--decoder auto", auto["decoder"]
