"""`Proposals` in the hands of a program or a notebook: iterated, indexed, filtered, drawn."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from stream_rpn.drops import Drop
from stream_rpn.frame import Color, Proposal, Proposals
from stream_rpn.pictures import frame_of

BOXES = np.array([[20, 10, 60, 50], [70, 20, 110, 70], [0, 0, 127, 95]], np.float32)
SCORES = np.array([0.9, 0.6, 0.2], np.float32)


def some(**changes):
    values = {
        "frame": 7,
        "pts": 3,
        "pts_seconds": 0.3,
        "width": 128,
        "height": 96,
        "boxes": BOXES.copy(),
        "scores": SCORES.copy(),
        "levels": np.array([1, 0, 2], np.int32),
        "anchors": np.array([5, 6, 7], np.int32),
        "input_boxes": BOXES / 2,
        "drops": (Drop("stale", 1, None),),
        **changes,
    }
    return Proposals(**values)


def test_iterating_gives_each_proposal():
    every = list(some())
    assert [p.score for p in every] == SCORES.tolist()
    assert [(p.level, p.anchor) for p in every] == [(1, 5), (0, 6), (2, 7)]
    np.testing.assert_array_equal([p.box for p in every], BOXES)
    assert isinstance(some()[np.int64(-1)], Proposal)
    assert some()[-1].anchor == 7
    for box, score, *_ in some():
        assert box.shape == (4,)
        assert isinstance(score, float)


@pytest.mark.parametrize(
    ("key", "rows"),
    [
        (slice(1, None), [1, 2]),
        (SCORES > 0.5, [0, 1]),
        (torch.from_numpy(SCORES) > 0.5, [0, 1]),
        ([2, 0], [2, 0]),
        ([True, False, True], [0, 2]),
        ([], []),
        (SCORES > 1, []),
    ],
)
def test_a_slice_a_mask_or_indices_give_the_proposals_of_those(key, rows):
    given = some()
    chosen = given[key]
    for name in ("boxes", "scores", "levels", "anchors", "input_boxes"):
        np.testing.assert_array_equal(getattr(chosen, name), getattr(given, name)[rows])
    assert len(chosen) == len(rows)
    assert (chosen.frame, chosen.pts_seconds, chosen.drops) == (7, 0.3, given.drops)
    chosen.boxes[:] = -1
    np.testing.assert_array_equal(given.boxes, BOXES)


@pytest.mark.parametrize("key", [3, -4, [3], [True, False], np.ones((3, 1), bool), 1.0, "boxes"])
def test_what_is_no_index_is_refused(key):
    with pytest.raises(IndexError):
        some()[key]


PIXELS = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "picture",
    [
        PIXELS,
        PIXELS / 255,
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        (torch.from_numpy(PIXELS).permute(2, 0, 1) / 255).bfloat16(),
        PIL.Image.fromarray(PIXELS),
        "file",
    ],
    ids=["array", "float array", "tensor", "float tensor", "Pillow", "path"],
)
def test_boxes_are_drawn_on_a_copy_of_any_picture(tmp_path, picture):
    if isinstance(picture, str):
        PIL.Image.fromarray(PIXELS).save(tmp_path / "a.png")
        picture = str(tmp_path / "a.png")
    before = np.array(picture).copy() if isinstance(picture, np.ndarray) else None
    drawing = np.asarray(some().draw(picture, top=1)).astype(int)
    if before is not None:
        np.testing.assert_array_equal(picture, before)
    assert drawing.shape == (96, 128, 3)
    edge = drawing[30, 20:22].mean(axis=0)
    assert edge[0] > 200 > 100 > edge[2]  # a good box is drawn in a hot colour
    # Chroma is halved in between: the luma of what lies beside the lines is what it was.
    luma = np.array([0.299, 0.587, 0.114])
    beside = np.s_[75:90, 70:110]
    assert abs((drawing[beside] - PIXELS[beside]).mean(axis=(0, 1)) @ luma) < 4


def test_odd_sizes_stay_as_they_are():
    assert some(width=127, height=95).draw(PIXELS[:95, :127]).size == (127, 95)


def test_a_notebook_shows_the_frame_if_it_was_kept_and_plain_gray_if_not():
    plain = PIL.Image.open(io.BytesIO(some()._repr_png_()))
    assert plain.size == (128, 96)
    assert len({plain.getpixel((x, 90)) for x in range(40, 60)}) == 1
    color = Color("bt601", full_range=True, tagged=False)
    frame = frame_of(np.full((96, 128, 3), [0, 0, 200], np.uint8))
    kept = some(image=frame.reformat(format="yuvj420p"), color=color, rotation=0)
    blue = PIL.Image.open(io.BytesIO(kept._repr_png_())).getpixel((40, 80))
    assert blue[2] > 150 > 60 > blue[0]
    large = PIL.Image.open(io.BytesIO(some(width=4000, height=3000)._repr_png_()))
    assert large.size == (800, 600)


def test_without_a_size_there_is_no_picture_to_show():
    assert some(width=0, height=0)._repr_png_() is None
    assert some(width=10**6, height=10**6)._repr_png_() is None
    assert some(width=0, height=0).draw(PIXELS).size == (128, 96)


@pytest.mark.parametrize(
    ("picture", "error", "says"),
    [
        (PIXELS[:50], ValueError, "the picture has 128x50 pixels, but .* a frame of 128x96"),
        (PIXELS[..., 0], ValueError, r"must be \[H, W, 3\], got \[96, 128\]"),
        (PIXELS.astype(float), ValueError, r"must be in \[0, 1\], got 25\d"),
        (PIXELS / 25.5 - 5, ValueError, r"must be in \[0, 1\], got -\d.*; give it as it was"),
        (PIXELS.astype(int), TypeError, "must be uint8 or floating"),
        (7, TypeError, "got int"),
        (Path("nothing.jpg"), Exception, r"nothing\.jpg cannot be read"),
    ],
)
def test_what_is_no_picture_is_said_in_a_sentence(picture, error, says):
    with pytest.raises(error, match=says):
        some().draw(picture)


def test_without_anything_to_draw_on_it_says_so():
    with pytest.raises(ValueError, match="give `draw` its picture"):
        some(width=0).draw()
