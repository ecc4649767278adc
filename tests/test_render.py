import dataclasses
import os
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest

from stream_rpn.cli import main
from stream_rpn.commands.render import Rendered, render
from stream_rpn.drawing import DrawSpec
from stream_rpn.frame import Proposals, StreamRPNError
from stream_rpn.results import read
from stream_rpn.sinks import make_header, open_sink
from stream_rpn.sources import open_source


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> str:
    """Ten gray frames of 96x64 at uneven times."""
    path = tmp_path_factory.mktemp("video") / "v.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        planes = np.full((96, 96), 128, np.uint8)
        for pts in (0, 1, 2, 4, 5, 6, 9, 10, 11, 12):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def save_results(path, video, frames, *, size=(96, 64), said=None, sources=("",)):
    """Saves one box of score 0.9 and one of 0.3 for some frames, from each of several sources."""
    boxes = np.array([[10, 10, 40, 50], [60, 10, 90, 50]], np.float32)
    scores = np.array([0.9, 0.3], np.float32)
    with (
        open_source(video) as source,
        open_sink(str(path), overwrite=True, multiple_sources=len(sources) > 1) as sink,
    ):
        for position, name in enumerate(sources):
            header = make_header(source.info, model="tiny")
            header |= {
                "source": name or video,
                "width": (said or size)[0],
                "height": (said or size)[1],
            }
            sink.begin(header, dataclasses.replace(source.info, source=name or video))
            for index in frames:
                shown = slice(0, 2) if position == 0 else slice(0, 0)
                kept = len(scores[shown])
                sink.write(
                    Proposals(
                        frame=index,
                        pts=index,
                        pts_seconds=index / 25,
                        width=size[0],
                        height=size[1],
                        boxes=boxes[shown],
                        scores=scores[shown],
                        levels=np.zeros(kept, np.int32),
                        anchors=np.zeros(kept, np.int32),
                        input_boxes=boxes[shown],
                    )
                )
            sink.end({"frames": len(frames)})
    return str(path)


def drawn(path):
    """Tells per frame whether the left and the right box are there, and the times of the frames."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    luma = [frame.to_ndarray()[:64].astype(int) for frame in frames]
    boxes = [(np.ptp(y[20:40, 5:45]) > 40, np.ptp(y[20:40, 55:94]) > 40) for y in luma]
    return boxes, [float(frame.time) for frame in frames]


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.parquet", "r.npz", "r.mot.txt"])
def test_draws_what_was_saved_and_copies_the_rest(tmp_path, video, name):
    results = save_results(tmp_path / name, video, [1, 2, 7])
    assert render(read(results), video, str(tmp_path / "out.mp4")).frames == 10
    boxes, times = drawn(tmp_path / "out.mp4")
    assert [index for index, both in enumerate(boxes) if both == (True, True)] == [1, 2, 7]
    assert boxes.count((False, False)) == 7
    np.testing.assert_allclose(times, np.array([0, 1, 2, 4, 5, 6, 9, 10, 11, 12]) / 25, atol=1e-3)


@pytest.mark.parametrize(
    "options", [{"draw": DrawSpec(top=1)}, {"score_thresh": 0.5}], ids=["draw", "score"]
)
def test_fewer_boxes_on_request(tmp_path, video, options):
    results = save_results(tmp_path / "r.jsonl", video, range(10))
    render(read(results), video, str(tmp_path / "out.mp4"), **options)
    assert drawn(tmp_path / "out.mp4")[0] == [(True, False)] * 10


def test_picks_its_source_out_of_several(tmp_path, video):
    results = save_results(tmp_path / "r.jsonl", video, range(10), sources=("x/v.mkv", "w.mkv"))
    render(read(results), video, str(tmp_path / "out.mp4"))
    assert drawn(tmp_path / "out.mp4")[0] == [(True, True)] * 10
    results = save_results(tmp_path / "r.jsonl", video, range(10), sources=("a.mkv", "v.mkv"))
    render(read(results), video, str(tmp_path / "out2.mp4"))
    assert drawn(tmp_path / "out2.mp4")[0] == [(False, False)] * 10


def test_results_of_something_else_get_a_sentence(tmp_path, video):
    out = tmp_path / "out.mp4"
    for options, words in [
        ({"frames": [0, 10]}, "frame 10, but .* has only 10 frames"),
        ({"frames": [0], "size": (192, 128)}, "192x128 pixels, .* has 96x64"),
        ({"frames": [0], "size": (192, 128), "said": (96, 64)}, "192x128 pixels at frame 0, .* 96"),
        ({"frames": [0], "sources": ("a.mkv", "b.mkv")}, "holds results of 'a.mkv', 'b.mkv'"),
        ({"frames": [0], "sources": ("a/v.mkv", "b/v.mkv")}, "more than one of them"),
    ]:
        results = save_results(tmp_path / "r.jsonl", video, **options)
        with pytest.raises(StreamRPNError, match=words):
            render(read(results), video, str(out))
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


def test_results_of_another_size_leave_no_film_that_grew_until_the_first_of_them(tmp_path, video):
    results = save_results(tmp_path / "r.jsonl", video, [8], size=(192, 128))
    with pytest.raises(StreamRPNError, match=r"192x128 pixels, .* has 96x64"):
        render(read(results), video, str(tmp_path / "out.mkv"))
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


def test_only_pictures_can_be_rendered(tmp_path, video):
    results = save_results(tmp_path / "r.jsonl", video, [0])
    with pytest.raises(StreamRPNError, match="shows no pictures"):
        render(read(results), video, str(tmp_path / "out.npz"))
    with pytest.raises(StreamRPNError, match="also a source"):
        render(read(results), video, video, overwrite=True)


def test_command(tmp_path, video, capsys):
    results = save_results(tmp_path / "r.jsonl", video, [3])
    out = str(tmp_path / "out.mkv")
    assert main(["render", results, video, "-o", out, "--draw", "1"]) == 0
    assert drawn(out)[0][3] == (True, False)
    assert main(["render", results, video, "-o", out]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "--overwrite" in captured.err


def test_the_video_is_the_one_that_the_results_name(tmp_path, video, capsys):
    results = save_results(tmp_path / "r.jsonl", video, [1, 2, 7])
    assert main(["render", results, "-o", str(tmp_path / "out.mp4")]) == 0
    assert "boxes on 3 of 10 frames → " in capsys.readouterr().err
    assert sum(both == (True, True) for both in drawn(tmp_path / "out.mp4")[0]) == 3


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (("gone.mp4",), "is of 'gone.mp4', which is not there"),
        (("rtsp://user:***@camera/1",), "cannot be read again; name a recording"),
        (("-",), "is of '-', which cannot be read again"),
        (("a.mkv", "b.mkv"), "is of 'a.mkv', 'b.mkv'; name the VIDEO"),
    ],
)
def test_results_whose_video_is_not_to_be_found_get_a_sentence(
    tmp_path, video, capsys, sources, words
):
    results = save_results(tmp_path / "r.jsonl", video, [0], sources=sources)
    assert main(["render", results, "-o", str(tmp_path / "out.mp4")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()


def test_results_without_a_name_of_their_video_get_a_sentence(tmp_path, video, capsys):
    results = save_results(tmp_path / "r.mot.txt", video, [0])
    assert main(["render", results, "-o", str(tmp_path / "out.mp4")]) == 2
    assert "does not say what it is of; name the VIDEO" in capsys.readouterr().err


def test_tracks_are_drawn_only_where_there_are_some(tmp_path, video, capsys):
    results = save_results(tmp_path / "r.jsonl", video, [0])
    command = ["render", results, "-o", str(tmp_path / "out.mp4"), "--labels", "id"]
    assert main(command) == 2
    assert "--labels id shows the tracks of --track" in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()


def test_boxes_too_weak_to_be_drawn_are_told_of(tmp_path, video, capsys):
    results = save_results(tmp_path / "r.jsonl", video, [0])
    out = str(tmp_path / "out.mp4")
    assert main(["render", results, "-o", out, "--draw-score", "0.95"]) == 0
    assert "no box has a score of 0.95" in capsys.readouterr().err
    assert drawn(out)[0] == [(False, False)] * 10


def test_a_damaged_video_is_drawn_and_said_to_be_damaged(shared_data, tmp_path, capsys):
    video = str(shared_data / "video" / "odd" / "corrupted.mp4")
    with open_source(video) as source:
        size = (source.info.width, source.info.height)
        frames = sum(1 for _ in source)
    results = save_results(tmp_path / "r.jsonl", video, [0], size=size)
    out = str(tmp_path / "out.mp4")
    assert main(["render", results, video, "-o", out]) == 3
    assert "1 packet lost" in capsys.readouterr().err
    with av.open(out) as container:
        assert sum(1 for _ in container.decode(video=0)) == frames


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_terminated_it_leaves_nothing_half_written(tmp_path):
    video = "synthetic:320x240@30,3000"
    results = save_results(tmp_path / "r.jsonl", video, [0], size=(320, 240))
    command = [sys.executable, "-m", "stream_rpn", "render", results, video, "-o", "out.mp4"]
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.getcwd()})
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not list(tmp_path.glob("*out.mp4*")):
        time.sleep(0.01)
    process.terminate()
    assert process.wait(timeout=300) == 143
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


def test_the_name_of_a_damaged_video_is_shown_as_others_are(tmp_path, video, capsys, monkeypatch):
    results = save_results(tmp_path / "r.jsonl", video, [3])
    outcome = Rendered(frames=1, with_boxes=1, damaged_packets=2, corrupt_frames=0, notes=[])
    monkeypatch.setattr("stream_rpn.commands.render.render", lambda *_, **__: outcome)
    uri = "http://me:secret@cam/\x1b[2J.mp4"
    assert main(["render", results, uri, "-o", "out.mkv"]) == 3
    said = capsys.readouterr().err
    assert "http://me:***@cam/�[2J.mp4: the video is damaged (2 packets lost" in said


@pytest.mark.parametrize(
    "name", ["odd/pets-vfr.mkv", "odd/rot_video_90.mov", "odd/h264_10bits.mp4"]
)
def test_real_video_keeps_its_frames_and_times(shared_data, tmp_path, name):
    path = str(shared_data / "video" / name)
    with open_source(path) as source:
        size = (source.info.width, source.info.height)
        times = [frame.pts_seconds for frame in source]
    results = save_results(tmp_path / "r.jsonl", path, [0], size=size)
    render(read(results), path, str(tmp_path / "out.mp4"))
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = list(container.decode(video=0))
    assert (frames[0].width, frames[0].height) == size
    np.testing.assert_allclose([float(frame.time) for frame in frames], times, atol=1e-4)
