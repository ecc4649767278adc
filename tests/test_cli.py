"""The command as its users run it: contract of arguments, outputs, exit codes and sentences."""

import dataclasses
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import av
import pytest
import torch

from stream_rpn import Selection, StreamInfo, cli, load, models, read
from stream_rpn.commands.progress import expected_results
from stream_rpn.sinks import READABLE
from stream_rpn.sinks.jsonl import JSONLinesSink
from stream_rpn.sources.synthetic import SyntheticVideo
from tests import agreement

ROOT = Path(__file__).resolve().parents[1]
FAST = ("--size", "96")


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def stream_rpn(*arguments: object, fast: bool = True) -> int:
    """Runs the command in this process; argparse's own exits become their codes."""
    try:
        return cli.main([*(FAST if fast else ()), *map(str, arguments)])
    except SystemExit as error:
        return int(error.code or 0)


def lines(path: str | Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def clip(uri: str) -> bytes:
    with SyntheticVideo.parse(uri).encoded() as file:
        return file.read()


def start(*arguments: object, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "stream_rpn", *FAST, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        **options,
    )


class TestResults:
    def test_default_output_has_header_frames_and_end(self, capsys):
        assert stream_rpn("synthetic:128x96@10,6") == 0
        header, *frames, end = lines("synthetic.proposals.jsonl")
        assert header["stream_rpn"] == 1
        assert (header["width"], header["height"], header["rotation"]) == (128, 96, 0)
        assert header["decoder"] == "h264 (software)"
        assert header["model"] == "nanodet_m"
        assert header["parameters"]["proposals"]["post_nms_top_n"] == 300
        assert [frame["frame"] for frame in frames] == list(range(6))
        assert [round(frame["pts_seconds"], 3) for frame in frames] == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
        assert end["end"]["frames"] == 6
        for frame in frames:
            assert len(frame["boxes"]) == len(frame["scores"]) == len(frame["levels"]) > 0
            assert frame["scores"] == sorted(frame["scores"], reverse=True)
            for x1, y1, x2, y2 in frame["boxes"]:
                assert 0 <= x1 <= x2 <= 128
                assert 0 <= y1 <= y2 <= 96
        out, err = capsys.readouterr()
        assert out == ""
        assert "6 frames" in err

    def test_random_weights_are_told(self, capsys):
        assert stream_rpn("synthetic:64x64@10,1", "--weights", "random", "-o", "null") == 0
        assert "UNTRAINED" in capsys.readouterr().err

    def test_standard_output_carries_json_lines_only(self, capfd):
        assert stream_rpn("synthetic:64x64@10,3", "-o", "-") == 0
        out, _ = capfd.readouterr()
        assert len([json.loads(line) for line in out.splitlines()]) == 3 + 2

    def test_every_format_at_once(self):
        names = [f"a{ending}" for ending in READABLE]
        outputs = [*names, "a.mp4", "a.mkv", "crops/", "null"]
        flags = [flag for name in outputs for flag in ("-o", name)]
        assert stream_rpn("synthetic:128x96@10,5", *flags) == 0
        counts = {name: [len(p) for p in read(name)] for name in names}
        assert set(map(tuple, counts.values())) == {tuple(counts["a.jsonl"])}
        assert counts["a.jsonl"][0] > 0
        for name in ("a.mp4", "a.mkv"):
            with av.open(name) as container:
                assert sum(1 for _ in container.decode(video=0)) == 5
        expected = sum(min(10, count) for count in counts["a.jsonl"])
        assert len(list(Path("crops").glob("*.jpg"))) == expected

    def test_summary_for_machines(self):
        assert stream_rpn("synthetic:64x64@10,4", "-o", "null", "--json-summary", "s.json") == 0
        summary = json.loads(Path("s.json").read_text())
        assert summary["frames"] == 4
        assert summary["fps"] == pytest.approx(4 / summary["elapsed_seconds"], rel=0.05)
        assert {"decode", "preprocess", "network", "results", "sinks"} <= set(summary["stages"])
        for stage in summary["stages"].values():
            assert 0 < stage["p50_ms"] <= stage["p95_ms"]
        assert summary["drops"] == {}
        assert summary["damaged_packets"] == 0
        assert summary["outputs"] == ["null"]

    @pytest.mark.parametrize(
        ("flags", "expected"),
        [
            (("--stride", 3), [0, 3, 6, 9]),
            (("--start", "0.25", "--end", "0.6"), [3, 4, 5]),
            (("--start", "00:00:00.5", "--max-frames", 2), [5, 6]),
            (("--fps", 5), [0, 2, 4, 6, 8]),
        ],
        ids=["stride", "start-end", "clock-and-max-frames", "fps"],
    )
    def test_frames_keep_their_index(self, flags, expected):
        assert stream_rpn("synthetic:64x64@10,10", *flags) == 0
        _, *frames, _ = lines("synthetic.proposals.jsonl")
        assert [frame["frame"] for frame in frames] == expected

    def test_top_score_and_min_size_limit_the_boxes(self):
        assert stream_rpn("synthetic:128x96@10,2", "--top", 3) == 0
        assert (
            stream_rpn(
                "synthetic:128x96@10,2", "--score-thresh", 0.5, "--min-size", 40, "-o", "b.jsonl"
            )
            == 0
        )
        assert [len(f["boxes"]) for f in lines("synthetic.proposals.jsonl")[1:-1]] == [3, 3]
        for frame in lines("b.jsonl")[1:-1]:
            assert all(score >= 0.5 for score in frame["scores"])
            # 128×96 at a shorter side of 96 is not resized: network pixels are frame pixels.
            assert all(x2 - x1 >= 39.99 for x1, _, x2, _ in frame["boxes"])

    @pytest.mark.numeric
    def test_batches_give_what_single_frames_give(self):
        for batch in (1, 4):
            assert stream_rpn(
                "synthetic:128x96@10,6", "--engine", "torch", "--batch", batch, "--dtype",
                "float32", "-o", f"b{batch}.npz",
            ) == 0  # fmt: skip
        rpn = load(size=96)
        images, sizes = torch.rand(1, 3, 96, 128), torch.tensor([[96, 128]])
        with torch.inference_mode():
            maps = list(rpn.features(images).values())
        # What roundings do to such a network; a frame of this size is not resized.
        ((limits, _),) = agreement.expectations(
            lambda: rpn.head(list(rpn.features(images).values())),
            rpn.base_anchors,
            rpn.strides(images, maps),
            sizes,
            **dataclasses.asdict(rpn.proposal_spec),
        )
        one, four = list(read("b1.npz")), list(read("b4.npz"))
        assert len(one) == 6
        for a, b in zip(one, four, strict=True):
            sides = (agreement.Selection(p.boxes, p.scores, p.levels, p.anchors) for p in (a, b))
            agreement.assert_same_selection(*sides, limits)
            assert a.pts == b.pts

    def test_several_sources_share_one_file_or_get_one_each(self):
        clips = ("synthetic:64x64@10,2", "synthetic:96x64@10,3")
        assert stream_rpn(*clips, "-o", "all.jsonl", "-o", "{stem}.npz") == 0
        frames = [line for line in lines("all.jsonl") if "frame" in line]
        assert [frame["source"] for frame in frames] == [clips[0]] * 2 + [clips[1]] * 3
        assert sorted(len(list(read(path))) for path in Path().glob("*.npz")) == [2, 3]

    def test_a_summary_of_several_sources_adds_up(self):
        clips = ("synthetic:64x64@10,2", "synthetic:96x64@10,3")
        flags = ("-o", "{stem}.npz", "--json-summary", "s.json")
        assert stream_rpn(*clips, *flags) == 0
        summary = json.loads(Path("s.json").read_text())
        assert summary["frames"] == 5
        assert [source["frames"] for source in summary["sources"]] == [2, 3]
        assert summary["outputs"] == ["synthetic.npz", "synthetic-2.npz"]
        assert summary["model"] == "nanodet_m"
        assert summary["damaged_packets"] == 0

    def test_sources_may_stand_on_both_sides_of_an_option(self):
        clips = ("synthetic:64x64@10,2", "synthetic:96x64@10,3")
        assert stream_rpn(clips[0], "-o", "all.jsonl", clips[1]) == 0
        assert [p.frame for p in read("all.jsonl")] == [0, 1, 0, 1, 2]

    @pytest.mark.parametrize(
        "arguments",
        [
            ("-o", "o.jsonl", "--", "-clip.mp4"),
            ("-o", "o.jsonl", "--", "-clip.mp4", "clip.mp4"),
            ("clip.mp4", "-o", "o.jsonl", "--", "-clip.mp4"),
            ("-o", "o.jsonl", "./-clip.mp4", "--", "clip.mp4"),
        ],
    )
    def test_names_that_begin_with_a_dash_stand_behind_two(self, arguments):
        for name in ("-clip.mp4", "clip.mp4"):
            Path(name).write_bytes(clip("synthetic:64x48@25,3"))
        assert stream_rpn(*arguments) == 0
        named = sum("clip" in argument for argument in arguments)
        sources = [line["source"] for line in lines("o.jsonl") if "stream_rpn" in line]
        assert len(sources) == named
        assert "./-clip.mp4" in sources

    def test_images_of_a_pattern_are_named_by_their_folder(self):
        Path("photos").mkdir()
        with av.open(io.BytesIO(clip("synthetic:64x64@10,2"))) as container:
            for index, frame in enumerate(container.decode(video=0)):
                frame.to_image().save(f"photos/{index}.png")
        assert stream_rpn("photos/*.png") == 0
        assert [p.name for p in read("photos.proposals.jsonl")] == ["0.png", "1.png"]

    def test_more_proposals_than_memory_has_room_for(self):
        assert stream_rpn("synthetic:64x64@10,1", "--top", 10**12) == 0
        (proposals,) = read("synthetic.proposals.jsonl")
        assert len(proposals) > 0

    def test_standard_input_is_a_source(self, tmp_path):
        data = clip("synthetic:64x64@10,4")
        process = start("-", "-o", "out.jsonl", stdin=subprocess.PIPE)
        _, err = process.communicate(data, timeout=300)
        assert process.returncode == 0, err.decode()
        assert lines("out.jsonl")[-1]["end"]["frames"] == 4

    def test_a_file_redirected_to_standard_input_can_have_its_index_at_the_end(self):
        with av.open("clip.mp4", "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for index in range(3):
                frame = av.VideoFrame(64, 48, "yuv420p")
                frame.pts = index
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        with open("clip.mp4", "rb") as file:
            process = start("-", "-o", "out.jsonl", stdin=file)
            _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err.decode()
        assert lines("out.jsonl")[-1]["end"]["frames"] == 3


@pytest.mark.parametrize("option", ["--video-stream", "--stream"])
def test_a_video_stream_is_chosen_by_two_names(option, capsys):
    Path("a.mp4").write_bytes(clip("synthetic:64x48@30,3"))
    assert stream_rpn("a.mp4", "-o", "null", option, "0") == 0
    assert stream_rpn("a.mp4", "-o", "null", option, "1") == 2
    assert "has no video stream 1" in capsys.readouterr().err


class TestRefusals:
    """One sentence that names the culprit, exit code 2, nothing written."""

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (("missing.mp4",), "missing.mp4"),
            (("empty.mp4",), "empty.mp4"),
            (("notes.txt",), "notes.txt"),
            (("folder",), "folder"),
            (("*.avi",), "avi"),
            (("synthetic:banana",), "banana"),
            (("synthetic:64x64@10,2", "-o", "out.xyz"), "out.xyz"),
            (("synthetic:64x64@10,2", "-o", "nowhere/out.jsonl"), "nowhere"),
            (("synthetic:64x64@10,2", "-o", "a.npz", "-o", "./a.npz"), "a.npz"),
            (("synthetic:64x64@10,2", "synthetic:64x64@10,3", "-o", "a.npz"), "{stem}"),
            (("synthetic:64x64@10,2", "--model", "resnet"), "resnet50_fpn"),
            (("synthetic:64x64@10,2", "--device", "cuda:99"), "cuda:99"),
            (("synthetic:64x64@10,2", "--device", "tpu"), "tpu"),
            (("synthetic:64x64@10,2", "--dtype", "int4"), "int4"),
            (("synthetic:64x64@10,2", "--batch", "0"), "--batch"),
            (("synthetic:64x64@10,2", "--nms", "7"), "--nms must be"),
            (("synthetic:64x64@10,2", "--score-thresh", "-1"), "--score-thresh must be"),
            (("synthetic:64x64@10,2", "--start", "soon"), "soon"),
            (("synthetic:64x64@10,2", "--start", "9"), "no frame lies between"),
            (("synthetic:64x64@10,2", "--model", "tiny", "--anchor-sizes", "1,2"), "anchor sizes"),
            (
                ("synthetic:64x64@10,2", "--model", "tiny", "--anchor-ratios", "1,-2,3"),
                "--anchor-ratios must be",
            ),
            (("synthetic:64x64@10,2", "--json-summary", "nowhere/s.json"), "nowhere"),
            (("synthetic:64x64@10,2", "--json-summary", "notes.txt"), "notes.txt"),
            (("synthetic:64x64@10,2", "-o", "a.jsonl", "--json-summary", "a.jsonl"), "a.jsonl"),
            (("",), "empty name"),
            (("synthetic:64x64@10,2", "-o", "x" * 300 + ".jsonl"), "too long"),
            (("synthetic:64x64@10,2", "--size", "1000000000"), "memory"),
            (("photos", "--start", "1"), "photos: the source has no timestamps"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_bad_arguments(self, arguments, sentence, capsys):
        Path("empty.mp4").touch()
        Path("notes.txt").write_text("hello\n" * 100)
        Path("folder").mkdir()
        Path("photos").mkdir()
        with av.open(io.BytesIO(clip("synthetic:64x64@10,1"))) as container:
            next(container.decode(video=0)).to_image().save("photos/0.png")
        before = sorted(Path().rglob("*"))
        assert stream_rpn(*arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        complaints = [line for line in err.splitlines() if "UNTRAINED" not in line]
        assert len(complaints) == 1
        assert complaints[0].startswith("stream-rpn: ")
        assert sentence in complaints[0]
        assert sorted(Path().rglob("*")) == before

    @pytest.mark.parametrize(
        "flags",
        [
            ("--top", "0"),
            ("--stride", "x"),
            ("--fps", "0"),
            ("--fps", "nan"),
            ("--decoder", "gpu"),
            ("--overwr",),
            (),
        ],
    )
    def test_options_that_are_wrong_are_told_in_one_sentence(self, flags, capsys):
        source = ["synthetic:64x64@10,2"] if flags else []
        assert stream_rpn(*source, *flags) == 2
        err = capsys.readouterr().err
        assert err.startswith(
            f"stream-rpn: {flags[0] if flags else 'the following'}".replace(
                "--overwr", "unknown: --overwr"
            )
        )
        assert err.count("\n") == 1
        assert "--help` tells more" in err or "did you mean --overwrite?" in err

    def test_existing_output_needs_overwrite(self, capsys):
        Path("a.jsonl").write_text("precious")
        assert stream_rpn("synthetic:64x64@10,2", "-o", "a.jsonl") == 2
        assert Path("a.jsonl").read_text() == "precious"
        assert "--overwrite" in capsys.readouterr().err
        assert stream_rpn("synthetic:64x64@10,2", "-o", "a.jsonl", "--overwrite") == 0
        assert lines("a.jsonl")[-1]["end"]["frames"] == 2

    def test_a_summary_does_not_replace_a_source(self):
        data = clip("synthetic:64x64@10,2")
        Path("clip.mp4").write_bytes(data)
        flags = ("-o", "null", "--json-summary", "clip.mp4", "--overwrite")
        assert stream_rpn("clip.mp4", *flags) == 2
        assert Path("clip.mp4").read_bytes() == data

    def test_output_equal_to_a_source(self, shared_data, capsys):
        os.symlink(shared_data / "video" / "tud-campus.mp4", "clip.mp4")
        assert stream_rpn("clip.mp4", "-o", "clip.mp4", "--overwrite") == 2
        assert "source" in capsys.readouterr().err

    def test_results_for_a_closed_standard_output(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "stdout", None)
        assert stream_rpn("synthetic:64x64@10,2", "-o", "-") == 2
        assert "closed" in capsys.readouterr().err

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
    def test_nvdec_asked_for_where_there_is_none(self, capsys):
        assert stream_rpn("synthetic:64x64@10,2", "--decoder", "nvdec") == 2
        assert "nvdec" in capsys.readouterr().err.lower()


class TestFailuresUnderWay:
    def test_one_of_two_sources_is_unreadable(self, capsys):
        Path("bad.mp4").write_bytes(b"not a video at all" * 50)
        assert stream_rpn("bad.mp4", "synthetic:64x64@10,3") == 3
        assert "bad.mp4" in capsys.readouterr().err
        assert lines("synthetic.proposals.jsonl")[-1]["end"]["frames"] == 3
        assert not Path("bad.proposals.jsonl").exists()

    def test_a_full_disk_ends_one_output_and_not_the_other(self, capsys):
        os.symlink("/dev/full", "full.jsonl")
        code = stream_rpn(
            "synthetic:64x64@10,5", "-o", "full.jsonl", "-o", "good.jsonl", "--overwrite"
        )
        assert code == 3
        assert "full.jsonl" in capsys.readouterr().err
        assert lines("good.jsonl")[-1]["end"]["frames"] == 5

    def test_a_failed_output_is_not_opened_again_for_the_next_source(self, monkeypatch):
        write, lines_left = JSONLinesSink._write, iter(range(2))

        def fill_up(sink, proposals):
            if next(lines_left, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(sink, proposals)

        monkeypatch.setattr(JSONLinesSink, "_write", fill_up)
        clips = ("synthetic:64x64@10,4", "synthetic:96x64@10,3")
        assert stream_rpn(*clips, "-o", "all.jsonl", "--json-summary", "s.json") == 3
        assert [p.source for p in read("all.jsonl")] == [clips[0]] * 2
        summary = json.loads(Path("s.json").read_text())
        assert summary["outputs"] == []
        assert "the disk is full" in summary["failures"][0]

    def test_a_summary_that_cannot_be_written(self, capsys):
        flags = ("-o", "null", "--json-summary", "/dev/full")
        assert stream_rpn("synthetic:64x64@10,2", *flags) == 3
        assert "/dev/full" in capsys.readouterr().err

    def test_damage_is_exit_3_and_everything_else_is_there(self, shared_data, capsys):
        damaged = shared_data / "video" / "odd" / "corrupted.mp4"
        assert stream_rpn(damaged, "-o", "out.jsonl", "--json-summary", "s.json") == 3
        assert "damaged" in capsys.readouterr().err
        _, *frames, end = lines("out.jsonl")
        assert len(frames) == 49
        assert end["end"]["drops"] == {"damaged packet": 1}
        assert next(f["drops"] for f in frames if "drops" in f)[0]["count"] == 1

    def test_a_reader_that_closes_the_pipe_is_no_error(self):
        process = start("synthetic:64x64@30,400", "-o", "-", stdout=subprocess.PIPE)
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read().decode()
        assert process.wait(timeout=300) == 0, err
        assert "Traceback" not in err

    def test_a_closed_standard_error_sends_nothing_to_standard_output(self):
        command = f"{sys.executable} -m stream_rpn {' '.join(FAST)} synthetic:64x64@10,3 -o - 2>&-"
        done = subprocess.run(
            ["bash", "-c", command],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert done.returncode == 0
        assert len([json.loads(line) for line in done.stdout.splitlines()]) == 3 + 2

    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"]
    )
    def test_a_signal_finishes_the_files(self, number, code):
        process = start("synthetic:320x240@30,3000", "-o", "out.jsonl", "-o", "out.mp4")
        wait_for_lines("out.jsonl", 5)
        process.send_signal(number)
        err = process.stderr.read().decode()
        assert process.wait(timeout=300) == code, err
        assert "Traceback" not in err
        frames = lines("out.jsonl")[-1]["end"]["frames"]
        assert 4 <= frames < 3000
        with av.open("out.mp4") as container:
            assert sum(1 for _ in container.decode(video=0)) == frames

    def test_killed_in_the_middle_leaves_whole_lines(self):
        clip = "synthetic:64x64@30,30000"
        process = start(clip, "--batch", "8", "-o", "out.jsonl", "-o", "out.mkv")
        # The encoder looks ahead by some dozens of frames.
        wait_for_lines("out.jsonl", 250)
        process.kill()
        process.wait(timeout=300)
        process.stderr.close()
        frames = list(read("out.jsonl"))
        assert len(frames) >= 240
        with av.open("out.mkv") as container:
            assert sum(1 for _ in container.decode(video=0)) >= 1


def wait_for_lines(path: str, count: int) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if Path(path).exists() and Path(path).read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} did not reach {count} lines")


class TestProgress:
    @pytest.mark.parametrize(
        ("selection", "expected"),
        [
            ({}, 100),
            ({"stride": 3}, 34),
            ({"start": 2.5, "end": 5.0}, 25),
            ({"start": 20.0}, 0),
            ({"fps": 2.0}, 20),
            ({"fps": 50.0}, 100),
            ({"max_frames": 7}, 7),
        ],
        ids=str,
    )
    def test_expected_results(self, selection, expected):
        info = StreamInfo("v", "v", 64, 64, fps=10.0, num_frames=100, duration_seconds=10.0)
        assert expected_results(info, Selection(**selection)) == expected

    def test_nothing_is_expected_of_a_source_that_does_not_tell(self):
        assert expected_results(StreamInfo("v", "v", 64, 64), Selection()) is None


class TestSubcommands:
    def test_help_is_quick_and_imports_no_torch(self):
        code = "import sys; from stream_rpn.commands.stream import stream_parser; "
        code += "stream_parser().format_help(); "
        code += "print([m for m in ('torch', 'av', 'numpy', 'rich') if m in sys.modules])"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
        )
        assert done.stdout.strip() == "[]"

    def test_a_run_of_the_default_model_imports_no_compiler(self):
        # torchvision imports torch's compiler, as the first call of a `custom_op` does: a second.
        code = "import sys; from stream_rpn import cli; "
        code += "cli.main(['synthetic:64x64@10,1', '-o', 'null', '--quiet']); "
        code += "print([m for m in ('torchvision', 'torch._dynamo', 'triton') if m in sys.modules])"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
        )
        assert done.stdout.strip() == "[]"

    def test_models_lists_the_table(self, capsys):
        assert stream_rpn("models", fast=False) == 0
        out = capsys.readouterr().out
        assert "nanodet_m (default)" in out
        assert "vgg16" in out

    def test_models_for_programs(self, capsys):
        assert stream_rpn("models", "--json", fast=False) == 0
        rows = json.loads(capsys.readouterr().out)["models"]
        assert [row["name"] for row in rows] == list(models.MODELS)
        assert [row["name"] for row in rows if row["default"]] == [models.DEFAULT_MODEL]
        named = {row["name"]: row for row in rows}
        assert named["nanodet_m"]["strides"] == [8, 16, 32, 64]
        assert named["nanodet_m"]["in_package"]
        assert not named["vgg16"]["trained"]
        assert named["resnet50_fpn_detectron2"]["weights"] is None

    def test_models_says_which_has_no_weights(self, capsys, monkeypatch):
        bare = dataclasses.replace(models.find("classic"), weights="", megabytes=0)
        monkeypatch.setitem(models.MODELS, "bare", bare)
        assert stream_rpn("models", fast=False) == 0
        rows = capsys.readouterr().out.partition("bare")[2].splitlines()
        assert [row.split() for row in rows if "weights" in row] == [
            ["weights", "none:", "untrained"]
        ]

    @pytest.mark.parametrize("reader", ["true", "head -1"])
    def test_a_table_whose_reader_leaves(self, reader):
        command = f"{sys.executable} -m stream_rpn models | {reader}; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(
            ["bash", "-c", command],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")

    def test_a_table_to_a_full_disk(self):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "stream_rpn", "models"],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1

    def test_names_that_a_terminal_would_obey_are_shown_without_what_it_obeys(self, capfd):
        assert stream_rpn("no\x1b[31m\x9bfile\x07") == 2
        err = capfd.readouterr().err
        assert "no�[31m�file�" in err
        assert not set(err) & set("\x1b\x07\x9b")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_doctor_proves_nothing_without_a_gpu(self, capsys):
        assert stream_rpn("doctor", "--prove", fast=False) == 2
        assert "nothing to prove here" in capsys.readouterr().err
        assert not Path("proof.json").exists()

    @pytest.mark.needs_cuda
    def test_doctor_proves_this_gpu(self, capsys, tmp_path):
        path = tmp_path / "proof.json"
        assert stream_rpn("doctor", "--prove", "--json", str(path), fast=False) == 0
        found = json.loads(path.read_text())
        assert all(check["passed"] is not False for check in found["checks"])
        assert found["verdict"] in capsys.readouterr().out

    def test_doctor_says_what_auto_chooses(self, capsys):
        assert stream_rpn("doctor", "--json", "found.json", fast=False) == 0
        out = capsys.readouterr().out
        for expected in ("torch", "--device auto", "--dtype auto", "NVDEC", "trackers"):
            assert expected in out
        assert all(line == line.rstrip() for line in out.splitlines())
        found = json.loads(Path("found.json").read_text())
        assert found["auto"]["device"] in ("cpu", "mps") or found["gpus"]
        assert found["packages"]["torch"] == {"version": version("torch"), "extras": []}
        assert found["packages"]["trackers"]["extras"] == ["track"]
        assert found["weights"]["here"]["nanodet_m"] == "package"

    def test_a_file_named_like_a_subcommand(self):
        Path("eval").write_bytes(clip("synthetic:64x64@10,2"))
        assert stream_rpn("./eval") == 0
        assert lines("eval.proposals.jsonl")[-1]["end"]["frames"] == 2

    def test_render_draws_saved_results_again(self):
        Path("clip.mp4").write_bytes(clip("synthetic:128x96@10,4"))
        assert stream_rpn("clip.mp4", "-o", "r.jsonl") == 0
        code = stream_rpn(
            "render", "r.jsonl", "clip.mp4", "-o", "again.mp4", "--draw", 3, fast=False
        )
        assert code == 0
        with av.open("again.mp4") as container:
            assert sum(1 for _ in container.decode(video=0)) == 4
