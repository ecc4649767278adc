"""What a shell completes, by running it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stream_rpn import cli
from stream_rpn.commands import COMMANDS
from stream_rpn.models import MODELS

ASK = """
source script.bash
while read -r -a words; do
  [ "${words[-1]}" = "''" ] && words[-1]=""
  COMP_WORDS=("${words[@]}") COMP_CWORD=$(( ${#words[@]} - 1 ))
  _shtab_stream_rpn 2>/dev/null
  echo "${COMPREPLY[*]}"
done
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("shtab", reason="shtab is not installed")
    monkeypatch.chdir(tmp_path)

    def write(shell: str) -> Path:
        assert cli.main(["completion", shell]) == 0
        path = Path(f"script.{shell}")
        path.write_text(capsys.readouterr().out)
        return path

    return write


def completed(*lines: str) -> list[list[str]]:
    done = subprocess.run(
        ["bash", "-c", ASK],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash(script):
    script("bash")
    Path("mine.safetensors").touch()
    Path("clips").mkdir()
    Path("export.mp4").touch()
    answers = {
        "stream-rpn ex": ["export", "explain", "export.mp4"],
        "stream-rpn clips ex": ["export.mp4"],
        "stream-rpn clips --over": ["--overwrite"],
        "stream-rpn clips --model mi": ["mine.safetensors"],
        "stream-rpn clips --model nano": [name for name in MODELS if name.startswith("nano")],
        "stream-rpn clips --engine ''": ["auto", "torch", "openvino"],
        "stream-rpn clips -o cl": ["clips"],
        "stream-rpn export ti": ["tiny"],
        "stream-rpn eval --curv": ["--curves"],
        "stream-rpn eval --model ti": ["tiny"],
        "stream-rpn bench cl": ["clips"],
        "stream-rpn render ex": ["export.mp4"],
        "stream-rpn completion z": ["zsh"],
    }
    assert [sorted(found) for found in completed(*answers)] == [*map(sorted, answers.values())]
    first = completed("stream-rpn ''")[0]
    assert {*COMMANDS, "clips"} <= set(first)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_understands_its_script(script, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    done = subprocess.run([shell, "-n", script(shell)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_shell_has_a_script_that_knows_the_models(script):
    for shell in ("bash", "zsh", "tcsh", "fish"):
        text = script(shell).read_text()
        assert all(name in text for name in (*MODELS, *COMMANDS))


def test_without_shtab_it_is_told_what_brings_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 2
    assert "pip install 'stream-rpn[completion]'" in capsys.readouterr().err
