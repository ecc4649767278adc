"""Launches of a fixed size, and what each kernel does in them per unit of its work.

Kept in kernels/resources.json under "work", by version of Triton, for the tests to compare with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from unittest import mock

import torch

from bench import aot
from stream_rpn.kernels import nms_triton as nms_module
from stream_rpn.kernels.depthwise_triton import depthwise_triton
from stream_rpn.kernels.preprocess_triton import preprocess_triton
from stream_rpn.kernels.proposals import ProposalSpec
from stream_rpn.kernels.propose_triton import select_candidates_triton
from tests.preprocess_oracle import MEAN, STD, Picture, lay_out
from tests.proposal_cases import candidates, head_outputs
from tests.ptx import launcher
from tests.ptx.launcher import Launch

# Numbers may exceed the table so much: a compiler's patch release moves them a little.
TOLERANCE = 1.1
SIZES = ((64, 64), (32, 32))
CANDIDATES, TOP = (640, 320), 640
LOGITS = sum(3 * height * width for height, width in SIZES)
PIXELS = (96, 336)
MAP = (3, 48)

Row = dict[str, float | str]


@dataclass(frozen=True)
class Unit:
    """What a kernel's work is counted in.

    Attributes:
        name: of 32, one a lane of a warp.
        number: of them in a launch.
    """

    name: str
    number: int


def _units() -> dict[str, Unit]:
    """Returns units by kernel, or by operation for kernels that are not named."""
    slots = sum(CANDIDATES)
    return {
        "propose": Unit("logits", LOGITS),
        "propose_decode_kernel": Unit("comparisons", len(SIZES) * max(CANDIDATES) ** 2),
        "nms": Unit("candidates", slots),
        "nms_overlap_kernel": Unit("IoUs", sum(k * (k - 1) // 2 for k in CANDIDATES)),
        "nms_merge_kernel": Unit("slots", TOP),
        "preprocess": Unit("pixels", PIXELS[0] * PIXELS[1]),
        "depthwise": Unit("pixels in 58 channels", MAP[0] * MAP[1]),
    }


def unit_of(kernel: str) -> Unit:
    units = _units()
    return units[kernel] if kernel in units else units[kernel.split("_")[0]]


def _propose(dtype: torch.dtype, channels_last: bool) -> None:
    heads = head_outputs(SIZES, dtype=dtype, channels_last=channels_last)
    select_candidates_triton(heads, ProposalSpec(pre_nms_top_n=max(CANDIDATES)))


def _suppress(sizes: tuple[int, ...], chunk: int) -> None:
    given = candidates(sizes, span=700.0, rejected=0.0)
    with mock.patch.object(nms_module, "CHUNK", chunk):
        nms_module.nms_triton(given, sizes, ProposalSpec(post_nms_top_n=TOP, nms_thresh=0.7))


def _preprocess(picture: Picture, antialias: bool) -> None:
    data, table, matrix = lay_out([picture])
    out = torch.empty(1, 3, *PIXELS, dtype=torch.bfloat16, memory_format=torch.channels_last)
    preprocess_triton(data, table, matrix, MEAN, STD, out, antialias=antialias)


def _depthwise(side: int) -> None:
    x = torch.randn(1, *MAP, 58).bfloat16().permute(0, 3, 1, 2)
    weight, bias = torch.randn(side, side, 58).bfloat16(), torch.randn(58).bfloat16()
    depthwise_triton(x, weight, bias, "leaky_relu", 0.1, 1, side // 2)


WORKS: dict[str, Callable[[], None]] = {
    "propose/fp32 nchw": lambda: _propose(torch.float32, False),
    "propose/bf16 nhwc": lambda: _propose(torch.bfloat16, True),
    "nms": lambda: _suppress(CANDIDATES, nms_module.CHUNK),
    # One kernel is launched from the second chunk on, and a chunk as shipped holds them all.
    # Other sizes, as the tables of a launch are kept by these.
    "nms/chunks of 256": lambda: _suppress((641, 319), 256),
    "preprocess/nv12": lambda: _preprocess(Picture(135, 480, PIXELS, interleaved=True), False),
    "preprocess/turned 420": lambda: _preprocess(Picture(480, 135, PIXELS, 90), False),
    "preprocess/nv12 antialias": lambda: _preprocess(
        Picture(135, 480, PIXELS, interleaved=True), True
    ),
    "depthwise/3": lambda: _depthwise(3),
    "depthwise/5": lambda: _depthwise(5),
}


def count(name: str) -> dict[str, Row]:
    """Returns what each kernel of a work does, by its name."""
    torch.manual_seed(0)
    with launcher.simulated() as launches:
        WORKS[name]()
    by_kernel = defaultdict(list)
    for launch in launches:
        by_kernel[launch.kernel].append(launch)
    return {kernel: _row(kernel, found) for kernel, found in by_kernel.items()}


def _row(kernel: str, launches: Sequence[Launch]) -> Row:
    unit = unit_of(kernel)

    def total(name: str) -> int:
        return sum(getattr(launch.counts, name) for launch in launches)

    def ratio(part: int, whole: int) -> float:
        return round(part / whole, 2) if whole else 0.0

    programs = sum(launch.programs for launch in launches)
    return {
        "per": f"32 {unit.name}",
        "instructions": ratio(32 * total("instructions"), unit.number * len(launches)),
        "sectors_per_load": ratio(total("load_sectors"), total("loads")),
        "sectors_per_store": ratio(total("store_sectors"), total("stores")),
        "sectors": ratio(
            32 * (total("load_sectors") + total("store_sectors")), unit.number * len(launches)
        ),
        "wavefronts_per_request": ratio(total("shared_wavefronts"), total("shared_requests")),
        "barriers_per_program": ratio(total("barriers"), programs),
    }


def problems(row: Row, committed: Row | None) -> Iterator[str]:
    """Yields what is worse than the table says, a sentence each."""
    if committed is None:
        yield "is not in kernels/resources.json: run python -m tests.ptx --update"
        return
    for name, value in row.items():
        allowed = committed.get(name, 0.0)
        if name != "per" and float(value) > float(allowed) * TOLERANCE:
            yield f"has {value} {name.replace('_', ' ')}, the table says {allowed}"


def read() -> dict[str, dict[str, Row]]:
    """Returns the table of the installed Triton: rows by work and kernel."""
    return aot.read_file().get("work", {}).get(aot.TRITON, {})


def write(table: dict[str, dict[str, Row]]) -> None:
    parts = aot.read_file()
    parts["work"] = {**parts.get("work", {}), aot.TRITON: table}
    aot.write_file(parts)


def fit(kernel: str) -> str:
    """Returns how many programs of a kernel fit on a multiprocessor, by resources.json."""
    resources = aot.read_table().get(aot.TRITON, {}).get("sm_90", {})
    found = {
        aot.programs_per_sm(row["registers"], row["shared_bytes"], config.num_warps)
        for config in aot.shipped()
        if config.kernel.fn.__name__ == kernel and (row := resources.get(config.name))
    }
    return "–".join(str(number) for number in sorted({min(found), max(found)})) if found else "?"
