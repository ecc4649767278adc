"""Times work on a GPU: events around graph replays, input sets in turn; on a CPU, the clock."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench import report
from stream_rpn.network.upload import new_event, new_stream


class Timer:
    """Times functions on one device.

    Args:
        device: a GPU, or the CPU to try the benchmark itself.
        seconds: how long each measurement takes, about.
    """

    def __init__(self, device: torch.device, seconds: float = 0.4) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"
        self.seconds = seconds
        l2 = torch.cuda.get_device_properties(device).L2_cache_size if self.on_gpu else 0
        # Sets of so many bytes are used in turn that one has left the cache when its turn returns.
        self.working_set = 4 * l2

    def num_sets(self, bytes_per_set: int) -> int:
        """Returns how many input sets make up the working set, 2 to 24."""
        return max(2, min(24, -(-self.working_set // max(bytes_per_set, 1))))

    def copy_bytes_per_second(self) -> float:
        """Returns the bytes that a large device-to-device copy moves, reads and writes together."""
        source = torch.empty(2**30 if self.on_gpu else 2**24, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        source.random_()
        time = self.calls([lambda: target.copy_(source)])
        return 2 * source.numel() / (time["median_ms"] / 1e3)

    def graphs(self, functions: Sequence[Callable[[], Any]]) -> dict[str, float]:
        """Times replays of one CUDA graph a function; each function has its own inputs."""
        if not self.on_gpu:
            return self.calls(functions)
        replays = []
        pool = torch.cuda.graph_pool_handle()
        side = new_stream(self.device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for function in functions:
                function()
        torch.cuda.current_stream().wait_stream(side)
        outputs = []
        for function in functions:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                outputs.append(function())
            replays.append(graph.replay)
        return self.calls(replays)

    def calls(self, functions: Sequence[Callable[[], Any]], min_runs: int = 5) -> dict[str, float]:
        """Times calls of the functions in turn, each between two events; see `report.summarize`.

        The host runs ahead by up to 50 calls, so that what the device waits for is not the host.
        """
        for function in functions:
            function()
        self._synchronize()
        turn = itertools.cycle(functions)
        samples: list[float] = []
        while len(samples) < min_runs or (
            sum(samples) < self.seconds * 1e3 and len(samples) < 2000
        ):
            pairs = []
            chunk = 1 if samples and samples[-1] * 50 > self.seconds * 1e3 else 50
            for _ in range(chunk if samples else 1):
                start, end = new_event(self.device), new_event(self.device)
                start.record(self._stream())
                next(turn)()
                end.record(self._stream())
                pairs.append((start, end))
            self._synchronize()
            samples += [start.elapsed_time(end) for start, end in pairs]
        return report.summarize(samples)

    def _stream(self) -> Any:
        return torch.cuda.current_stream(self.device) if self.on_gpu else None

    def _synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
