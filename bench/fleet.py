"""An archive computed by a fleet, simulated: stragglers, preemption, poison, one driver.

Events in order of time, a worker's at once: a piece of video begins when its worker is free and the
driver has come to hand it out; it ends, or its worker is taken away, or it is poison and takes its
worker with it. Whatever is lost is handed out again.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

# Random numbers are drawn so many at a time.
DRAWN = 1 << 16


@dataclass(frozen=True)
class Archive:
    """Videos, of lengths as people film: some seconds, some minutes, a few for half a day.

    Attributes:
        hours: of video, in all.
        median: seconds of a video.
        sigma: of the logarithm of its length.
        longest: seconds.
        poison: share of the videos that crash whoever reads them, or hang until the time limit.
    """

    hours: float
    median: float = 600
    sigma: float = 1.2
    longest: float = 12 * 3600
    poison: float = 1e-4


@dataclass(frozen=True)
class Fleet:
    """Workers, and what happens to them.

    Attributes:
        workers: how many.
        speed: hours of video an hour, of an ordinary one.
        sigma: of the logarithm of a worker's speed.
        stragglers: share of the workers that are `slowness` times as slow.
        slowness: see there.
        preempted: how often an hour each is taken away.
        back: seconds until another stands in its place.
        start: seconds until that has loaded its model.
        opening: seconds of a piece before its first frame.
        handed_out: pieces a second that the driver gets done.
        limit: seconds without a frame after which a piece counts as hung.
        tries: how often a piece is tried that takes its worker with it.
    """

    workers: int = 10_000
    speed: float = 30
    sigma: float = 0.1
    stragglers: float = 0.01
    slowness: float = 4
    preempted: float = 0.05
    back: float = 180
    start: float = 20
    opening: float = 0.5
    handed_out: float = 1000
    limit: float = 300
    tries: int = 2


def lengths(archive: Archive, seed: int) -> np.ndarray:
    """Returns the seconds of each video, `float64 [N]`."""
    random = np.random.default_rng(seed)
    wanted, parts, total = archive.hours * 3600, [], 0.0
    while total < wanted:
        drawn = np.exp(np.log(archive.median) + archive.sigma * random.standard_normal(DRAWN))
        parts.append(np.clip(drawn, 1, archive.longest))
        total += parts[-1].sum()
    videos = np.concatenate(parts)
    return videos[: np.searchsorted(np.cumsum(videos), wanted) + 1]


def cut(videos: np.ndarray, seconds: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pieces of videos that are cut every so many seconds, None: not at all.

    Returns:
        their seconds, `float64 [P]`, and the number of each one's video, `int64 [P]`.
    """
    if seconds is None:
        return videos, np.arange(len(videos))
    counts = np.ceil(videos / seconds).astype(int)
    return np.repeat(videos / counts, counts), np.repeat(np.arange(len(videos)), counts)


def _drawn(draw: Callable[[int], np.ndarray]) -> Iterator[float]:
    while True:
        yield from draw(DRAWN).tolist()


def run(
    archive: Archive,
    fleet: Fleet,
    *,
    piece: float | None,
    longest_first: bool = False,
    shares: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns what becomes of an archive.

    Args:
        archive: what is to be done.
        fleet: who does it.
        piece: seconds that videos are cut into, None: they are not.
        longest_first: hand out long pieces first.
        shares: give each worker its share at the start, and nobody the work of another.
        seed: of all that is drawn.

    Returns:
        pieces; hours until all is done and until 99 % of the pieces are; ideal_hours of a fleet
        that is never idle and loses nothing; idle and wasted shares of the workers' time; lost
        pieces and failures; how busy the driver is.
    """
    videos = lengths(archive, seed)
    seconds, of = cut(videos, piece)
    random = np.random.default_rng((seed, 1))
    poison = (random.random(len(videos)) < archive.poison)[of].tolist()
    speeds = fleet.speed * np.exp(fleet.sigma * random.standard_normal(fleet.workers))
    speeds[random.random(fleet.workers) < fleet.stragglers] /= fleet.slowness
    parts = fleet.workers if shares else 1
    order = np.argsort(-seconds, kind="stable") if longest_first else np.arange(len(seconds))
    queues = [deque(order[i::parts].tolist()) for i in range(parts)]
    taken = _drawn(lambda n: random.exponential(3600 / max(fleet.preempted, 1e-12), n))
    chance = _drawn(random.random)
    work, speed = seconds.tolist(), speeds.tolist()
    tried: Counter[int] = Counter()
    free = [(fleet.start, worker) for worker in range(fleet.workers)]
    idle: list[int] = []
    back: list[tuple[float, int]] = []  # lost pieces, from when they can be handed out again
    driver = busy = wasted = 0.0
    lost = failed = 0
    ends: list[float] = []
    while free:
        now, worker = heapq.heappop(free)
        pieces = queues[worker % parts]
        if pieces:
            one = pieces.popleft()
        elif back:
            again, one = heapq.heappop(back)
            now = max(now, again)
        else:
            idle.append(worker)
            continue
        begin = max(now, driver)
        driver = begin + 1 / fleet.handed_out
        takes = fleet.opening + work[one] / speed[worker]
        until = next(taken)
        if poison[one]:
            takes = fleet.limit if next(chance) < 0.5 else takes * next(chance)
        if until >= takes and not poison[one]:
            busy += takes
            ends.append(begin + takes)
            heapq.heappush(free, (begin + takes, worker))
            continue
        # Whoever takes the worker away, another one starts.
        pause = fleet.start + (fleet.back if until < takes else 0)
        end = begin + min(until, takes)
        wasted += end - begin
        heapq.heappush(free, (end + pause, worker))
        lost += until < takes
        tried[one] += until >= takes
        if tried[one] == fleet.tries:
            failed += 1
            ends.append(end)
        elif shares:
            pieces.append(one)
        else:
            heapq.heappush(back, (end, one))
            if idle:
                heapq.heappush(free, (end, idle.pop()))
    ends.sort()
    return {
        "pieces": len(work),
        "hours": ends[-1] / 3600,
        "hours_99": ends[int(0.99 * (len(ends) - 1))] / 3600,
        "ideal_hours": float(seconds.sum() / speeds.sum()) / 3600,
        "wasted": wasted / (ends[-1] * fleet.workers),
        "idle": 1 - (busy + wasted) / (ends[-1] * fleet.workers),
        "lost": lost,
        "failed": failed,
        "driver_busy": len(work) / fleet.handed_out / ends[-1],
    }
