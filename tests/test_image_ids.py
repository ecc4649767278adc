"""`--image-ids`: pictures have the ids of an annotation file in every format."""

import json
from pathlib import Path

import pytest

import stream_rpn
from stream_rpn.cli import main
from stream_rpn.commands.arguments import split_paths
from stream_rpn.commands.image_ids import ImageIds
from stream_rpn.commands.outputs import resolve_outputs
from stream_rpn.frame import StreamInfo, StreamRPNError
from stream_rpn.sinks import make_header
from tests.records import make_proposals


@pytest.fixture(autouse=True)
def _pictures(own_folder):
    from PIL import Image

    Path("few").mkdir()
    for name in ("b.jpg", "a.jpg"):
        Image.new("RGB", (96, 64)).save(f"few/{name}")
    images = [
        {"id": 40, "file_name": "val/a.jpg", "width": 96, "height": 64},
        {"id": 7, "file_name": "val/b.jpg", "width": 96, "height": 64},
    ]
    Path("ann.json").write_text(json.dumps({"images": images, "annotations": []}))


@pytest.mark.parametrize("name", ["x.coco.json", "x.coco-results.json", "x.jsonl", "x.npz"])
def test_pictures_get_the_ids_of_their_names(name):
    (output,) = resolve_outputs([name], ["few"], image_ids="ann.json")
    info = StreamInfo("few", "few", 96, 64)
    with output.open() as sink:
        sink.begin(make_header(info), info)
        for frame, picture in enumerate(("a.jpg", "b.jpg")):
            sink.write(make_proposals(frame, name=picture))
        sink.end({"frames": 2})
    assert [proposals.image_id for proposals in stream_rpn.read(name)] == [40, 7]


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (["few", "more"], r"has no image called 'c\.jpg'; 1 of the 2 pictures of 'more'"),
        (["v.mp4"], "'v.mp4' is a video"),
        (["synthetic:"], "is a video"),
    ],
)
def test_what_has_no_id_is_told_before_anything_runs(sources, words):
    Path("more").mkdir()
    for name in ("c.jpg", "a.jpg"):
        Path("more", name).write_bytes(Path("few/a.jpg").read_bytes())
    Path("v.mp4").write_bytes(b"")
    with pytest.raises(StreamRPNError, match=words):
        resolve_outputs(["{stem}.coco.json"], sources, image_ids="ann.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "no such annotation file"), ("[]", "not COCO annotations"), ("{", "as JSON")],
)
def test_annotations_that_cannot_be_read(text, words, capsys):
    if text is not None:
        Path("bad.json").write_text(text)
    assert main(["few", "-o", "x.coco.json", "--image-ids", "bad.json"]) == 2
    assert words in capsys.readouterr().err
    assert not Path("x.coco.json").exists()


def test_a_name_that_may_be_two_is_refused():
    images = [{"id": i, "file_name": f"{i}/a.jpg", "width": 9, "height": 9} for i in (1, 2)]
    Path("two.json").write_text(json.dumps({"images": images}))
    with pytest.raises(StreamRPNError, match="name it with its folder"):
        ImageIds("two.json")("a.jpg")


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("here,b", ["here", "b"]),
        ("a,b", ["a,b"]),
        ("x.tar,a,b,here", ["x.tar", "a,b", "here"]),
        ("nowhere,", ["nowhere"]),
    ],
)
def test_a_folder_may_have_a_comma_in_its_name(tmp_path, monkeypatch, text, paths):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b").mkdir()
    (tmp_path / "here").mkdir()
    assert split_paths(text) == paths
