"""Fixtures for every test: real data where it lies beside the checkout, CUDA where there is one."""

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.waiting import eventually

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# Clocks, ports and processes: where tests run side by side, these still run one after another.
TIMED = {"test_bench", "test_benchmark", "test_live", "test_mqtt", "test_page", "test_queues",
         "test_stream_out",
         "test_web", "test_zeromq"}  # fmt: skip

# What a shell starts in the background ignores Ctrl-C, what nohup starts a hang-up; and so would
# the commands under test.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real videos and images; users do not have it, and then the test is skipped."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared data folder is not there")
    return SHARED_DATA


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory):
    """Converted models, of all workers of a run and of no other."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(shared / "caches")
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """A current folder that is empty and goes with the test."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_thread_is_left():
    """Fails the test whose threads go on."""
    before = set(threading.enumerate())
    yield
    # One that waits for an address that does not answer ends when it may wait no longer.
    assert eventually(lambda: not [t for t in threading.enumerate() if t not in before])


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in TIMED:
            item.add_marker(pytest.mark.xdist_group("timed"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Fixtures draw, too: what a test draws depends neither on those before it nor on its worker.
    torch.manual_seed(0)
    if item.get_closest_marker("needs_cuda") and not torch.cuda.is_available():
        if os.environ.get("REQUIRE_CUDA") == "1":
            pytest.fail("REQUIRE_CUDA=1 is set, but torch sees no CUDA device")
        pytest.skip("needs a CUDA device")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if item.get_closest_marker("interpreter") and not interpreted:
        pytest.skip("runs under TRITON_INTERPRET=1 only (make test starts a process for it)")
