"""The summary of a run at its end, for people and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from stream_rpn.frame import DropKind, DropReason

if TYPE_CHECKING:
    from stream_rpn.statistics import StreamStatistics


def source_summary(
    stream: StreamStatistics,
    network: Mapping[str, Any],
    outputs: Sequence[str],
    expected: int | None,
) -> dict[str, Any]:
    """Returns what is to be said of one source, so far or at its end.

    Args:
        stream: what was counted and timed.
        network: `Pipeline.facts`.
        outputs: names of the outputs that have its results.
        expected: about how many results it was to give, None where nothing tells.
    """
    times, gate = stream.stage_times, stream.selection.gate
    return {
        "source": stream.info.source,
        **stream.account(),
        "held": stream.num_held,
        **({"stopped": stream.stopped, "expected_frames": expected} if stream.stopped else {}),
        "fps": round(stream.fps, 2),
        "elapsed_seconds": round(stream.elapsed_seconds, 3),
        "decoder": stream.info.decoder,
        **network,
        **({} if gate is None else {"gate": asdict(gate)}),
        "stages": times.summary(),
        "slowest_stage": times.slowest(),
        **stream.live_totals(),
        "damaged_packets": stream.damaged_packets,
        "corrupt_frames": stream.corrupt_frames,
        **stream.oddities(),
        "outputs": list(outputs),
    }


def run_summary(
    sources: Sequence[dict[str, Any]],
    network: Mapping[str, Any],
    outputs: Sequence[str],
    failures: Sequence[str],
    *,
    together: bool,
) -> dict[str, Any]:
    """Returns the totals of several sources with the summary of each.

    Args:
        sources: `source_summary` of each.
        network: `Pipeline.facts`.
        outputs: names of all outputs that have results.
        failures: a sentence for each thing that went wrong.
        together: the sources ran at the same time, not one after another.
    """
    frames = sum(source["frames"] for source in sources)
    each = [source["elapsed_seconds"] for source in sources]
    seconds = max(each, default=0.0) if together else sum(each)
    drops: Counter[str] = Counter()
    for source in sources:
        drops.update(source["drops"])
    return {
        "frames": frames,
        "frames_in": sum(source["frames_in"] for source in sources),
        "held": sum(source["held"] for source in sources),
        "fps": round(frames / seconds, 2) if seconds else 0.0,
        "elapsed_seconds": round(seconds, 3),
        **network,
        "drops": drops,
        "damaged_packets": sum(source["damaged_packets"] for source in sources),
        "corrupt_frames": sum(source["corrupt_frames"] for source in sources),
        "outputs": list(outputs),
        "failures": list(failures),
        "sources": list(sources),
    }


def describe(summary: dict[str, Any]) -> str:
    """Returns the summary of one source for people: two or three lines."""
    stages = " · ".join(
        f"{name} {stage['p50_ms']:.2f}" for name, stage in summary["stages"].items()
    )
    drops = summary["drops"]
    num_lost = sum(
        count for reason, count in drops.items() if DropReason(reason).kind is not DropKind.WISH
    )
    lost = f", {num_lost} lost" if num_lost else ""
    lost += "".join(f", {reason}" for reason, count in drops.items() if not count)
    if any(summary.get("age_ms", {}).values()):
        # All of them: with the results they add up to the frames that came.
        reasons = ", ".join(f"{count} {reason}" for reason, count in drops.items())
        age = summary["age_ms"]
        lost = (
            f"\n  live: {summary['frames_in']} frames in, {sum(drops.values())} dropped"
            f"{f' ({reasons})' if reasons else ''}, {summary['reconnects']} reconnects; age "
            f"{age['p50']:.0f} ms, p95 {age['p95']:.0f}, p99 {age['p99']:.0f}"
        )
    mended = summary.get("clock_mended", {})
    if jumps := mended.get("jumps"):
        lost += f", its clock jumped {jumps} × and goes on as if it had not"
    if held := mended.get("held"):
        lost += f", {held} frames out of turn have the time of the one before"
    if stood := mended.get("stood"):
        lost += f", its clock stood still for {stood} frames"
    where = f"\n  → {', '.join(summary['outputs'])}" if summary["outputs"] else ""
    why_not = summary.get("without_cuda_graph")
    launched = f" (kernel by kernel, without a CUDA graph: {why_not})" if why_not else ""
    if why_blind := summary.get("without_gate"):
        launched += f" (not gated: {why_blind})"
    frames, held = f"{summary['frames']:,}", ""
    if "gate" in summary:
        held = f", {summary['held']:,} held"
    if stopped := summary.get("stopped"):
        of = f" of {summary['expected_frames']:,}" if summary["expected_frames"] else ""
        frames = f"{'failed' if stopped == 'failed' else 'stopped'} after {frames}{of}"
    return (
        f"{summary['source']}: {frames} frames{held}, {summary['fps']:.1f} frames/s "
        f"({summary['elapsed_seconds']:.2f} s){lost}; {summary['model']} in {summary['dtype']} on "
        f"{summary['device']}{launched}, decoder {summary['decoder']}\n"
        f"  ms per frame: {stages}; slowest: {summary['slowest_stage']}"
        f"{where}"
    )
