"""Damaged result files give results or one sentence: no traceback, no hang, no great memory."""

import gzip
import json
import random
import resource
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import av
import numpy as np
import pytest

import stream_rpn
from stream_rpn.commands.render import render
from stream_rpn.frame import Proposals, StreamRPNError
from stream_rpn.sinks import jsonl
from tests.test_results import random_records, written

ROOT = Path(__file__).resolve().parents[1]
NAMES = [
    "x.jsonl",
    "x.jsonl.gz",
    "x.npz",
    "x.coco.json",
    "x.coco-results.json",
    "x.mot.txt",
    "x.parquet",
]
MOST_SECONDS = 20.0
MOST_MEMORY = 400 << 20

# What stands in text where something else should, with their quotes and brackets.
ODD = [
    b"null", b"-1", b"1e999", b"NaN", b'"x"', b"[]", b"{}", b"[[1,2],[3]]", b"1" * 400, b"true",
    b"[" * 5000, b'{"a":' * 3000, b"\xff\xfe", b"0.5", b"\0", b"9223372036854775808",
]  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Returns a file with one to four kinds of damage."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        begin = rng.randrange(len(out) + 1)
        end = min(len(out), begin + rng.choice([1, 2, 8, 64, 1000]))
        kind = rng.randrange(7)
        if kind == 0:
            for _ in range(rng.choice([1, 1, 10])):
                if out:
                    out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[begin:]
        elif kind == 2:
            del out[begin:end]
        elif kind == 3:
            out[begin:begin] = out[begin:end] * rng.choice([1, 1, 5])
        elif kind == 4:
            out[begin:end] = rng.randbytes(end - begin)
        elif kind == 5:
            out[begin:end] = bytes(end - begin)
        else:
            # In place of a value, where there are values.
            commas = [i for i, byte in enumerate(out) if byte in b",:"]
            if len(commas) > 1:
                at = rng.randrange(len(commas) - 1)
                out[commas[at] + 1 : commas[at + 1]] = rng.choice(ODD)
    return bytes(out)


def deflated_again(path: Path, rng: random.Random) -> None:
    """Damages what is packed in a file, as damage to the packing alone is found by checksums."""
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(mutated(gzip.decompress(path.read_bytes()), rng), 1))
        return
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    damaged = rng.choice(list(members))
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, mutated(data, rng) if name == damaged else data)


def fuzz(name: str, count: int, folder: Path) -> None:
    """Reads mutations of a good file; raises where one does not give results or a sentence."""
    path = written(folder / name, random_records())
    files = [path] if path.is_file() else sorted(path.iterdir())
    good = {file: file.read_bytes() for file in files}
    sentences: list[str] = []
    for seed in range(count):
        rng = random.Random(seed)
        file = rng.choice(files)
        if name.endswith((".gz", ".npz")) and rng.random() < 0.7:
            deflated_again(file, rng)
        else:
            file.write_bytes(mutated(good[file], rng))
        began = time.monotonic()
        try:
            results = stream_rpn.read(path)
            for proposals in results:
                check(proposals)
            assert isinstance(results.complete, bool)
            assert all(isinstance(source, str) for source in results.sources)
        except StreamRPNError as error:
            sentences.append(str(error))
        except BaseException as error:
            raise AssertionError(f"{name}, seed {seed}: {error!r}") from error
        assert time.monotonic() - began < MOST_SECONDS, f"{name}, seed {seed}"
        file.write_bytes(good[file])
    assert len(sentences) > count // 10
    assert all("x." in sentence and "\n" not in sentence for sentence in sentences)
    assert len(list(stream_rpn.read(path))) >= 3


def check(proposals: Proposals) -> None:
    count = len(proposals)
    assert isinstance(proposals.frame, int)
    assert proposals.boxes.shape == (count, 4)
    assert proposals.scores.shape == proposals.levels.shape == proposals.anchors.shape == (count,)
    assert np.isfinite(proposals.boxes).all()
    assert np.isfinite(proposals.scores).all()


def fuzz_in_a_process(name: str, count: int, folder: Path) -> None:
    """Fuzzes where a crash is seen and memory is counted."""
    code = f"""
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests import test_damaged_results as tests
list(tests.stream_rpn.read(tests.written(Path({name!r}), tests.random_records())))
Path("mutated").mkdir()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tests.fuzz({name!r}, {count}, Path("mutated"))
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
assert grown < tests.MOST_MEMORY, f"{{grown / 1e6:.0f}} MB"
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", NAMES)
def test_a_hundred_mutations(tmp_path, name):
    fuzz_in_a_process(name, 100, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_thousand_mutations(tmp_path, name):
    fuzz_in_a_process(name, 2000, tmp_path)


@pytest.fixture
def video(tmp_path):
    # Not at the top: the processes above import this module, and torch takes longer than they do.
    from tests.test_cli import clip

    (tmp_path / "v.mp4").write_bytes(clip("synthetic:192x108@10,6"))
    return tmp_path / "v.mp4"


def test_render_of_mutations(tmp_path, video):
    path = written(tmp_path / "x.jsonl", random_records())
    good = path.read_bytes().replace(b'"width":96,"height":54', b'"width":192,"height":108')
    rendered = 0
    for seed in range(25):
        path.write_bytes(mutated(good, random.Random(seed)))
        try:
            render(stream_rpn.read(str(path)), str(video), f"{tmp_path}/o.mp4", overwrite=True)
            rendered += 1
        except StreamRPNError:
            continue
    assert 0 < rendered < 25


@pytest.mark.parametrize("corner", [1e30, -1e30, 3e38, -0.0])
def test_boxes_far_outside_are_drawn_as_far_as_they_are_seen(tmp_path, video, corner):
    path = written(tmp_path / "x.jsonl", random_records()[:1])
    head, line, end = path.read_text().splitlines()
    record = json.loads(line)
    record["boxes"][0] = [-abs(corner), 5, corner, corner]
    path.write_text("\n".join([head, json.dumps(record), end, ""]))
    render(stream_rpn.read(str(path)), str(video), f"{tmp_path}/o.mp4")
    with av.open(f"{tmp_path}/o.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == 6


class TestBombs:
    """Small files that unpack to very much are refused, or read in little memory."""

    def test_npz(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("boxes.npy", bytes(300 << 20))
        with pytest.raises(StreamRPNError, match=r"would unpack to 0\.3 GB"):
            stream_rpn.read(tmp_path / "x.npz")

    def test_parquet(self, tmp_path):
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        count = 80_000_000
        table = pyarrow.table({"frame": pyarrow.array(np.zeros(count, np.int8))})
        parquet.write_table(table, tmp_path / "x.parquet", row_group_size=count)
        assert (tmp_path / "x.parquet").stat().st_size < 1 << 20
        with pytest.raises(StreamRPNError, match=r"would unpack to 0\.3 GB"):
            stream_rpn.read(tmp_path / "x.parquet")

    @pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
    def test_a_line_without_end_is_read_in_linear_time(self, tmp_path, name):
        data = b"[" * (80 << 20)
        (tmp_path / name).write_bytes(gzip.compress(data, 1) if name.endswith("gz") else data)
        began = time.process_time()
        with pytest.raises(StreamRPNError, match="a line of more than 64 MiB"):
            stream_rpn.read(tmp_path / name)
        assert time.process_time() - began < 5

    def test_many_lines_are_read_in_little_memory(self, tmp_path):
        line = b'{"frame":0,"pts":0,"pts_seconds":0,"boxes":[],"scores":[],"levels":[]}\n'
        path = written(tmp_path / "x.jsonl.gz", [])
        path.write_bytes(path.read_bytes() + gzip.compress(line * 100_000 + b"x" * (32 << 20)))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert sum(1 for _ in stream_rpn.read(path)) == 100_000
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        assert grown < 200 << 20


def test_a_gzip_file_of_several_streams_is_read_to_its_end(tmp_path):
    first = written(tmp_path / "x.jsonl.gz", random_records()).read_bytes()
    (tmp_path / "y.jsonl.gz").write_bytes(first + first + bytes(512))
    results = stream_rpn.read(tmp_path / "y.jsonl.gz")
    assert [proposals.frame for proposals in results] == [0, 1, 4, 5] * 2
    assert results.complete


def test_a_long_line_arrives_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "LONGEST_LINE", 1 << 18)
    records = random_records()[2:3]
    path = written(tmp_path / "x.jsonl.gz", records)
    data = zlib.decompress(path.read_bytes(), wbits=31)
    assert len(data) < 1 << 17
    path.write_bytes(b"".join(gzip.compress(data[i : i + 100]) for i in range(0, len(data), 100)))
    (again,) = stream_rpn.read(path)
    np.testing.assert_allclose(again.boxes, records[0].boxes, atol=0.0051)
