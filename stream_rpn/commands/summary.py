"""What is said of a run at its end, for people and for programs."""

from __future__ import annotations

from typing import Any


def describe(summary: dict[str, Any]) -> str:
    """Returns the summary of one source for people: two or three lines."""
    stages = " · ".join(
        f"{name} {stage['p50_ms']:.2f}" for name, stage in summary["stages"].items()
    )
    drops = sum(summary["drops"].values())
    lost = f", {drops} lost" if drops else ""
    if any(summary.get("age_ms", {}).values()):
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary["drops"].items())
        age = summary["age_ms"]
        lost = (
            f"\n  live: {summary['frames_in']} frames in, {drops} dropped"
            f"{f' ({reasons})' if reasons else ''}, {summary['reconnects']} reconnects; age "
            f"{age['p50']:.0f} ms, p95 {age['p95']:.0f}, p99 {age['p99']:.0f}"
        )
    return (
        f"{summary['source']}: {summary['frames']} frames, {summary['fps']:.1f} frames/s "
        f"({summary['elapsed_seconds']:.2f} s){lost}; {summary['model']} in {summary['dtype']} on "
        f"{summary['device']}, decoder {summary['decoder']}\n"
        f"  ms per frame: {stages}; slowest: {summary['slowest_stage']}\n"
        f"  → {', '.join(summary['outputs']) or 'nowhere'}"
    )
