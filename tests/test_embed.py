"""A vector for every box: pooled as RoIAlign does, by either engine, and kept on every way."""

import json

import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

import stream_rpn
from stream_rpn import api
from stream_rpn.cli import main
from stream_rpn.embedding import Embedding, EmbedSpec
from stream_rpn.frame import Proposals, StreamInfo, StreamRPNError
from stream_rpn.sinks import make_header, open_sink

SOURCE = "synthetic:96x64@25,3"


def of_torchvision(maps, boxes, embedding):
    """Returns what `Embedding.pool` is to return, by torchvision's own operator."""
    parts = []
    for level, (stride, _) in zip(embedding.levels, embedding.strides, strict=True):
        bins = roi_align(
            maps[level].float(),
            list(boxes),
            embedding.grid,
            1 / stride,
            embedding.samples,
            aligned=True,
        )
        parts.append(torch.nn.functional.normalize(bins.flatten(1)))
    return torch.cat(parts, 1).unflatten(0, boxes.shape[:2]) / len(parts) ** 0.5


class TestPooling:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_is_torchvisions_roi_align(self, dtype):
        torch.manual_seed(0)
        embedding = Embedding.choose([(4, 4), (8, 8), (16, 16)], [5, 6, 7], EmbedSpec(grid=(2, 3)))
        maps = [
            torch.randn(2, channels, 128 // stride, 160 // stride).to(dtype)
            for channels, stride in ((5, 4), (6, 8), (7, 16))
        ]
        corners = torch.rand(2, 9, 2, 2) * torch.tensor([160.0, 128.0])
        boxes = corners.sort(dim=2).values.flatten(2)
        boxes[0, 0], boxes[0, 1] = torch.tensor([[0, 0, 160, 128], [7, 7, 7, 7]])
        found = embedding.pool(maps, boxes)
        assert found.shape == (2, 9, embedding.length) == (2, 9, (6 + 7) * 2 * 3)
        assert found.dtype == torch.float16
        expected = of_torchvision(maps, boxes, embedding)
        torch.testing.assert_close(found.float(), expected, atol=1e-3, rtol=1e-3)

    def test_of_no_boxes_are_no_vectors(self):
        embedding = Embedding.choose([(8, 8)], [3])
        assert embedding.pool([torch.zeros(1, 3, 4, 4)], torch.zeros(1, 0, 4)).shape == (1, 0, 6)

    def test_a_map_of_zeros_gives_zeros(self):
        embedding = Embedding.choose([(8, 8)], [3])
        found = embedding.pool([torch.zeros(1, 3, 4, 4)], torch.tensor([[[0, 0, 9, 9.0]]]))
        assert found.tolist() == [[[0.0] * 6]]

    def test_maps_are_those_of_stride_8_and_16_or_all_where_there_are_none(self):
        strides = [(4, 4), (8, 8), (16, 16), (32, 32)]
        assert Embedding.choose(strides, [1, 2, 3, 4]).levels == (1, 2)
        assert Embedding.choose(strides, [1, 2, 3, 4]).lengths == (4, 6)
        assert Embedding.choose([(32, 32), (64, 64)], [5, 5]).levels == (0, 1)


@pytest.fixture(scope="module")
def by_engine():
    """The results of a few frames by torch and by OpenVINO."""
    pytest.importorskip("openvino")
    return {
        engine: list(
            stream_rpn.stream(
                SOURCE, engine=engine, device="cpu", dtype="float32", size=96, top=40, embed=True
            )
        )
        for engine in ("torch", "openvino")
    }


class TestEngines:
    @pytest.mark.parametrize("engine", ["torch", "openvino"])
    def test_every_box_has_a_vector_of_length_one(self, by_engine, engine):
        for proposals in by_engine[engine]:
            assert proposals.embeddings.shape == (len(proposals), 2 * 2 * 96)
            assert proposals.embeddings.dtype == np.float16
            norms = np.linalg.norm(proposals.embeddings.astype(float), axis=1)
            np.testing.assert_allclose(norms, 1, atol=2e-3)

    def test_the_same_boxes_have_the_same_vectors(self, by_engine):
        compared = 0
        for ours, theirs in zip(by_engine["torch"], by_engine["openvino"], strict=True):
            place = {
                key: i for i, key in enumerate(zip(theirs.levels, theirs.anchors, strict=True))
            }
            for i, key in enumerate(zip(ours.levels, ours.anchors, strict=True)):
                if key in place:
                    cosine = ours.embeddings[i].astype(float) @ theirs.embeddings[place[key]]
                    assert cosine > 0.999
                    compared += 1
        assert compared > 60

    def test_without_being_asked_for_there_are_none(self):
        (proposals,) = stream_rpn.stream("synthetic:64x48@25,1", device="cpu", size=64, top=5)
        assert proposals.embeddings is None

    def test_propose_has_them_too(self, by_engine):
        picture = np.zeros((64, 96, 3), np.uint8)
        proposals = stream_rpn.propose(picture, size=96, top=7, embed=True, device="cpu")
        assert proposals.embeddings.shape == (len(proposals), 384)
        assert stream_rpn.propose(picture, size=96, top=7, device="cpu").embeddings is None

    def test_the_header_says_how_they_were_made(self):
        pipeline = api.open_pipeline(device="cpu", size=96, embed=True)
        facts = pipeline.provenance(stream_rpn.pipeline.Selection())["parameters"]["embedding"]
        assert json.loads(json.dumps(facts)) == {
            "levels": [0, 1],
            "strides": [[8, 8], [16, 16]],
            "channels": [96, 96],
            "grid": [2, 1],
            "samples": 4,
            "length": 384,
            "dtype": "float16",
            "normalised": True,
        }


def made_up(frame, count, *, length=6, **more):
    rng = np.random.default_rng(frame)
    boxes = np.sort(rng.uniform(0, 48, (count, 2, 2)), axis=1).reshape(-1, 4).astype(np.float32)
    known = {"pts": frame, "pts_seconds": frame / 25, "width": 64, "height": 48, "source": "a.mp4"}
    return Proposals(
        frame=frame,
        scores=np.linspace(0.9, 0.1, count, dtype=np.float32),
        levels=np.zeros(count, np.int32),
        anchors=np.arange(count, dtype=np.int32),
        input_boxes=boxes,
        **{
            "boxes": boxes,
            "embeddings": rng.normal(size=(count, length)).astype(np.float16),
            "track_ids": np.arange(count) - 1,
            **known,
            **more,
        },
    )


FRAMES = [made_up(0, 3), made_up(1, 0), made_up(2, 2)]
INFO = StreamInfo(source="a.mp4", stem="a", width=64, height=48, fps=25.0)


def written(path, frames=FRAMES, length=6):
    parameters = {"tracking": {}, "embedding": {"length": length}}
    with open_sink(str(path)) as sink:
        sink.begin(make_header(INFO, model="m", parameters=parameters), INFO)
        for proposals in frames:
            sink.write(proposals)
        sink.end({"frames": len(frames)})
    return path


class TestResults:
    @pytest.mark.parametrize("name", ["x.parquet", "x.npz"])
    def test_come_back_as_they_were(self, tmp_path, name):
        again = list(stream_rpn.read(written(tmp_path / name)))
        assert len(again) == len(FRAMES)
        for found, expected in zip(again, FRAMES, strict=True):
            assert found.embeddings.dtype == np.float16
            np.testing.assert_array_equal(found.embeddings, expected.embeddings)

    def test_of_many_boxes_are_written_before_they_fill_the_memory(self, tmp_path, monkeypatch):
        from stream_rpn.sinks.parquet import ParquetSink

        monkeypatch.setattr(ParquetSink, "PART_BYTES", 1)
        path = written(tmp_path / "x.parquet")
        assert [p.frame for p in stream_rpn.read(path)] == [0, 1, 2]
        assert len(list(path.iterdir())) >= 4

    @pytest.mark.parametrize("name", ["x.parquet", "x.npz"])
    def test_without_them_have_no_such_column(self, tmp_path, name):
        frames = [made_up(0, 2, embeddings=None)]
        (again,) = stream_rpn.read(written(tmp_path / name, frames, length=0))
        assert again.embeddings is None

    def test_vectors_of_another_number_of_boxes_are_damage(self, tmp_path):
        path = written(tmp_path / "x.npz")
        arrays = dict(np.load(path))
        np.savez(path, **{**arrays, "embeddings": arrays["embeddings"][:-1]})
        with pytest.raises(StreamRPNError, match="damaged"):
            list(stream_rpn.read(path))

    def test_tables_have_a_column_of_them_and_of_track_ids(self, tmp_path):
        pytest.importorskip("pyarrow")
        table = stream_rpn.read(written(tmp_path / "x.npz")).to_arrow()
        expected = np.concatenate([p.embeddings for p in FRAMES])
        assert table["embedding"].type.list_size == 6
        np.testing.assert_array_equal(np.array(table["embedding"].to_pylist()), expected)
        assert table["track_id"].to_pylist() == [None, 0, 1, None, 0]

    def test_pandas_has_them_as_arrays(self, tmp_path):
        pytest.importorskip("pandas")
        data = stream_rpn.read(written(tmp_path / "x.parquet")).to_pandas()
        expected = np.concatenate([p.embeddings for p in FRAMES])
        np.testing.assert_array_equal(np.stack(data.embedding), expected)
        assert data.track_id.isna().tolist() == [True, False, False, True, False]


class TestProposals:
    def test_a_slice_a_mask_and_indices_keep_them(self):
        proposals = FRAMES[0]
        for chosen, rows in (
            (proposals[:2], [0, 1]),
            (proposals[proposals.scores < 0.6], [1, 2]),
            (proposals[[2, 0]], [2, 0]),
        ):
            np.testing.assert_array_equal(chosen.embeddings, proposals.embeddings[rows])
            assert chosen.track_ids.tolist() == [row - 1 for row in rows]

    def test_numpy_and_torch_give_what_there_is(self):
        names = ["boxes", "scores", "levels", "anchors"]
        assert list(made_up(0, 2, embeddings=None, track_ids=None).numpy()) == names
        assert list(FRAMES[0].numpy()) == [*names, "track_ids", "embeddings"]
        assert FRAMES[0].torch()["embeddings"].dtype == torch.float16

    def test_a_box_alone_says_whose_track_it_is(self):
        assert [one.track_id for one in FRAMES[0]] == [-1, 0, 1]
        assert FRAMES[0][2].track_id == 1
        assert made_up(0, 2, track_ids=None)[0].track_id is None


class TestCommand:
    def test_writes_them(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        options = ["--embed", "--device", "cpu", "--size", "96", "--top", "5", "--quiet"]
        assert main([SOURCE, *options, "-o", "x.npz", "-o", "x.jsonl"]) == 0
        results = stream_rpn.read("x.npz")
        assert {p.embeddings.shape for p in results} == {(5, 384)}
        assert results.header["parameters"]["embedding"]["length"] == 384

    def test_without_an_output_that_holds_them_is_refused(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main([SOURCE, "--embed", "-o", "x.jsonl"]) == 2
        assert ".parquet or .npz" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())
