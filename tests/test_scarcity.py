"""What the machine does not give is told in a sentence, and costs nothing that is there."""

import errno
import threading
from pathlib import Path

import pytest

from stream_rpn.cli import main
from stream_rpn.commands import runner, scarcity
from stream_rpn.frame import StreamRPNError
from stream_rpn.measure.plot import check_name, new_figure, save
from stream_rpn.sinks.claim import Claim

LACKING = {
    "the memory is full": [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("can't start new thread"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: not enough memory"),
        ImportError("libx264.so.165: failed to map segment from shared object"),
    ],
    "too many files are open; `ulimit -n`": [OSError(errno.EMFILE, "Too many open files", "x")],
    "too many files are open on this machine": [OSError(errno.ENFILE, "File table overflow")],
    "the disk is full": [OSError(errno.ENOSPC, "No space left on device")],
}


@pytest.mark.parametrize(
    ("error", "sentence"), [(e, sentence) for sentence, errors in LACKING.items() for e in errors]
)
def test_the_command_says_what_is_lacking(error, sentence, monkeypatch, capsys):
    def fail(arguments):
        raise error

    monkeypatch.setattr(runner, "run", fail)
    assert main(["synthetic:64x64@10,2"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"stream-rpn: {sentence}")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "Permission denied"), RuntimeError("shape"), ImportError("x")]
)
def test_other_errors_stay_what_they_are(error):
    assert scarcity.sentence(error) == ""


def test_an_output_is_given_back_where_no_thread_can_start(tmp_path, monkeypatch):
    def no_thread(self):
        raise RuntimeError("can't start new thread")

    claim = Claim(tmp_path / ".o.part", "o.jsonl")
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    claim.release()
    assert list(tmp_path.iterdir()) == []
    assert Claim(tmp_path / ".o.part", "o.jsonl").folder.is_dir()


def test_a_picture_stays_whole_where_the_disk_fills(tmp_path, monkeypatch):
    def half(self, data):
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "curves.png"
    path.write_text("old")
    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(StreamRPNError, match=r"cannot write '.*curves\.png': the disk is full"):
        save(new_figure(1, 1), path)
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("command", ["eval", "bench"])
def test_a_picture_of_no_known_ending_is_refused_at_once(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.json").touch()
    options = {
        "eval": ["--annotations", "a.json", "--images", "i", "--curves", "c.xyz"],
        "bench": ["synthetic:64x64@10,2", "--png", "c.xyz"],
    }
    assert main([command, *options[command]]) == 2
    assert "cannot write 'c.xyz': the name of a picture ends in .png" in capsys.readouterr().err
    check_name("c.PNG")
    with pytest.raises(StreamRPNError):
        check_name("c")
