"""Augmentation: what a training image is made of, and what becomes of its boxes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from PIL import Image

from stream_rpn.evaluation.coco import CocoDataset, Sample
from stream_rpn.training.config import Augmentation

# A cropped object is still that object while this share of its area is visible and its sides are
# this long; otherwise the remainder is neither object nor background.
MIN_VISIBLE = 0.3
MIN_SIDE = 2.0
GREY = 128


def augment(
    dataset: CocoDataset, index: int, settings: Augmentation, rng: np.random.Generator
) -> Sample:
    """Returns a training image [size, size, 3] made of image `index` (and others, for a mosaic)."""
    size = settings.size
    canvas = np.full((size, size, 3), GREY, dtype=np.uint8)
    sample = dataset[index]
    filtered = rng.random() >= settings.aliased
    if rng.random() < settings.mosaic:
        x, y = (int(size * rng.uniform(0.3, 0.7)) for _ in range(2))
        tiles = [(0, 0, x, y), (x, 0, size, y), (0, y, x, size), (x, y, size, size)]
        others = [dataset[int(rng.integers(len(dataset)))] for _ in range(3)]
        placed = []
        for tile, source in zip(tiles, [sample, *others], strict=True):
            height, width = source.image.shape[:2]
            fill = max((tile[2] - tile[0]) / width, (tile[3] - tile[1]) / height)
            scale = fill * _log_uniform(rng, 1.0, settings.mosaic_scale)
            placed.append(_place(canvas, tile, source, scale, filtered, rng))
    else:
        # As the network will see it, whatever the size of the file, give or take the jitter.
        fill = size / min(sample.image.shape[:2])
        scale = fill * _log_uniform(rng, *settings.scale)
        placed = [_place(canvas, (0, 0, size, size), sample, scale, filtered, rng)]
    boxes = np.concatenate([part[0] for part in placed])
    crowd = np.concatenate([part[1] for part in placed])
    if rng.random() < settings.flip:
        canvas = canvas[:, ::-1]
        boxes, crowd = (
            np.stack((size - b[:, 2], b[:, 1], size - b[:, 0], b[:, 3]), axis=1)
            for b in (boxes, crowd)
        )
    canvas = _photometric(canvas, settings.photometric, rng)
    return replace(sample, image=np.ascontiguousarray(canvas), boxes=boxes, crowd_boxes=crowd)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def _place(
    canvas: np.ndarray,
    tile: tuple[int, int, int, int],
    sample: Sample,
    scale: float,
    filtered: bool,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a scaled image at a random offset into a tile; returns its boxes and crowd boxes there.

    A larger image is cropped, a smaller one leaves the canvas as it is around it.
    """
    left, top, right, bottom = tile
    height, width = sample.image.shape[:2]
    new_w, new_h = max(1, round(width * scale)), max(1, round(height * scale))
    dx = _offset(rng, right - left - new_w)
    dy = _offset(rng, bottom - top - new_h)
    x1, y1 = max(left + dx, left), max(top + dy, top)
    x2, y2 = min(left + dx + new_w, right), min(top + dy + new_h, bottom)
    if x1 >= x2 or y1 >= y2:
        empty = np.zeros((0, 4), dtype=np.float32)
        return empty, empty
    # The source rectangle that is visible, so that nothing outside the tile is computed.
    fx, fy = width / new_w, height / new_h
    source = (
        (x1 - left - dx) * fx,
        (y1 - top - dy) * fy,
        (x2 - left - dx) * fx,
        (y2 - top - dy) * fy,
    )
    picture = Image.fromarray(sample.image).resize(
        (x2 - x1, y2 - y1),
        Image.Resampling.BILINEAR if filtered else Image.Resampling.NEAREST,
        box=source,
    )
    canvas[y1:y2, x1:x2] = np.asarray(picture)

    factors = np.array([1 / fx, 1 / fy, 1 / fx, 1 / fy], dtype=np.float32)
    offset = np.array([left + dx, top + dy, left + dx, top + dy], dtype=np.float32)
    limit = np.array([x1, y1, x2, y2], dtype=np.float32)
    boxes, shown = _clip(sample.boxes * factors + offset, limit)
    sides = boxes[:, 2:] - boxes[:, :2]
    keep = (shown >= MIN_VISIBLE) & (sides >= MIN_SIDE).all(axis=1)
    crowd, crowd_shown = _clip(sample.crowd_boxes * factors + offset, limit)
    rest = np.concatenate((boxes[~keep & (shown > 0)], crowd[crowd_shown > 0]))
    return boxes[keep], rest


def _offset(rng: np.random.Generator, room: int) -> int:
    """Returns a random offset between 0 and `room`, which is negative where the image is larger."""
    return int(rng.integers(min(room, 0), max(room, 0) + 1))


def _clip(boxes: np.ndarray, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes clipped to a rectangle and the share of each box's area that is left."""
    clipped = np.concatenate(
        (
            np.clip(boxes[:, :2], limit[:2], limit[2:]),
            np.clip(boxes[:, 2:], limit[:2], limit[2:]),
        ),
        axis=1,
    )
    before = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    after = (clipped[:, 2:] - clipped[:, :2]).prod(axis=1)
    return clipped, after / before


def _photometric(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    if strength == 0:
        return image
    brightness, contrast, saturation = 1 + rng.uniform(-strength, strength, 3)
    pixels = image.astype(np.float32)
    grey = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    # The three linear maps in one pass: towards the pixel's grey, towards the image's mean, scaled.
    gain = brightness * contrast
    pixels *= gain * saturation
    pixels += (gain * (1 - saturation)) * grey[..., None]
    pixels += brightness * (1 - contrast) * float(grey.mean())
    result: np.ndarray = pixels.clip(0, 255).astype(np.uint8)
    return result
