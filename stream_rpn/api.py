"""The Python front door: `stream` for videos, `propose` for images, `load` for a model to keep."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack, cast, overload

from stream_rpn import models, multistream, sources
from stream_rpn.engines import INT8, choose_batch, choose_engine
from stream_rpn.frame import Frame, Proposals, StreamRPNError
from stream_rpn.gate import HOLD_SECONDS, GateSpec
from stream_rpn.limits import MAX_PIXELS
from stream_rpn.model import Model
from stream_rpn.models.provenance import Weights
from stream_rpn.pictures import Picture, frame_of, pixels_of, rgb_of_any
from stream_rpn.pipeline import Pipeline
from stream_rpn.sources.given import One, resolve
from stream_rpn.sources.select import Selection
from stream_rpn.tracking import TrackSpec
from stream_rpn.views import ViewSpec

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from stream_rpn.rpn import RPN

M = TypeVar("M", bound=Model)

P = TypeVar("P", bound=Picture)


class LoadOptions(TypedDict, total=False):
    """The keywords of `load` that the other functions pass on."""

    weights: str | Path | None
    size: int | None
    top: int | None
    pre_nms: int | None
    nms: float | None
    score_thresh: float | None
    min_size: float | None
    anchor_sizes: Sequence[float] | None
    anchor_ratios: Sequence[float] | None


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
        rpn.weights = Weights.of(str(model), weights)
        top = models.DEFAULT_TOP if top is None else top
    _adjust(
        rpn,
        size,
        top=top,
        pre_nms=pre_nms,
        nms=nms,
        score_thresh=score_thresh,
        min_size=min_size,
    )
    if anchor_sizes is not None or anchor_ratios is not None:
        if rpn.anchor_spec is None:
            raise StreamRPNError(
                f"the anchors of {rpn.name} were given box by box and have no sizes and ratios to "
                "change; take another model, or RPN.set_anchors in Python"
            )
        try:
            rpn.set_anchors(rpn.anchor_spec.override(anchor_sizes, anchor_ratios))
        except ValueError as error:
            raise StreamRPNError(str(error)) from error
    return rpn


def _adjust(model: M, size: int | None = None, **limits: float | int | None) -> M:
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
    track: str | bool | None = None,
    selections: Sequence[Selection] = (),
    embed: bool = False,
    **load_options: Unpack[LoadOptions],
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
        track: see `stream`.
        selections: see `Pipeline`.
        embed: see `stream`.
        **load_options: see `load`.

    Raises:
        StreamRPNError: what was asked for does not exist or does not fit, in one sentence.
    """
    gate_spec, track_spec = GateSpec.parse(gate, gate_hold), TrackSpec.parse(track)
    chosen = choose_engine(engine, device=device, dtype=dtype, features=features)
    if chosen == "torch":
        from stream_rpn import compute

        # Before weights are fetched, which are large; what is chosen is not chosen anew.
        engine, device = chosen, str(compute.choose_device(device))
    if chosen == "openvino" and not isinstance(model, Model):
        ready = _ready(str(model), dtype, **load_options)
        if ready.quantised is not None:
            dtype = INT8
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
        track=track_spec,
        selections=selections,
        embed=embed,
    )


def _ready(model: str, dtype: str, weights: str | Path | None = None, **options: Any) -> Model:
    """Returns a model by name or file, converted where it can be."""
    from stream_rpn.models import graphs
    from stream_rpn.network.converted import Converted, UnconvertibleError

    weights = None if weights is None else str(weights)
    anchors = {name: options.pop(name, None) for name in ("anchor_sizes", "anchor_ratios")}
    if any(value is not None for value in anchors.values()):
        return load(model, weights, **options, **anchors)
    options["top"] = models.DEFAULT_TOP if options.get("top") is None else options["top"]
    found = graphs.in_int8(model, weights, dtype) or graphs.find(model, weights)
    if found is None:
        rpn = load(model, weights)
        try:
            found = Converted.of(rpn)
        except UnconvertibleError:
            return load(rpn, **options)
        graphs.keep(found, model, weights)
    found.weights = Weights.of(model, weights)
    return _adjust(found, **options)


def stream(
    source: One | Sequence[Any],
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
    track: str | bool | None = None,
    region: str | Path | Sequence[Any] | None = None,
    mask: str | Path | np.ndarray | None = None,
    region_crop: bool = False,
    tile: str | int | tuple[int, int] | None = None,
    embed: bool = False,
    start: float | None = None,
    end: float | None = None,
    stride: int = 1,
    fps: float | None = None,
    max_frames: int | None = None,
    video_stream: int | None = None,
    decoder: Literal["auto", "cpu", "nvdec"] = "auto",
    max_pixels: int = MAX_PIXELS,
    policy: multistream.LivePolicy | None = None,
    **load_options: Unpack[LoadOptions],
) -> Iterator[Proposals]:
    """Yields the proposals of every frame of a source, in order, or of several sources.

    Of a live source the newest frames win; what was dropped stands in the `drops` of the next one.

    Decoding and the network run in threads of their own while the caller works; leaving the loop
    early ends them. Frames that the caller makes are taken in such a thread as well. Lost
    connections and drops are told to the logger "stream_rpn".

    Of several sources results say by `source` and `source_index` whose they are. With a live one
    among them all run at a time, each in its own order; otherwise one follows the other. One that
    fails does not end the others.

    Args:
        source: a video file, a URL, "webcam", the number of a camera (0 is the first), a folder or
            glob of videos or images, "synthetic:"; a file opened for reading bytes; or frames: an
            iterable of arrays [H, W, 3] or tensors [3, H, W] (RGB, uint8 or float in [0, 1]),
            images of Pillow, or `av.VideoFrame`s. Or a list or tuple of sources.
        model: see `load`; an RPN of your own stays as it is.
        engine: "auto" (OpenVINO on a CPU, where it can), "torch" or "openvino".
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        dtype: the network's number format: "float32", "bfloat16", "float16" or "int8", which
            OpenVINO computes in, the default model only. "auto" is bfloat16 where that is
            faster than float32, else int8 where there is that and the processor is Intel's or
            AMD's, else float32.
        batch: frames per network call, or "auto".
        features: attach the feature maps, for RoIAlign.
        images: attach the decoded frame.
        threads: cores to compute on, on a CPU; by default all that this process may use.
        gate: "auto" gives a frame whose picture has not changed the proposals of the last one that
            the network looked at, which `held` of the result names; "off" looks at all. A number is
            how much must change, in multiples of what "auto" asks for.
        gate_hold: the longest time without a look, in seconds.
        track: follow objects, each source's by themselves: `track_ids` of results are set. True is
            ByteTrack; others are named in `stream_rpn.tracking.TRACKERS`. Needs the library
            trackers, `pip install 'stream-rpn[track]'`.
        region: keep proposals whose centres lie in a polygon: points (x, y), numbers x, y, x, y, …
            or "x,y,x,y,…", in pixels of the displayed frame, or in shares of its size where none is
            above 1; or the name of a file with such lines; or several of these.
        mask: keep proposals whose centres lie where this picture, or array [H, W], is white.
        region_crop: show the network the rectangle around region and mask only, so that small
            things grow.
        tile: look at overlapping tiles beside the whole: "auto", "3x2" (columns and rows), 3 or
            (3, 2); None for none.
        embed: attach a feature vector of each box, for search and clustering: `embeddings`.
        start: seconds from the first timestamp.
        end: seconds from the first timestamp, exclusive.
        stride: use every stride-th frame.
        fps: use at most so many frames a second. Frames of the caller's that carry no times are
            taken to follow at this rate.
        max_frames: stop after so many results, of each source.
        video_stream: index of the video stream in a file of several.
        decoder: "auto", "cpu" or "nvdec".
        max_pixels: larger frames are refused, as small files may hold huge ones.
        policy: time limits for live sources; `LivePolicy(realtime=True)` takes a file, or the
            caller's frames, as if they were live: what is too late is dropped.
        **load_options: `weights`, `size`, `top`, `pre_nms`, `nms`, `score_thresh`, `min_size`,
            `anchor_sizes`, `anchor_ratios`: see `load`.

    Raises:
        StreamRPNError: a source or the model cannot be opened, in one sentence; of several sources
            once the others have ended.
        TypeError: what was given is no source, or a frame is no picture.
        ValueError: a frame is no picture by its shape or its numbers.
    """
    found = resolve(source, fps)
    selection = Selection(
        start,
        end,
        stride,
        fps,
        max_frames,
        video_stream,
        decoder,
        max_pixels,
        ViewSpec.parse(region, mask, region_crop, tile),
    )
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
        track=track,
        selections=[selection],
        embed=embed,
        **load_options,
    )
    policy = policy or multistream.LivePolicy()
    if policy.realtime or any(isinstance(one, str) and sources.is_live(one) for one in found):
        with multistream.LiveStreams(pipeline, found, selection, policy) as streams:
            yield from multistream.proposals_of(streams)
    else:
        yield from multistream.in_turn(pipeline, found, selection)


@overload
def propose(
    image: P,
    *,
    model: str | Path | RPN = ...,
    device: str = ...,
    dtype: str = ...,
    batch: str | int = ...,
    features: bool = ...,
    embed: bool = ...,
    images: bool = ...,
    **load_options: Unpack[LoadOptions],
) -> Proposals: ...
@overload
def propose(
    image: list[P] | tuple[P, ...],
    *,
    model: str | Path | RPN = ...,
    device: str = ...,
    dtype: str = ...,
    batch: str | int = ...,
    features: bool = ...,
    embed: bool = ...,
    images: bool = ...,
    **load_options: Unpack[LoadOptions],
) -> list[Proposals]: ...
def propose(
    image: Any,
    *,
    model: str | Path | RPN = models.DEFAULT_MODEL,
    device: str = "auto",
    dtype: str = "auto",
    batch: str | int = "auto",
    features: bool = False,
    embed: bool = False,
    images: bool = False,
    **load_options: Unpack[LoadOptions],
) -> Proposals | list[Proposals]:
    """Returns the proposals of an RGB image, or a list of them for a list of images.

    It is computed by torch, from the picture's own pixels; `stream` of pictures is faster.

    Args:
        image: a tensor [3, H, W] (uint8, or float in [0, 1]), an array [H, W, 3] (the same), an
            image of Pillow, the path of a picture, or a list or tuple of such. Files are turned
            upright as their EXIF orientation says, and read when their turn comes.
        model: see `load`; pass an RPN from `load` to call this often.
        device: where to compute; "auto" of an RPN of your own is where it is.
        dtype: the network's number format: "float32", "bfloat16" or "float16"; "auto" is the
            model's own, float32 but for an RPN of yours.
        batch: images per network call, or "auto". Only such in a row that have one shape as the
            network's input go together.
        features: attach the feature maps, for RoIAlign.
        embed: attach a feature vector of each box, for search and clustering: `embeddings`.
        images: attach the picture, for `Proposals.draw` and notebooks.
        **load_options: see `load`.

    Raises:
        StreamRPNError: a file cannot be read, or the model cannot be loaded.
        TypeError: an image is of another type, or of other numbers.
        ValueError: an image has another shape, or is not in [0, 1].
    """
    from stream_rpn import compute
    from stream_rpn.decode import PlaneConverter
    from stream_rpn.rpn import propose_images

    several = isinstance(image, list | tuple)
    given: Sequence[Picture] = image if several else [image]
    chosen = compute.choose_device(device)  # before weights are fetched, which are large
    rpn = load(model, **load_options)
    weight = next(rpn.parameters())
    own = isinstance(model, Model)
    where = weight.device if own and device == "auto" else chosen
    form = weight.dtype if dtype == "auto" else compute.choose_dtype(dtype, where)
    if not own:
        rpn = rpn.to(where, form)
    elif (where, form) != (weight.device, weight.dtype) or any(m.training for m in rpn.modules()):
        rpn = copy.deepcopy(rpn).eval().to(where, form)
    frames: list[Frame] = []

    def pixels() -> Iterator[Tensor | np.ndarray]:
        for index, one in enumerate(given):
            picture = pixels_of(one, index)
            if images:
                frames.append(PlaneConverter().frame(frame_of(rgb_of_any(picture, index)), index))
            yield picture

    together = choose_batch(str(batch), where.type)
    results = list(propose_images(rpn, pixels(), batch=together, features=features, embed=embed))
    for proposals, one in zip(results, given, strict=True):
        proposals.name = Path(one).name if isinstance(one, str | Path) else None
    for proposals, frame in zip(results, frames, strict=images):
        proposals.image, proposals.color = frame.image, frame.color
    return results if several else results[0]
