"""The summary of a run at its end, for people and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from stream_rpn.drops import DropKind, DropReason, count_of
from stream_rpn.printable import counted

if TYPE_CHECKING:
    from stream_rpn.statistics import StreamStatistics


def source_summary(
    stream: StreamStatistics,
    network: Mapping[str, Any],
    outputs: Sequence[str],
    expected: int | None,
    name: str | None = None,
) -> dict[str, Any]:
    """Returns what is to be said of one source, so far or at its end.

    Args:
        stream: what was counted and timed.
        network: `Pipeline.facts`.
        outputs: names of the outputs that have its results.
        expected: about how many results it was to give, None where nothing tells.
        name: that was given to the source, None where it has that of its address.
    """
    times, gate = stream.stage_times, stream.selection.gate
    return {
        "source": stream.info.source,
        **({} if name is None else {"name": name}),
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


def describe_damage(stream: StreamStatistics) -> str:
    """Returns what of a source was damaged, in a sentence; "" where nothing was."""
    lost = [
        f"{count} × {reason}" if count else _told(reason, stream.missing_seconds)
        for reason, count in stream.drops.items()
        if DropReason(reason).kind is DropKind.DAMAGE
    ]
    if stream.corrupt_frames:
        lost.append(f"{stream.corrupt_frames} × frame with errors in its picture")
    if not lost:
        return ""
    return (
        f"{stream.info.source}: the video is damaged ({', '.join(lost)}); every frame that decodes "
        "was used"
    )


def _told(reason: str, missing_seconds: float | None) -> str:
    """Returns a loss of which nobody knows how many, in words."""
    seconds = "" if missing_seconds is None else f" {missing_seconds:.2f} s before its end"
    return f"{reason}{seconds}"


_FEW_OUTPUTS = 3


def describe_all(summary: dict[str, Any], num_sources: int) -> str:
    """Returns the totals of `run_summary` for people: a line or two.

    Args:
        summary: what `run_summary` returned.
        num_sources: of all that were asked for; some may have failed before they began.
    """
    sources = summary["sources"]
    stopped = sum("stopped" in source for source in sources)
    lost = count_of(summary["drops"], DropKind.DAMAGE, DropKind.POLICY)
    told = {
        f"{num_sources - len(sources):,} without results": num_sources - len(sources),
        f"{stopped:,} stopped": stopped,
        f"{counted(lost, 'frame')} lost": lost,
    }
    notes = "".join(f", {note}" for note, count in told.items() if count)
    outputs = summary["outputs"]
    more = len(outputs) - _FEW_OUTPUTS
    names = ", ".join(outputs if more <= 1 else outputs[:_FEW_OUTPUTS])
    where = f"\n  → {names}{f' and {more} more' if more > 1 else ''}" if outputs else ""
    return (
        f"{num_sources} sources: {counted(summary['frames'], 'frame')}, "
        f"{summary['fps']:.1f} frames/s ({summary['elapsed_seconds']:.2f} s){notes}; "
        f"{summary['model']} in {summary['dtype']} on {summary['device']}{where}"
    )


def describe(summary: dict[str, Any]) -> str:
    """Returns the summary of one source for people: two or three lines."""
    stages = " · ".join(
        f"{name} {stage['p50_ms']:.2f}" for name, stage in summary["stages"].items()
    )
    drops = summary["drops"]
    num_lost = count_of(drops, DropKind.DAMAGE, DropKind.POLICY)
    lost = f", {num_lost} lost" if num_lost else ""
    lost += "".join(f", {reason}" for reason, count in drops.items() if not count)
    if any(summary.get("age_ms", {}).values()):
        # All of them: with the results they add up to the frames that came.
        reasons = ", ".join(f"{count} {reason}" for reason, count in drops.items())
        age = summary["age_ms"]
        lost = (
            f"\n  live: {counted(summary['frames_in'], 'frame')} in, {sum(drops.values())} dropped"
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
    frames, held = counted(summary["frames"], "frame"), ""
    if "gate" in summary:
        held = f", {summary['held']:,} held"
    if stopped := summary.get("stopped"):
        if summary["expected_frames"]:
            frames = f"{summary['frames']:,} of {counted(summary['expected_frames'], 'frame')}"
        frames = f"{'failed' if stopped == 'failed' else 'stopped'} after {frames}"
    source = summary["source"]
    if name := summary.get("name"):
        source = f"{name} ({source})"
    return (
        f"{source}: {frames}{held}, {summary['fps']:.1f} frames/s "
        f"({summary['elapsed_seconds']:.2f} s){lost}; {summary['model']} in {summary['dtype']} on "
        f"{summary['device']}{launched}, decoder {summary['decoder']}\n"
        f"  ms per frame: {stages}; slowest: {summary['slowest_stage']}"
        f"{where}"
    )
