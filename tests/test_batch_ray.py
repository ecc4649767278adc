"""`stream-rpn batch` on a real Ray of two cores, which all tests here share."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

import stream_rpn
from tests.test_batch import OPEN, encoded

pytestmark = pytest.mark.slow
pytest.importorskip("ray", reason="Ray is not installed: pip install 'stream-rpn[ray]'")
pq = pytest.importorskip("pyarrow.parquet")

OPTIONS = ("--size", "32", "--top", "20", "--quiet")
ROOT = Path(__file__).resolve().parents[1]
SECONDS = 300

# A video of this name ends whatever process reads it, as some do that a decoder cannot take.
POISON = """
import os, signal, sys
if "stream_rpn.batch.child" in sys.orig_argv:
    from stream_rpn.batch import storage
    opened = storage.opened
    def opens(address):
        if "poison" in address:
            os.kill(os.getpid(), signal.SIGKILL)
        return opened(address)
    storage.opened = opens
"""
CLUSTER = """
import sys
from stream_rpn.batch.cluster import joined
with joined("local"):
    import ray
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [
        encoded(folder / "closed.mp4", number=400),
        encoded(folder / "open.ts", options=OPEN, number=64),
        encoded(folder / "times.mkv", steps=(33, 40, 120, 17), unit=1000, first=700),
    ]


@pytest.fixture(scope="module")
def alone(clips):
    """What one process finds: a row a frame, but for where it was lost."""
    return {
        path: [row_of(p) for p in stream_rpn.stream(path, size=32, top=20, threads=1)]
        for path in clips
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The address of a Ray, and the process that keeps it."""
    hook = tmp_path_factory.mktemp("hook")
    (hook / "sitecustomize.py").write_text(POISON)
    environment = pytest.MonkeyPatch()  # of whoever joins, too
    environment.setenv("RAY_AUTH_MODE", "token")
    environment.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    keeper = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{hook}{os.pathsep}{ROOT}"},
    )
    address = keeper.stdout.readline().strip()
    assert address, "Ray did not start"
    yield address, keeper
    keeper.communicate()
    environment.undo()


def processes(keeper):
    import psutil

    return psutil.Process(keeper.pid).children(recursive=True)


def started(cluster, sources, to, *options):
    command = [sys.executable, "-m", "stream_rpn", "batch", *sources, "--to", str(to)]
    return subprocess.Popen(
        [*command, "--address", cluster[0], *OPTIONS, *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def done(cluster, sources, to, *options):
    """Runs the command; returns its exit code, and what it said."""
    process = started(cluster, sources, to, *options)
    return process.communicate(timeout=SECONDS)[1], process.returncode


def row_of(p):
    return (p.frame, p.pts, p.pts_seconds, p.boxes.tolist(), p.scores.tolist(), p.levels.tolist())


def found(to):
    rows = pq.read_table(Path(to) / "proposals").sort_by(
        [("source", "ascending"), ("frame", "ascending")]
    )
    names = ("frame", "pts", "pts_seconds", "boxes", "scores", "levels")
    videos = {}
    for row in rows.to_pylist():
        videos.setdefault(row["source"], []).append(tuple(row[name] for name in names))
    return videos


def wait_for(what, process):
    """Returns what a function returns, as soon as it is something."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and process.poll() is None:
        if thing := what():
            return thing
        time.sleep(0.05)
    raise AssertionError(f"it did not come to that: {process.communicate()[1]}")


@pytest.mark.parametrize(("workers", "chunk"), [("1", "off"), ("2", "0.3s"), ("2", "2s")])
def test_rows_are_those_of_one_process_whatever_the_workers_and_pieces(
    cluster, clips, alone, tmp_path, workers, chunk
):
    assert done(cluster, clips, tmp_path / "o", "--workers", workers, "--chunk", chunk) == ("", 0)
    assert found(tmp_path / "o") == alone
    manifest = pq.read_table(tmp_path / "o" / "manifest.parquet").to_pylist()
    assert {m["source"]: m["frames"] for m in manifest} == {p: len(r) for p, r in alone.items()}
    assert all(m["complete"] for m in manifest)
    assert (manifest[0]["pieces"] > 1) == (chunk != "off")


def test_a_worker_that_is_killed_is_another_s_work(cluster, clips, alone, tmp_path):
    process = started(cluster, clips, tmp_path / "o", "--workers", "2", "--chunk", "0.3s")

    def busy():
        parts = list((tmp_path / "o").glob("proposals/*/part*"))
        return parts and [p for p in processes(cluster[1]) if "(_Worker)" in " ".join(p.cmdline())]

    wait_for(busy, process)[0].kill()
    assert (process.communicate(timeout=SECONDS)[1], process.returncode) == ("", 0)
    assert found(tmp_path / "o") == alone


def test_every_frame_is_there_once_when_the_command_is_killed_and_given_again(
    cluster, clips, alone, tmp_path
):
    options = ("--workers", "2", "--chunk", "0.3s")
    process = started(cluster, clips, tmp_path / "o", *options)
    wait_for(lambda: list((tmp_path / "o").glob("proposals/*/part*")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "o" / "manifest.parquet").exists()
    assert done(cluster, clips, tmp_path / "o", *options) == ("", 0)
    assert found(tmp_path / "o") == alone
    assert max(Counter(r[0] for r in found(tmp_path / "o")[clips[0]]).values()) == 1


def test_a_video_that_ends_its_process_is_tried_twice_and_recorded(cluster, clips, alone, tmp_path):
    poison = encoded(tmp_path / "poison.mp4")
    said, code = done(cluster, [poison, clips[1]], tmp_path / "o", "--workers", "2")
    assert code == 3
    assert said.count("\n") == 1
    assert "poison.mp4: its process was ended by SIGKILL" in said
    assert found(tmp_path / "o") == {clips[1]: alone[clips[1]]}
    (failure,) = pq.read_table(tmp_path / "o" / "failures.parquet").to_pylist()
    assert (failure["source"], failure["kind"], failure["tries"]) == (poison, "crash", 2)


def test_a_signal_in_the_midst_leaves_what_is_whole_and_nothing_else(clips, tmp_path):
    """The default: a Ray of the command's own."""
    folder = tempfile.mkdtemp(dir="/tmp")  # short, as names of sockets have to be
    command = [sys.executable, "-m", "stream_rpn", "batch", *clips, "--to", str(tmp_path / "o")]
    process = subprocess.Popen(
        [*command, *OPTIONS, "--chunk", "0.3s"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": folder},
    )
    wait_for(lambda: list((tmp_path / "o").glob("proposals/*/part*")), process)
    process.send_signal(signal.SIGTERM)
    assert (process.communicate(timeout=SECONDS)[1], process.returncode) == ("", 143)
    os.rmdir(folder)
    assert not (tmp_path / "o" / "manifest.parquet").exists()
    assert found(tmp_path / "o")
