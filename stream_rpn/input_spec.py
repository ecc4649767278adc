"""What a network wants of a frame: size, padding and normalisation; and boxes back to the frame.

Sizes are (height, width) of the displayed frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stream_rpn.frame import Frame, StreamRPNError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def check_range(lowest: float, highest: float, index: int) -> None:
    """Checks that a floating picture is in [0, 1]; a few of its pixels tell.

    An enlarged one overshoots a little, one in 0…255 or one that was normalised goes far beyond.

    Raises:
        ValueError: it is not, or has NaN in it.
    """
    if lowest >= -1 and highest <= 2:
        return
    if math.isnan(lowest):
        got, remedy = lowest, "NaN is no colour"
    elif lowest < -1:
        got, remedy = lowest, "give it as it was before it was normalised"
    else:
        got, remedy = highest, "divide it by 255"
    raise ValueError(f"image {index} is floating and must be in [0, 1], got {got:g}; {remedy}")


@dataclass(frozen=True)
class InputSpec:
    """The input that a network expects.

    Attributes:
        min_size: the shorter side after resizing, in pixels.
        max_size: the longer side's limit, in pixels; it wins over min_size.
        size_divisor: height and width are padded with zeros to a multiple of this.
        mean: per channel of RGB in [0, 1].
        std: per channel of RGB in [0, 1].
        antialias: widen the bilinear filter where an axis shrinks (torchvision's detectors do not).
    """

    min_size: int
    max_size: int
    size_divisor: int = 32
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    antialias: bool = False

    def __post_init__(self) -> None:
        for name in ("min_size", "max_size", "size_divisor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name} must be three finite numbers, got {values}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")


def resized_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """Returns the size that torchvision's GeneralizedRCNNTransform resizes a frame to.

    The shorter side becomes min_size (enlarging included) unless the longer one would exceed
    max_size; both are rounded down, in double precision: 1080×1920 at 800/1333 is 749×1333.

    Raises:
        StreamRPNError: the frame is so elongated that a side would be empty.
    """
    scale = min(min_size / min(height, width), max_size / max(height, width))
    resized = math.floor(height * scale), math.floor(width * scale)
    if min(resized) < 1:
        raise StreamRPNError(
            f"a frame of {width}x{height} pixels is too elongated for an input of at most "
            f"{max_size} pixels; use a larger input size"
        )
    return resized


def padded_size(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    """Returns `size` rounded up to multiples of `divisor`."""
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor


def input_shape(frame: Frame, spec: InputSpec) -> tuple[int, int]:
    """Returns (height, width) of the network's input for a frame, padding included."""
    resized = resized_size(frame.height, frame.width, spec.min_size, spec.max_size)
    return padded_size(resized, spec.size_divisor)


def frame_boxes(
    boxes: np.ndarray, size: tuple[int, int], frame_size: tuple[int, int]
) -> np.ndarray:
    """Returns boxes of the network's input in pixels of the displayed frame.

    Each axis has its own ratio, as resizing rounds each side down by itself.

    Args:
        boxes: [N, 4] float32 in pixels of the resized frame.
        size: (height, width) of the resized frame, without padding.
        frame_size: (height, width) of the displayed frame.
    """
    y, x = np.array(frame_size, np.float32) / np.array(size, np.float32)
    scaled: np.ndarray = boxes * np.array([x, y, x, y])
    return scaled
