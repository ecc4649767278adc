"""Many videos without Ray: cutting, the results' files, the process that is watched, arguments."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from stream_rpn import signals
from stream_rpn.batch import piece_source, results
from stream_rpn.batch.guard import Guard
from stream_rpn.batch.listing import listed
from stream_rpn.batch.piece_source import PieceSource, UnlikePlanError
from stream_rpn.batch.pieces import Cut, Piece, pieces_of
from stream_rpn.batch.restart import look_of
from stream_rpn.batch.storage import Store
from stream_rpn.batch.work import Answer, Work
from stream_rpn.cli import main
from stream_rpn.drops import Drop, DropReason
from stream_rpn.frame import Proposals, StreamRPNError
from stream_rpn.sources.file import FileSource
from stream_rpn.sources.select import Selection

X264 = {"preset": "ultrafast", "bf": "3", "g": "8", "sc_threshold": "0"}
CLOSED = {**X264, "x264-params": "keyint=8:bframes=3:scenecut=0:b-adapt=0"}
OPEN = {
    **X264,
    "x264-params": "keyint=8:bframes=3:scenecut=0:b-adapt=0:open-gop=1:b-pyramid=2:ref=3",
}
X265 = "keyint=8:min-keyint=8:bframes=3:b-adapt=0:scenecut=0:log-level=none:pools=1"


def encoded(path, codec="libx264", options=CLOSED, *, steps=(1,), number=48, unit=25, first=0):
    """Writes a clip of noise that moves, whose frames last `steps` units in turn."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 96 + number, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.options = options
        stream.codec_context.time_base = Fraction(1, unit)
        if codec != "libx265":
            stream.codec_context.gop_size = 8
        pts = first
        for index in range(number):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(noise[:, index : index + 96]), format="rgb24"
            ).reformat(format="yuv420p")
            frame.pts, frame.time_base = pts, Fraction(1, unit)
            pts += steps[index % len(steps)]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def frames_of(source):
    with source:
        return [
            (f.index, f.pts, f.pts_seconds, f.image.to_ndarray().tobytes(), f.drops) for f in source
        ]


def together(path, pieces, **options):
    sources = (
        PieceSource(path, piece.cut, decoder="cpu", **options)
        if piece.cut
        else FileSource(path, decoder="cpu", **options)
        for piece in pieces
    )
    return [frame for source in sources for frame in frames_of(source)]


KINDS = {
    "closed.mp4": ("libx264", CLOSED),
    "closed.mkv": ("libx264", CLOSED),
    "closed.ts": ("libx264", CLOSED),
    "closed.flv": ("libx264", CLOSED),
    "open.mp4": ("libx264", OPEN),
    "open.ts": ("libx264", OPEN),
    "hevc-open.mp4": ("libx265", {"preset": "ultrafast", "x265-params": f"{X265}:open-gop=1"}),
    "hevc.ts": ("libx265", {"preset": "ultrafast", "x265-params": f"{X265}:open-gop=0"}),
    "mpeg2.mkv": ("mpeg2video", {"g": "8", "bf": "2"}),
    "vp8.webm": ("libvpx", {"g": "8", "deadline": "realtime", "cpu-used": "8"}),
    "vp9.webm": ("libvpx-vp9", {"g": "8", "deadline": "realtime", "cpu-used": "8"}),
}


def needs(codec):
    try:
        av.Codec(codec, "w")
    except av.error.FFmpegError:
        pytest.skip(f"this PyAV has no encoder {codec}")


@pytest.mark.parametrize("name", KINDS)
def test_pieces_are_together_what_the_whole_is(tmp_path, name):
    codec, options = KINDS[name]
    needs(codec)
    path = encoded(tmp_path / name, codec, options)
    pieces = pieces_of(path, Selection(), 0.3)
    assert len(pieces) >= 3
    assert [piece.whole_because for piece in pieces] == [""] * len(pieces)
    assert together(path, pieces) == frames_of(FileSource(path, decoder="cpu"))


def test_times_that_vary_are_kept(tmp_path):
    path = encoded(tmp_path / "v.mkv", steps=(33, 40, 120, 17), unit=1000, first=700)
    pieces = pieces_of(path, Selection(), 0.3)
    assert len(pieces) >= 3
    assert together(path, pieces) == frames_of(FileSource(path, decoder="cpu"))


def test_frames_before_an_edit_list_count_for_nothing(tmp_path):
    path = tmp_path / "e.mp4"
    encoded(path)
    data = bytearray(path.read_bytes())
    time = data.index(b"elst") + 16
    begin = int.from_bytes(data[time : time + 4], "big") + 5 * 512
    data[time : time + 4] = begin.to_bytes(4, "big")
    path.write_bytes(data)
    pieces = pieces_of(str(path), Selection(), 0.3)
    whole = frames_of(FileSource(str(path), decoder="cpu"))
    assert len(pieces) >= 3
    assert len(whole) < 48
    assert together(str(path), pieces) == whole


@pytest.mark.parametrize(
    "selection",
    [
        Selection(stride=3),
        Selection(start=0.5, end=1.3),
        Selection(fps=7.0),
        Selection(max_frames=20),
        Selection(start=0.4, fps=4.0, max_frames=5, stride=2),
    ],
)
def test_the_same_frames_are_chosen_in_pieces(tmp_path, selection):
    path = encoded(tmp_path / "s.mp4")
    pieces = pieces_of(path, selection, 0.3)
    with FileSource(path, decoder="cpu") as source:
        chosen = [(f.index, f.pts) for f in selection.frames(source)][: selection.max_frames]
    assert [(index, pts) for index, pts, *_ in together(path, pieces)] == chosen
    assert all(piece.cut is not None for piece in pieces)


@pytest.mark.parametrize(
    ("name", "codec", "options", "why"),
    [
        ("a.avi", "libx264", CLOSED, "no time of their own"),
        ("a.h264", "libx264", CLOSED, "no times of its own"),
        ("a.mpg", "mpeg2video", {"g": "8"}, "no time of their own"),
        ("a.mp4", "mpeg4", {"g": "8"}, "mpeg4 is not known"),
        (
            "a.ts",
            "libx264",
            {"preset": "ultrafast", "x264-params": "keyint=8:intra-refresh=1:bframes=0"},
            "no later frame",
        ),
    ],
)
def test_what_may_differ_stays_whole_and_says_why(tmp_path, name, codec, options, why):
    path = encoded(tmp_path / name, codec, options)
    [piece] = pieces_of(path, Selection(), 0.3)
    assert piece.cut is None
    assert why in piece.whole_because


def test_a_video_that_is_cut_off_or_headless_stays_whole(tmp_path):
    data = open(encoded(tmp_path / "a.ts"), "rb").read()  # noqa: SIM115
    (tmp_path / "headless.ts").write_bytes(data[188 * 12 :])
    [piece] = pieces_of(str(tmp_path / "headless.ts"), Selection(), 0.3)
    assert "key frame" in piece.whole_because
    data = open(encoded(tmp_path / "a.mkv"), "rb").read()  # noqa: SIM115
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 2 // 3])
    [piece] = pieces_of(str(tmp_path / "cut.mkv"), Selection(), 0.3)
    assert piece.whole_because == "it is cut off"


def test_a_piece_that_does_not_decode_as_counted_is_refused(tmp_path):
    path = encoded(tmp_path / "a.mp4")
    piece = pieces_of(path, Selection(), 0.3)[1]
    with pytest.raises(UnlikePlanError):
        frames_of(PieceSource(path, replace(piece.cut, times=1), decoder="cpu"))
    with pytest.raises(UnlikePlanError):
        PieceSource(path, replace(piece.cut, key=(7, 7)), decoder="cpu")


def test_what_cannot_be_sought_is_read_from_the_start(tmp_path, monkeypatch):
    path = encoded(tmp_path / "a.ts")
    pieces = pieces_of(path, Selection(), 0.3)
    whole = frames_of(FileSource(path, decoder="cpu"))
    seen, really = [], piece_source._found

    def found(packets, key):
        seen.append(key)
        return None if len(seen) % 2 else really(packets, key)

    monkeypatch.setattr(piece_source, "_found", found)
    assert together(path, pieces) == whole
    assert len(seen) == 2 * (len(pieces) - 1)


def test_a_piece_is_the_same_through_json():
    cut = Cut((3, None), 5, 3, 9, 1, 4, 77, [1, 2])
    piece = Piece("a.mp4", "1-2", 1, 3, cut, 0.5, "because")
    assert Piece.from_json(piece.to_json()) == piece
    assert Piece.from_json(Piece("b.mp4").to_json()) == Piece("b.mp4")


def test_a_recovery_point_counts_only_where_it_is_exact(tmp_path):
    for name, options, count in (("open.ts", OPEN, 6), ("closed.ts", CLOSED, 6)):
        with av.open(encoded(tmp_path / name, options=options)) as container:
            look = look_of(container.streams.video[0])
            starts = [look(packet) for packet in container.demux(video=0) if packet.size]
        assert sum(start.restarts for start in starts) == count
        assert all(start.whole_sets for start in starts if start.restarts)


def made_up(frame, boxes=2, drops=()):
    return Proposals(
        frame,
        frame * 512,
        frame / 25,
        64,
        48,
        np.arange(4 * boxes, dtype=np.float32).reshape(-1, 4) + frame,
        np.linspace(1, 0.5, boxes, dtype=np.float32),
        np.zeros(boxes, np.int32),
        np.arange(boxes, dtype=np.int32),
        np.zeros((boxes, 4), np.float32),
        drops=drops,
    )


def written(folder, piece, frames, **record):
    store = Store(str(folder))
    record = {
        "plan": piece.to_json(), "frames": len(frames), "seconds": 1.5, "complete": True,
        "damaged_packets": 0, "corrupt_frames": 0, "drops": {}, "busy_seconds": 0.5,
        "worker": "here:1", "checksum": "00", **record,
    }  # fmt: skip
    about = {"run": "r", "part": piece.number, "headers": [{"source": "a.mp4"}],
             "ends": [{"frames": 1}], "piece": record}  # fmt: skip
    store.put(
        results.file_of(piece), lambda path: results.write_piece(path, piece, iter(frames), about)
    )
    return store, record


def test_results_are_read_by_everybody(tmp_path):
    import pyarrow.parquet as pq

    import stream_rpn

    drops = (Drop(DropReason.DAMAGED_PACKET, 2, 5),)
    first, second = Piece("a.mp4", "v", 0, 2), Piece("a.mp4", "v", 1, 2)
    written(tmp_path, first, [made_up(0), made_up(1, drops=drops)])
    written(tmp_path, second, [made_up(2, boxes=0)])
    table = pq.read_table(tmp_path / "proposals")
    assert table.column_names == [*results.schema().names, "video"]
    assert table["frame"].to_pylist() == [0, 1, 2]
    assert table["drops"].to_pylist()[1] == [
        {"reason": "damaged packet", "count": 2, "first_pts": 5, "seconds": None}
    ]
    read = list(stream_rpn.read(tmp_path / results.file_of(first)))
    assert [len(p) for p in read] == [2, 2]
    assert read[1].drops == drops
    np.testing.assert_array_equal(read[0].boxes, made_up(0).boxes)


def lines_of_the_page(after):
    """Returns the block of Python on docs/batch.md that follows some words."""
    page = Path(__file__).resolve().parents[1] / "docs" / "batch.md"
    return page.read_text().split(after)[1].split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize("library", ["pyarrow.parquet", "pandas", "polars", "duckdb", "stream_rpn"])
def test_the_lines_of_the_page_read_the_results(tmp_path, library):
    first, second = Piece("a.mp4", "v", 0, 2), Piece("a.mp4", "v", 1, 2)
    written(tmp_path, first, [made_up(0), made_up(1)])
    written(tmp_path, second, [made_up(2)])
    module = pytest.importorskip(library)
    name = library.partition(".")[0]
    lines = lines_of_the_page("One line reads it").splitlines()
    (line,) = [line for line in lines if line.startswith(name)]
    line = line.replace("DIR", str(tmp_path)).replace(
        "video=NAME-HASH", results.folder_of("a.mp4").rpartition("/")[2]
    )
    table = eval(line, {name: sys.modules[name], library: module})
    if name == "stream_rpn":
        assert [proposals.frame for proposals in table] == [0, 1]
        return
    frames = table["frame"] if name != "duckdb" else [row[0] for row in table["frame"].fetchall()]
    assert sorted(getattr(frames, "to_pylist", lambda: list(frames))()) == [0, 1, 2]


def test_a_piece_is_done_when_its_file_is_there_and_of_its_plan(tmp_path):
    piece = Piece("a.mp4", "v")
    store = Store(str(tmp_path))
    assert results.record_of(store, piece) is None
    store, record = written(tmp_path, piece, [made_up(0)])
    assert results.record_of(store, piece) == record
    assert results.record_of(store, replace(piece, version="w")) is None
    (tmp_path / results.file_of(piece)).write_bytes(b"PAR1 half a file")
    assert results.record_of(store, piece) is None


@pytest.mark.parametrize("address", ["{}", "memory://batch-test"])
def test_nothing_has_its_name_before_it_is_whole(tmp_path, address):
    store = Store(address.format(tmp_path))
    store.put_text("d/a", "old")

    def failing(path):
        path.write_text("new, but h")
        raise OSError(28, "No space left on device")

    with pytest.raises(StreamRPNError, match=r"cannot write .*: the disk is full"):
        store.put("d/a", failing)
    assert store.read("d/a") == b"old"
    assert store.names("d") == ["a"]
    store.remove("d/a")
    store.remove("d/a")
    assert store.read("d/a") is None
    assert store.names("nowhere") == []


@pytest.mark.parametrize("address", ["{}/o", "memory://batch-left"])
def test_a_process_that_ends_in_the_midst_of_a_file_removes_it(tmp_path, monkeypatch, address):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = []

    def ending(path):
        path.write_text("half of it")
        signals.undo_unfinished()
        seen.extend(path for path in tmp_path.rglob("*") if path.is_file())
        raise OSError("it has ended")

    with pytest.raises(StreamRPNError):
        Store(address.format(tmp_path)).put("d/a", ending)
    assert seen == []


def test_a_piece_that_is_given_up_leaves_nothing_half_written(tmp_path):
    from types import SimpleNamespace

    from stream_rpn.batch.job import Resources, _Worker

    piece, other = Piece("a.mp4", "v", 0, 2), Piece("a.mp4", "v", 1, 2)
    written(tmp_path, other, [made_up(0)])
    part = tmp_path / results.file_of(piece)
    strays = [part.with_name(f".{part.name}.{turn}.part") for turn in range(2)]

    def asked(name, piece):
        strays[len(list(part.parent.glob(".*")))].touch()
        return Answer(kind="crash", why="its process was ended by SIGKILL")

    worker = _Worker(Work(str(tmp_path)), Resources())
    worker._guard = SimpleNamespace(ask=asked)
    row = worker._answered({"piece": piece.to_json(), "failure": "", "record": ""})
    assert json.loads(row["failure"])["kind"] == "crash"
    assert os.listdir(part.parent) == [Path(results.file_of(other)).name]


def test_what_would_stop_every_video_ends_the_job_with_its_sentence(tmp_path, monkeypatch):
    from types import SimpleNamespace

    import pyarrow as pa

    from stream_rpn.batch import job

    work, full = Work(str(tmp_path)), Answer(kind="job", why="cannot write o: the disk is full")
    worker, planner = job._Worker(work, job.Resources()), job._Planner(work, job.Resources())
    worker._guard = SimpleNamespace(ask=lambda *request: full)
    planner._guard = SimpleNamespace(ask=lambda *request: Answer([Piece("a.mp4", "v")]))
    said = []

    def run():
        def rows(*arguments):
            for table in planner(pa.table({"source": ["a.mp4"]})):
                yield from worker(table).to_pylist()

        monkeypatch.setattr(job, "_rows", rows)
        with pytest.raises(StreamRPNError) as error:
            job._round(["a.mp4"], work, job.Resources(), job.Outcome(), said.append)
        return str(error.value)

    assert run() == full.why
    (tmp_path / "proposals").rename(tmp_path / "moved")
    (tmp_path / "proposals").touch()
    assert re.fullmatch(r"cannot (read|write) .*: Not a directory", run())
    assert said == []


def test_what_workers_left_half_written_is_cleared(tmp_path):
    from stream_rpn.batch.folder import clear

    piece = Piece("a.mp4", "v")
    store, _ = written(tmp_path, piece, [made_up(0)])
    part = tmp_path / results.file_of(piece)
    part.with_name(f".{part.name}.0.part").touch()
    clear(store)
    assert os.listdir(part.parent) == [part.name]


def test_the_checksum_does_not_know_where_a_video_was_cut():
    whole, pieces = results.Checksum(), [results.Checksum(), results.Checksum()]
    for frame in range(10):
        whole.add(made_up(frame))
        pieces[frame > 3].add(made_up(frame))
    records = [
        {"plan": Piece("a", "", i, 2).to_json(), "frames": 5, "seconds": 1.0, "complete": True,
         "damaged_packets": 1, "corrupt_frames": 0, "drops": {"stale": 2}, "busy_seconds": 1.0,
         "worker": "w", "checksum": f"{piece.value:016x}"}
        for i, piece in enumerate(pieces)
    ]  # fmt: skip
    row = results.manifest_row("a", records)
    assert row["checksum"] == f"{whole.value:016x}"
    assert row["complete"]
    assert row["frames"] == 10
    assert row["drops"] == [{"reason": "stale", "count": 4}]
    assert not results.manifest_row("a", records[:1])["complete"]


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    guard = Guard(Work(str(tmp_path_factory.mktemp("guard"))), limit=60)
    yield guard
    guard.close()


def test_what_a_child_is_asked_is_answered_whatever_becomes_of_it(guard):
    answer = guard.ask("plan", "/no/such.mp4")
    assert (answer.kind, answer.value) == ("", [Piece("/no/such.mp4")])
    first = guard._process
    os.kill(first.pid, signal.SIGSTOP)
    guard._limit = 1
    assert "no frame for 1 seconds" in guard.ask("plan", "/no/such.mp4").why
    assert first.poll() == -signal.SIGKILL
    guard._limit = 60
    guard.ask("plan", "/no/such.mp4")
    os.kill(guard._process.pid, signal.SIGKILL)
    guard._process.wait()
    answer = guard.ask("plan", "/no/such.mp4")
    assert (answer.kind, answer.why) == ("crash", "its process was ended by SIGKILL")


def test_a_child_that_takes_too_much_is_ended(guard):
    guard.ask("plan", "/no/such.mp4")
    guard._memory = 1
    os.kill(guard._process.pid, signal.SIGSTOP)
    assert guard.ask("plan", "/no/such.mp4").kind == "memory"
    assert guard._process is None
    guard._memory = None


def test_a_list_names_each_video_once(tmp_path, own_folder):
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    for name in ("b.mp4", "a.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text("# two\na.mp4\n\nsynthetic:64x64@30,3\ngone.mp4\n")
    table = pa.table({"id": [1, 2], "url": ["a.mp4", "b.mp4"]})
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    pa.csv.write_csv(table, tmp_path / "t.csv")
    a, b = str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")
    assert listed(["*.mp4", "a.mp4"]) == [a, b]
    assert listed(["@list.txt"]) == [a, "synthetic:64x64@30,3", str(tmp_path / "gone.mp4")]
    assert listed(["t.parquet"]) == listed(["t.csv"], "url") == [a, b]
    with pytest.raises(StreamRPNError, match="no column 'x'; --column names one of id, url"):
        listed(["t.csv"], "x")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no.mp4", "--to", "o"], "no.mp4: no such file or directory"),
        (["-", "--to", "o"], "a batch is of files"),
        (["rtsp://camera/1", "--to", "o"], "a batch is of files"),
        (["a.mp4", "--to", "o", "--model", "nonsense"], "no model 'nonsense'"),
        (["a.mp4", "--to", "nonsense://x/o"], "cannot be reached"),
        (["none.parquet", "--to", "o"], "none.parquet' cannot be read: there is no such file"),
        (["@none.txt", "--to", "o"], "'none.txt' cannot be read"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(own_folder, capsys, arguments, sentence):
    open("a.mp4", "w").close()
    assert main(["batch", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not os.path.exists("o")


@pytest.mark.parametrize(
    ("option", "value"), [("--chunk", "soon"), ("--time-limit", "0"), ("--gpus-per-worker", "-1")]
)
def test_options_say_what_they_want(own_folder, capsys, option, value):
    with pytest.raises(SystemExit) as stop:
        main(["batch", "a.mp4", "--to", "o", f"{option}={value}"])
    assert stop.value.code == 2
    assert option in capsys.readouterr().err


def test_a_dry_run_lists_and_makes_nothing(own_folder, capsys):
    open("a.mp4", "w").close()
    assert main(["batch", "a.mp4", "a.mp4", "--to", "o", "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [os.path.abspath("a.mp4")]
    assert "1 videos in pieces of 60 s" in captured.err
    assert os.listdir() == ["a.mp4"]


def test_the_line_of_progress_fits_a_terminal_with_large_numbers():
    from stream_rpn.batch.job import Outcome
    from stream_rpn.commands.batch import _Progress

    progress, outcome = _Progress(98_765, quiet=True), Outcome()
    progress._started -= 10_000.0
    for number in range(200):
        piece = Piece(f"{number}.mp4")
        outcome.records[piece.source] = {0: {"frames": 90_000, "seconds": 36_000.0}}
        progress.tell(outcome, piece)
    state = progress._state(progress._started + 10_000.0)
    assert state == "2,000 h of video, 1,800 frames/s, 0 failed"
    assert len(f"{progress._videos()} ━━━━ {state} 20:00:00") <= 80


def test_a_folder_of_another_job_is_refused(tmp_path):
    from stream_rpn.batch.folder import check_job

    store = Store(str(tmp_path))
    work = Work(str(tmp_path), {"model": "a", "top": 100, "device": "cpu"}, Selection(), 60.0)
    check_job(store, work)
    check_job(store, replace(work, options={**work.options, "device": "cuda"}))
    with pytest.raises(StreamRPNError, match="results with top 100, and this run has 200"):
        check_job(store, replace(work, options={**work.options, "top": 200}))
    (tmp_path / "_job.json").write_text("{")
    with pytest.raises(StreamRPNError, match="damaged"):
        check_job(store, work)


def test_manifest_and_failures_keep_what_a_run_was_not_about(tmp_path):
    import pyarrow.parquet as pq

    from stream_rpn.batch.folder import conclude
    from stream_rpn.batch.job import Outcome

    store, record = written(tmp_path, Piece("a.mp4", "v"), [made_up(0)])
    failure = {name: None for name, _ in results.FAILURES}
    failure.update(source="b.mp4", video=results.short_name("b.mp4"), why="it failed")
    conclude(store, ["a.mp4", "b.mp4"], Outcome({"a.mp4": {0: record}}, [failure]))
    conclude(
        store, ["b.mp4"], Outcome({"b.mp4": {0: {**record, "plan": Piece("b.mp4").to_json()}}})
    )
    assert pq.read_table(tmp_path / "manifest.parquet")["source"].to_pylist() == ["a.mp4", "b.mp4"]
    assert pq.read_table(tmp_path / "failures.parquet").num_rows == 0


def test_batch_needs_no_torch_to_cut_and_no_ray_to_be_imported():
    code = (
        "import sys, stream_rpn.batch.pieces, stream_rpn.batch.job, stream_rpn.batch.results\n"
        "print([name for name in ('torch', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []


@pytest.mark.parametrize("failures", [0, 1, 3])
def test_a_ray_that_is_slow_to_start_is_started_again(tmp_path, monkeypatch, failures):
    from contextlib import nullcontext
    from types import SimpleNamespace

    from stream_rpn.batch import cluster

    begun = []

    def init(**options):
        begun.append(options["_temp_dir"])
        begun.append(os.environ["TMPDIR"])
        if len(begun) <= 2 * failures:
            raise Exception("The current node timed out during startup.")

    context = SimpleNamespace()
    data = SimpleNamespace(DataContext=SimpleNamespace(get_current=lambda: context))
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, data=data))
    monkeypatch.setitem(sys.modules, "ray.data", data)
    monkeypatch.setattr(cluster, "_ended_after", nullcontext)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    if failures == 3:
        with (
            pytest.raises(StreamRPNError, match=r"Ray cannot be started here: .* timed out"),
            cluster.joined("local"),
        ):
            pass
    else:
        with cluster.joined("local"):
            assert [os.path.isdir(folder) for folder in begun] == [False] * 2 * failures + [
                True
            ] * 2
    assert len(begun) == 2 * min(failures + 1, 3)
    assert not any(map(os.path.exists, begun))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has parents that adopt")
def test_what_ray_started_is_ended_also_where_its_parent_is_gone(monkeypatch):
    from types import SimpleNamespace

    from stream_rpn.batch import cluster

    psutil = pytest.importorskip("psutil", reason="needs psutil, which stream-rpn[ray] brings")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(shutdown=lambda: None))
    monkeypatch.setattr(cluster, "_END_SECONDS", 0.2)
    with cluster._ended_after():
        command = ["sh", "-c", "sleep 600 > /dev/null & echo $!"]
        pid = int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        assert psutil.Process(pid).ppid() == os.getpid()
    assert not psutil.pid_exists(pid)


@pytest.mark.slow
def test_actors_do_a_video_in_pieces_once_and_keep_going_past_what_fails(tmp_path):
    """The two actors of the flow, called as Ray calls them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    import stream_rpn
    from stream_rpn.batch.job import Resources, _Planner, _Worker

    path = encoded(tmp_path / "a.mp4")
    gone = str(tmp_path / "gone.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    work = Work(str(tmp_path / "o"), {"size": 32, "top": 20, "threads": 1}, Selection(), 0.3)
    videos = pa.table({"source": [path, gone, str(tmp_path / "text.mp4")]})

    def done():
        planner, worker = _Planner(work, Resources()), _Worker(work, Resources())
        rows = [row for table in planner(videos) for row in worker(table).to_pylist()]
        failures = [json.loads(row["failure"]) for row in rows if row["failure"]]
        return failures, [json.loads(row["record"]) for row in rows if row["record"]]

    failures, records = done()
    assert [(f["kind"], f["tries"]) for f in failures] == [("error", 2), ("error", 2)]
    assert "no such file" in failures[0]["why"]
    assert len(records) >= 3
    stray = tmp_path / "o" / results.folder_of(path) / ".part-00009.parquet.1.part"
    stray.touch()
    again = done()[1]
    assert [record.pop("reused") for record in again] == [True] * len(records)
    assert again == records
    assert not stray.exists()
    rows = pq.read_table(tmp_path / "o" / "proposals").sort_by("frame").to_pylist()
    alone = list(stream_rpn.stream(path, size=32, top=20, threads=1))
    assert [(r["frame"], r["pts"], r["source"]) for r in rows] == [
        (p.frame, p.pts, path) for p in alone
    ]
    for row, proposals in zip([r for r in rows if r["source"] == path], alone, strict=True):
        np.testing.assert_array_equal(np.array(row["boxes"], np.float32), proposals.boxes)
        np.testing.assert_array_equal(np.array(row["scores"], np.float32), proposals.scores)
    os.utime(path, ns=(1, 1))
    assert [f["kind"] for f in done()[0]] == ["changed", "error", "error"]
