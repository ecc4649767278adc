"""The benchmarks themselves: what they report, and that every section of the GPU proof runs."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import stream_rpn
from bench import (
    batch,
    certainty,
    compare,
    gpu_frames,
    gpu_kernels,
    gpu_proof,
    gpu_record,
    kernels,
    live,
    pipeline,
    readme,
    recall_table,
    report,
    scaling,
)
from bench.workloads import (
    CASES,
    SMALL,
    WORKLOADS,
    detectron2_style,
    head_outputs,
    mmdetection_style,
    ours,
)
from stream_rpn.cli import main
from stream_rpn.measure.meter import Usage
from stream_rpn.network import eager
from stream_rpn.pipeline import Pipeline
from stream_rpn.rpn import propose_image
from stream_rpn.sources import open_source
from tests.agreement import assert_same_selection, expectations, scored, selections
from tests.synthetic_coco import shapes


def test_boxes_by_certainty_are_those_of_a_model_that_has_it():
    rpn = stream_rpn.load("nanodet_m", size=96, top=30)
    image, _ = shapes(2, size=96)
    shipped = rpn.head.certainty
    found = dict(certainty.boxes_by_certainty(rpn, image))
    rpn.head.certainty = shipped
    assert np.allclose(found[shipped], propose_image(rpn, image).boxes, atol=1e-2)
    assert not np.allclose(found[shipped], found[0.0], atol=1e-2)


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


class TestLive:
    """What scenarios patch is what the command comes upon."""

    def test_the_model_that_is_slowed_is_the_one_that_computes(self, monkeypatch):
        computed = []
        process = eager.EagerNetwork._process

        def counted(self, frames, times):
            computed.append(len(frames))
            return process(self, frames, times)

        monkeypatch.setattr(eager.EagerNetwork, "_process", counted)
        (slow,) = (scenario for scenario in live.scenarios() if scenario.slow)
        started = time.monotonic()
        with live._slow_model(2):
            arguments = ["synthetic:64x48@25,2", "-o", "null", "--quiet", *slow.options]
            assert main([*arguments, "--model", "tiny"]) == 0
        assert sum(computed) == 2
        assert time.monotonic() - started >= 2
        assert eager.EagerNetwork._process is counted

    def test_a_full_disk_meets_one_source_and_ages_are_noted(self, tmp_path, capsys):
        uris = ["synthetic:64x48@25,3", "synthetic:96x64@25,3"]
        arguments = [*uris, "--realtime", "--max-age", "60", "--engine", "torch"]
        ages = {}
        with live._full_disk(after=0), live._noting_ages(ages):
            assert main([*arguments, "--model", "tiny", "-o", f"{tmp_path}/{{stem}}.jsonl"]) == 3
        assert capsys.readouterr().err.count("the disk is full") == 1
        assert ages
        assert all(0 < age < 60e3 for of_source in ages.values() for _, age in of_source)


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


@pytest.mark.numeric
@pytest.mark.parametrize("other", [detectron2_style, mmdetection_style])
def test_other_orders_of_work_find_the_same_boxes(other):
    workload = SMALL[0]
    heads = head_outputs(workload, 2, torch.device("cpu"))
    facts = expectations(
        lambda: (heads.objectness, heads.deltas),
        heads.base_anchors,
        heads.strides,
        heads.image_sizes,
        pre_nms_top_n=workload.pre_nms_top_n,
        post_nms_top_n=workload.post_nms_top_n,
        nms_thresh=0.7,
    )
    # To keep levels apart, they move the boxes of each by more than a side of the image.
    shift = torch.finfo(torch.float32).eps * len(heads.objectness) * (max(workload.inside) + 1)
    for mine, theirs, (limits, candidates) in zip(
        selections(ours(workload, heads)), other(workload, heads), facts, strict=True
    ):
        limits = replace(limits, boxes=limits.boxes + shift)
        assert_same_selection(mine, scored(theirs, limits, candidates), limits, candidates)


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


class TestPipeline:
    def side(self, name, frames_per_second, calls=None):
        rates = iter(frames_per_second)

        def run(frames):
            if calls is not None:
                calls.append((name, frames))
            seconds = frames / next(rates)
            return pipeline.Turn(frames, Usage(seconds=seconds, cpu_seconds=seconds))

        return pipeline.Side(name, run)

    def test_sides_take_turns_with_as_many_frames_as_fit(self):
        calls = []
        slow = self.side("slow", [1.0] * 9, calls)
        quick = self.side("quick", [20.0] * 9, calls)
        assert pipeline.take_turns([slow, quick], seconds=96) == pipeline.ROUNDS
        assert calls[:4] == [("slow", 1), ("slow", 2), ("quick", 1), ("quick", 2)]
        # 96 s are 8 s for each of two sides in each of the rounds, one of them for warming up.
        assert calls[4:8] == [("slow", 8), ("quick", 160)] * 2

    def test_ratios_are_of_the_same_round(self):
        # A machine at half its speed in the last two rounds: the ratio is 3 throughout.
        loop = self.side(pipeline.LOOP, [2.0, 1.0, 1.0])
        ours = self.side("stream-rpn float32", [6.0, 3.0, 3.0])
        for side in (loop, ours):
            side.turns = [side.run(4) for _ in range(3)]
        theirs, row = pipeline.rows_of("tiny", [loop, ours])
        assert "ratio" not in theirs
        assert (row["ratio"], row["ratio_min"], row["ratio_max"]) == (3.0, 3.0, 3.0)
        assert (row["fps_median"], row["fps_max"], row["rounds"]) == (3.0, 6.0, 3)

    def test_command(self, tmp_path, monkeypatch):
        path = tmp_path / "pipeline.json"
        monkeypatch.setattr(pipeline, "CLIP", "synthetic:320x180@30,12")
        monkeypatch.setattr(pipeline, "CLIP_FRAMES", 4)
        monkeypatch.setattr(pipeline, "DECODERS_WITH", "")
        arguments = ["pipeline", "--models", "tiny", "--seconds", "0.1", "--json", str(path)]
        monkeypatch.setattr("sys.argv", arguments)
        assert pipeline.main() == 0
        written = json.loads(path.read_text())
        whats = [row["what"] for row in written["rows"]]
        assert whats[:3] == [pipeline.LOOP, pipeline.TUNED, "stream-rpn float32"]
        assert all(row["ratio"] > 0 for row in written["rows"][2:])
        assert written["checks"]["tiny"]["head_outputs_max_difference_in_std"] < 1e-3
        assert written["checks"]["tiny"]["engines_share_of_equal_boxes"] >= 0.98

    def test_engines_that_disagree_are_not_measured(self, monkeypatch):
        with open_source("synthetic:320x180@30,1") as source:
            (frame,) = source
        process = Pipeline.process

        def shifted(made, batches, times):
            for found in process(made, batches, times):
                found.input_boxes[::10] += 1 if made.engine == "openvino" else 0
                yield found

        monkeypatch.setattr(Pipeline, "process", shifted)
        with pytest.raises(SystemExit, match="WRONG: the engines agree on 9"):
            pipeline.between_engines("tiny", frame)


class TestScaling:
    def test_exponents_of_known_growth(self):
        rows = [{"x": x, "ms": 3 * x**1.5, "peak_mb": 700.0} for x in (10, 100, 1000)]
        found = scaling.growth(rows)
        assert found == {"time_exponent": 1.5, "r2": 1.0, "memory_exponent": 0.0}

    @pytest.mark.parametrize(
        "name",
        [
            pytest.param("batch", marks=pytest.mark.slow),
            pytest.param("sources", marks=pytest.mark.slow),
            "anchors",
            "length",
        ],
    )
    def test_sweeps(self, name):
        rows = scaling._sweep(name, quick=True, longest=10_000)
        assert len(rows) == 2
        assert rows[0]["x"] < rows[1]["x"]
        assert all(row["sweep"] == name and row["ms"] > 0 and row["n"] > 0 for row in rows)


class TestBatch:
    def test_growth_by_ray_is_measured_by_it(self, monkeypatch):
        asked = []
        monkeypatch.setattr(batch, "main", lambda arguments: asked.append(arguments) or 0)
        monkeypatch.setattr("sys.argv", ["scaling", "--engine", "ray", "--quick"])
        assert scaling.main() == 0
        assert asked == [["--json", "bench/results/batch.json", "--quick"]]

    def test_a_video_takes_what_passes_between_whole_results(self):
        """Five videos by two, of 8 s each, of which the second half works while others do, too."""
        parts = {
            Path(name): [120.0, at]
            for name, at in (("a", 130), ("b", 130), ("c", 138), ("d", 138), ("e", 142))
        }
        samples = [batch.Sample(float(at), (at - 100) * 1.5, (at - 100) * 2.0, 300.0)
                   for at in range(100, 146)]  # fmt: skip
        row = batch.Run(100.0, 145.0, parts, samples).row(frames=10, together=2)
        assert row["video_seconds"] == 4.0
        assert row["start_seconds"] == 22.0
        assert row["end_seconds"] == 3.0
        assert row["cpu_ms_a_frame"] == pytest.approx(600.0)
        assert row["others_utilisation"] == pytest.approx(0.5 / batch.available_cores())

    def test_ratios_are_those_within_a_round(self):
        turns = {
            name: [{"video_seconds": seconds * slow, "cpu_ms_a_frame": 10.0 * slow,
                    "start_seconds": 1.0, "end_seconds": 1.0, "others_utilisation": 0.0}
                   for slow in (1, 2)]
            for name, seconds in ((batch.PLAIN, 10.0), ("batch, 1 worker", 11.0),
                                  ("batch, 2 workers", 5.5))
        }  # fmt: skip
        rows = [batch._summary(name, turns, 100) for name in turns]
        assert rows[1]["of_plain_min"] == rows[1]["of_plain_max"] == 1.1
        assert rows[2]["growth_min"] == rows[2]["growth_max"] == 2.0
        assert rows[2]["growth_cpu"] == 1.0
        memory = {
            "what": batch.MEMORY,
            "commit": "abc",
            "pieces": 8,
            "quarters_mb": [300, 301, 302, 303],
        }
        found = {"clip": "synthetic:1280x720@25,100", "videos": 9, "rounds": 2}
        table = batch.table({**found, "rows": [*rows, memory]}, "here")
        assert "9 videos of 4 s, 1280×720 H.264, here" in table
        assert "| batch, 2 workers | 13.6 (9.09–18.2) | 2 (2–2) × the rate of one |" in table
        assert "300, 301, 302, 303 MB" in table


class TestBase:
    def test_the_other_commit_is_measured_by_this_instrument(self, tmp_path, monkeypatch, capsys):
        """A repository of two commits, whose package takes 2 ms and then 1 ms."""

        def git(*arguments):
            command = ["git", "-c", "user.name=n", "-c", "user.email=e", *arguments]
            subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

        instrument = tmp_path / "bench"
        for folder in (instrument, tmp_path / "stream_rpn" / "measure"):
            folder.mkdir(parents=True)
        (instrument / "old.py").write_text("raise SystemExit('the old instrument ran')")
        git("init", "-q")
        for ms in (2, 1):
            (tmp_path / "stream_rpn" / "product.py").write_text(f"MS = {ms}")
            git("add", "-A")
            git("commit", "-qm", f"{ms} ms")
        (instrument / "old.py").write_text(
            "import json, sys\nfrom stream_rpn.product import MS\n"
            "rows = [{'name': 'a', 'median_ms': MS}]\n"
            "json.dump({'rows': rows}, open(sys.argv[sys.argv.index('--json') + 1], 'w'))"
        )
        monkeypatch.setattr(compare, "ROOT", tmp_path)
        assert compare.compare_with("HEAD~1", "bench.old", [], ("name",), "median_ms") == 0
        *_, heading, row = capsys.readouterr().out.splitlines()
        assert heading.split()[:4] == ["name", "median_ms", "at", "HEAD~1"]
        assert row.split() == ["a", "2", "1", "2", "2", "2"]
        listed = subprocess.run(["git", "worktree", "list"], cwd=tmp_path, capture_output=True)
        assert len(listed.stdout.splitlines()) == 1

    def test_a_commit_that_is_not_there(self, capsys):
        with pytest.raises(SystemExit, match=r"--base no-such-commit: .*no-such-commit"):
            compare.compare_with("no-such-commit", "bench.kernels", [], ("who",), "median_ms")


def page_now(page):
    return readme.rendered(page, (readme.ROOT / page).read_text())


class TestReadme:
    MACHINE = {"cores": 2, "cpu": "Some CPU", "commit": "abc1234", "torch_threads": 2}  # noqa: RUF012

    @pytest.fixture
    def results(self, tmp_path, monkeypatch):
        monkeypatch.setattr(readme, "RESULTS", tmp_path)
        monkeypatch.setattr(readme, "DOCS", tmp_path / "docs")
        rows = [
            {"model": model, "what": what, "fps_median": fps, "fps_min": fps, "fps_max": fps,
             "others_utilisation": others, **({"ratio": ratio} if ratio else {})}
            for model, what, fps, ratio, others in (
                ("tiny", pipeline.LOOP, 10.0, None, 0.0),
                ("tiny", "stream-rpn float32", 40.0, 4.0, 0.0),
                ("tiny", "stream-rpn bfloat16", 60.4, 6.04, 0.0),
                ("resnet50_fpn", pipeline.LOOP, 0.5, None, 0.0),
                ("resnet50_fpn", "stream-rpn bfloat16", 1.234, 2.47, 0.0),
            )
        ]  # fmt: skip
        clip = {"width": 1920, "height": 1080, "codec": "h264"}
        written = {"machine": self.MACHINE, **clip, "rows": rows}
        (tmp_path / "pipeline_cpu.json").write_text(json.dumps(written))
        rows = [
            {"what": what, "fps_median": fps, "ratio": ratio, "ratio_min": ratio - 0.1,
             "ratio_max": ratio + 0.1, "cpu_ms_a_frame": 20.0, "others_utilisation": 0.0}
            for what, fps, ratio in (
                ("OpenCV + OpenVINO script, 320", 40.0, 0.8),
                ("PyAV + OpenVINO script, tuned, 320", 50.0, 1.0),
                ("stream-rpn nanodet_m 320, openvino", 70.4, 1.4),
                ("stream-rpn nanodet_m 416, openvino", 45.2, 0.9),
                ("stream-rpn tiny 320, torch", 30.0, 0.6),
            )
        ]  # fmt: skip
        start = {"seconds_median": 0.94, "seconds_min": 0.9, "peak_memory_mb": 271.4}
        written = {"machine": self.MACHINE, **clip, "rows": rows}
        written |= {"first_result": {"openvino": start, "torch": start}, "default_dtype": "float32"}
        (tmp_path / "scripts_cpu.json").write_text(json.dumps(written))
        points = [{"sweep": "batch", "x": x, "ms": 2.0 * x, "peak_mb": 800.0} for x in (1, 2, 4)]
        ends = {"from": "1", "to": "4", "ms_from": 2.0, "ms_to": 8.0, "mb_from": 800.0,
                "mb_to": 800.0}  # fmt: skip
        grown = {"sweep": "batch", "x": "frames a batch", "time_of": "a frame", **ends}
        growth = [grown | scaling.growth(points)]
        written = {"machine": self.MACHINE, "rows": points, "growth": growth}
        (tmp_path / "scaling_cpu.json").write_text(json.dumps(written))
        return tmp_path

    def test_the_first_screen_says_how_fast_on_what_and_against_what(self, results):
        text = page_now("README.md")
        first = " ".join(text.split("<!-- speed:end -->")[0].split())
        assert "**45 frames/s** from 1920×1080 H.264 to JSON lines on 2 cores of Some CPU" in first
        assert "1.5 × the first release's" in first
        assert "70 frames/s: **1.40 ×** an OpenVINO script" in first
        assert "1.76 × the one that tutorials lead to" in first
        assert "First result after 0.9 s, 271 MB" in first
        assert "`make bench`" in first
        assert len(first) < 1200

    def test_where_the_default_is_int8_the_first_screen_says_so_and_what_float32_gives(
        self, results
    ):
        path = results / "scripts_cpu.json"
        written = json.loads(path.read_text())
        quantised = [
            {**row, "what": f"{row['what']} int8", "fps_median": 2 * row["fps_median"]}
            for row in written["rows"]
            if "nanodet_m" in row["what"]
        ]
        written |= {"default_dtype": "int8", "rows": written["rows"] + quantised}
        path.write_text(json.dumps(written))
        first = " ".join(page_now("README.md").split("<!-- speed:end -->")[0].split())
        assert "**90 frames/s** from 1920×1080" in first
        assert "(int8, no GPU)" in first
        assert "`--dtype float32`, for a little more recall: 45, and 70 (1.40 ×)." in first
        (results / readme.WITHOUT_BFLOAT16).write_text(path.read_text())
        first = " ".join(page_now("README.md").split("<!-- speed:end -->")[0].split())
        assert "Without bfloat16 (int8, on 2 cores of Some CPU, commit" in first
        assert "): 90, and 141 (1.40 ×)." in first
        assert page_now("docs/performance.md").count("where `auto` is int8, in turns") == 2

    def test_tables(self, results):
        text = page_now("docs/performance.md")
        assert "| **stream-rpn float32** | 40 (4.0 ×) |  |" in text
        assert "| **stream-rpn nanodet_m 320, openvino** | 70.4 | 1.40 (1.30–1.50) | 20 |" in text
        assert (
            "| frames a batch | 1 | 4 | 2 → 8 ms (a frame) | x^1.00 (r² 1.00) "
            "| 800 → 800 | x^0.00 |"
        ) in text
        assert "not quiet" not in text
        assert readme.rendered("docs/performance.md", text) == text

    def test_a_busy_machine_is_confessed(self, results):
        path = results / "pipeline_cpu.json"
        path.write_text(
            path.read_text().replace('"others_utilisation": 0.0', '"others_utilisation": 0.3')
        )
        text = page_now("docs/performance.md")
        assert "not quiet**: other processes took up to 30 %" in text

    def test_pictures_know_what_they_show(self, results):
        assert readme.stale_pictures() == ["speed.png", "scaling.png"]
        readme.draw_pictures()
        assert readme.stale_pictures() == []
        path = results / "scaling_cpu.json"
        path.write_text(path.read_text() + "\n")
        assert readme.stale_pictures() == ["scaling.png"]

    @pytest.mark.parametrize("page", [page for page in readme.PAGES if "models" in page])
    def test_pages_of_models_say_what_was_measured(self, page):
        assert page_now(page) == (readme.ROOT / page).read_text()

    def test_a_table_of_certainty_says_what_ships_and_on_which_pictures(self):
        row = {"model": "m", "data": "val", "images": 200, "AR@100": 0.4, "R50@100": 0.6}
        rows = [row | {"certainty": c, "shipped": c == 4, "R50@300": c / 10} for c in (0.0, 4.0)]
        table = recall_table.certainty({"every": 2, "rows": rows}, "m")
        assert "every second picture of each set; 4 ships" in table
        assert "| data | pictures | recall | 0 | 4 |" in table
        assert "| 200 | R50@300 | 0.000 | 0.400 |" in table

    def test_without_results_there_is_no_number(self, tmp_path, monkeypatch):
        monkeypatch.setattr(readme, "RESULTS", tmp_path)
        text = page_now("docs/performance.md")
        assert text.split("<!-- numbers:begin -->")[1].startswith("\n<!-- numbers:end -->")
        assert readme.stale_pictures() == []


class TestGPUProof:
    @pytest.fixture
    def proof(self, tmp_path):
        return gpu_record.Proof(tmp_path / "proof.json", torch.device("cpu"))

    @pytest.mark.parametrize(
        "section",
        [
            gpu_kernels.compare,
            gpu_kernels.one_graph,
            gpu_frames.time_preprocess,
            gpu_frames.time_network,
        ],
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


def test_the_gpu_proof_and_its_tests_import_without_pyav():
    tests = "test_kernels_cuda", "test_network_cuda", "test_preprocess_op"
    modules = ["bench.gpu_proof", *(f"tests.{name}" for name in tests)]
    root = Path(__file__).resolve().parent.parent
    program = f"import sys; sys.modules['av'] = None; import {', '.join(modules)}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
