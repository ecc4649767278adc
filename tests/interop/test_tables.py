"""Tables of results as data people open them: one line each, with the real tool."""

import numpy as np
import pytest

from tests.interop.results import HEADER, RECORDS, write


@pytest.fixture
def boxes_parquet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("pyarrow")
    write("boxes.parquet", RECORDS)


@pytest.fixture
def killed_parquet(tmp_path, monkeypatch):
    """What a run leaves that was killed: its parts, and the folder that it held."""
    from stream_rpn.sinks.parquet import ParquetSink

    monkeypatch.chdir(tmp_path)
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(ParquetSink, "PART_FRAMES", 1)
    return write("boxes.parquet", RECORDS, ended=False)


def check(frames, boxes, names):
    assert list(frames) == [record.frame for record in RECORDS]
    assert [name or None for name in names] == [record.name for record in RECORDS]
    for found, record in zip(boxes, RECORDS, strict=True):
        found = np.array([list(box) for box in found], np.float32).reshape(-1, 4)
        np.testing.assert_array_equal(found, record.boxes)


@pytest.mark.parametrize("state", ["boxes_parquet", "killed_parquet"])
class TestParquet:
    @pytest.fixture(autouse=True)
    def _written(self, request, state):
        self.sink = request.getfixturevalue(state)
        yield
        if self.sink is not None:
            self.sink.abort()

    def test_pandas(self):
        pandas = pytest.importorskip("pandas")
        table = pandas.read_parquet("boxes.parquet")
        check(table.frame, table.boxes, table.name)

    def test_polars(self):
        polars = pytest.importorskip("polars")
        table = polars.read_parquet("boxes.parquet")
        check(table["frame"], table["boxes"].to_list(), table["name"])

    def test_duckdb(self):
        duckdb = pytest.importorskip("duckdb")
        rows = duckdb.sql("select frame, boxes, name from 'boxes.parquet/*.parquet'").fetchall()
        check(*zip(*rows, strict=True))

    def test_pyarrow(self):
        import json

        parquet = pytest.importorskip("pyarrow.parquet")
        table = parquet.read_table("boxes.parquet")
        check(*(table[name].to_pylist() for name in ("frame", "boxes", "name")))
        about = json.loads(table.schema.metadata[b"stream_rpn"])
        assert about["headers"] == [HEADER]
