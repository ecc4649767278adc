"""Vectors of boxes in the tools that search them: one line each, with the real tool."""

from dataclasses import replace

import numpy as np
import pytest

from stream_rpn.sinks import open_sink
from tests.interop.results import HEADER, INFO, RECORDS

LENGTH = 4
VECTORS = [
    np.random.default_rng(record.frame).normal(size=(len(record), LENGTH)).astype(np.float16)
    for record in RECORDS
]
EXPECTED = np.concatenate(VECTORS).astype(np.float32)


@pytest.fixture(autouse=True)
def _written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("pyarrow")
    header = {**HEADER, "parameters": {"embedding": {"length": LENGTH}}}
    with open_sink("boxes.parquet") as sink:
        sink.begin(header, INFO)
        for record, vectors in zip(RECORDS, VECTORS, strict=True):
            sink.write(replace(record, embeddings=vectors))
        sink.end({"frames": len(RECORDS)})


def test_duckdb():
    duckdb = pytest.importorskip("duckdb")
    rows = duckdb.sql(
        f"select unnest(embeddings)::float[{LENGTH}] from 'boxes.parquet/*.parquet'"
    ).fetchall()
    np.testing.assert_array_equal(np.array([row[0] for row in rows], np.float32), EXPECTED)


def test_polars():
    polars = pytest.importorskip("polars")
    table = polars.read_parquet("boxes.parquet")["embeddings"].explode().drop_nulls()
    np.testing.assert_array_equal(np.array(table.to_list(), np.float32), EXPECTED)


def test_pandas():
    pandas = pytest.importorskip("pandas")
    found = [v for row in pandas.read_parquet("boxes.parquet").embeddings for v in row]
    np.testing.assert_array_equal(np.stack(found).astype(np.float32), EXPECTED)


def test_lancedb():
    lancedb = pytest.importorskip("lancedb")
    import stream_rpn

    table = lancedb.connect("lance").create_table(
        "boxes", stream_rpn.read("boxes.parquet").to_arrow()
    )
    found = table.search(EXPECTED[1], vector_column_name="embedding").limit(1).to_list()
    np.testing.assert_array_equal(np.array(found[0]["embedding"], np.float32), EXPECTED[1])
