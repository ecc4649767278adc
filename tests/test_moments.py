"""A signal may come at any moment: what was begun is gone then, or whole, and none is lost."""

import gc
import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from stream_rpn import cli, signals
from stream_rpn.models.checkpoint import save_weights
from stream_rpn.sinks import claim, folder, place, sink
from stream_rpn.sinks.claim import Claim
from stream_rpn.sinks.folder import Folder
from stream_rpn.sinks.place import GrowingFile, WholeFile, write_whole
from tests.records import make_proposals
from tests.test_places import count_of
from tests.test_sinks import WHOLE_ONLY, leftovers, write_all

# Signals come between any two steps of these.
WATCHED = {module.__file__ for module in (signals, claim, place, folder, sink)}


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # there are thousands
    gc.disable()  # what one run leaves is not to be collected in the middle of another
    with signals.handled_by(signals.unwind):  # what `_reporting` installs is put back at the end
        yield
    gc.enable()


def interrupted(command, moment: int) -> bool:
    """Runs what a command does, with a signal at one of its moments; False where it has fewer.

    Python answers signals when a function is entered or left, one in C among them, and these are
    the moments.
    """
    seen = 0
    number = (signal.SIGINT, signal.SIGTERM)[moment % 2]

    def count(frame, event, argument):
        nonlocal seen
        if event != "c_call" and frame.f_code.co_filename in WATCHED:
            seen += 1
            if seen == moment:
                sys.setprofile(None)
                signal.raise_signal(number)

    def watched() -> int:
        sys.setprofile(count)
        try:
            command()
        finally:
            sys.setprofile(None)
        return 0

    try:
        cli._reporting(watched)
    except (KeyboardInterrupt, SystemExit):
        return True
    assert seen < moment, "the signal was lost"
    return False


def every_moment(command, check, before=lambda: None) -> int:
    """Has a command interrupted at each of its moments, and returns how many there are."""
    moment = 1
    while True:
        before()
        if not interrupted(command, moment):
            break
        assert not signals._unfinished
        assert leftovers(".") == []
        check()
        with signals.undone(*Path().iterdir()):
            pass
        moment += 1
    return moment - 1


# As sinks make them, of three kinds.
PLACES = {
    "growing": lambda: GrowingFile("x", replace=True),
    "whole": lambda: WholeFile("x", replace=True),
    "folder": lambda: Folder("x", replace=True, record="of", members=lambda at: ["member"]),
}


def lay(kind: str, text: str) -> None:
    """Lets an output come into being, without a care for what becomes of it when that fails."""
    output = PLACES[kind]()
    output.make()
    if isinstance(output, Folder):
        for member in ("member", "of"):
            output.put(member, partial(Path.write_text, data=text), sync=False)
    else:
        output.path.write_text(text)
    output.commit()


def laid(kind: str) -> set[str]:
    """Returns the texts of what lies there in the end, under its name."""
    files = [Path("x/member"), Path("x/of")] if kind == "folder" else [Path("x")]
    return {path.read_text() for path in files if path.exists()}


@pytest.mark.parametrize("kind", PLACES)
def test_of_an_output_nothing_empty_and_nothing_hidden_stays(kind: str):
    def check():
        found = [path for path in Path().rglob("*") if path.is_file()]
        assert laid(kind) <= {"new"}
        assert all(path.stat().st_size for path in found)

    assert every_moment(lambda: lay(kind, "new"), check) > 100


@pytest.mark.parametrize("kind", PLACES)
def test_old_results_stay_until_the_new_are_whole(kind: str):
    def check():
        assert laid(kind) in ({"old"}, {"new"})

    every_moment(lambda: lay(kind, "new"), check, before=lambda: lay(kind, "old"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.jsonl", "x.npz", "x.parquet", "x.mkv", "x/"])
def test_results_are_of_use_or_not_there(name: str):
    def check():
        assert name not in WHOLE_ONLY or not Path(name).exists() or count_of(name) == 1

    every_moment(lambda: write_all(name, [make_proposals(0)]), check)


def test_a_file_that_is_written_at_once_is_there_or_not():
    def check():
        assert not Path("x.json").exists() or Path("x.json").read_bytes() == b"all"

    assert every_moment(lambda: write_whole("x.json", b"all"), check) > 50


def test_what_is_held_is_let_go():
    def hold():
        Path("results").mkdir()
        Claim(Path("results/.batch"), "results/")

    every_moment(hold, lambda: None)


def test_weights_are_there_or_not():
    def check():
        assert {path.name for path in Path().iterdir()} <= {"x.safetensors"}

    every_moment(lambda: save_weights(torch.nn.Linear(1, 1), "x.safetensors", model="tiny"), check)


def test_a_temporary_folder_is_gone():
    def work():
        with signals.temporary_folder("of-a-run-", within=Path()) as own:
            (own / "half").touch()

    def check():
        assert list(Path().iterdir()) == []

    assert every_moment(work, check) > 20
