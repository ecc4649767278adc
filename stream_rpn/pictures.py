"""Pictures that a caller holds, whatever their kind; and boxes drawn on them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union, Unpack

import numpy as np

from stream_rpn.drawing import DrawSpec, DrawStyle
from stream_rpn.frame import Proposals, StreamRPNError
from stream_rpn.input_spec import check_range

if TYPE_CHECKING:
    import av
    from PIL import Image
    from torch import Tensor

Picture: TypeAlias = Union["Tensor", np.ndarray, "Image.Image", str, Path]
"""A tensor [3, H, W], an array [H, W, 3], an image of Pillow, or the path of a file."""

# A notebook shows no more, and its file keeps every picture; drawing takes memory for all pixels.
_SHOWN_SIDE = 800
_MOST_PIXELS = 2**26

_GROUND = 48  # the gray level behind boxes without a picture


def pixels_of(picture: Picture, index: int) -> Tensor | np.ndarray:
    """Returns a tensor or an array as it is, and whatever else is a picture as [H, W, 3] uint8.

    Args:
        picture: of any kind.
        index: its place among others, for errors.

    Raises:
        StreamRPNError: a file cannot be read, or an image holds no gray levels.
        TypeError: it is no picture.
    """
    from PIL import Image

    from stream_rpn.sources.picture import decode_rgb, rgb_of

    try:
        if isinstance(picture, Image.Image):
            return rgb_of(picture)
        if isinstance(picture, str | Path):
            return decode_rgb(Path(picture).read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise StreamRPNError(f"{picture} cannot be read: {reason}") from error
    except StreamRPNError as error:
        raise StreamRPNError(f"{picture} {error}") from error
    if not (isinstance(picture, np.ndarray) or is_tensor(picture)):
        raise TypeError(
            f"image {index} must be a tensor, an array, an image of Pillow or a path, got "
            f"{type(picture).__name__}"
        )
    return picture


def rgb_of_any(picture: Picture, index: int) -> np.ndarray:
    """Returns any picture as [H, W, 3] uint8 RGB.

    Raises:
        StreamRPNError: see `pixels_of`.
        TypeError: it is no picture, or its numbers are neither uint8 nor floating.
        ValueError: it has another shape, or is floating and not in [0, 1].
    """
    given = pixels_of(picture, index)
    channels = "[H, W, 3]"
    if isinstance(given, np.ndarray):
        pixels = given
    else:
        channels = "[3, H, W]"
        tensor = given.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.float()
        pixels = tensor.movedim(0, -1).numpy() if tensor.ndim == 3 else tensor.numpy()
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(f"image {index} must be {channels}, got {list(given.shape)}")
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind != "f":
        raise TypeError(f"image {index} must be uint8 or floating, got {given.dtype}")
    few = pixels[::8, ::8]
    check_range(float(few.min()), float(few.max()), index)
    levels: np.ndarray = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    return levels


def is_tensor(value: object) -> bool:
    """Tells whether a value is a tensor of torch, without importing torch for it."""
    return any(f"{c.__module__}.{c.__name__}" == "torch.Tensor" for c in type(value).__mro__)


def drawn(
    proposals: Proposals, picture: Picture | None, top: int, **style: Unpack[DrawStyle]
) -> Image.Image:
    """Returns the best boxes drawn on a picture, on the frame's own one, or on plain gray.

    Raises:
        ValueError: the picture has another size than the frame; or the frame's is not known.
        StreamRPNError: see `pixels_of`.
        TypeError: see `rgb_of_any`.
    """
    from PIL import Image

    from stream_rpn.decode import PlaneConverter
    from stream_rpn.sinks.canvas import Canvas

    width, height = proposals.width, proposals.height
    if picture is None and proposals.image is not None and proposals.color is not None:
        canvas = Canvas.of(proposals.image, proposals.color, rotation=proposals.rotation)
    else:
        if picture is not None:
            pixels = rgb_of_any(picture, 0)
        elif width and height:
            pixels = np.full((height, width, 3), _GROUND, np.uint8)
        else:
            raise ValueError("the size of this frame is not known; give `draw` its picture")
        if (width or pixels.shape[1], height or pixels.shape[0]) != pixels.shape[1::-1]:
            raise ValueError(
                f"the picture has {pixels.shape[1]}x{pixels.shape[0]} pixels, but the boxes are of "
                f"a frame of {width}x{height}"
            )
        height, width = pixels.shape[:2]
        canvas = Canvas.of(*PlaneConverter().convert(frame_of(pixels)))
    DrawSpec(top, **style).draw(canvas, proposals, proposals.source_index)
    return Image.fromarray(np.ascontiguousarray(canvas.rgb()[:height, :width]))


def frame_of(pixels: np.ndarray) -> av.VideoFrame:
    """Returns [H, W, 3] uint8 RGB as a frame of PyAV, a copy."""
    import av

    return av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")


def png(proposals: Proposals) -> bytes | None:
    """Returns a small PNG of the best boxes; None where the frame's size is not known."""
    if not 0 < proposals.width * proposals.height <= _MOST_PIXELS:
        return None
    image = drawn(proposals, None, DrawSpec.top)
    image.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
