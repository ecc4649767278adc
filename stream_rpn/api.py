"""The Python front door: `stream` for videos, `propose` for images, `load` for a model to keep."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np

from stream_rpn import models, multistream, sources
from stream_rpn.cores import available_cores
from stream_rpn.engines import choose_engine
from stream_rpn.frame import Proposals, StreamRPNError
from stream_rpn.gate import HOLD_SECONDS, GateSpec
from stream_rpn.model import Model
from stream_rpn.pipeline import Pipeline
from stream_rpn.sources.select import Selection

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from stream_rpn.explanation.facts import Explanation
    from stream_rpn.rpn import RPN

    Picture = Tensor | np.ndarray | Image.Image | str | Path

M = TypeVar("M", bound=Model)

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
    if isinstance(model, Model):
        if weights is not None:
            raise StreamRPNError(
                "an RPN of your own has its weights already; load others into it with PyTorch"
            )
        rpn = copy.copy(model)
        # Anchors are buffers, whose table a copy would share.
        rpn._buffers = dict(model._buffers)
    else:
        from stream_rpn.models.checkpoint import load_model

        rpn = load_model(str(model), weights)
        top = DEFAULT_TOP if top is None else top
    _adjust(
        rpn,
        size,
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
        try:
            rpn.set_anchors(rpn.anchor_spec.override(anchor_sizes, anchor_ratios))
        except ValueError as error:
            raise StreamRPNError(str(error)) from error
    return rpn


def _adjust(model: M, size: int | None, **limits: float | int | None) -> M:
    try:
        return model.override(**limits).resize(size)
    except ValueError as error:
        raise StreamRPNError(str(error)) from error


def open_pipeline(
    model: str | Path | Model = models.DEFAULT_MODEL,
    *,
    engine: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    batch: str | int = "auto",
    features: bool = False,
    images: bool = False,
    threads: int | None = None,
    gate: str | float = "off",
    gate_hold: float = HOLD_SECONDS,
    **load_options: Any,
) -> Pipeline:
    """Returns a pipeline of a model; for OpenVINO without torch, where its graph is there already.

    Args:
        model: see `load`.
        engine: see `Pipeline`, as the others before `load_options`.
        device: where to compute.
        dtype: the network's number format.
        batch: frames per network call.
        features: attach the feature maps.
        images: keep the decoded frames.
        threads: cores to compute on.
        gate: see `stream`.
        gate_hold: see `stream`.
        **load_options: see `load`.

    Raises:
        StreamRPNError: what was asked for does not exist or does not fit, in one sentence.
    """
    gate_spec = GateSpec.parse(gate, gate_hold)
    chosen = choose_engine(engine, device=device, dtype=dtype, features=features)
    if chosen == "openvino" and not isinstance(model, Model):
        ready = _ready(str(model), **load_options)
    else:
        ready = load(cast("RPN | str | Path", model), **load_options)
        if chosen == "torch" and isinstance(model, Model):
            # A pipeline moves its model to another device and number format.
            ready = copy.deepcopy(ready)
    return Pipeline(
        ready,
        engine=engine,
        device=device,
        dtype=dtype,
        batch=batch,
        features=features,
        images=images,
        threads=threads,
        gate=gate_spec,
    )


def _ready(model: str, weights: str | Path | None = None, **options: Any) -> Model:
    """Returns a model by name or file, converted where it can be."""
    from stream_rpn.models import graphs
    from stream_rpn.network.converted import Converted, UnconvertibleError

    weights = None if weights is None else str(weights)
    anchors = {name: options.pop(name, None) for name in ("anchor_sizes", "anchor_ratios")}
    if any(value is not None for value in anchors.values()):
        return load(model, weights, **options, **anchors)
    found = graphs.find(model, weights)
    if found is None:
        rpn = load(model, weights)
        try:
            found = Converted.of(rpn)
        except UnconvertibleError:
            return load(rpn, **{"top": DEFAULT_TOP, **options})
        graphs.keep(found, model, weights)
    names = {"top": "post_nms_top_n", "pre_nms": "pre_nms_top_n", "nms": "nms_thresh"}
    size = options.pop("size", None)
    options["top"] = DEFAULT_TOP if options.get("top") is None else options["top"]
    return _adjust(found, size, **{names.get(name, name): v for name, v in options.items()})


def stream(
    source: str | Path,
    *,
    model: str | Path | RPN = models.DEFAULT_MODEL,
    engine: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    batch: str | int = "auto",
    features: bool = False,
    images: bool = False,
    threads: int | None = None,
    gate: str | float = "off",
    gate_hold: float = HOLD_SECONDS,
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
        model: see `load`; an RPN of your own stays as it is.
        engine: "auto" (OpenVINO on a CPU, where it can), "torch" or "openvino".
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        dtype: the network's number format: "auto", "float32", "bfloat16" or "float16".
        batch: frames per network call, or "auto".
        features: attach the feature maps, for RoIAlign.
        images: attach the decoded frame.
        threads: cores to compute on, on a CPU; by default all that this process may use.
        gate: "auto" gives a frame whose picture has not changed the proposals of the last one that
            the network looked at, which `held` of the result names; "off" looks at all. A number is
            how much must change, in multiples of what "auto" asks for.
        gate_hold: the longest time without a look, in seconds.
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
    pipeline = open_pipeline(
        model,
        engine=engine,
        device=device,
        dtype=dtype,
        batch=batch,
        features=features,
        images=images,
        threads=threads,
        gate=gate,
        gate_hold=gate_hold,
        **load_options,
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
    from stream_rpn import compute
    from stream_rpn.rpn import RPN, propose_image

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


def explain(
    source: str | Path,
    *,
    model: str | Path | RPN = models.DEFAULT_MODEL,
    frame: int | None = None,
    time: float | None = None,
    at: tuple[float, float] | None = None,
    gt: str | Path | None = None,
    threads: int | None = None,
    **load_options: Any,
) -> Explanation:
    """Returns everything about one frame's proposals: where they come from, and why no others.

    Computed by PyTorch, on the CPU, in float32: the boxes are those of `stream` up to rounding.

    Args:
        source: as for `stream`.
        model: see `load`; an RPN of your own stays as it is.
        frame: its number, from 0; the first one where neither it nor a time is given.
        time: the first frame from so many seconds on.
        at: the point to look at, x and y in pixels of the frame. By default where the first object
            that was missed is, or where the best proposal comes from.
        gt: ground truth: COCO instances (.json) of pictures, or MOTChallenge (.txt) of a video.
        threads: cores to compute on; by default all that this process may use.
        **load_options: see `load`.

    Raises:
        StreamRPNError: something cannot be read, there is no such frame or point, or no object in
            the ground truth of the frame; in one sentence.
    """
    import torch

    from stream_rpn.explanation.facts import explain_frame, find_frame
    from stream_rpn.explanation.look import copy_on_cpu
    from stream_rpn.timing import StageTimes

    if frame is not None and time is not None:
        raise StreamRPNError("a frame is chosen by its number or by its time, not by both")
    if (frame or 0) < 0 or not (time or 0.0) >= 0:
        raise StreamRPNError("the number of a frame and its time must not be negative")
    torch.set_num_threads(threads or min(torch.get_num_threads(), available_cores()))
    rpn = copy_on_cpu(load(model, **load_options))
    times = StageTimes()
    chosen = find_frame(str(source), frame, time, times)
    truth = None if gt is None else str(gt)
    return explain_frame(rpn, str(source), chosen, times, at=at, gt=truth)


def _pixels(image: Picture, index: int) -> Tensor | np.ndarray:
    """Returns a tensor or an array as it is, and whatever else is a picture as [H, W, 3] uint8."""
    from PIL import Image
    from torch import Tensor

    if isinstance(image, Tensor | np.ndarray):
        return image

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
