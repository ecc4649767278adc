"""The state of all sources in Prometheus' text format, written by prometheus_client."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from stream_rpn.drops import DropReason
from stream_rpn.sinks.web.view import State, View

_COUNTERS = {
    "frames": ("stream_rpn_frames", "Results written."),
    "held": ("stream_rpn_held", "Results of an earlier frame, as the picture had not changed."),
    "damaged_packets": ("stream_rpn_damaged_packets", "Packets that could not be decoded."),
    "frames_in": ("stream_rpn_frames_in", "Frames that came: results, drops, under way."),
    "reconnects": ("stream_rpn_reconnects", "Times a lost connection was made again."),
    "corrupt_frames": ("stream_rpn_corrupt_frames", "Frames the decoder marked as damaged."),
}
_GAUGES = {
    "fps": ("stream_rpn_frames_per_second", "Results per second since the source began."),
    "queued": ("stream_rpn_queued", "What waits at the network."),
}
_ABOUT = ("decoder", "device", "dtype", "model")


class _Sources(Collector):
    def __init__(self, views: Sequence[View], viewers: int) -> None:
        self._views = views
        self._viewers = viewers

    def collect(self) -> Iterable[Metric]:
        begun = [view for view in self._views if view.header]
        states = [(view.source, view.summary()) for view in begun]
        for key, (name, about) in _COUNTERS.items():
            counter = CounterMetricFamily(name, about, labels=["source"])
            for source, state in states:
                if key in state:
                    counter.add_metric([source], state[key])
            yield counter
        for key, (name, about) in _GAUGES.items():
            gauge = GaugeMetricFamily(name, about, labels=["source"])
            for source, state in states:
                gauge.add_metric([source], state[key])
            yield gauge
        drops = CounterMetricFamily(
            "stream_rpn_drops", "Frames that were lost, by reason.", labels=["source", "reason"]
        )
        stages = Metric("stream_rpn_stage_seconds", "Time per frame in each stage.", "summary")
        ages = Metric(
            "stream_rpn_age_seconds", "From arrival of a live frame to its result.", "summary"
        )
        use = InfoMetricFamily("stream_rpn_source", "What is in use.", labels=["source"])
        up = GaugeMetricFamily("stream_rpn_up", "1 until the source has ended.", labels=["source"])
        silent = GaugeMetricFamily(
            "stream_rpn_silent_seconds", "Time since the last result.", labels=["source"]
        )
        for view, (source, state) in zip(begun, states, strict=True):
            # Each reason from the start: of a counter that appears its first step is not seen.
            for reason, count in {**dict.fromkeys(DropReason, 0), **state["drops"]}.items():
                drops.add_metric([source, reason], count)
            for quantile, key in (("0.5", "p50"), ("0.95", "p95"), ("0.99", "p99")):
                if "age_ms" in state:
                    ages.add_sample(
                        "stream_rpn_age_seconds",
                        {"source": source, "quantile": quantile},
                        state["age_ms"][key] / 1e3,
                    )
            for stage, times in state["stages"].items():
                labels = {"source": source, "stage": stage}
                for quantile, key in (("0.5", "p50_ms"), ("0.95", "p95_ms")):
                    stages.add_sample(
                        "stream_rpn_stage_seconds",
                        {**labels, "quantile": quantile},
                        times[key] / 1e3,
                    )
                stages.add_sample("stream_rpn_stage_seconds_sum", labels, times["total_seconds"])
            use.add_metric([source], {key: str(state[key]) for key in _ABOUT})
            up.add_metric([source], float(not view.ended))
            silent.add_metric([source], view.silent_seconds)
        connected = GaugeMetricFamily(
            "stream_rpn_connected", "1 while the source gives pictures.", labels=["source"]
        )
        for view in self._views:
            now, _ = view.state_of(view.summary())
            connected.add_metric([view.source], float(now in (State.LIVE, State.RUNNING)))
        yield from (drops, ages, stages, use, up, silent, connected)
        yield GaugeMetricFamily("stream_rpn_viewers", "Who watches.", value=self._viewers)


def exposition(views: Sequence[View], viewers: int) -> bytes:
    """Returns the text that Prometheus reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Sources(views, viewers))
    return generate_latest(registry)
