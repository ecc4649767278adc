"""The command among faults: one run here, many by `python -m bench.soak`; and what that finds."""

import itertools
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench import soak, soak_checks
from bench.soak import Soak, Trial
from bench.soak_sources import Source


def after(folder: Path, **changes) -> soak_checks.After:
    """What a whole run of three frames leaves, with changes."""
    plain = {
        "folder": folder,
        "names": ["o.jsonl"],
        "old": None,
        "source": Source({"v.mp4": 3}),
        "fault": "none",
        "fault_seconds": 0.0,
        "signals": [],
        "exit": 0,
        "told": "",
        "printed": "",
        "group": 1 << 22,  # no process has it
        "hung": False,
        "second": None,
    }
    return soak_checks.After(**plain | changes)


def write(folder: Path, frames: int = 3, drops: int = 0, **end) -> None:
    empty = {"pts": 0, "pts_seconds": 0.0, "boxes": [], "scores": [], "levels": []}
    rows = [{"stream_rpn": 1, "source": "v.mp4", "width": 8, "height": 8, "parameters": {}}]
    rows += [{"frame": index, **empty} for index in range(frames)]
    total = {"frames": 3, "drops": {"cut off": drops} if drops else {}, "frames_in": 3, **end}
    rows.append({"end": total})
    (folder / "o.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_nothing_is_said_of_a_whole_run(tmp_path: Path):
    write(tmp_path)
    assert soak_checks.judge(after(tmp_path)) == []


@pytest.mark.parametrize(
    ("results", "changes"),
    [
        ({"frames": 2}, {}),
        ({"frames_in": 4}, {}),
        ({"stopped": "interrupted"}, {}),
        ({"frames": 2, "end": {}}, {"exit": 1}),
        ({}, {"exit": 2}),
        ({}, {"exit": 130}),
        ({}, {"hung": True}),
        ({}, {"printed": "x"}),
        ({}, {"told": "Traceback (most recent call last)"}),
        ({}, {"names": ["o.jsonl", "o.npz"]}),
    ],
    ids=str,
)
def test_whatever_is_not_as_promised_is_found(tmp_path: Path, results: dict, changes: dict):
    write(tmp_path, **results)
    assert soak_checks.judge(after(tmp_path, **changes))


def test_temporary_files_and_processes_that_stay_are_found(tmp_path: Path):
    write(tmp_path)
    (tmp_path / ".o.npz.part").mkdir()
    assert soak_checks.judge(after(tmp_path)) == [".o.npz.part was left behind"]
    (tmp_path / ".o.npz.part").rmdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, start_new_session=True) as p:
        assert soak_checks.judge(after(tmp_path, group=p.pid)) == ["processes were left behind"]
        p.kill()


def test_every_fault_and_every_format_has_its_turn():
    drawn, again = (list(itertools.islice(soak.trials(random.Random(1)), 117)) for _ in range(2))
    assert set(Counter(trial.fault for trial in drawn).values()) == {9}
    assert {trial.formats[0] for trial in drawn} == set(soak_checks.FORMATS)
    assert again == drawn


def test_one_run_that_is_stopped(tmp_path: Path):
    with (soaked := Soak(tmp_path)).sources:
        # At its own pace, so that it still runs after two seconds on any machine.
        trial = Trial("file in real time", (".jsonl", ".npz"), "SIGTERM", 0.4, True)
        result = soaked.run(trial)
    assert result["problems"] == []
    assert (result["fault"], result["exit"]) == ("SIGTERM", 143)


def test_a_soak_that_is_cut_short_keeps_what_it_found(tmp_path: Path, monkeypatch):
    empty = {"fault": "none", "frames_in": 3, "results": 3, "dropped": 0, "exit": 0}
    rest = {"source": "file", "outputs": [".npz"]}

    def two_runs(*_):
        yield {"run": 0, **empty, **rest, "problems": []}
        yield {"run": 1, **empty, **rest, "problems": ["a frame is lost"]}
        raise KeyboardInterrupt

    monkeypatch.setattr(soak, "soak", two_runs)
    monkeypatch.setattr(sys, "argv", ["soak", "--json", str(tmp_path / "soak.json")])
    with pytest.raises(KeyboardInterrupt):
        soak.main()
    found = json.loads((tmp_path / "soak.json").read_text())
    assert (found["runs"], found["rows"][0]["runs"]) == (2, 2)
    assert [result["run"] for result in found["found"]] == [1]


@pytest.mark.slow
def test_every_fault_twice():
    results = list(soak.soak(3600, 3, 2 * len(soak.FAULTS)))
    assert [result for result in results if result["problems"]] == []
