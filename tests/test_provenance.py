"""What a result says of its making, and whether it is whole: in every format with room for it."""

import hashlib
import json
from pathlib import Path

import av
import numpy as np
import pytest

import stream_rpn
from stream_rpn import cli
from stream_rpn.frame import StreamInfo
from stream_rpn.models.provenance import Weights
from stream_rpn.sinks import make_header, open_sink
from tests.records import make_proposals

MODELS = Path(stream_rpn.__file__).parent / "models"
NAMES = ["x.jsonl", "x.npz", "x.parquet", "x.coco.json", "x.mp4", "x.mkv", "x/"]
INFO = StreamInfo("a.mp4", "a", 96, 64, fps=25.0)


def told_by(path):
    """Returns the header and the totals that a result tells, whatever its format."""
    if path.suffix in (".mp4", ".mkv"):
        with av.open(str(path)) as container:
            tags = {name.lower(): value for name, value in container.metadata.items()}
        header = json.loads(tags["comment"])
        return header, header.pop("end")
    if path.is_dir() and path.suffix != ".parquet":
        first, *_, last = map(json.loads, (path / "index.jsonl").read_text().splitlines())
        return first, last["end"]
    results = stream_rpn.read(path)
    assert len(list(results)) == 2
    assert results.complete
    return results.header, results.ends[0]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    outputs = [word for name in NAMES for word in ("-o", f"{folder}/{name}")]
    options = ["--device", "cpu", "--dtype", "float32", "--quiet"]
    assert cli.main(["synthetic:64x64@10,2", *options, *outputs]) == 0
    return {name: told_by(folder / name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_every_format_with_room_tells_what_made_it_and_how_it_ended(results, name):
    header, end = results[name]
    digest = hashlib.sha256((MODELS / "nanodet_m.safetensors").read_bytes()).hexdigest()
    assert header["version"] == stream_rpn.__version__
    assert header["model"] == "nanodet_m"
    assert header["weights"] == {"file": "nanodet_m.safetensors", "sha256": digest}
    assert (header["device"], header["dtype"]) == ("cpu", "float32")
    assert header["engine"] in ("torch", "openvino")
    assert (header["source"], header["source_fps"]) == ("synthetic:64x64@10,2", 10.0)
    assert header["parameters"]["proposals"]["post_nms_top_n"] == 300
    assert header["started"].endswith("+00:00")
    assert (end["frames"], end["complete"], end["drops"]) == (2, True, {})
    assert "stopped" not in end
    assert (header, end) == results["x.jsonl"]


def test_the_size_of_a_file_is_told(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"12345")
    info = StreamInfo(str(tmp_path / "a.mp4"), "a", 96, 64)
    assert make_header(info)["source_bytes"] == 5
    assert make_header(INFO)["source_bytes"] is None


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv", "x/"])
def test_pictures_tell_that_the_run_was_stopped(tmp_path, name):
    totals = {"frames": 1, "complete": False, "stopped": "interrupted", "drops": {"a" * 3000: 1}}
    with open_sink(f"{tmp_path}/{name}") as sink:
        sink.begin(make_header(INFO, model="tiny"), INFO)
        sink.write(make_proposals(0))
        sink.end(totals)
    end = told_by(tmp_path / name)[1]
    # What is too much for the tag of a video is left out of it, the rest stands.
    assert end.items() >= {"frames": 1, "complete": False, "stopped": "interrupted"}.items()


def test_headers_of_the_first_release_are_read(tmp_path):
    header = make_header(INFO, model="tiny")
    header["fps"] = header.pop("source_fps")
    for name in ("version", "started", "source_bytes"):
        del header[name]
    (tmp_path / "x.jsonl").write_text(json.dumps(header) + "\n")
    assert stream_rpn.read(tmp_path / "x.jsonl").header["source_fps"] == 25.0


class TestWeights:
    def test_of_a_file(self, tmp_path):
        np.savez(tmp_path / "mine.npz", a=1)
        path = tmp_path / "mine.npz"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert Weights.of(str(path)) == Weights.of("tiny", path) == Weights("mine.npz", digest)

    def test_without_a_file(self):
        assert Weights.of("tiny", "random") == Weights("random", None)
