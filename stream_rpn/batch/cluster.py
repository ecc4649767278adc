"""The cluster of Ray that a job runs on: one that is there, or one of this command's own.

What is started here goes with the command, with every process and file of it, however it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import secrets
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from stream_rpn import signals
from stream_rpn.cores import available_cores
from stream_rpn.frame import StreamRPNError

_OBJECT_STORE_BYTES = 200 << 20
_END_SECONDS = 5.0
_LOOK_SECONDS = 0.05
_TRIES = 3
_PR_SET_CHILD_SUBREAPER = 36
# Ray gives its processes 30 and 60 seconds to start, after which its node ends itself; on a machine
# that is busy with other things, as by `nice`, they take longer.
_PATIENCE = {
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_worker_register_timeout_seconds": "600",
}


@contextlib.contextmanager
def joined(address: str) -> Iterator[None]:
    """Joins the cluster at an address of `ray.init`; "local" starts one, and ends it afterwards.

    Raises:
        StreamRPNError: there is no Ray, or no cluster, or none can be started.
    """
    local = address == "local"
    _set_environment(local=local)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise StreamRPNError(
            "`stream-rpn batch` needs Ray; `pip install 'stream-rpn[ray]'` provides it"
        ) from error
    with contextlib.ExitStack() as stack:
        for tries_left in reversed(range(_TRIES if local else 1)):
            begun = stack.enter_context(contextlib.ExitStack())
            try:
                _init(address, begun)
                break
            except Exception as error:  # some are no more than that
                begun.close()
                # Ray gives its node 30 seconds to start, and nothing changes that.
                if tries_left and "timed out" in str(error):
                    continue
                what = "Ray cannot be started here" if local else f"no Ray answers at {address}"
                raise StreamRPNError(f"{what}: {' '.join(str(error).split())[:300]}") from error
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        # A row is minutes of work: each is a block, which goes to whoever is free. (To repartition
        # would take a core, and workers have them all.)
        context.target_max_block_size = 1
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        yield


def _init(address: str, begun: contextlib.ExitStack) -> None:
    """Joins or starts a cluster; what ends it is put on the stack."""
    import ray

    options: dict[str, Any] = {}
    # Not ended before Ray is: what Ray starts here dies with the thread that started it.
    beside = begun.enter_context(ThreadPoolExecutor(1))
    if address == "local":
        folder = begun.enter_context(_short_temporary_folder())
        temporary = begun.enter_context(signals.temporary_folder("stream-rpn-"))
        begun.enter_context(_temporary_files_in(str(temporary)))
        begun.enter_context(_ended_after())
        options = {
            "num_cpus": max(available_cores(), 1),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_temp_dir": str(folder),
        }
    else:
        begun.callback(ray.shutdown)
    # In the main thread Ray would answer SIGTERM itself from now on, and a signal in the midst
    # would abort the process; here it is waited for, and what was started is ended.
    with _silent():
        start = beside.submit(
            ray.init,
            address=address,
            logging_level=logging.ERROR,
            log_to_driver=False,
            **options,
        )
        while not wait([start], _LOOK_SECONDS).done:
            _answer_sigterm_as_before()
        _answer_sigterm_as_before()
        start.result()


def _set_environment(*, local: bool) -> None:
    """Says to Ray, before it is imported, what it reads of the environment."""
    # Ray reports its use to its makers unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What Ray's native part says of actors and sockets is no news to the user.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if local:
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
    if local and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        # A cluster runs any code it is sent. By itself Ray would keep a token in the home folder.
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    warnings.filterwarnings("ignore", module="ray")


def _answer_sigterm_as_before() -> None:
    """Lets Python handle SIGTERM, at which Ray's native part prints stacks and aborts."""
    with contextlib.suppress(ValueError, TypeError):  # in another thread; not Python's before
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


@contextlib.contextmanager
def _ended_after() -> Iterator[None]:
    """Ends Ray, and the processes that it started here, also those whose own parent has ended.

    Agents and workers notice by and by that their cluster is gone, and write to its folder till
    then.
    """
    import psutil
    import ray

    here = psutil.Process()
    before = set(here.children(recursive=True))
    _adopt_orphans(True)
    try:
        yield
    finally:
        started = set(here.children(recursive=True)) - before
        ray.shutdown()
        _, alive = psutil.wait_procs(started, timeout=_END_SECONDS)
        alive += set(here.children(recursive=True)) - before - started
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=_END_SECONDS)
        _adopt_orphans(False)


def _adopt_orphans(adopt: bool) -> None:
    """Has processes below this one become its children when their parent ends; on Linux."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps Ray's native part from telling how it starts; what goes wrong is raised."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def _temporary_files_in(folder: str) -> Iterator[None]:
    """Has processes that are started meanwhile keep their temporary files in a folder."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def _short_temporary_folder() -> AbstractContextManager[Path]:
    """Makes a folder for Ray's sockets, whose paths may not be longer than 107 bytes."""
    usual = tempfile.gettempdir()
    return signals.temporary_folder("rpn-", within=Path(usual if len(usual) < 30 else "/tmp"))
