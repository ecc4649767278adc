"""Charts of an explanation, drawn by matplotlib: a function a chart, each of the facts alone.

A page shows them as SVG in the colours of its theme, a directory as PNG.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from stream_rpn.explanation.facts import Explanation
from stream_rpn.frame import StreamRPNError

# Told apart on light and on dark ground; by level, and again from the start.
COLOURS = ("#3d8fd6", "#2a9d8f", "#d98e1f", "#dc5f4b", "#8b6fd0", "#6f8f35")
# Stand-ins, which a page replaces by the colours of its theme.
INK, LINE = "#101112", "#c3c4c5"
WIDTH, HEIGHT = 5.0, 2.9


def matplotlib() -> Any:
    """Returns matplotlib, set up for charts that need no display.

    Raises:
        StreamRPNError: it is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure  # noqa: F401
    except ImportError as error:
        raise StreamRPNError(
            "an explanation's figures need matplotlib; `pip install 'stream-rpn[explain]'` "
            "provides it"
        ) from error
    return matplotlib


STYLE = {
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "stream-rpn",
}


def draw_charts(facts: Explanation) -> dict[str, Any]:
    """Returns the charts that these facts give, by name, as matplotlib figures.

    Raises:
        StreamRPNError: matplotlib is not installed.
    """
    with matplotlib().rc_context(STYLE):
        drawn = {name: chart(facts) for name, chart in _CHARTS.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def svg(figure: Any) -> str:
    """Returns a chart as an SVG element without colours of its own for text and lines."""
    file = io.StringIO()
    with matplotlib().rc_context(STYLE):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # The page's own font, and its size from the viewBox alone.
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    return text.replace(INK, "currentColor").replace(LINE, "var(--line-strong)")


def _axes(
    title: str, *, height: float = HEIGHT, left: float = 0.65, below: float = 0.5, **labels: str
) -> tuple[Any, Any]:
    """Returns a figure and its axes, with so many inches for labels at the left and below.

    Margins are given, as finding them out draws everything twice.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    axes = figure.subplots()
    figure.subplots_adjust(left / WIDTH, below / height, 1 - 0.1 / WIDTH, 1 - 0.3 / height)
    axes.set(title=title, **labels)
    return figure, axes


def _dot(facts: Explanation) -> Any:
    """The largest terms of the dot product that gives the chosen anchor's score."""
    dot = facts.cells[facts.level_of_best].dot
    if dot is None:
        return None
    terms = dot.weights * dot.features
    order = np.argsort(-np.abs(terms))
    largest = order[:14]
    names = [f"channel {i}" for i in largest]
    values = [*terms[largest]]
    names += [f"{len(terms) - len(largest)} others", "bias"]
    values += [terms[order[14:]].sum(), dot.bias]
    if dot.rest_name:
        names.append("how sure its sides are")
        values.append(dot.rest)
    logit = dot.total + dot.rest
    title = f"weight × feature, summed up: {logit:.3f}"
    figure, axes = _axes(title, height=3.9, left=1.45, below=0.3)
    colours = [COLOURS[0] if value >= 0 else COLOURS[3] for value in values]
    axes.barh(names, values, color=colours, height=0.7)
    axes.invert_yaxis()
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", labelsize=8, length=0)
    return figure


def _logits(facts: Explanation) -> Any:
    """Histograms of the logits, per level, and where the selection cuts."""
    figure, axes = _axes("anchors by logit", xlabel="logit", ylabel="anchors")
    middles = (facts.bins[1:] + facts.bins[:-1]) / 2
    for index, level in enumerate(facts.levels):
        colour = COLOURS[index % len(COLOURS)]
        counts = np.where(level.counts > 0, level.counts, np.nan)
        axes.plot(middles, counts, drawstyle="steps-mid", color=colour, linewidth=1.5,
                  label=level.name)  # fmt: skip
        if level.selected < len(level.logits):
            axes.axvline(level.cut, color=colour, linestyle=(0, (4, 2)), linewidth=1)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.legend(title="dashed: its cut" if _is_cut(facts) else None, ncols=2, loc="upper right")
    return figure


def _is_cut(facts: Explanation) -> bool:
    return any(level.selected < len(level.logits) for level in facts.levels)


def _other_k(facts: Explanation) -> Any:
    """What other numbers of candidates would have given."""
    figure, axes = _axes("with another pre-NMS k", xlabel="candidates per level, k")
    ks = [other.k for other in facts.other_k]
    axes.plot(ks, [o.proposals for o in facts.other_k], ".-", color=COLOURS[2], label="proposals")
    axes.plot(ks, [o.common for o in facts.other_k], ".-", color=COLOURS[0],
              label="of these, also proposed now")  # fmt: skip
    own = min(facts.look.spec.pre_nms_top_n, max(ks))
    axes.axvline(own, color=INK, linestyle=(0, (4, 2)), linewidth=1)
    axes.annotate("now", (own, 0), (-3, 3), textcoords="offset points", ha="right", color=INK)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left")
    return figure


def _regression(facts: Explanation) -> Any:
    """The deltas of the sampled objects: what the head says against what it should."""
    if facts.truth is None or not len(facts.truth.wanted):
        return None
    figure, axes = _axes("deltas of the sampled objects", xlabel="wanted", ylabel="the head's")
    both = np.concatenate((facts.truth.wanted, facts.truth.predicted))
    low, high = float(both.min()), float(both.max())
    axes.plot([low, high], [low, high], color=INK, linewidth=0.8)
    for column, name in enumerate(("dx", "dy", "dw", "dh")):
        axes.plot(facts.truth.wanted[:, column], facts.truth.predicted[:, column], ".",
                  color=COLOURS[column], markersize=4, label=name, alpha=0.8)  # fmt: skip
    axes.legend(ncols=4, loc="upper left", handletextpad=0.1, columnspacing=0.8)
    return figure


def _moved(facts: Explanation) -> Any:
    """How far each proposal moved along with the picture."""
    shifts = [shift for shift in facts.shifts if shift.found]
    if not shifts:
        return None
    figure, axes = _axes("how far proposals moved", xlabel="pixels of the frame",
                         ylabel="proposals")  # fmt: skip
    reach = max(float(np.abs(s.moved - s.expected).max()) for s in shifts)
    reach = min(max(reach, 1.0), 12.0)
    low = min(s.expected for s in shifts) - reach
    high = max(s.expected for s in shifts) + reach
    bins = np.linspace(low, high, 60)
    for shift, colour in zip(shifts, COLOURS, strict=False):
        moved = shift.moved.clip(low, high)
        axes.hist(
            moved, bins, color=colour, alpha=0.75, label=f"picture moved {shift.expected:.1f}"
        )
        axes.axvline(shift.expected, color=colour, linewidth=1, linestyle=(0, (4, 2)))
    axes.set_ylim(top=1.4 * axes.get_ylim()[1])  # room for the legend
    axes.legend(loc="upper left")
    return figure


def _cost(facts: Explanation) -> Any:
    """What each stage took."""
    stages = facts.look.times.stages
    names = list(stages)
    values = [stage.total_ms / max(stage.count, 1) for stage in stages.values()]
    title = "milliseconds, this frame alone, PyTorch in float32"
    figure, axes = _axes(title, height=2.0, left=0.85, below=0.3)
    bars = axes.barh(names, values, color=COLOURS[0], height=0.62)
    axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=3, color=INK)
    axes.set_xlim(0, 1.15 * max(max(values), 1e-3))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    return figure


_CHARTS: dict[str, Callable[[Explanation], Any]] = {
    "dot": _dot,
    "logits": _logits,
    "other_k": _other_k,
    "regression": _regression,
    "moved": _moved,
    "cost": _cost,
}
