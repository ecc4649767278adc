"""Which form of an operation runs, on stand-ins for tensors on a GPU."""

import importlib.util
import warnings
from types import SimpleNamespace

import pytest
import torch

from stream_rpn.kernels import dispatch
from stream_rpn.kernels.dispatch import fused_or_reference

ON_CPU, ON_GPU = torch.zeros(1), SimpleNamespace(is_cuda=True, device="cuda:0")


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """A machine with Triton and a GPU, where nothing is broken or being captured yet."""
    monkeypatch.setattr(dispatch, "_broken", set())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU at {device}")
    state = SimpleNamespace(capturing=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)
    return state


def fail(error):
    raise error


def broken():
    return fail(RuntimeError("no such instruction"))


def test_a_gpu_gets_the_fused_form():
    assert fused_or_reference("op", ON_GPU, lambda: "fused", broken) == "fused"


def test_a_cpu_gets_the_reference():
    assert fused_or_reference("op", ON_CPU, broken, lambda: "reference") == "reference"


def test_without_triton_the_reference_runs(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert fused_or_reference("op", ON_GPU, broken, lambda: "reference") == "reference"


def test_a_failure_is_reported_once_and_concerns_one_operation():
    with pytest.warns(RuntimeWarning, match=r"of op failed on a GPU at cuda:0.*no such instruct"):
        assert fused_or_reference("op", ON_GPU, broken, lambda: "reference") == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fused_or_reference("op", ON_GPU, broken, lambda: "reference") == "reference"
        assert fused_or_reference("other", ON_GPU, lambda: "fused", broken) == "fused"


def test_a_failure_while_capturing_is_raised_and_not_remembered(gpu):
    gpu.capturing = True
    with pytest.raises(RuntimeError, match="no such instruction"):
        fused_or_reference("op", ON_GPU, broken, lambda: "reference")
    gpu.capturing = False
    assert fused_or_reference("op", ON_GPU, lambda: "fused", broken) == "fused"


def test_lack_of_memory_is_not_the_kernels_fault():
    with pytest.raises(torch.OutOfMemoryError):
        fused_or_reference(
            "op", ON_GPU, lambda: fail(torch.OutOfMemoryError()), lambda: "reference"
        )
    assert fused_or_reference("op", ON_GPU, lambda: "fused", broken) == "fused"


def test_why_references_run_is_known(monkeypatch):
    assert dispatch.why_reference() is None
    with pytest.warns(RuntimeWarning, match="without a CUDA graph"):
        fused_or_reference("nms", ON_GPU, broken, lambda: "reference")
    assert dispatch.why_reference() == "the Triton kernel of nms failed"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert dispatch.why_reference() == "triton is not installed"
