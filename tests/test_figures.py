"""The pictures of benchmarks and of recall, looked at as what matplotlib was told to draw."""

import numpy as np
import pytest

from stream_rpn.evaluation.curves import draw_curves
from stream_rpn.evaluation.recall import Recall
from stream_rpn.measure.plot import OTHERS, OURS, draw, draw_ranking

figure = pytest.importorskip("matplotlib.figure")


@pytest.fixture
def saved(monkeypatch, tmp_path):
    """The figures that are saved. Files of their names are made, so not where tests are run."""
    monkeypatch.chdir(tmp_path)
    figures = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *_, **__: figures.append(self))
    return figures


def report(**more):
    part = {"fps": 20.0, "latency_ms": {"mean_ms": 5.0}}
    stages = {"network": {"mean_ms": 30.0}}
    row = {"batch": 1, "unqueued": {"stages_ms": stages}}
    row |= dict.fromkeys(("decode", "network", "sink", "whole"), part)
    facts = {"model": "m", "dtype": "d", "device": "cpu", "codec": "h264", "width": 8, "height": 6}
    return {"batches": [row], **facts, **more}


def test_a_ranking_has_the_fastest_on_top_and_ours_stand_out():
    axes = figure.Figure().subplots()
    draw_ranking(axes, [("a loop", 9.5), ("stream-rpn", 1234.0), ("another", 20.0)])
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "stream-rpn", "another", "a loop",
    ]  # fmt: skip
    assert [text.get_text() for text in axes.texts] == ["1,234", "20", "9.5"]
    ours, *others = [bar.get_facecolor() for bar in axes.patches]
    assert len({*others}) == 1
    assert ours not in others
    assert OURS != OTHERS


def test_a_benchmark_shows_the_others_where_they_ran(saved):
    draw(report(), "a.png")
    others = [{"name": "stream-rpn", "fps": 20.0}, {"name": "a loop", "fps": 5.0}]
    draw(report(compared=[*others, {"name": "absent", "skipped": "not installed"}]), "b.png")
    alone, compared = saved
    assert len(alone.axes) == 2
    assert len(compared.axes) == 3
    names = [label.get_text() for label in compared.axes[2].get_yticklabels()]
    assert names == ["stream-rpn", "a loop"]


def test_curves_of_a_model_have_one_colour(saved, monkeypatch):
    monkeypatch.setattr(Recall, "at", lambda self, iou, limit: 0.5)
    monkeypatch.setattr(Recall, "average", lambda self, limit: 0.5)
    recall = Recall.__new__(Recall)
    monkeypatch.setattr(Recall, "limits", (10, 100, 300, 1000), raising=False)
    draw_curves({"tiny": recall, "small": recall}, "c.png")
    for axes in saved[0].axes:
        lines = axes.get_lines()
        of = {
            name: [ln for ln in lines if ln.get_label().startswith(name)]
            for name in ("tiny", "small")
        }
        colors = {name: {ln.get_color() for ln in found} for name, found in of.items()}
        assert len(colors["tiny"]) == len(colors["small"]) == 1
        assert colors["tiny"] != colors["small"]
        for found in of.values():
            assert len(found) == len({ln.get_linestyle() for ln in found}) == 3
    assert np.isfinite(saved[0].axes[0].get_xlim()).all()
