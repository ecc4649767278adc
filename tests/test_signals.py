"""A command can be stopped at any moment, also while it is still starting."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest

from stream_rpn import read, signals
from tests.test_cli import clip, start, wait_for_lines
from tests.test_cli import stream_rpn as run
from tests.test_sinks import leftovers
from tests.waiting import eventually

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.usefixtures("own_folder")


def python(code: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), "."])},
        capture_output=True,
        text=True,
        **options,
    )


CTRL_C = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


def test_ctrl_c_before_there_is_anything_to_put_in_order_just_ends_the_process():
    done = python(f"import stream_rpn.__main__; {CTRL_C}")
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_ctrl_c_that_was_ignored_stays_so():
    ignored = f"signal.signal(signal.SIGINT, signal.SIG_IGN); import stream_rpn.__main__; {CTRL_C}"
    unwinding = "from stream_rpn import signals; signals.unwind_on_signals()"
    assert python(f"import signal; {ignored}; {unwinding}; {CTRL_C}").returncode == 0


def test_ctrl_c_after_the_end_of_a_command_is_no_traceback():
    done = python(
        "from stream_rpn import __main__, cli\nfrom stream_rpn import signals\n"
        f"cli.main = signals.unwind_on_signals; __main__.main(); {CTRL_C}"
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_the_console_script_begins_there_too():
    project = (ROOT / "pyproject.toml").read_text()
    assert 'stream-rpn = "stream_rpn.__main__:main"' in project


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_no_import_turns_a_signal_into_another_error_or_swallows_it(number: int, code: int):
    # As numpy does, whose compiled part imports another module and tells of its own failure.
    Path("turns.py").write_text(
        f"import os\ntry:\n    os.kill(os.getpid(), {int(number)})\n    for _ in range(99): pass\n"
        "except BaseException:\n    raise ImportError('a bad install') from None\n"
    )
    done = python(
        "from stream_rpn import signals; signals.unwind_on_signals()\n"
        "try:\n    import turns\nexcept ImportError:\n    print('swallowed')"
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_a_signal_in_an_import_leaves_nothing_of_what_was_begun():
    Path("halts.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    done = python(
        "from pathlib import Path\nfrom stream_rpn import signals\n"
        "from stream_rpn.sinks.place import GrowingFile\nsignals.unwind_on_signals()\n"
        "place = GrowingFile('x.jsonl', replace=False)\nplace.make()\n"
        "with signals.temporary_folder(within=Path()):\n"
        "    import halts\n"
    )
    assert (done.returncode, done.stderr) == (143, "")
    assert set(os.listdir()) - {"__pycache__"} == {"halts.py"}


def test_elsewhere_signals_unwind():
    with pytest.raises(KeyboardInterrupt):
        signals.unwind(signal.SIGINT, None)
    with pytest.raises(SystemExit) as stopped:
        signals.unwind(signal.SIGTERM, sys._getframe())
    assert stopped.value.code == 143


def test_a_run_that_is_stopped_while_it_loads_leaves_nothing():
    process = start("synthetic:64x64@30,300", "-o", "x.jsonl", "-o", "x.npz")
    assert eventually(lambda: Path(".x.npz.part").exists())
    process.send_signal(signal.SIGINT)
    told = process.stderr.read().decode()
    assert process.wait(timeout=300) == 130, told
    assert told == ""
    assert leftovers(".") == []


def test_without_a_current_folder_there_is_a_sentence():
    Path("folder").mkdir()
    code = (
        "import os, sys; os.rmdir(os.getcwd())\nfrom stream_rpn.cli import main\n"
        "sys.exit(main(['doctor']))"
    )
    done = python(code, cwd="folder")
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "stream-rpn: the current folder has been removed; change to one that is there"
    )


def test_a_current_folder_that_goes_while_a_run_begins_is_told(monkeypatch, capsys):
    def gone() -> str:
        raise FileNotFoundError(2, "No such file or directory")

    # Between the check and the first output.
    monkeypatch.setattr("stream_rpn.cli.os.getcwd", iter_then(gone, os.getcwd()))
    assert run("synthetic:64x64@10,2", "-o", "x.jsonl") == 2
    assert "the current folder has been removed" in capsys.readouterr().err


def iter_then(last, *first):
    """Returns a function that gives these, one a call, and then what `last` does."""
    left = list(first)
    return lambda: left.pop(0) if left else last()


def test_a_pipe_that_is_left_when_all_that_came_is_done_is_not_called_whole():
    """Nobody has closed it: more might have come."""
    data = io.BytesIO()
    with av.open(data, "w", format="matroska") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
        for number in range(12):
            frame = av.VideoFrame(64, 64, "yuvj420p")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    process = start("-", "-o", "x.jsonl", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(data.getvalue())
    process.stdin.flush()
    wait_for_lines("x.jsonl", 12)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143, process.stderr.read().decode()
    results = read("x.jsonl")
    assert len(list(results)) >= 11
    assert not results.complete
    assert results.ends[0]["stopped"] == "interrupted"


@pytest.mark.parametrize("share", [0.0, 0.001, 0.6], ids=["nothing", "half a header", "frames"])
def test_a_pipe_on_standard_input_that_falls_silent_can_be_left(share: float):
    data = clip("synthetic:64x64@10,200")
    process = start("-", "-o", "x.jsonl", "-o", "x.npz", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(data[: int(len(data) * share)])
    process.stdin.flush()
    if share == 0.6:
        wait_for_lines("x.jsonl", 20)
    else:
        assert eventually(lambda: Path(".x.npz.part").exists())
        time.sleep(2)  # until it reads, or else it is stopped while it loads
    process.send_signal(signal.SIGTERM)
    told = process.stderr.read().decode()
    assert process.wait(timeout=60) == 143, told
    assert "Traceback" not in told
    assert "damaged" not in told
    assert leftovers(".") == []
    assert Path("x.jsonl").exists() == Path("x.npz").exists() == (share == 0.6)
    if share == 0.6:
        for name in ("x.jsonl", "x.npz"):
            results = read(name)
            assert len(list(results)) >= 19
            assert results.ends[0]["stopped"] == "interrupted"
            assert results.ends[0]["drops"].keys() <= {"not wanted"}


def test_nobody_waits_for_a_silent_pipe_on_standard_input_beyond_the_timeout():
    process = start("-", "-o", "null", "--open-timeout", "0.2", stdin=subprocess.PIPE)
    told = process.stderr.read().decode()
    assert process.wait(timeout=60) == 2
    assert "standard input is a pipe that nobody wrote to for 0.2 s" in told


@pytest.mark.parametrize("protocol", ["http", "tcp", "rtsp", "rtmp"])
def test_nobody_waits_for_a_silent_server_beyond_the_timeout(protocol: str, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"{protocol}://127.0.0.1:{server.getsockname()[1]}/video.mp4"
        began = time.monotonic()
        assert run(uri, "-o", "null", "--open-timeout", "0.5", "--reconnect", "0") == 2
    assert time.monotonic() - began < 12  # not FFmpeg's own fifteen, nor ours of thirty
    assert "video.mp4" in capsys.readouterr().err or protocol == "rtmp"
