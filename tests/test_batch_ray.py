"""`stream-rpn batch` on a real Ray of two cores, which all tests here share."""

import contextlib
import fcntl
import os
import pty
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

import stream_rpn
from stream_rpn.batch.storage import Store
from tests.test_batch import OPEN, encoded, lines_of_the_page

pytestmark = pytest.mark.slow
pytest.importorskip("ray", reason="Ray is not installed: pip install 'stream-rpn[ray]'")
pq = pytest.importorskip("pyarrow.parquet")

OPTIONS = ("--size", "32", "--top", "20", "--quiet")
CUT = ("--workers", "2", "--chunk", "0.3s")
ROOT = Path(__file__).resolve().parents[1]
SECONDS = 600

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
def port():
    """Where object storage is, for whoever is started from here on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    environment = pytest.MonkeyPatch()
    environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{number}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        environment.setenv(name, "testing")
    environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield number
    environment.undo()


@pytest.fixture(scope="module")
def cluster(port, tmp_path_factory):
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
    """Runs the command; returns what it said, and its exit code."""
    return end_of(started(cluster, sources, to, *options))


def end_of(process):
    """Returns what a process said, and its exit code."""
    try:
        return process.communicate(timeout=SECONDS)[1], process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        raise


class ObjectStorage:
    """S3 on this machine. What is in it stays while it is stopped."""

    def __init__(self, port):
        import fsspec

        self._port = port
        self.start()
        self.fs = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)

    def start(self):
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
        self._server.start()

    def stop(self):
        self._server.stop()

    def parts(self, folder):
        with contextlib.suppress(FileNotFoundError):
            return [name for name in self.fs.find(folder) if "/part-" in name]


@pytest.fixture(scope="module")
def storage(port, clips):
    """S3 with a bucket of clips, and one for results."""
    for module, package in (("moto.server", "moto[server]"), ("s3fs", "s3fs")):
        pytest.importorskip(module, reason=f"needs {package}: pip install '{package}'")
    storage = ObjectStorage(port)
    storage.fs.mkdir("videos")
    for clip in clips:
        storage.fs.put_file(clip, f"videos/clips/{Path(clip).name}")
    storage.fs.mkdir("results")
    yield storage
    storage.stop()


@pytest.fixture(scope="module")
def alone_there(alone):
    """What one process finds in the clips, by their addresses in the bucket."""
    return {f"s3://videos/clips/{Path(path).name}": rows for path, rows in alone.items()}


def row_of(p):
    return (p.frame, p.pts, p.pts_seconds, p.boxes.tolist(), p.scores.tolist(), p.levels.tolist())


def found(to, fs=None):
    rows = pq.read_table(f"{to}/proposals", filesystem=fs).sort_by(
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
    process = started(cluster, clips, tmp_path / "o", *CUT)

    def busy():
        parts = list((tmp_path / "o").glob("proposals/*/part*"))
        return parts and [p for p in processes(cluster[1]) if "(_Worker)" in " ".join(p.cmdline())]

    wait_for(busy, process)[0].kill()
    assert end_of(process) == ("", 0)
    assert found(tmp_path / "o") == alone


def test_every_frame_is_there_once_when_the_command_is_killed_and_given_again(
    cluster, clips, alone, tmp_path
):
    process = started(cluster, clips, tmp_path / "o", *CUT)
    wait_for(lambda: list((tmp_path / "o").glob("proposals/*/part*")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "o" / "manifest.parquet").exists()
    assert done(cluster, clips, tmp_path / "o", *CUT) == ("", 0)
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


def test_the_example_of_the_page_finds_what_one_process_finds(cluster, clips, tmp_path):
    code = lines_of_the_page("In a program of your own")
    paths = {
        "s3://bucket/a.mp4": clips[0],
        "/data/b.mkv": clips[2],
        "/data/proposals": str(tmp_path / "proposals"),
    }
    for name, path in paths.items():
        assert name in code
        code = code.replace(name, path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": cluster[0]}
    command = [sys.executable, "-c", code]
    subprocess.run(
        command, cwd=tmp_path, check=True, env=environment, timeout=SECONDS, capture_output=True
    )
    rows = pq.read_table(tmp_path / "proposals")
    for clip in (clips[0], clips[2]):
        mine = rows.filter([source == clip for source in rows["source"].to_pylist()])
        mine = sorted((row["frame"], row["boxes"]) for row in mine.to_pylist())
        each = stream_rpn.stream(clip, model="nanodet_m", top=100)
        assert mine == [(p.frame, p.boxes.tolist()) for p in each]


@pytest.mark.parametrize("terminal", [False, True], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_in_the_midst_leaves_what_is_whole_and_nothing_else(clips, tmp_path, terminal):
    """The default: a Ray of the command's own."""
    import psutil

    folder = tempfile.mkdtemp(dir="/tmp")  # short, as names of sockets have to be
    ours, theirs = pty.openpty()
    options = ("--size", "32", "--top", "20", "--chunk", "0.3s", *([] if terminal else ["--quiet"]))
    log = (tmp_path / "said").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "stream_rpn", "batch", *clips, "--to", tmp_path / "o", *options],
        stdin=theirs,
        stderr=theirs if terminal else log,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": folder},
        start_new_session=True,
        preexec_fn=partial(fcntl.ioctl, 0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    said = []
    reader = threading.Thread(target=lambda: said.extend(read_terminal(ours)))
    reader.start()
    wait_for(lambda: list((tmp_path / "o").glob("proposals/*/part*")), process)
    if terminal:
        os.write(ours, b"\x03")  # which all processes of the terminal get
    else:
        process.send_signal(signal.SIGTERM)
    assert end_of(process)[1] == (130 if terminal else 143)
    alive = [p for p in psutil.process_iter(["environ"]) if folder in str(p.info["environ"])]
    assert alive == []
    reader.join()
    os.close(ours)
    log.close()
    assert (tmp_path / "said").read_text() == ""
    assert "Traceback" not in "".join(said)
    assert ("starting Ray" in "".join(said)) == terminal
    os.rmdir(folder)
    assert not (tmp_path / "o" / "manifest.parquet").exists()
    assert not list(tmp_path.rglob("*.part"))
    assert found(tmp_path / "o")


def read_terminal(descriptor):
    """Yields what is written to a terminal, until nobody has it open."""
    with contextlib.suppress(OSError):  # so it ends
        while data := os.read(descriptor, 1 << 16):
            yield data.decode(errors="replace")


def test_object_storage_in_and_out_gives_what_files_give(cluster, storage, alone_there):
    assert done(cluster, ["s3://videos/clips/"], "s3://results/a", *CUT) == ("", 0)
    assert found("results/a", storage.fs) == alone_there
    manifest = pq.read_table("results/a/manifest.parquet", filesystem=storage.fs).to_pylist()
    assert {m["source"]: m["complete"] for m in manifest} == dict.fromkeys(alone_there, True)


def test_every_frame_is_in_object_storage_once_after_a_kill(cluster, storage, alone_there):
    process = started(cluster, ["s3://videos/clips/"], "s3://results/b", *CUT)
    wait_for(lambda: storage.parts("results/b"), process)
    process.kill()
    process.communicate()
    assert not storage.fs.exists("results/b/manifest.parquet")
    assert done(cluster, ["s3://videos/clips/"], "s3://results/b", *CUT) == ("", 0)
    assert found("results/b", storage.fs) == alone_there


def test_a_bucket_that_vanishes_is_a_sentence_and_the_job_goes_on_when_it_is_back(
    cluster, storage, alone_there
):
    storage.fs.mkdir("gone-soon")
    process = started(cluster, ["s3://videos/clips/"], "s3://gone-soon/o", *CUT)
    wait_for(lambda: storage.parts("gone-soon"), process)
    while storage.fs.exists("gone-soon"):
        with contextlib.suppress(OSError):  # files still come
            storage.fs.rm("gone-soon", recursive=True)
    said, code = end_of(process)
    assert code == 2
    assert said.count("\n") == 1
    assert "cannot write s3://gone-soon/o/" in said
    assert "there is no such file, folder or bucket" in said
    storage.fs.mkdir("gone-soon")
    assert done(cluster, ["s3://videos/clips/"], "s3://gone-soon/o", *CUT) == ("", 0)
    assert found("gone-soon/o", storage.fs) == alone_there


def test_storage_that_is_down_is_a_sentence_and_what_is_whole_stays(cluster, clips, storage, alone):
    process = started(cluster, clips, "s3://results/c", *CUT)
    wait_for(lambda: storage.parts("results/c"), process)
    storage.stop()
    try:
        said, code = end_of(process)
    finally:
        storage.start()
    assert code == 2
    assert said.count("\n") == 1
    assert "s3://results/c/" in said
    assert "Could not connect" in said
    whole = storage.parts("results/c")
    assert whole
    for name in whole:
        pq.read_table(name, filesystem=storage.fs)
    assert done(cluster, clips, "s3://results/c", *CUT) == ("", 0)
    assert found("results/c", storage.fs) == alone


def test_a_store_does_not_believe_what_it_knew_of_a_folder(storage):
    store = Store("s3://results/d")
    store.put_text("folder/a", "text")
    assert store.names("folder") == ["a"]
    storage.fs.rm("results/d/folder/a")
    with store.open("folder/a") as file:
        assert file is None


@pytest.fixture
def small_disk(tmp_path):
    """A file system, and what gives it more room."""

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp_path)]
        subprocess.run(command, check=True, capture_output=True)

    try:
        mount("size=60k")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a small file system")
    yield tmp_path, lambda: mount("remount,size=20m")
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk_is_a_sentence_and_the_job_goes_on_when_there_is_room(
    cluster, clips, alone, small_disk
):
    folder, give_room = small_disk
    said, code = done(cluster, clips, folder / "o", *CUT)
    assert code == 2
    assert said.count("\n") == 1
    assert f"cannot write {folder}/o/" in said
    assert "the disk is full" in said
    whole = list(folder.glob("o/proposals/*/part*"))
    assert whole
    for path in whole:
        pq.read_table(path)
    give_room()
    assert done(cluster, clips, folder / "o", *CUT) == ("", 0)
    assert found(folder / "o") == alone
    assert not list(folder.rglob("*.part"))
