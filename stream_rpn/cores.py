"""How many cores there are to compute on."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_OLD_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
_OLD_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def available_cores() -> int:
    """Returns the cores that this process may use: of its affinity, within its cgroup's quota.

    A container with a quota sees all cores of its host, and threads for all of them would be halted
    for most of each period.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity to ask for
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota())))


def _quota() -> float:
    """Returns the number of cores that the cgroup grants; infinity where it sets no limit."""
    with suppress(OSError, ValueError):
        quota, period = _QUOTA.read_text().split()
        return int(quota) / int(period) if quota != "max" else math.inf
    with suppress(OSError, ValueError):
        limit = int(_OLD_QUOTA.read_text())
        return limit / int(_OLD_PERIOD.read_text()) if limit > 0 else math.inf
    return math.inf
