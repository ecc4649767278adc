"""The number of cores that a process may use."""

import os

import pytest

from stream_rpn import cores


@pytest.mark.parametrize(
    ("content", "expected"),
    [("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1), ("900000 100000", 8), ("", 8)],
)
def test_a_containers_quota_counts(tmp_path, monkeypatch, content, expected):
    (tmp_path / "cpu.max").write_text(content)
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(cores, "_OLD_QUOTA", tmp_path / "none")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert cores.available_cores() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("250000", 3)])
def test_so_does_that_of_an_old_cgroup(tmp_path, monkeypatch, quota, expected):
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "none")
    for name, content in (("_OLD_QUOTA", quota), ("_OLD_PERIOD", "100000")):
        (tmp_path / name).write_text(content)
        monkeypatch.setattr(cores, name, tmp_path / name)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert cores.available_cores() == expected
