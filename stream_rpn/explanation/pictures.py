"""The pictures of an explanation: the frame, the network's input, and what lies over them."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from PIL import Image

from stream_rpn.explanation.facts import Explanation
from stream_rpn.explanation.look import Look
from stream_rpn.sinks.canvas import Canvas

# Longer sides of pictures in a page, in pixels, and the quality of their coding.
FRAME_SIDE, INPUT_SIDE, QUALITY = 1280, 640, 82


def frame_rgb(look: Look) -> np.ndarray:
    """Returns the displayed frame as [H, W, 3] uint8."""
    frame = look.frame
    canvas = Canvas.of(frame.image, frame.color, rotation=frame.rotation)
    rgb: np.ndarray = canvas.rgb()[: frame.height, : frame.width]
    return rgb


def input_rgb(look: Look) -> np.ndarray:
    """Returns the network's input as [H, W, 3] uint8, its normalisation undone; padding is gray.

    Padding is 0 after normalisation, which is the mean colour.
    """
    spec = look.rpn.input_spec
    mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
    pixels = look.images[0].float().permute(1, 2, 0) * std + mean
    rgb: np.ndarray = (pixels * 255).round().clamp(0, 255).byte().numpy()
    return rgb


def heat_rgba(facts: Explanation, level: int) -> np.ndarray:
    """Returns [H, W, 4] uint8: where the chosen cell of a level looks, over the network's input.

    The gradient is blurred over a few pixels, as it is speckled, and its square root is opacity.
    """
    heat = facts.cells[level].effective.heat
    height, width = facts.look.image_size
    blurred = torch.nn.functional.avg_pool2d(
        torch.from_numpy(heat[:height, :width])[None, None], 9, stride=1, padding=4
    )[0, 0].numpy()
    opacity = np.sqrt(blurred / max(float(blurred.max()), 1e-30))
    colour = np.broadcast_to(np.array([255, 120, 30], np.uint8), (*opacity.shape, 3))
    alpha = (opacity * 215).astype(np.uint8)[..., None]
    return np.concatenate((colour, alpha), axis=2)


def webp(pixels: np.ndarray, side: int) -> str:
    """Returns a picture [H, W, 3 or 4] as a data URL, scaled down to a longest side."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def of_page(facts: Explanation) -> dict[str, object]:
    """Returns the pictures that a page shows, as data URLs."""
    return {
        "frame": webp(frame_rgb(facts.look), FRAME_SIDE),
        "input": webp(input_rgb(facts.look), INPUT_SIDE),
        "heat": [webp(heat_rgba(facts, level), INPUT_SIDE) for level in range(len(facts.levels))],
    }
