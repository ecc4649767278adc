"""`--preset` and `--top auto`: what they stand for, and what goes before them."""

import numpy as np
import pytest

from stream_rpn.commands.arguments import PRESETS, load_options
from stream_rpn.commands.stream import stream_parser
from stream_rpn.evaluation.recall import Recall, enough
from stream_rpn.frame import StreamRPNError
from stream_rpn.models import DEFAULT_MODEL, MODELS


def options_of(*words):
    return load_options(stream_parser().parse_args(["v.mp4", *words]))


def test_without_a_preset_nothing_changes():
    options = options_of()
    assert options["top"] == 300
    assert options["nms"] is options["score_thresh"] is None


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_stands_for_its_numbers_and_the_help_tells_them(preset):
    options = options_of("--preset", preset)
    assert options.items() >= PRESETS[preset].items()
    told = " ".join(stream_parser().format_help().split())
    for name in ("top", "nms"):
        assert f"--{name} {PRESETS[preset][name]}" in told


def test_options_go_before_the_preset():
    options = options_of("--preset", "annotate", "--top", "7", "--score-thresh", "0")
    assert (options["top"], options["score_thresh"]) == (7, 0.0)
    assert options["nms"] == PRESETS["annotate"]["nms"]


def test_top_auto_is_what_was_measured_of_the_model():
    assert options_of("--top", "auto")["top"] == MODELS[DEFAULT_MODEL].enough > 0


@pytest.mark.parametrize("words", [["--model", "mine.pth"], ["--weights", "mine.pth"]])
def test_top_auto_of_weights_that_nobody_measured_is_refused(words):
    with pytest.raises(StreamRPNError, match=r"known of nanodet_m.*`stream-rpn eval` tells"):
        options_of("--top", "auto", *words)


def test_enough_is_where_the_share_is_reached():
    # One object an image; the n-th image's is the n-th proposal.
    box, other = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]
    truth = {n: np.array([box]) for n in range(20)}
    found = {n: np.array([other] * n + [box]) for n in range(20)}
    assert enough(Recall(found, truth, range(1, 21))) == 19
    assert enough(Recall(found, truth, range(1, 21)), share=0.5) == 10
