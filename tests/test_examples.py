"""The examples: each runs as its first lines say, on what is made up here."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_embed import made_up, written

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
CLIP = "synthetic:64x48@25,2"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs an example in an empty folder and returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_every_example_is_run_here():
    # The notebook is run by test_notebook.py, what is exported by test_export.py as well.
    here = Path(__file__).read_text(encoding="utf-8")
    missing = [path.name for path in EXAMPLES.glob("*.py") if f'run("{path.name}"' not in here]
    assert missing == []


def test_video_to_boxes(run):
    lines = run("video_to_boxes.py", CLIP)
    assert [line.split(" at ")[0] for line in lines] == ["frame 0", "frame 1"]


def test_own_backbone(run):
    assert len(run("own_backbone.py", CLIP)) == 2


def test_roi_align(run):
    lines = run("roi_align.py", CLIP)
    assert lines[0] == "frame 0: (50, 96, 7, 7)"


def test_image(run, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(tmp_path / "a.png")
    assert len(run("image.py", "a.png")) == 10
    with pytest.raises(SystemExit, match="usage"):
        run("image.py")


def test_draw_scenes(run, tmp_path):
    run("draw_scenes.py", "parts", "--count", 2)
    found = json.loads((tmp_path / "parts" / "annotations.json").read_text())
    assert [image["file_name"] for image in found["images"]] == ["000.png", "001.png"]
    assert len(found["annotations"]) > 2


def test_onnx_runtime(run, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    import stream_rpn

    stream_rpn.load("classic").export(tmp_path / "m.onnx")
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    assert len(run("onnx_runtime.py", "m.onnx", "a.png")) == 10


class TestFuse:
    def test_detections_are_compared_and_are_the_same(self, run):
        lines = run("fuse_torchvision.py")
        assert [line.split(":")[0] for line in lines] == [
            "torchvision",
            "fused",
            "unfused again",
            "the same detections",
        ]

    @pytest.mark.parametrize(
        ("spoil", "sentence"),
        [
            (lambda found: {**found, "boxes": found["boxes"] + 3}, "differ: 0% are the same"),
            (lambda found: {**found, "labels": found["labels"] + 1}, "differ"),
            (lambda found: {name: v[:5] for name, v in found.items()}, "too few"),
        ],
        ids=["boxes", "labels", "few"],
    )
    def test_what_differs_is_told(self, spoil, sentence):
        check_same = runpy.run_path(str(EXAMPLES / "fuse_torchvision.py"))["check_same"]
        corners = torch.arange(30.0)[:, None] * 10
        found = {
            "boxes": torch.cat([corners, corners, corners + 9, corners + 9], dim=1),
            "labels": torch.arange(30) % 3,
            "scores": torch.linspace(0.9, 0.1, 30),
        }
        check_same([found], [dict(found)])
        with pytest.raises(SystemExit, match=sentence):
            check_same([found], [spoil(found)])


class TestSimilar:
    @pytest.fixture
    def results(self, tmp_path):
        """Five frames: in each a box whose vector turns away from the first one's, and another."""
        frames = []
        for index in range(5):
            angle = 0.2 * index
            vectors = [[np.cos(angle), np.sin(angle), 0], [0, 0, 1]]
            boxes = np.array([[4, 4, 20, 20], [30, 30, 40, 40]], np.float32)
            vectors = np.array(vectors, np.float16)
            frames.append(made_up(index, 2, boxes=boxes, embeddings=vectors, track_ids=None))
        return written(tmp_path / "x.npz", frames, length=3).name

    def test_the_nearest_come_first(self, run, results):
        lines = run("similar.py", results)
        assert lines[0] == "like frame 0 at 4, 4, 20, 20"
        assert [line.split()[2] for line in lines[1:]] == ["1", "2", "3", "4"]
        assert lines[1].startswith("0.980")

    def test_the_box_around_a_point_is_asked_for(self, run, results):
        lines = run("similar.py", results, 2, "35,35")
        assert lines[0] == "like frame 2 at 30, 30, 40, 40"
        assert all(line.startswith("1.000") for line in lines[1:])

    def test_results_without_vectors_get_a_sentence(self, run, tmp_path):
        name = written(tmp_path / "y.npz", [made_up(0, 2, embeddings=None)], length=0).name
        with pytest.raises(SystemExit, match="no vectors"):
            run("similar.py", name)
