import gzip
import json

import numpy as np
import pytest

import stream_rpn
from stream_rpn.drops import Drop, DropKind, DropReason
from stream_rpn.frame import Proposals, StreamInfo, StreamRPNError
from stream_rpn.sinks import make_header, open_sink

INFO = StreamInfo("clips/a.mp4", "a", 192, 108, fps=25.0)
HEADER = make_header(INFO, model="tiny", parameters={"top": 300})


def random_records():
    """Frames as a run leaves them: with gaps, one empty, one after damage, one of another size."""
    rng = np.random.default_rng(0)
    records = []
    for position, (frame, count) in enumerate([(0, 7), (1, 0), (4, 300), (5, 1)]):
        corners = rng.random((count, 2, 2)) * [192, 108]
        boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        records.append(
            Proposals(
                frame=frame,
                pts=None if frame == 1 else frame * 512,
                pts_seconds=None if frame == 1 else frame / 25,
                width=96 if frame == 5 else 192,
                height=54 if frame == 5 else 108,
                boxes=boxes.astype(np.float32),
                scores=np.sort(rng.random(count).astype(np.float32))[::-1],
                levels=rng.integers(0, 5, count).astype(np.int32),
                anchors=rng.integers(0, 200_000, count).astype(np.int32),
                input_boxes=np.zeros((count, 4), np.float32),
                drops=(Drop("damaged packet", 2, 1024), Drop("stale", 1, None)) if position else (),
                image_id=77 if frame == 4 else None,
                name="b.jpg" if frame == 4 else None,
                source="clips/a.mp4",
            )
        )
    return records


def written(path, records):
    with open_sink(str(path)) as sink:
        sink.begin(HEADER, INFO)
        for record in records:
            sink.write(record)
        sink.end({"frames": len(records)})
    return path


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.parquet", "x.npz", "x.coco.json"])
def test_round_trip(tmp_path, name):
    records = random_records()
    results = stream_rpn.read(written(tmp_path / name, records))
    assert results.header["parameters"] == {"top": 300}
    assert results.sources == ["clips/a.mp4"]
    for _ in range(2):  # each iteration begins anew
        again = list(results)
        assert results.complete
        assert results.ends == [{"frames": 4}]
        assert len(again) == len(records)
    exact = "json" not in name
    without_levels = name == "x.coco.json"
    for record, copy in zip(records, again, strict=True):
        for field in (
            "frame",
            "pts",
            "pts_seconds",
            "width",
            "height",
            "drops",
            "image_id",
            "name",
        ):
            assert getattr(copy, field) == getattr(record, field), field
        assert copy.source == "clips/a.mp4"
        np.testing.assert_allclose(copy.boxes, record.boxes, atol=0 if exact else 0.0101, rtol=0)
        np.testing.assert_allclose(copy.scores, record.scores, rtol=0 if exact else 5.1e-6)
        np.testing.assert_array_equal(copy.levels, -1 if without_levels else record.levels)
        np.testing.assert_array_equal(copy.anchors, record.anchors if exact else -1)
        assert copy.boxes.shape == copy.input_boxes.shape == (len(record), 4)
        dtypes = [getattr(copy, field).dtype for field in ("boxes", "scores", "levels", "anchors")]
        assert dtypes == [np.float32, np.float32, np.int32, np.int32]


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("x.coco-results.json", [0, 77, 5]),
        ("x.mot.txt", [0, 4, 5]),
        ("x.csv", [0, 4, 5]),
    ],
)
def test_round_trip_of_boxes_alone(tmp_path, name, frames):
    records = [record for record in random_records() if len(record)]
    results = stream_rpn.read(written(tmp_path / name, random_records()))
    again = list(results)
    assert results.complete
    assert results.header == {}
    assert [copy.frame for copy in again] == frames
    for record, copy in zip(records, again, strict=True):
        np.testing.assert_allclose(copy.boxes, record.boxes, atol=0.0151, rtol=0)
        np.testing.assert_allclose(copy.scores, record.scores, rtol=5.1e-6)
        assert copy.pts is None
        assert set(copy.levels) == (set(record.levels) if name == "x.csv" else {-1})


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_a_cut_file_gives_its_whole_lines(tmp_path, name):
    path = written(tmp_path / name, random_records())
    data = path.read_bytes()
    seen = set()
    # The last bytes of a compressed file stand behind all lines: its end and its checksum.
    for length in range(1, len(data) - 16, 97):
        path.write_bytes(data[:length])
        results = stream_rpn.read(path)
        frames = [proposals.frame for proposals in results]
        assert frames == [0, 1, 4, 5][: len(frames)]
        assert not results.complete
        seen.add(len(frames))
    assert len(seen) > 1


def test_a_file_without_its_closing_line_is_not_complete(tmp_path):
    path = written(tmp_path / "x.jsonl", random_records())
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    results = stream_rpn.read(path)
    assert len(list(results)) == 4
    assert not results.complete


def test_an_empty_file_holds_nothing(tmp_path):
    (tmp_path / "x.jsonl").touch()
    results = stream_rpn.read(tmp_path / "x.jsonl")
    assert list(results) == []
    assert not results.complete


CSV_HEAD = "source,frame,pts_seconds,name,x1,y1,x2,y2,score,level\n"
HEADER_LINE = json.dumps(HEADER) + "\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.jsonl", HEADER_LINE + "{}\n", "line 2"),
        ("x.jsonl", HEADER_LINE + "no json\n", "line 2"),
        ("x.jsonl", '{"frame": 0}\n', "line 1"),
        ("x.jsonl", "[1, 2]\n", "line 1"),
        (
            "x.jsonl",
            HEADER_LINE + '{"frame":0,"pts":0,"pts_seconds":0,"boxes":7,"scores":[]}\n',
            "line 2",
        ),
        ("x.jsonl.gz", "plain", "not a gzip file"),
        ("x.mot.txt", "1,-1,1,1,5,5,0.5,-1,-1,-1\n1;2\n", "line 2"),
        ("x.coco.json", '{"images": []}', "neither a COCO dataset"),
        ("x.coco.json", "", "neither a COCO dataset"),
        ("x.npz", "plain", "not an archive"),
        ("x.csv", "a,b\n1,2\n", "line 1: not a CSV file"),
        ("x.csv", CSV_HEAD + "a,0,,,1,2,3,4,0.5,0\na,1,,,1,2,x,4,0.5,0\n", "line 3"),
        ("x.d2.pkl", "plain", "may hold arrays and numbers only"),
        ("x.parquet", "plain", "not a Parquet file"),
        ("x.mp4", "plain", "not a result file by its name"),
    ],
)
def test_other_files_get_a_sentence(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(StreamRPNError, match=words) as error:
        list(stream_rpn.read(tmp_path / name))
    assert name in str(error.value)


def test_a_foreign_directory_or_archive_gets_a_sentence(tmp_path):
    (tmp_path / "x.parquet").mkdir()
    np.savez(tmp_path / "x.npz", boxes=np.zeros(3))
    for name in ("x.parquet", "x.npz", "missing.jsonl"):
        with pytest.raises(StreamRPNError, match=name):
            stream_rpn.read(tmp_path / name)


def test_gzip_files_are_what_gunzip_reads(tmp_path):
    path = written(tmp_path / "x.jsonl.gz", random_records())
    plain = written(tmp_path / "x.jsonl", random_records())
    assert gzip.decompress(path.read_bytes()) == plain.read_bytes()


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet", "x.npz"])
def test_reasons_that_are_not_known_here_are_read_as_they_stand(tmp_path, name):
    records = random_records()[1:2]
    records[0].drops = (Drop("struck by lightning", 1, 7), Drop("stale", 2, None))
    (again,) = stream_rpn.read(written(tmp_path / name, records))
    assert again.drops == records[0].drops
    assert [str(drop.reason) for drop in again.drops] == ["struck by lightning", "stale"]
    assert again.drops[1].reason.kind is DropKind.POLICY


def test_reasons_say_what_they_are():
    assert {kind: [str(r) for r in DropReason if r.kind is kind] for kind in DropKind} == {
        DropKind.DAMAGE: [
            "damaged packet",
            "missing packet",
            "cut off",
            "unread recording",
            "no key frame",
            "damaged image",
            "connection lost",
        ],
        DropKind.POLICY: ["decoder", "queue full", "stale"],
        DropKind.WISH: ["not wanted"],
    }
    # As strings they stand in summaries and in the labels of metrics.
    assert f"{DropReason.STALE}" == json.dumps({DropReason.STALE: 1})[2:7] == "stale"


class TestTakingThemOut:
    """`len`, indices and slices; tables."""

    @pytest.mark.parametrize("name", ["x.jsonl", "x.parquet", "x.npz"])
    def test_frames_are_counted_indexed_and_sliced(self, tmp_path, name):
        results = stream_rpn.read(written(tmp_path / name, random_records()))
        assert results
        assert len(results) == 4
        assert [results[i].frame for i in (0, 1, 2, 3, 0, -1, -4)] == [0, 1, 4, 5, 0, 5, 0]
        assert [p.frame for p in results[1:3]] == [1, 4]
        assert [p.frame for p in results[::-2]] == [5, 1]
        assert results[9:] == []
        assert len(results[2]) == 300
        for index in (4, -5):
            with pytest.raises(IndexError, match="there are 4 frames"):
                results[index]

    def test_counting_does_not_disturb_an_iteration(self, tmp_path):
        results = stream_rpn.read(written(tmp_path / "x.jsonl", random_records()))
        frames = []
        for proposals in results:
            frames.append((proposals.frame, results[0].frame, len(results)))
        assert frames == [(0, 0, 4), (1, 0, 4), (4, 0, 4), (5, 0, 4)]
        assert results.complete

    def test_a_file_that_was_written_anew_is_read_anew(self, tmp_path):
        results = stream_rpn.read(written(tmp_path / "x.jsonl", random_records()))
        assert (len(results), results[3].frame) == (4, 5)
        (tmp_path / "x.jsonl").unlink()
        written(tmp_path / "x.jsonl", random_records()[2:])
        assert (len(results), results[1].frame) == (2, 5)
        (tmp_path / "x.jsonl").unlink()
        with pytest.raises(StreamRPNError, match="No such file"):
            len(results)

    def test_an_empty_file_is_false(self, tmp_path):
        results = stream_rpn.read(written(tmp_path / "x.jsonl", []))
        assert not results
        assert len(results) == 0
        assert results[:] == []

    def test_the_repr_tells_what_is_known(self, tmp_path):
        path = written(tmp_path / "x.jsonl", random_records())
        results = stream_rpn.read(path)
        assert repr(results) == f"Results({str(path)!r}, clips/a.mp4, tiny)"
        assert len(list(results)) == 4
        assert repr(results) == f"Results({str(path)!r}, clips/a.mp4, tiny, 4 frames, complete)"

    def test_arrow_has_a_row_a_box(self, tmp_path):
        pytest.importorskip("pyarrow")
        records = random_records()
        table = stream_rpn.read(written(tmp_path / "x.npz", records)).to_arrow()
        assert table.num_rows == 308
        assert table.column_names == COLUMNS
        rows = table.to_pylist()
        assert {row["source"] for row in rows} == {"clips/a.mp4"}
        assert [rows[7][name] for name in ("frame", "name", "image_id")] == [4, "b.jpg", 77]
        assert rows[0]["name"] is rows[0]["image_id"] is None
        assert rows[307]["pts_seconds"] == 0.2
        for i, side in enumerate(("x1", "y1", "x2", "y2")):
            np.testing.assert_array_equal(
                table[side], np.concatenate([r.boxes for r in records])[:, i]
            )
        np.testing.assert_array_equal(table["score"], np.concatenate([r.scores for r in records]))

    def test_pandas_has_the_same_rows(self, tmp_path):
        pytest.importorskip("pandas")
        data = stream_rpn.read(written(tmp_path / "x.jsonl", random_records())).to_pandas()
        assert list(data) == COLUMNS
        assert data["image_id"].dtype == "Int64"
        assert (data["anchor"].isna().all(), data["level"].isna().any()) == (True, False)
        assert data.groupby("frame").size().to_dict() == {0: 7, 4: 300, 5: 1}
        assert data.loc[data["image_id"] == 77, "name"].eq("b.jpg").all()
        empty = stream_rpn.read(written(tmp_path / "y.jsonl", [])).to_pandas()
        assert list(empty) == COLUMNS
        assert len(empty) == 0


COLUMNS = [
    "source", "name", "image_id", "frame", "pts", "pts_seconds", "x1", "y1", "x2", "y2", "score",
    "level", "anchor",
]  # fmt: skip
