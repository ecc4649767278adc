"""Whole streams on a GPU: what is looked at, kept and pooled is what the references find on a CPU.

The CPU takes the GPU's way, kernel for reference: its own preprocesses by swscale, whose grey
levels differ by one or so.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import stream_rpn
from stream_rpn.batch.piece_source import PieceSource
from stream_rpn.batch.pieces import pieces_of
from stream_rpn.network import eager
from stream_rpn.network.gpu import GPUNetwork
from stream_rpn.sources.file import FileSource
from stream_rpn.sources.select import Selection
from stream_rpn.sources.synthetic import SyntheticVideo

pytestmark = pytest.mark.needs_cuda
MIDDLE = "0.2,0.1,0.8,0.1,0.8,0.9,0.2,0.9"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A clip of which NVDEC and the software decoder make the same pixels."""
    path: Path = tmp_path_factory.mktemp("cuda") / "clip.mp4"
    path.write_bytes(SyntheticVideo(width=640, height=360, num_frames=40).encoded().read())
    return str(path)


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(eager, "EagerNetwork", GPUNetwork)


def results(clip, device, **options):
    options = {"dtype": "float32", "decoder": "cpu", **options}
    return list(
        stream_rpn.stream(
            clip, engine="torch", device=device, size=192, top=50, max_frames=20, **options
        )
    )


def assert_alike(ours, theirs, embeddings=False):
    """Nearly all proposals are the same, and so are their vectors; a rounding may turn two over."""
    assert [p.frame for p in ours] == [p.frame for p in theirs]
    shares = []
    for mine, other in zip(ours, theirs, strict=True):
        assert len(mine) > 5
        apart = np.abs(mine.boxes[:, None] - other.boxes[None]).max(axis=2)
        nearest = apart.argmin(axis=1)
        same = apart[np.arange(len(mine)), nearest] < 0.5
        shares.append(same.mean())
        np.testing.assert_allclose(
            mine.scores[same], other.scores[nearest[same]], atol=2e-3, rtol=0
        )
        if embeddings:
            vectors = [mine.embeddings[same], other.embeddings[nearest[same]]]
            cosines = (vectors[0].astype(float) * vectors[1]).sum(axis=1)
            assert np.median(cosines) > 0.999
    assert np.mean(shares) > 0.95


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"region": MIDDLE},
        {"region": MIDDLE, "region_crop": True},
        {"tile": "2x2"},
        {"region": MIDDLE, "region_crop": True, "tile": "2x1", "embed": True},
        {"embed": True},
        {"gate": "auto"},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
def test_a_gpu_finds_what_a_cpu_finds(clip, options):
    ours, theirs = results(clip, "cuda", **options), results(clip, "cpu", **options)
    assert_alike(ours, theirs, embeddings="embed" in options)


@pytest.mark.parametrize("options", [{}, {"region": MIDDLE}, {"embed": True}])
def test_surfaces_of_nvdec_give_what_decoded_frames_give(clip, options):
    ours, theirs = (
        results(clip, "cuda", **{**options, "decoder": decoder}) for decoder in ("nvdec", "cpu")
    )
    assert_alike(ours, theirs, embeddings="embed" in options)


@pytest.mark.parametrize("options", [{"tile": "2x2"}, {"region": MIDDLE, "region_crop": True}])
def test_what_has_to_be_cut_is_decoded_by_the_cpu(clip, options, monkeypatch):
    monkeypatch.setattr("stream_rpn.sources.file._NVDEC_MIN_PIXELS", 0)
    assert_alike(results(clip, "cuda", **options, decoder="auto"), results(clip, "cpu", **options))


def test_vectors_in_bfloat16_are_near_those_in_float32(clip):
    ours = results(clip, "cuda", embed=True, dtype="bfloat16")
    theirs = results(clip, "cuda", embed=True)
    cosines = []
    for mine, other in zip(ours, theirs, strict=True):
        apart = np.abs(mine.boxes[:, None] - other.boxes[None]).max(axis=2)
        same = apart.min(axis=1) < 2
        vectors = mine.embeddings[same].astype(float), other.embeddings[apart.argmin(axis=1)[same]]
        cosines += (vectors[0] * vectors[1]).sum(axis=1).tolist()
    assert len(cosines) > 5 * len(ours)
    assert np.median(cosines) > 0.99


def test_pieces_by_nvdec_are_together_what_the_whole_is(tmp_path):
    path = tmp_path / "long.mp4"
    path.write_bytes(SyntheticVideo(width=640, height=360, num_frames=150).encoded().read())
    pieces = pieces_of(str(path), Selection(), 1.0)
    assert len(pieces) >= 2
    decoded = {}
    for decoder in ("nvdec", "cpu"):
        frames = decoded[decoder] = []
        for piece in pieces:
            source = PieceSource(str(path), piece.cut, decoder=decoder, device="cuda")
            with source:
                assert source.on_gpu == (decoder == "nvdec")
                frames += [(f.index, f.pts, f.pts_seconds) for f in source]
    with FileSource(str(path), decoder="cpu") as whole:
        expected = [(f.index, f.pts, f.pts_seconds) for f in whole]
    assert decoded["nvdec"] == decoded["cpu"] == expected
    assert all(later[0] == earlier[0] + 1 for earlier, later in pairwise(expected))
