import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream_rpn.kernels.preprocess_reference import preprocess_reference
from tests.preprocess_oracle import MEAN, STD, Picture, lay_out, oracle, pictures

pytestmark = pytest.mark.interpreter

# Tiles need not be the shipped ones for the arithmetic to be; larger ones interpret faster.
LARGE_TILES = {"BLOCK_H": 64, "BLOCK_W": 512}


def run(pictures, out_size, dtype=torch.float32, channels_last=False, antialias=False, channels=3):
    """Returns the kernel's result, after comparing it with the oracle and the reference."""
    from stream_rpn.kernels.preprocess_triton import preprocess_triton

    data, table, matrix = lay_out(pictures)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (len(pictures), channels, *out_size)
    out = torch.empty(shape, dtype=dtype, memory_format=layout).fill_(torch.nan)
    expected = torch.empty_like(out).fill_(torch.nan)
    preprocess_triton(data, table, matrix, MEAN, STD, out, antialias=antialias)
    preprocess_reference(data, table, matrix, MEAN, STD, expected, antialias=antialias)
    assert (out[:, 3:] == 0).all()
    out, expected = out[:, :3], expected[:, :3]
    exact, tolerance = oracle(data, table, matrix, out_size, antialias)
    tolerance = tolerance + (exact.abs() * torch.finfo(dtype).eps if dtype != torch.float32 else 0)
    assert ((out.double() - exact).abs() <= tolerance).all()
    assert ((out.double() - expected.double()).abs() <= 2 * tolerance).all()
    for image, picture in zip(out, pictures, strict=True):
        height, width = picture.size
        assert (image[:, height:] == 0).all()
        assert (image[:, :, width:] == 0).all()
    return out


@pytest.mark.parametrize(
    ("rotation", "antialias"),
    [(0, False), (90, False), (180, False), (270, False), (90, True)],
    ids=["turn0", "turn90", "turn180", "turn270", "turn90-antialias"],
)
def test_every_layout_in_one_launch(rotation, antialias):
    size = (21, 37) if rotation % 180 == 0 else (37, 21)
    pictures = [
        Picture(29, 43, size, rotation, sample_bytes, interleaved, slack)
        for sample_bytes in (1, 2)
        for interleaved in (False, True)
        for slack in (0, 3)
    ]
    run(pictures, (40, 39), antialias=antialias)


@pytest.mark.parametrize(
    ("dtype", "channels_last"),
    [
        (torch.float32, True),
        (torch.bfloat16, False),
        (torch.bfloat16, True),
        (torch.float16, False),
    ],
    ids=["float32-channels-last", "bfloat16", "bfloat16-channels-last", "float16"],
)
def test_dtypes_and_memory_formats(dtype, channels_last):
    pictures = [Picture(30, 44, (32, 40)), Picture(17, 9, (32, 17), 90, 2, True)]
    run(pictures, (32, 64), dtype, channels_last)


@pytest.mark.parametrize(
    ("dtype", "channels_last", "width", "antialias"),
    [
        (torch.bfloat16, True, 64, False),
        (torch.bfloat16, True, 41, False),
        (torch.float32, True, 64, True),
        (torch.float16, False, 64, False),
    ],
    ids=["pairs", "odd-width", "float32-antialias", "contiguous"],
)
def test_a_fourth_channel_is_zero(dtype, channels_last, width, antialias):
    pictures = [Picture(30, 44, (32, 40)), Picture(17, 9, (32, 17), 90, 2, True)]
    run(pictures, (32, width), dtype, channels_last, antialias, channels=4)


def test_more_rows_than_a_program_owns_tiles_for(monkeypatch):
    from stream_rpn.kernels import preprocess_triton

    monkeypatch.setattr(preprocess_triton, "BUSY", 0)
    run([Picture(30, 44, (72, 40), interleaved=True)], (75, 42), torch.bfloat16, True)


@pytest.mark.parametrize(
    "picture",
    [
        Picture(1, 1, (5, 3)),
        Picture(1, 7, (2, 9), 180),
        Picture(2, 3, (9, 5), 90, interleaved=True),
        Picture(60, 5, (7, 2), sample_bytes=2),
        Picture(16, 16, (16, 16)),
        Picture(7, 150, (1, 200), 0, interleaved=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("antialias", [False, True], ids=["bilinear", "antialias"])
def test_odd_shapes(picture, antialias):
    run([picture], (picture.size[0] + 1, picture.size[1] + 2), antialias=antialias)


def test_sources_of_different_sizes_share_a_launch():
    pictures = [
        Picture(37, 53, (32, 45)),
        Picture(90, 60, (30, 45), 270, 2, True),
        Picture(11, 8, (44, 32), interleaved=True, slack=5),
    ]
    together = run(pictures, (64, 64))
    from stream_rpn.kernels.preprocess_triton import preprocess_triton

    data, table, matrix = lay_out(pictures)
    for index, picture in enumerate(pictures):
        alone = torch.full((1, 3, 64, 64), torch.nan)
        rows = slice(index, index + 1)
        preprocess_triton(data, table[rows], matrix[rows], MEAN, STD, alone, antialias=False)
        assert torch.equal(alone[0], together[index]), picture


def test_a_full_hd_nv12_frame_at_the_size_of_a_detector(monkeypatch):
    from stream_rpn.kernels import preprocess_triton

    for name, value in LARGE_TILES.items():
        monkeypatch.setattr(preprocess_triton, name, value)
    run([Picture(1080, 1920, (749, 1333), interleaved=True, slack=64)], (768, 1344))


def test_colours_outside_the_cube_are_clamped():
    from stream_rpn.kernels.preprocess_triton import preprocess_triton

    data, table, matrix = lay_out([Picture(8, 8, (8, 8))])
    data.fill_(255)
    out = torch.empty(1, 3, 8, 8)
    preprocess_triton(data, table, matrix, MEAN, STD, out, antialias=False)
    assert np.allclose(out[0, 0], (1 - MEAN[0]) / STD[0])
    rgb = out[0] * STD[:, None, None] + MEAN[:, None, None]
    assert rgb.max() <= 1 + 1e-6


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    batch=st.lists(pictures(), min_size=1, max_size=3),
    padding=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    channels_last=st.booleans(),
    antialias=st.booleans(),
)
def test_any_geometry(batch, padding, dtype, channels_last, antialias):
    height = max(picture.size[0] for picture in batch) + padding[0]
    width = max(picture.size[1] for picture in batch) + padding[1]
    run(batch, (height, width), dtype, channels_last, antialias)
