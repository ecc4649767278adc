"""Which decoder a GPU machine should use: python -m bench.decoders [CLIP …] [--json PATH].

Frames/s of whole pipelines from file to JSON lines with the default model on a GPU, decoded by the
CPU's cores and by NVDEC, in turns: for each clip (where none is named, a made-up one), for one
source and several at a time, on all cores and on as few as a smaller machine has. From the first
result to the last: opening a file takes NVDEC a tenth of a second.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from bench import report
from bench.gpu_frames import encoded_clip, run_side_by_side
from stream_rpn.frame import StreamRPNError
from stream_rpn.models import DEFAULT_MODEL
from stream_rpn.pipeline import Pipeline, Selection

DECODERS: tuple[Literal["cpu", "nvdec"], ...] = ("cpu", "nvdec")
ROUNDS = 2
COLUMNS = ("clip", "size", "sources", "cores", "decoder", "fps", "fps_min", "fps_max", "cpu_ms")


def measure(pipeline: Pipeline, clip: Path, size: str) -> Iterator[dict[str, Any]]:
    """Yields a row per decoder for every number of sources and cores."""
    everything = os.sched_getaffinity(0)
    for cores in sorted({min(n, len(everything)) for n in (2, len(everything))}):
        # Threads that are started from here on, the decoders' among them, inherit it.
        os.sched_setaffinity(0, sorted(everything)[:cores])
        try:
            for sources in (1, 4):
                rates: dict[str, list[float]] = {name: [] for name in DECODERS}
                costs: dict[str, list[float]] = {name: [] for name in DECODERS}
                used: dict[str, str] = {}
                for turn in range(ROUNDS + 1):
                    for decoder in DECODERS:
                        worked = time.process_time()
                        streams, took = run_side_by_side(
                            pipeline, clip, Selection(decoder=decoder), sources
                        )
                        work = time.process_time() - worked
                        frames = sum(stream.num_results for stream in streams)
                        used[decoder] = streams[0].info.decoder
                        if turn:  # the first compiles and captures
                            rates[decoder].append(frames / took)
                            costs[decoder].append(work / frames * 1e3)
                for decoder in DECODERS:
                    yield {
                        "clip": clip.name,
                        "size": size,
                        "sources": sources,
                        "cores": cores,
                        "decoder": used[decoder],
                        "fps": round(statistics.median(rates[decoder]), 1),
                        "fps_min": round(min(rates[decoder]), 1),
                        "fps_max": round(max(rates[decoder]), 1),
                        "cpu_ms": round(statistics.median(costs[decoder]), 3),
                        "rounds": ROUNDS,
                    }
        finally:
            os.sched_setaffinity(0, everything)


def main() -> int:
    import torch

    from stream_rpn.api import load
    from stream_rpn.sources import open_source

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("clips", nargs="*", type=Path)
    parser.add_argument("--json", type=Path, default=Path("bench/results/decoders.json"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench.decoders needs a CUDA device")
        return 2
    print(report.describe_machine(facts := report.machine()))
    pipeline = Pipeline(load(DEFAULT_MODEL), engine="torch", device="cuda:0", batch=8)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        made_up = encoded_clip(Path(folder), (1920, 1080), 300, 1)
        for clip in arguments.clips or [made_up]:
            with open_source(str(clip), decoder="cpu") as source:
                size = f"{source.info.width}x{source.info.height} {source.info.codec}"
            try:
                for row in measure(pipeline, clip, size):
                    report.print_table([row], COLUMNS)
                    rows.append(row)
                    report.write_json(arguments.json, "decoders", rows, machine=facts)
            except StreamRPNError as error:
                print(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
