"""The cost of a piece of work: time, CPU, GPU, memory, energy."""

from __future__ import annotations

import importlib
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from stream_rpn.cores import available_cores

_SAMPLE_SECONDS = 0.05
RAPL = Path("/sys/class/powercap")


@dataclass
class Usage:
    """The resources that were used; None where the system does not tell.

    Attributes:
        seconds: of the clock.
        cpu_seconds: of this process, all threads. Threads that spin while they wait count, too.
        cpu_utilisation: `cpu_seconds` as a share of all cores.
        others_utilisation: the share of all cores that other processes took meanwhile: above a few
            hundredths, the machine was not quiet.
        peak_memory_mb: largest resident size of this process, sampled.
        gpu_peak_memory_mb: largest size of torch's allocations.
        gpu_utilisation: mean share of time in which the GPU ran a kernel, from the driver.
        gpu_joules: energy of the whole GPU, from the driver.
        cpu_joules: energy of the CPU packages (RAPL), where it may be read.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    cpu_utilisation: float = 0.0
    others_utilisation: float | None = None
    peak_memory_mb: float | None = None
    gpu_peak_memory_mb: float | None = None
    gpu_utilisation: float | None = None
    gpu_joules: float | None = None
    cpu_joules: float | None = None


class Meter:
    """Measures what runs inside its `with`; the answer is in `usage` afterwards."""

    def __init__(self, device: str = "cpu", *, rapl: Path = RAPL) -> None:
        self.usage = Usage()
        self._gpu = _GPU(torch.device(device)) if device.startswith("cuda") else None
        self._rapl = _rapl_domains(rapl)
        self._resident: list[float] = []
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        if self._gpu is not None:
            self._gpu.start()
        self._joules = _rapl_joules(self._rapl)
        self._machine = busy_seconds()
        self._thread = threading.Thread(target=self._sample, name="meter", daemon=True)
        self._thread.start()
        self._cpu, self._clock = time.process_time(), time.perf_counter()
        return self

    def elapsed(self) -> float:
        """Returns the seconds since the `with` was entered."""
        return time.perf_counter() - self._clock

    def __exit__(self, *exception: object) -> None:
        usage = self.usage
        if self._gpu is not None:
            self._gpu.finish(usage)
        usage.seconds = time.perf_counter() - self._clock
        usage.cpu_seconds = time.process_time() - self._cpu
        self._stop.set()
        self._thread.join()
        available = max(usage.seconds * available_cores(), 1e-9)
        usage.cpu_utilisation = usage.cpu_seconds / available
        machine = busy_seconds()
        if machine is not None and self._machine is not None:
            others = machine - self._machine - usage.cpu_seconds
            usage.others_utilisation = max(0.0, others) / available
        usage.peak_memory_mb = max(self._resident, default=None)
        joules = _rapl_joules(self._rapl)
        if joules is not None and self._joules is not None:
            usage.cpu_joules = sum(
                (after - before) % wrap
                for after, before, (_, wrap) in zip(joules, self._joules, self._rapl, strict=True)
            )

    def _sample(self) -> None:
        while True:
            resident = resident_mb()
            if resident is not None:
                self._resident.append(resident)
            if self._gpu is not None:
                self._gpu.sample()
            if self._stop.wait(_SAMPLE_SECONDS):
                return


def resident_mb() -> float | None:
    """Returns the resident size of this process in MiB, None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def busy_seconds() -> float | None:
    """Returns the seconds that our cores together have worked since the machine started."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
        ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    except (OSError, AttributeError):
        return None
    ticks = 0
    for name, *fields in (line.split() for line in lines):
        if name in ours:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def _rapl_domains(root: Path) -> list[tuple[Path, float]]:
    """Returns the energy counter of each CPU package, with the joules at which it wraps."""
    domains = []
    # intel-rapl:0 is a package; intel-rapl:0:1 a part of it, counted there already.
    for folder in sorted(root.glob("intel-rapl:[0-9]*")):
        if folder.name.count(":") != 1:
            continue
        try:
            counter, wrap = folder / "energy_uj", folder / "max_energy_range_uj"
            int(counter.read_text())
            domains.append((counter, int(wrap.read_text()) / 1e6))
        except (OSError, ValueError):
            continue  # most systems let only root read it
    return domains


def _rapl_joules(domains: list[tuple[Path, float]]) -> list[float] | None:
    if not domains:
        return None
    try:
        return [int(counter.read_text()) / 1e6 for counter, _ in domains]
    except OSError:
        return None


@dataclass
class _GPU:
    """torch's counters, and the driver's where its Python package (nvidia-ml-py) is installed."""

    device: torch.device
    busy: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.nvml: Any = None
        try:
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
            uuid = torch.cuda.get_device_properties(self.device).uuid
            self.handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            self.nvml = nvml
        except Exception:
            # No package, no driver library, a GPU partition: the numbers stay None.
            pass

    def _joules(self) -> float | None:
        try:
            millijoules: float = self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)
        except Exception:
            return None
        return millijoules / 1e3

    def start(self) -> None:
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        self.before = self._joules()

    def sample(self) -> None:
        try:
            rates = self.nvml.nvmlDeviceGetUtilizationRates(self.handle)
        except Exception:
            return
        self.busy.append(rates.gpu / 100)

    def finish(self, usage: Usage) -> None:
        torch.cuda.synchronize(self.device)
        usage.gpu_peak_memory_mb = torch.cuda.max_memory_allocated(self.device) / 2**20
        after = self._joules()
        if self.before is not None and after is not None:
            usage.gpu_joules = after - self.before
        if self.busy:
            usage.gpu_utilisation = sum(self.busy) / len(self.busy)
