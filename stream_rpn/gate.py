"""Whether a frame need be looked at: a still scene has the proposals of its last look.

The decoded luma is averaged over blocks of about a hundred-and-twentieth of the width and compared
with that of the last frame *looked at*, so that slow change adds up. What counts is the block that
has changed most, or the nine that touch, against the noise of the source, which is learned: one
small object that enters is enough, and no mean over the picture hides it. A change of exposure
scales all blocks alike and is taken off first; where it is large, or where the scene is cut, the
frame is looked at.

What the numbers below cost and lose is measured by `bench.gate`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stream_rpn.frame import Frame, StreamRPNError
from stream_rpn.yuv import pixel_format

# Blocks across a picture, about, as their sides are powers of two of four pixels and more.
BLOCKS = 120
# Samples of a block, and how many of them at most lie in a row: fewer rows are quicker to read. The
# noise of a pixel is a quarter in their mean.
SAMPLES, ACROSS = 16, 8
# The least change of a block that is one, in grey levels of 255, and how many times the noise it
# must be: the largest of 8,000 blocks of pure noise reaches four times.
LEAST_CHANGE = 5.0
OF_NOISE = 6.0
# More noise is none that can be told from motion. In a block, that is 8 grey levels in a pixel.
MOST_NOISE = 3.0
# Of the noise's estimate, that a new frame brings in.
LEARNING = 0.1
# The longest time without a look, by default.
HOLD_SECONDS = 5.0
# By how much exposure may scale a picture that need not be looked at.
MOST_GAIN = 1.25
# Of fewer blocks nobody can tell a change of exposure from any other.
FEW_BLOCKS = 32


@dataclass(frozen=True)
class GateSpec:
    """How much a picture must change to be looked at.

    Attributes:
        level: of a change, in multiples of what counts by default; smaller looks more often.
        hold_seconds: the longest time without a look.

    Raises:
        StreamRPNError: a number is out of its range.
    """

    level: float = 1.0
    hold_seconds: float = HOLD_SECONDS

    def __post_init__(self) -> None:
        for name, value in (("level", self.level), ("hold time", self.hold_seconds)):
            if not 0 < value < math.inf:
                raise StreamRPNError(f"the gate's {name} must be a number above 0, got {value}")

    @classmethod
    def parse(cls, gate: str | float, hold_seconds: float = HOLD_SECONDS) -> GateSpec | None:
        """Returns what "off" (None), "auto" or a level stand for.

        Raises:
            StreamRPNError: it is none of these, or a number is out of its range.
        """
        if gate == "off":
            return None
        try:
            level = 1.0 if gate == "auto" else float(gate)
        except (TypeError, ValueError):
            raise StreamRPNError(
                f"the gate must be off, auto or a number above 0, got {gate!r}"
            ) from None
        return cls(level, hold_seconds)


class Gate:
    """Decides for the frames of one source, in their order.

    Args:
        spec: how much must change.

    Attributes:
        blind: why it could not tell of some frames, "" where it could.
    """

    def __init__(self, spec: GateSpec) -> None:
        self.blind = ""
        self._spec = spec
        self._noise = 0.0
        self._steps = 0
        self._before = self._looked = np.zeros((0, 0), np.float32)
        self._looked_at = 0.0
        self._kind: object = None
        self._inside: np.ndarray | None = None

    def looks(self, frame: Frame) -> bool:
        """Returns whether the network has to see `frame`; if so, later ones are held against it.

        Frames without a time are always looked at, and so are surfaces on a GPU.
        """
        seconds = frame.arrived if frame.arrived is not None else frame.pts_seconds
        blocks = None
        if frame.image.sw_format is not None:
            # To fetch their pixels would cost more than the network.
            self.blind = "NVDEC's frames stay on the GPU; the decoder cpu gates them"
        elif seconds is None:
            self.blind = "frames have no times"
        else:
            blocks = block_means(frame)
        if seconds is None or blocks is None:
            self._kind = None
            return True
        kind = (frame.image.format.name, blocks.shape, frame.width, frame.height, frame.rotation,
                frame.mirrored, frame.color, frame.view)  # fmt: skip
        looks = kind != self._kind or self._is_due(seconds)
        if kind != self._kind:
            self._inside = blocks_inside(frame, blocks.shape)
        else:
            self._learn_noise(blocks)
            change = largest_change(blocks, self._looked, self._noise, self._inside)
            looks = looks or self._spec.level < change
        self._before, self._kind = blocks, kind
        if looks:
            self._looked, self._looked_at = blocks, seconds
        return looks

    def _is_due(self, seconds: float) -> bool:
        # Clocks may go back.
        return not 0 <= seconds - self._looked_at < self._spec.hold_seconds

    def _learn_noise(self, blocks: np.ndarray) -> None:
        # Most blocks have not changed, so that what most have is noise. Some tell as much as all.
        step = blocks.ravel()[::7] - self._before.ravel()[::7]
        noise = min(1.4826 * _median(np.abs(step - _median(step))), MOST_NOISE)
        self._steps += 1
        self._noise += max(LEARNING, 1 / self._steps) * (noise - self._noise)


def largest_change(
    blocks: np.ndarray, others: np.ndarray, noise: float, inside: np.ndarray | None = None
) -> float:
    """Returns the largest change between two pictures, in multiples of what counts as one.

    Args:
        blocks: [rows, columns] float32, means of a picture.
        others: the same of another one.
        noise: standard deviation of the difference of a block where nothing has changed.
        inside: [rows, columns] bool, the blocks that count; all by default.
    """
    if inside is None:
        change = _without_exposure(blocks, others)
    else:
        change = np.zeros_like(blocks)
        change[inside] = _without_exposure(blocks[inside], others[inside])
    largest = float(max(change.max(), -change.min())) / max(LEAST_CHANGE, OF_NOISE * noise)
    if min(change.shape) < 3:
        return largest
    # An object of little contrast moves many blocks a little, where noise moves each its own way.
    rows = change[:-2] + change[1:-1]
    rows += change[2:]
    nine = rows[:, :-2] + rows[:, 1:-1]
    nine += rows[:, 2:]
    together = max(4.5 * LEAST_CHANGE, 3 * OF_NOISE * noise)
    return max(largest, float(max(nine.max(), -nine.min())) / together)


def block_means(frame: Frame) -> np.ndarray | None:
    """Returns the mean luma of each block, [rows, columns] float32 in grey levels of 255.

    Pictures of fewer than four pixels a side have no block.
    """
    image = frame.image
    plane = image.planes[0]
    layout = pixel_format(frame)
    item = layout.sample_bytes
    side = _block_side(image.width, image.height)
    if side < 4:
        return None
    rows, columns = image.height // side, image.width // side
    across = min(side, ACROSS)
    down = SAMPLES // across
    # A sample is taken with the bytes up to the next one, as one number of which the low end is
    # kept: numpy is slow at strides.
    step = item * side // across
    whole = item < step <= 8
    words = np.ndarray(
        (rows * down, columns * across),
        f"<u{step if whole else item}",
        memoryview(plane),
        strides=(plane.line_size * (side // down), step),
    )
    if whole:
        mask = 256**item - 1
        sums = words[0::down] & mask
        for row in range(1, down):
            sums += words[row::down] & mask
    else:
        sums = words[0::down].astype(f"u{2 * item}")
        for row in range(1, down):
            sums += words[row::down]
    while sums.shape[1] > columns:
        sums = sums[:, 0::2] + sums[:, 1::2]
    means: np.ndarray = sums.astype(np.float32)
    means *= np.float32(255 / layout.white / SAMPLES)
    return means


def blocks_inside(frame: Frame, shape: tuple[int, ...]) -> np.ndarray | None:
    """Returns which blocks touch the frame's region, [rows, columns] bool; None where all count."""
    if frame.view is None or frame.view.region is None:
        return None
    displayed = frame.view.region.inside(frame.width, frame.height)
    stored = np.rot90(displayed, frame.rotation // 90)
    side = _block_side(frame.image.width, frame.image.height)
    rows, columns = shape
    stored = stored[: rows * side, : columns * side]
    inside = np.asarray(stored.reshape(rows, side, columns, side).any(axis=(1, 3)))
    # What lies in the pixels that are left over at the edges has no block.
    return inside if inside.any() else None


def _block_side(width: int, height: int) -> int:
    """Returns the pixels of a block's side; fewer than four where a picture has none."""
    side = 1 << max(2, round(math.log2(width / BLOCKS)))
    while side > min(width, height):
        side //= 2
    return side


def _without_exposure(blocks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the difference that is left when `others` is scaled and shifted to fit `blocks`.

    Of so few blocks that this would explain anything, the whole difference.
    """
    change: np.ndarray
    if blocks.size < FEW_BLOCKS:
        change = blocks - others
        return change
    y, x = blocks.ravel(), others.ravel()
    mean_y, mean_x = float(y.sum()) / y.size, float(x.sum()) / x.size
    variance = float(x @ x) / x.size - mean_x**2
    gain = (float(x @ y) / x.size - mean_x * mean_y) / variance if variance > 4 else 1.0
    if not 1 / MOST_GAIN < gain < MOST_GAIN:
        gain = 1.0
    change = blocks - others * np.float32(gain)
    change -= np.float32(mean_y - gain * mean_x)
    return change


def _median(values: np.ndarray) -> float:
    middle = values.size // 2
    return float(np.partition(values, middle)[middle])
