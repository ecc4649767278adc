"""The trial of the kernels: it finds what differs, says so, and is held once."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from stream_rpn import models
from stream_rpn.kernels import dispatch, trial
from stream_rpn.kernels.proposals import ProposalSpec
from stream_rpn.network import first_run

CPU = torch.device("cpu")
SPEC = ProposalSpec(pre_nms_top_n=100, post_nms_top_n=50)


@pytest.mark.parametrize("softmax", [False, True], ids=["sigmoid", "softmax"])
@pytest.mark.parametrize("num_anchors", [[3, 3, 3], [9], [1, 2]], ids=str)
def test_references_do_not_differ_from_themselves(num_anchors, softmax):
    heads = trial.hard_heads(num_anchors, 100, torch.bfloat16, softmax=softmax)
    assert not list(trial.proposals_differ(heads, SPEC, CPU))
    for antialias in (False, True):
        for dtype in (torch.float32, torch.bfloat16):
            assert not list(trial.preprocessing_differs(dtype, CPU, antialias=antialias))
            assert not list(trial.passes_differ(dtype, CPU))
            assert not list(trial.depthwise_differs((3, 5), dtype, CPU))


def test_one_bit_is_found(monkeypatch):
    heads = trial.hard_heads([3], 100)
    select, nms = trial.select_candidates, trial.nms

    def another_box(*args):
        found = select(*args)
        found.boxes[1, 7, 2].view(torch.int32).add_(1)
        return found

    def another_level(*args):
        found = nms(*args)
        found.levels[0, 3] += 1
        return found

    monkeypatch.setattr(trial, "select_candidates", another_box)
    monkeypatch.setattr(trial, "nms", another_level)
    monkeypatch.setattr(trial, "preprocess_batch", lambda *args, antialias: args[-1].fill_(0.5))
    monkeypatch.setattr(trial, "add_bias_", lambda x, *args, slope: x[0, 0, 0, 0].add_(2**-6))
    exact = trial.depthwise
    monkeypatch.setattr(trial, "depthwise", lambda *args, **how: exact(*args, **how) * (1 + 2**-23))
    found = [*trial.proposals_differ(heads, SPEC, CPU)]
    found += trial.preprocessing_differs(torch.float32, CPU, antialias=True)
    assert found == [("select_candidates", "boxes"), ("nms", "levels"), ("preprocess", "pixels")]
    assert list(trial.passes_differ(torch.float32, CPU)) == [("add_bias", "maps")]
    assert list(trial.depthwise_differs([3], torch.float32, CPU)) == [("depthwise", "maps")]


def test_the_inputs_are_hard():
    heads = trial.hard_heads([3], 100)
    ordinary, odd = heads.objectness[0]
    assert ordinary.isfinite().all()
    assert odd.isnan().any()
    assert odd.isinf().any()
    finite = odd[odd.isfinite()]
    assert len(finite.unique()) < len(finite) / 4  # ties
    assert heads.deltas[0][1].isnan().any()
    assert (heads.deltas[0][1].nan_to_num().abs() > 30).any()
    assert heads.level_sizes(100) == (100,)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A machine with a GPU as far as `try_kernels` looks, on whose kernels `wrong` may act."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(dispatch, "_broken", set())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(first_run, "find_spec", lambda name: name)
    monkeypatch.setattr(first_run.metadata, "version", lambda name: "1")
    held = SimpleNamespace(count=0, wrong=[])

    def differ(*args, **options):
        held.count += 1
        return iter(held.wrong)

    monkeypatch.setattr(trial, "proposals_differ", differ)
    monkeypatch.setattr(trial, "preprocessing_differs", lambda *args, **options: iter(()))
    monkeypatch.setattr(trial, "passes_differ", lambda *args: iter(()))
    monkeypatch.setattr(trial, "depthwise_differs", lambda *args: iter(()))
    return held


def hold(**changes):
    rpn = models.find("tiny").build()
    for name, value in changes.items():
        setattr(rpn, name, value)
    first_run.try_kernels(rpn, torch.device("cuda", 0), torch.bfloat16)


def test_a_trial_is_held_once_for_each_kind_of_launch(gpu):
    hold()
    hold()
    assert gpu.count == 1
    hold(proposal_spec=SPEC)
    assert gpu.count == 2
    assert not dispatch._broken


def test_what_differs_is_told_and_replaced_and_tried_again(gpu):
    gpu.wrong = [("nms", "boxes"), ("nms", "scores")]
    with pytest.warns(RuntimeWarning, match=r"of nms, as compiled for a GPU, gives other boxes"):
        hold()
    assert dispatch._broken == {"nms"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hold()
    assert gpu.count == 2


def test_without_a_cache_every_process_holds_it(gpu, monkeypatch):
    monkeypatch.setattr(first_run, "cache_folder", lambda: None)
    hold()
    hold()
    assert gpu.count == 2


@pytest.mark.needs_cuda
@pytest.mark.parametrize("name", ["tiny", "nanodet_m", "vgg16"])
def test_the_kernels_pass_on_this_gpu(name, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(dispatch, "_broken", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (torch.float32, torch.bfloat16):
            first_run.try_kernels(models.find(name).build(), torch.device("cuda", 0), dtype)
    assert len(list((tmp_path / "stream-rpn").glob("*.passed"))) == 2
