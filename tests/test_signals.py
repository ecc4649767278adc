"""A command can be stopped at any moment, also while it is still starting."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stream_rpn.commands import signals
from tests.test_cli import start
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
    unwinding = "from stream_rpn.commands import signals; signals.unwind_on_signals()"
    assert python(f"import signal; {ignored}; {unwinding}; {CTRL_C}").returncode == 0


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
        "from stream_rpn.commands import signals; signals.unwind_on_signals()\n"
        "try:\n    import turns\nexcept ImportError:\n    print('swallowed')"
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


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
