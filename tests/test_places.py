"""No result is lost, destroyed, or called whole when it is not, whatever happens to a run."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import pytest

import stream_rpn
from stream_rpn.frame import StreamRPNError
from stream_rpn.sinks import open_sink, sink_class_of
from stream_rpn.sinks.parquet import ABOUT
from stream_rpn.sinks.place import partial_name, write_whole
from tests.records import INFO, begun, make_proposals
from tests.test_cli import clip, lines, start, wait_for_lines
from tests.test_cli import stream_rpn as run
from tests.test_sinks import ALL_NAMES, PLACES, leftovers, write_all

ROOT = Path(__file__).resolve().parents[1]
STREAMING = ["x.jsonl", "x.jsonl.gz", "x.parquet", "x.mkv", "x/"]
PARTIAL = {
    "x.jsonl": "x.partial.jsonl",
    "x.jsonl.gz": "x.partial.jsonl.gz",
    "x.parquet": "x.parquet/_partial.parquet",
    "x.mkv": "x.partial.mkv",
    "x/": "x/_partial",
    "x.coco.json": "x.partial.coco.json",
    "x.mot.txt": "x.partial.mot.txt",
    "x.npz": "x.partial.npz",
    "x.mp4": "x.partial.mp4",
}


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def contents(name):
    """Returns all files of an output with their bytes, without what says that it grows."""
    path = Path(name)
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    hidden = [p for p in files if any(part.startswith(("_partial", ".")) for part in p.parts)]
    return {str(p): p.read_bytes() for p in files if p not in hidden}


def count_of(name):
    """Returns the number of frames in an output, whatever its format."""
    if name.endswith((".mkv", ".mp4")):
        with av.open(name) as container:
            return sum(1 for _ in container.decode(video=0))
    if Path(name).is_dir() and not name.endswith(".parquet"):
        return sum("file" in line for line in lines(f"{name}/index.jsonl"))
    return len(list(stream_rpn.read(name)))


@pytest.mark.parametrize("name", ["x.jsonl", "x.npz"])
def test_a_name_that_cannot_get_any_longer_is_told_to(name):
    long = "x" * (256 - len(name)) + name[1:]
    with pytest.raises(StreamRPNError, match=r"its name is too long.*give it a shorter one"):
        open_sink(long)
    assert os.listdir() == []


@pytest.mark.parametrize("name", PLACES)
class TestOldResults:
    def test_stay_until_the_new_are_whole(self, name):
        write_all(name, [make_proposals(0)])
        before = contents(name)
        sink = begun(name, count=70, first=5, overwrite=True)
        assert contents(name) == before
        sink.end({"frames": 70})
        assert contents(name) == before
        sink.close()
        assert count_of(name) == 70
        assert leftovers(".") == []
        assert not Path(PARTIAL[name]).exists()

    def test_stay_when_the_new_ones_fail(self, name):
        write_all(name, [make_proposals(0)])
        before = contents(name)
        sink = begun(name, count=70, overwrite=True)
        sink.abort()
        assert contents(name) == before
        assert leftovers(".") == []
        assert Path(PARTIAL[name]).exists() == (name in STREAMING)
        if name in STREAMING:
            assert sink.kept == PARTIAL[name]
            assert count_of(sink.kept) == 70

    def test_stay_when_the_run_is_stopped(self, name):
        write_all(name, [make_proposals(0)])
        before = contents(name)
        sink = begun(name, overwrite=True)
        sink.end({"frames": 3, "stopped": "interrupted"})
        sink.close()
        assert contents(name) == before
        assert sink.kept == PARTIAL[name]
        assert count_of(sink.kept) == 3
        # The next run replaces both.
        write_all(name, [make_proposals(0), make_proposals(1)], overwrite=True)
        assert count_of(name) == 2
        assert leftovers(".") == []

    def test_are_replaced_by_a_live_source_that_ends_as_all_do(self, name):
        write_all(name, [make_proposals(0)])
        sink = begun(name, info=replace(INFO, live=True), overwrite=True)
        sink.end({"frames": 3, "stopped": "interrupted"})
        sink.close()
        assert sink.kept == name
        assert count_of(name) == 3

    def test_are_replaced_after_a_run_was_killed(self, name):
        write_all(name, [make_proposals(0)])
        before = contents(name)
        code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.records import begun
sink = begun({name!r}, 5, overwrite=True)
os.kill(os.getpid(), 9)
"""
        assert subprocess.run([sys.executable, "-c", code]).returncode == -9
        assert contents(name) == before
        write_all(name, [make_proposals(0), make_proposals(1)], overwrite=True)
        assert count_of(name) == 2
        assert leftovers(".") == []
        assert not Path(PARTIAL[name]).exists()

    def test_cannot_be_written_by_two_runs(self, name):
        first = begun(name)
        for overwrite in (False, True):
            with pytest.raises(StreamRPNError, match=r"another run is writing|--overwrite"):
                open_sink(name, overwrite=overwrite)
        with pytest.raises(StreamRPNError, match="another run is writing"):
            open_sink(name, overwrite=True)
        first.end({"frames": 3})
        first.close()
        assert count_of(name) == 3

    def test_a_directory_that_is_removed_meanwhile_is_told(self, name):
        Path("folder").mkdir()
        sink = begun(f"folder/{name}")
        subprocess.run(["rm", "-r", "folder"], check=True)
        with pytest.raises(StreamRPNError, match="cannot write 'folder/x"):  # noqa: PT012
            sink.end({"frames": 3})
            sink.close()
        assert sink.kept == ""


@pytest.mark.parametrize("name", ["x.mp4", "x.npz", "x.mot.txt", "x.coco.json"])
def test_a_file_that_came_into_being_meanwhile_stays(name):
    sink = begun(name)
    Path(name).write_text("somebody else's")
    sink.end({"frames": 3})
    with pytest.raises(StreamRPNError, match=r"by other hands.*x\.partial"):
        sink.close()
    assert Path(name).read_text() == "somebody else's"
    assert count_of(PARTIAL[name]) == 3


@pytest.mark.parametrize(
    ("name", "partial"),
    [
        ("x.jsonl", "x.partial.jsonl"),
        ("my.video.jsonl.gz", "my.video.partial.jsonl.gz"),
        ("x.COCO.json", "x.partial.COCO.json"),
        ("x.mot.txt", "x.partial.mot.txt"),
        ("name", "name.partial"),
    ],
)
def test_partial_names_keep_their_ending(name, partial):
    assert partial_name(name) == partial


class TestDirectories:
    def test_only_what_a_run_recorded_is_replaced_and_no_link_is_followed(self):
        outside, project = Path("outside"), Path("x")
        for path in (outside, project / "other"):
            path.mkdir(parents=True)
            (path / "index.jsonl").write_text("mine")
            (path / "00000000_000.jpg").write_text("mine")
        (project / "link").symlink_to(outside.resolve())
        (project / "00000009_000.jpg").write_text("mine")
        before = contents("x") | contents("outside")
        for count in (2, 1):
            write_all("x/", [make_proposals(i) for i in range(count)], overwrite=True)
            after = contents("x") | contents("outside")
            assert before.items() <= after.items()
            assert len(after) - len(before) == count + 1

    @pytest.mark.parametrize("line", ["../outside/00000001_000.jpg", "/etc/00000001_000.jpg", "a"])
    def test_a_record_that_leads_elsewhere_is_refused(self, line):
        Path("x").mkdir()
        Path("x/index.jsonl").write_text(json.dumps({"file": line}) + "\n")
        with pytest.raises(StreamRPNError, match="is not of stream-rpn"):
            open_sink("x/", overwrite=True)
        assert [path.name for path in Path("x").iterdir()] == ["index.jsonl"]

    def test_recorded_crops_behind_a_link_stay(self):
        Path("outside").mkdir()
        Path("outside/00000001_000.jpg").write_text("mine")
        Path("x").mkdir()
        Path("x/link").symlink_to(Path("outside").resolve())
        Path("x/index.jsonl").write_text('{"file": "link/00000001_000.jpg"}\n')
        write_all("x/", [make_proposals(0)], overwrite=True)
        assert Path("outside/00000001_000.jpg").read_text() == "mine"
        assert Path("x/link").is_symlink()

    @pytest.mark.parametrize(
        ("name", "mine"), [("x/", "00000001_000.jpg"), ("x.parquet", "part-00001.parquet")]
    )
    def test_files_of_others_are_not_replaced(self, name, mine):
        Path(name).mkdir()
        (Path(name) / mine).write_text("mine")
        with pytest.raises(StreamRPNError, match="not of an earlier run"):
            write_all(name, [make_proposals(0), make_proposals(1)], overwrite=True)
        assert (Path(name) / mine).read_text() == "mine"
        assert count_of(PARTIAL[name]) == 2

    def test_parts_that_are_missing_make_a_directory_incomplete(self):
        write_all("x.parquet", [make_proposals(0)])
        assert not stream_rpn.read("x.parquet").complete
        results = stream_rpn.read("x.parquet")
        assert len(list(results)) == 1
        assert results.complete
        Path("x.parquet/part-00000.parquet").unlink()
        assert len(list(results)) == 1
        assert not results.complete
        Path("x.parquet/part-00001.parquet").unlink()
        with pytest.raises(StreamRPNError, match="not a directory of stream-rpn results"):
            list(results)

    @pytest.mark.parametrize("kind", ["text", "rows"])
    def test_parts_of_others_are_told_before_anything_is_written(self, kind):
        parquet = pytest.importorskip("pyarrow.parquet")
        Path("x.parquet").mkdir()
        part = Path("x.parquet/part-00000.parquet")
        if kind == "text":
            part.write_text("mine")
        else:
            arrow = pytest.importorskip("pyarrow")
            parquet.write_table(arrow.table({"mine": [1]}), part)
        before = contents("x.parquet")
        with pytest.raises(StreamRPNError, match=r"part-00000\.parquet' is not of stream-rpn"):
            open_sink("x.parquet", overwrite=True)
        assert contents("x.parquet") == before

    def test_parts_of_the_first_release_are_read_and_replaced(self):
        parquet = pytest.importorskip("pyarrow.parquet")
        write_all("x.parquet", [make_proposals(0), make_proposals(1)])
        # As they were: the header beside the parts, not in them, and no part without rows.
        about = json.loads(parquet.read_metadata("x.parquet/part-00001.parquet").metadata[ABOUT])
        Path("x.parquet/part-00000.parquet").unlink()
        table = parquet.read_table("x.parquet/part-00001.parquet").replace_schema_metadata()
        Path("x.parquet/part-00001.parquet").unlink()
        parquet.write_table(table, "x.parquet/part-00000.parquet")
        old = {"parts": ["part-00000.parquet"], "headers": about["headers"], "ends": about["ends"]}
        Path("x.parquet/_header.json").write_text(json.dumps(old))
        results = stream_rpn.read("x.parquet")
        assert [proposals.frame for proposals in results] == [0, 1]
        assert results.complete
        assert results.sources == [about["headers"][0]["source"]]
        write_all("x.parquet", [make_proposals(5)], overwrite=True)
        assert [proposals.frame for proposals in stream_rpn.read("x.parquet")] == [5]
        assert not Path("x.parquet/_header.json").exists()


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.parquet", "x.npz"])
def test_stopped_results_say_so_and_are_not_complete(name):
    sink = begun(name)
    sink.end({"frames": 3, "stopped": "interrupted"})
    sink.close()
    results = stream_rpn.read(name)
    assert len(list(results)) == 3
    assert results.ends == [{"frames": 3, "stopped": "interrupted"}]
    assert not results.complete


@pytest.mark.parametrize("several", [False, True], ids=["one source", "several"])
@pytest.mark.parametrize("replaced", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("name", ALL_NAMES)
def test_what_is_finished_is_on_the_disk(monkeypatch, name, replaced, several):
    sizes = {}  # when it was synced, by inode: files get their names later

    def sync(descriptor):
        status = os.fstat(descriptor)
        sizes[status.st_ino] = status.st_size

    if replaced:
        write_all(name, [make_proposals(1)])
    monkeypatch.setattr(os, "fsync", sync)
    takes = sink_class_of(name).takes_several_sources
    write_all(name, [make_proposals(0)], overwrite=replaced, multiple_sources=several and takes)
    files = [Path(file) for file in contents(name)]
    assert files
    for file in files:
        assert sizes[file.stat().st_ino] == file.stat().st_size
        assert file.resolve().parent.stat().st_ino in sizes


@pytest.mark.parametrize("call", ["mkdir", "flock", "unlink", "rmdir"])
def test_a_second_ctrl_c_at_any_moment_leaves_no_temporary_file(monkeypatch, call):
    owner = fcntl if call == "flock" else Path
    original = getattr(owner, call)
    waits = [KeyboardInterrupt]

    def interrupted(*arguments, **options):
        result = None if call in ("unlink", "rmdir") and waits else original(*arguments, **options)
        if waits:
            raise waits.pop()
        return result

    monkeypatch.setattr(owner, call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole("s.json", b"{}")
    assert leftovers(".") == []


def test_a_crop_that_somebody_removed_is_no_failure():
    sink = begun("x/")
    next(Path("x").glob("*.jpg")).unlink()
    sink.end({"frames": 3})
    sink.close()
    assert sink.kept == "x/"


def test_a_summary_file_stays_where_the_new_one_cannot_be_written(monkeypatch):
    Path("s.json").write_text("old")

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StreamRPNError, match="the disk is full"):
            write_whole("s.json", b"new")
    assert Path("s.json").read_text() == "old"
    assert leftovers(".") == []


class TestRuns:
    def test_nothing_produced_is_exit_2(self, monkeypatch, capsys):
        from stream_rpn.sinks.coco import COCOSink

        def full(self, proposals):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(COCOSink, "_write", full)
        assert run("synthetic:64x64@10,2", "-o", "x.coco.json") == 2
        err = capsys.readouterr().err
        assert "the disk is full" in err
        assert "nowhere" not in err
        assert list(Path().iterdir()) == []

    def test_a_second_run_is_refused_at_once(self, capsys):
        first = begun("x.npz")
        assert run("synthetic:64x64@10,2", "-o", "x.npz") == 2
        assert "another run is writing it" in capsys.readouterr().err
        first.abort()

    def test_what_a_failed_output_keeps_is_told(self, monkeypatch, capsys):
        from stream_rpn.sinks.jsonl import JSONLinesSink

        write = JSONLinesSink._write

        def fill_up(sink, proposals):
            if proposals.frame == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(sink, proposals)

        monkeypatch.setattr(JSONLinesSink, "_write", fill_up)
        assert run("synthetic:64x64@10,4", "-o", "y.jsonl") == 3
        err = capsys.readouterr().err
        assert "'y.jsonl': the disk is full; what was written until then stays there" in err
        assert "nowhere" not in err
        Path("x.jsonl").write_text("old")
        assert run("synthetic:64x64@10,4", "-o", "x.jsonl", "--overwrite") == 3
        assert "what was written until then is in 'x.partial.jsonl'" in capsys.readouterr().err
        assert Path("x.jsonl").read_text() == "old"
        assert len(list(stream_rpn.read("x.partial.jsonl"))) == 2

    def test_a_source_that_fails_makes_a_shared_file_incomplete(self):
        Path("bad.mp4").write_bytes(b"not a video at all" * 50)
        assert run("bad.mp4", "synthetic:64x64@10,2", "-o", "x.jsonl") == 3
        results = stream_rpn.read("x.jsonl")
        assert len(list(results)) == 2
        assert not results.complete
        assert lines("x.jsonl")[-1] == {
            "end": {"frames": 0, "complete": False, "stopped": "failed"},
            "source": "bad.mp4",
        }

    @pytest.mark.parametrize(
        ("number", "code"),
        [(signal.SIGINT, 130), pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow)],
        ids=["ctrl-c", "hang-up"],
    )
    def test_a_stopped_run_says_so(self, number, code):
        Path("v.mp4").write_bytes(clip("synthetic:320x240@30,3000"))
        process = start("v.mp4", "-o", "x.jsonl", "-o", "x.npz", "-o", "x.mp4")
        wait_for_lines("x.jsonl", 5)
        process.send_signal(number)
        err = process.stderr.read().decode()
        assert process.wait(timeout=300) == code, err
        end = lines("x.jsonl")[-1]["end"]
        assert end["stopped"] == "interrupted"
        assert f"v.mp4: stopped after {end['frames']:,} of 3,000 frames" in err
        for name in ("x.jsonl", "x.npz"):
            results = stream_rpn.read(name)
            assert len(list(results)) == end["frames"]
            assert not results.complete
        assert count_of("x.mp4") == end["frames"]
        assert leftovers(".") == []

    @pytest.mark.parametrize("stderr", ["a reader that goes", "/dev/full"])
    def test_messages_that_cannot_be_written_cost_nothing(self, stderr):
        code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from stream_rpn import cli
from stream_rpn.commands import progress
progress.PLAIN_SECONDS = 0.0
sys.exit(cli.main(sys.argv[1:]))
"""
        command = [sys.executable, "-c", code, "synthetic:64x64@10,20", "-o", "x.jsonl"]
        if stderr == "/dev/full":
            with open("/dev/full", "w") as full:
                assert subprocess.run(command, stderr=full).returncode == 0
        else:
            process = subprocess.Popen(command, stderr=subprocess.PIPE)
            process.stderr.close()
            assert process.wait(timeout=300) == 0
        results = stream_rpn.read("x.jsonl")
        assert len(list(results)) == 20
        assert results.complete

    def test_a_directory_removed_meanwhile_is_not_success(self):
        Path("folder").mkdir()
        process = start("synthetic:64x64@30,300", "-o", "folder/x.jsonl")
        wait_for_lines("folder/x.jsonl", 5)
        subprocess.run(["rm", "-r", "folder"], check=True)
        err = process.stderr.read().decode()
        assert process.wait(timeout=300) == 2, err
        assert "it was removed or renamed while it was being written" in err
        assert "Traceback" not in err


def test_every_format_is_tried():
    assert set(PARTIAL) == set(PLACES)
