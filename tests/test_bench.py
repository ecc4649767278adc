"""The benchmarks themselves: what they report, and that every section of the GPU proof runs."""

import json

import pytest
import torch

from bench import gpu_proof, kernels, report
from bench.workloads import (
    CASES,
    SMALL,
    WORKLOADS,
    detectron2_style,
    head_outputs,
    mmdetection_style,
    ours,
)


def test_percentiles():
    summary = report.summarize([5.0, 1.0, 2.0, 4.0, 3.0])
    assert summary == {"median_ms": 3.0, "p10_ms": 1.0, "p90_ms": 5.0, "runs": 5}


def test_measure_runs_at_least_so_often():
    calls = []
    summary = report.measure(lambda: calls.append(1), warmup=2, min_runs=4, seconds=0.0)
    assert (len(calls), summary["runs"]) == (6, 4)


def test_reports_name_the_machine(tmp_path):
    report.write_json(tmp_path / "new" / "r.json", "name", [{"a": 1}], note="x")
    written = json.loads((tmp_path / "new" / "r.json").read_text())
    assert (written["name"], written["rows"], written["note"]) == ("name", [{"a": 1}], "x")
    assert written["machine"]["torch"] == torch.__version__.split("+")[0]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["r.json"]
    assert written["machine"]["commit"] in report.describe_machine(written["machine"])


def test_tables_are_aligned(capsys):
    report.print_table([{"name": "a", "ms": 1.23456}, {"name": "longer", "ms": None, "x": 12345.6}])
    assert capsys.readouterr().out.splitlines() == [
        "name      ms      x",
        "a       1.23      –",
        "longer     –  12346",
    ]


def test_named_shapes_are_the_fields():
    anchors = {w.name: w.num_anchors for w in WORKLOADS}
    assert anchors["fpn1000"] == anchors["fpn2000"] == 257796
    assert anchors["vgg6000"] == anchors["vgg12000"] == 20646


@pytest.mark.parametrize("case", CASES)
def test_made_up_heads_are_what_they_are_called(case):
    heads = head_outputs(SMALL[0], 2, torch.device("cpu"), case=case)
    assert [t.shape[1:] for t in heads.objectness] == [(3, *grid) for grid in SMALL[0].grids]
    assert (not heads.objectness[0].isfinite().all()) == (case == "not-finite")
    assert (heads.objectness[0].unique().numel() == 1) == (case == "equal")
    assert int(ours(SMALL[0], heads).count.min()) > 0


@pytest.mark.parametrize("other", [detectron2_style, mmdetection_style])
def test_other_orders_of_work_find_the_same_boxes(other):
    heads = head_outputs(SMALL[0], 2, torch.device("cpu"))
    found = ours(SMALL[0], heads)
    theirs = other(SMALL[0], heads)
    for mine, count, boxes in zip(found.boxes, found.count.tolist(), theirs, strict=True):
        torch.testing.assert_close(mine[:count], boxes, atol=1e-3, rtol=0)


def test_kernels_command(tmp_path, monkeypatch):
    path = tmp_path / "kernels.json"
    threads = str(torch.get_num_threads())
    arguments = ["kernels", "--quick", "--threads", threads, "--json", str(path)]
    monkeypatch.setattr("sys.argv", arguments)
    assert kernels.main() == 0
    rows = json.loads(path.read_text())["rows"]
    assert {row["who"] for row in rows} == {
        "stream-rpn", "torchvision", "detectron2-style", "mmdetection-style",
    }  # fmt: skip
    assert not [row for row in rows if row["verdict"] == "WRONG"]


class TestGPUProof:
    @pytest.fixture
    def proof(self, tmp_path):
        return gpu_proof.Proof(tmp_path / "proof.json", torch.device("cpu"))

    @pytest.mark.parametrize(
        "section",
        [gpu_proof.compare, gpu_proof.one_graph, gpu_proof.time_preprocess, gpu_proof.time_network],
        ids=lambda section: section.__name__,
    )
    def test_sections_run_without_a_gpu(self, proof, section):
        with torch.inference_mode(), proof.section("this"):
            section(proof)
        assert proof.sections["this"].startswith("done")
        written = json.loads(proof.path.read_text())
        assert written["rows"]
        assert written["dry_run"] is True

    def test_a_section_that_fails_is_reported_and_loses_nothing(self, proof):
        with proof.section("broken"):
            proof.add("broken", name="before")
            raise RuntimeError("no such kernel")
        written = json.loads(proof.path.read_text())
        assert "no such kernel" in written["sections"]["broken"]
        assert written["rows"] == [{"section": "broken", "name": "before"}]

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_without_a_gpu_it_says_so(self, monkeypatch, capsys):
        monkeypatch.setattr("sys.argv", ["gpu_proof"])
        assert gpu_proof.main() == 2
        assert "needs a CUDA device" in capsys.readouterr().out
