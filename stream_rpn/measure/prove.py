"""`stream-rpn doctor --prove`: whether the GPU at hand gives what it should, and how fast.

Each check is the promise of a part, tried on this device, driver and build: the kernels against
their references, the same bits again, no wait for the host, a captured network against one launched
kernel by kernel, NVDEC's pixels against the software decoder's. The times stand beside those of one
H100, so that a number that is far off is seen.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from stream_rpn.api import load
from stream_rpn.frame import StreamRPNError
from stream_rpn.kernels import dispatch, trial
from stream_rpn.kernels.epilogue import ACTIVATIONS
from stream_rpn.kernels.generate import generate_proposals
from stream_rpn.kernels.proposals import HeadOutputs, ProposalSpec
from stream_rpn.models import DEFAULT_MODEL
from stream_rpn.network.gpu import GPUNetwork
from stream_rpn.network.upload import new_event
from stream_rpn.pipeline import Pipeline
from stream_rpn.preprocess import planes
from stream_rpn.sources import open_source
from stream_rpn.sources.select import Selection
from stream_rpn.sources.synthetic import SyntheticVideo

_STAGE = "proposal stage, 8 images of R50-FPN, k = 1000: µs"
_NETWORK = f"{DEFAULT_MODEL}, from planes to boxes: µs a frame"
_DECODERS: dict[Literal["nvdec", "cpu"], str] = {
    "nvdec": f"{DEFAULT_MODEL}, 1080p H.264 decoded by NVDEC: frames/s",
    "cpu": f"{DEFAULT_MODEL}, 1080p H.264 decoded by the CPU: frames/s",
}

# What one NVIDIA H100 with 16 CPU cores gave (bench/results/gpu_proof.json).
ON_H100 = {_STAGE: 136.0, _NETWORK: 367.0, _DECODERS["cpu"]: 629.0, _DECODERS["nvdec"]: 404.0}

_GRIDS = ((192, 336), (96, 168), (48, 84), (24, 42), (12, 21))
_CLIP = SyntheticVideo(width=1920, height=1080, num_frames=240)


@dataclass(frozen=True)
class Check:
    """A promise tried.

    Attributes:
        name: what was tried.
        passed: None where it could not be.
        detail: what was seen.
    """

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Time:
    """A measurement: its name ends with the unit."""

    name: str
    value: float

    @property
    def on_h100(self) -> float | None:
        """What an H100 gave, where that is known."""
        return ON_H100.get(self.name)


class Proof:
    """The checks and times of one device, one after another.

    Args:
        device: a CUDA device.
        folder: for a video.
    """

    def __init__(self, device: torch.device, folder: Path) -> None:
        self._device, self._folder = device, folder
        self.checks: list[Check] = []
        self.times: list[Time] = []

    def run(self) -> Iterator[str]:
        """Yields the name of each part before it is tried; `checks` and `times` grow meanwhile."""
        for name, part in (
            ("kernels against their references", self._kernels),
            ("preprocessing against its reference", self._preprocessing),
            ("what is fused with convolutions against its references", self._passes),
            ("the same bits again, and alone", self._repeats),
            ("no wait for the device", self._no_waits),
            ("one graph against kernel by kernel", self._graphs),
            ("NVDEC against the software decoder", self._nvdec),
        ):
            yield name
            # A kernel that fails is replaced by its reference, with which it would agree.
            dispatch._broken.clear()
            passed: bool | None = False
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                try:
                    passed, detail = part()
                except Exception as error:
                    detail = f"{type(error).__name__}: {error}".split("\n")[0]
            self.checks.append(Check(name, passed, detail))
        yield "times"
        self._measure()

    @property
    def failed(self) -> list[Check]:
        """The checks that did not pass."""
        return [check for check in self.checks if check.passed is False]

    def verdict(self) -> str:
        """Returns one sentence."""
        name = torch.cuda.get_device_name(self._device)
        if self.failed:
            return (
                f"{len(self.failed)} of {len(self.checks)} checks failed on {name}: "
                f"{', '.join(check.name for check in self.failed)}; please report this output"
            )
        untried = [check.name for check in self.checks if check.passed is None]
        but = f"; not tried: {', '.join(untried)}" if untried else ""
        return f"{name} gives what it should{but}"

    def to_json(self) -> dict[str, Any]:
        """Returns everything found."""
        return {
            "device": torch.cuda.get_device_name(self._device),
            "verdict": self.verdict(),
            "checks": [vars(check) for check in self.checks],
            "times": [{**vars(each), "on_h100": each.on_h100} for each in self.times],
        }

    def _kernels(self) -> tuple[bool, str]:
        differences: list[tuple[str, str]] = []
        count = 0
        for dtype in (torch.float32, torch.bfloat16):
            for num_anchors, softmax, k in (([3] * 5, False, 1000), ([9], True, 3000)):
                spec = ProposalSpec(pre_nms_top_n=k, post_nms_top_n=1000)
                heads = trial.hard_heads(num_anchors, k, dtype, softmax=softmax, seed=count)
                differences += trial.proposals_differ(heads, spec, self._device)
                count += 1
        return _bits(differences, f"{count} kinds of heads with ties, NaN and infinities")

    def _preprocessing(self) -> tuple[bool, str]:
        differences: list[tuple[str, str]] = []
        for dtype in (torch.float32, torch.bfloat16):
            for antialias in (False, True):
                differences += trial.preprocessing_differs(dtype, self._device, antialias=antialias)
        return _bits(differences, "8 and 10 bits, turned, both filters, two number formats")

    def _passes(self) -> tuple[bool, str]:
        differences: list[tuple[str, str]] = []
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            differences += trial.passes_differ(dtype, self._device)
            differences += trial.depthwise_differs((3, 5), dtype, self._device)
        tried = f"{len(ACTIVATIONS)} activations, depthwise convolutions, three number formats"
        return _bits(differences, tried)

    def _repeats(self) -> tuple[bool, str]:
        heads, spec = self._heads(8), ProposalSpec()
        once = generate_proposals(heads, spec)
        same = all(
            torch.equal(a, b)
            for _ in range(10)
            for a, b in zip(generate_proposals(heads, spec), once, strict=True)
        )
        alone = generate_proposals(heads.image(5), spec)
        same &= all(torch.equal(a[5:6], b) for a, b in zip(once, alone, strict=True))
        return same, "11 runs of 8 images, and one image by itself"

    def _no_waits(self) -> tuple[bool, str]:
        heads, spec = self._heads(2), ProposalSpec()
        generate_proposals(heads, spec)
        torch.cuda.set_sync_debug_mode("error")
        try:
            generate_proposals(heads, spec)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return True, "the proposal stage, under torch's check"

    def _graphs(self) -> tuple[bool, str]:
        made = Pipeline(load("tiny"), device=str(self._device), batch=4)
        network = made.network
        assert isinstance(network, GPUNetwork)
        options = {"features": False, "images": False}
        plain = GPUNetwork(network.rpn, self._device, network.dtype, 4, graphs=False, **options)
        found, stages = [], ""
        for each in (network, plain):
            made.network = each
            with made.open("synthetic:640x360@25,40", Selection(decoder="cpu")) as stream:
                found.append([p.boxes for p in stream])
            stages = stages or " ".join(stream.times.stages)
        same = all((a == b).all() for a, b in zip(*found, strict=True))
        return same and "network" in stages, "40 frames of `tiny`, four at a time"

    def _nvdec(self) -> tuple[bool | None, str]:
        clip, count = self._clip(), 0
        try:
            hardware = open_source(clip, decoder="nvdec", device=str(self._device))
        except StreamRPNError as error:
            return None, str(error).rpartition("cannot be decoded by NVDEC: ")[2]
        with hardware, open_source(clip, decoder="cpu") as software:
            for ours, theirs in zip(hardware, software, strict=True):
                for plane, expected in zip(planes(ours), planes(theirs), strict=True):
                    if not torch.equal(plane.cpu(), expected):
                        return False, f"frame {ours.index} has other pixels"
                count += 1
        return True, f"every pixel of {count} frames of 1080p H.264"

    def _measure(self) -> None:
        spec = ProposalSpec()
        stages = [partial(generate_proposals, self._heads(8, seed), spec) for seed in range(4)]
        self.times.append(Time(_STAGE, _micros(stages)))
        made = Pipeline(load(), device=str(self._device))
        for decoder, name in _DECODERS.items():
            try:
                for _ in range(2):  # the first compiles and captures
                    start = time.perf_counter()
                    with made.open(self._clip(), Selection(decoder=decoder)) as stream:
                        count = sum(1 for _ in stream)
                    seconds = time.perf_counter() - start
            except StreamRPNError:
                continue
            self.times.append(Time(name, count / seconds))
        network = stream.times.summary().get("network")
        if network is not None:
            self.times.append(Time(_NETWORK, network["p50_ms"] * 1e3))

    def _heads(self, batch: int, seed: int = 0) -> HeadOutputs:
        """Returns head outputs of the size of R50-FPN's for 800 × 1333 pixels."""
        generator = torch.Generator(self._device).manual_seed(seed)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=self._device)

        bases = trial.hard_heads([3] * len(_GRIDS), 1).base_anchors
        return HeadOutputs(
            [random(batch, 3, *grid) * 2 - 4 for grid in _GRIDS],
            [random(batch, 12, *grid) * 0.2 for grid in _GRIDS],
            [base.to(self._device) for base in bases],
            [(4 << level, 4 << level) for level in range(len(_GRIDS))],
            torch.tensor([[749, 1333]] * batch, device=self._device),
        )

    def _clip(self) -> str:
        path = self._folder / "clip.mp4"
        if not path.exists():
            path.write_bytes(_CLIP.encoded().read())
        return str(path)


def _bits(differences: list[tuple[str, str]], tried: str) -> tuple[bool, str]:
    if not differences:
        return True, f"equal: {tried}"
    return False, "; ".join(f"{op} gives other {result}" for op, result in differences)


def _micros(functions: Sequence[Callable[[], Any]]) -> float:
    """Returns the median microseconds of a replay of the functions' graphs, one after another."""
    replays = []
    for function in functions:
        function()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
        replays.append(graph)
    samples: list[float] = []
    stream = torch.cuda.current_stream()
    for index in range(100):
        start, end = new_event(stream.device), new_event(stream.device)
        start.record(stream)
        replays[index % len(replays)].replay()
        end.record(stream)
        end.synchronize()
        samples.append(start.elapsed_time(end) * 1e3)
    return statistics.median(samples[10:])
