"""The Python front door: `stream` for videos, `propose` for images, `load` for a model to keep."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from stream_rpn import compute, models, multistream, sources
from stream_rpn.frame import Proposals, StreamRPNError
from stream_rpn.models.checkpoint import load_model
from stream_rpn.pipeline import Pipeline
from stream_rpn.rpn import RPN, propose_image
from stream_rpn.sources.select import Selection

if TYPE_CHECKING:
    from PIL import Image

    Picture = Tensor | np.ndarray | Image.Image | str | Path

DEFAULT_TOP = 300


def load(
    model: str | Path | RPN = models.DEFAULT_MODEL,
    weights: str | Path | None = None,
    *,
    size: int | None = None,
    top: int | None = None,
    pre_nms: int | None = None,
    nms: float | None = None,
    score_thresh: float | None = None,
    min_size: float | None = None,
    anchor_sizes: Sequence[float] | None = None,
    anchor_ratios: Sequence[float] | None = None,
) -> RPN:
    """Returns a model with its weights, in eval mode, on the CPU.

    An RPN of your own stays as it is: what is returned has settings of its own, and shares its
    weights, its mode and its device.

    Args:
        model: a name of `stream_rpn.models.MODELS`, a checkpoint file, or an RPN of your own.
        weights: a checkpoint file instead of the model's own weights; "random" to measure speed.
        size: shorter side of the network's input in pixels. The limit of the longer side grows in
            proportion and never shrinks.
        top: proposals per frame; by default 300, or an RPN's own number where one is given.
        pre_nms: candidates per level that enter non-maximum suppression.
        nms: IoU above which a box suppresses a worse one, in (0, 1].
        score_thresh: leave out boxes of a lower objectness probability.
        min_size: leave out boxes with a side under this many input pixels.
        anchor_sizes: other anchor sizes in input pixels, see `AnchorSpec.override`.
        anchor_ratios: other anchor ratios (height / width), as many as the head was made for.

    Raises:
        StreamRPNError: what was asked for does not exist or does not fit, in one sentence.
    """
    if isinstance(model, RPN):
        if weights is not None:
            raise StreamRPNError(
                "an RPN of your own has its weights already; load others into it with PyTorch"
            )
        rpn = copy.copy(model)
        # Anchors are buffers, whose table a copy would share.
        rpn._buffers = dict(model._buffers)
    else:
        rpn = load_model(str(model), weights)
        top = DEFAULT_TOP if top is None else top
    try:
        rpn.override(
            post_nms_top_n=top,
            pre_nms_top_n=pre_nms,
            nms_thresh=nms,
            score_thresh=score_thresh,
            min_size=min_size,
        )
        if anchor_sizes is not None or anchor_ratios is not None:
            if rpn.anchor_spec is None:
                raise StreamRPNError(
                    "this model's anchors were given box by box; change them with set_anchors"
                )
            rpn.set_anchors(rpn.anchor_spec.override(anchor_sizes, anchor_ratios))
    except ValueError as error:
        raise StreamRPNError(str(error)) from error
    if size is not None:
        if size < 1:
            raise StreamRPNError(f"the input size must be at least 1 pixel, got {size}")
        spec = rpn.input_spec
        longest = max(spec.max_size, ceil(spec.max_size * size / spec.min_size))
        rpn.input_spec = replace(spec, min_size=size, max_size=longest)
    return rpn


def stream(
    source: str | Path,
    *,
    model: str | Path | RPN = models.DEFAULT_MODEL,
    device: str = "auto",
    dtype: str = "auto",
    batch: str | int = "auto",
    features: bool = False,
    images: bool = False,
    start: float | None = None,
    end: float | None = None,
    stride: int = 1,
    fps: float | None = None,
    max_frames: int | None = None,
    video_stream: int | None = None,
    decoder: Literal["auto", "cpu", "nvdec"] = "auto",
    policy: multistream.LivePolicy | None = None,
    **load_options: Any,
) -> Iterator[Proposals]:
    """Yields the proposals of every frame of a source, in order.

    Of a live source the newest frames win; what was dropped stands in the `drops` of the next one.

    Decoding and the network run in threads of their own while the caller works; leaving the loop
    early ends them.

    Args:
        source: a video file, a URL, "webcam", a directory or glob of images, "synthetic:".
        model: see `load`; of an RPN of your own a copy is used.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        dtype: the network's number format: "auto", "float32", "bfloat16" or "float16".
        batch: frames per network call, or "auto".
        features: attach the feature maps, for RoIAlign.
        images: attach the decoded frame.
        start: seconds from the first timestamp.
        end: seconds from the first timestamp, exclusive.
        stride: use every stride-th frame.
        fps: use at most so many frames a second.
        max_frames: stop after so many results.
        video_stream: index of the video stream in a file of several.
        decoder: "auto", "cpu" or "nvdec".
        policy: time limits for live sources, or to play a file as if it were one.
        **load_options: `weights`, `size`, `top`, `pre_nms`, `nms`, `score_thresh`, `min_size`,
            `anchor_sizes`, `anchor_ratios`: see `load`.

    Raises:
        StreamRPNError: the source or the model cannot be opened, in one sentence.
    """
    rpn = load(model, **load_options)
    pipeline = Pipeline(
        # A pipeline converts its model to another device and number format.
        copy.deepcopy(rpn) if isinstance(model, RPN) else rpn,
        device=device,
        dtype=dtype,
        batch=batch,
        features=features,
        images=images,
    )
    selection = Selection(start, end, stride, fps, max_frames, video_stream, decoder)
    policy = policy or multistream.LivePolicy()
    if policy.realtime or sources.is_live(str(source)):
        with multistream.LiveStreams(pipeline, [str(source)], selection, policy) as streams:
            yield from multistream.proposals_of(streams)
    else:
        with pipeline.open(str(source), selection) as results:
            yield from results


def propose(
    image: Picture | Sequence[Picture],
    *,
    model: str | Path | RPN = models.DEFAULT_MODEL,
    device: str = "auto",
    **load_options: Any,
) -> Any:
    """Returns the proposals of an RGB image, or a list of them for a sequence of images.

    Args:
        image: a tensor [3, H, W] (uint8, or float in [0, 1]), an array [H, W, 3] (the same), an
            image of Pillow, the path of a picture, or a sequence of such. Files are turned upright
            as their EXIF orientation says.
        model: see `load`; pass an RPN from `load` to call this often.
        device: where to compute; "auto" of an RPN of your own is where it is.
        **load_options: see `load`.

    Raises:
        StreamRPNError: a file cannot be read, or the model cannot be loaded.
        TypeError: an image is of another type, or of other numbers.
        ValueError: an image has another shape, or is not in [0, 1].
    """
    several = isinstance(image, (list, tuple))
    images: Sequence[Picture] = image if several else [image]  # type: ignore[list-item,assignment]
    rpn = load(model, **load_options)
    if isinstance(model, RPN):
        own = next(rpn.parameters()).device
        where = own if device == "auto" else compute.choose_device(device)
        if where != own or any(module.training for module in rpn.modules()):
            rpn = copy.deepcopy(rpn).eval().to(where)
    else:
        rpn = rpn.to(compute.choose_device(device))
    results = [
        replace(propose_image(rpn, _pixels(one, index)), frame=index)
        for index, one in enumerate(images)
    ]
    return results if several else results[0]


def _pixels(image: Picture, index: int) -> Tensor | np.ndarray:
    """Returns a tensor or an array as it is, and whatever else is a picture as [H, W, 3] uint8."""
    if isinstance(image, Tensor | np.ndarray):
        return image
    from PIL import Image

    from stream_rpn.sources.picture import decode_rgb, rgb_of

    try:
        if isinstance(image, Image.Image):
            return rgb_of(image)
        if isinstance(image, str | Path):
            return decode_rgb(Path(image).read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise StreamRPNError(f"{image} cannot be read: {reason}") from error
    except StreamRPNError as error:
        raise StreamRPNError(f"{image} {error}") from error
    raise TypeError(
        f"image {index} must be a tensor, an array, an image of Pillow or a path, got "
        f"{type(image).__name__}"
    )
