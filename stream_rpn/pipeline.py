"""The flow of one source: decode → queue → batches → network → queue → proposals.

Nested generators, each a stage; a queue between two of them is a thread. `multistream` has the flow
of several sources at a time.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from stream_rpn import sources
from stream_rpn.cores import available_cores
from stream_rpn.embedding import Embedding
from stream_rpn.engines import INT8, choose_batch, choose_engine, prefers_bfloat16
from stream_rpn.frame import Frame, Proposals, StreamRPNError
from stream_rpn.gate import GateSpec
from stream_rpn.log import log
from stream_rpn.model import Model
from stream_rpn.models import IN_INT8
from stream_rpn.network.gated import GatedNetwork
from stream_rpn.network.network import Network
from stream_rpn.network.viewed import ViewedNetwork
from stream_rpn.queues import Closing, prefetch
from stream_rpn.sources.given import Given
from stream_rpn.sources.select import Selection
from stream_rpn.sources.source import Source
from stream_rpn.statistics import StreamStatistics
from stream_rpn.timing import StageTimes
from stream_rpn.tracking import TrackSpec

if TYPE_CHECKING:
    from stream_rpn.network.converted import Converted
    from stream_rpn.rpn import RPN


class Pipeline:
    """A model on a device, ready for any number of sources.

    Args:
        model: what `stream_rpn.load` returns or an RPN of your own; or one that is converted
            already. For torch an RPN is moved to `device` and `dtype` in place: from then on its
            weights and anchors must stay as they are, as a captured CUDA graph holds their
            addresses.
        engine: "auto", "torch" or "openvino", see `choose_engine`.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        dtype: "auto", "float32", "bfloat16", "float16" or "int8", for the network; boxes are
            float32. "int8" is for a model that `stream_rpn.models.graphs.find_int8` gives.
        batch: frames per network call of torch, or "auto".
        features: attach the feature maps to the results.
        images: keep the decoded frame in the results.
        threads: cores to compute on, on a CPU; by default all that this process may use.
        gate: how much a picture must change to be looked at; None looks at all.
        track: how objects are followed; None follows none.
        selections: what will be asked of its sources, where that is more than which frames.
        embed: attach a feature vector of each box to the results.

    Raises:
        StreamRPNError: what is asked for is not there, or does not go together.

    Attributes:
        model: as it is computed.
        engine: "torch" or "openvino".
        device: what computes: "cpu", "cuda:N" or "mps".
        dtype: the number format's name.
        batch: frames per call.
        gate: how much a picture must change to be looked at, or None.
        track: how objects are followed, or None.
        embedding: how boxes become vectors, or None.
        network: what computes it.
    """

    def __init__(
        self,
        model: Model,
        *,
        engine: str = "auto",
        device: str = "auto",
        dtype: str = "auto",
        batch: str | int = "auto",
        features: bool = False,
        images: bool = False,
        threads: int | None = None,
        gate: GateSpec | None = None,
        track: TrackSpec | None = None,
        selections: Sequence[Selection] = (),
        embed: bool = False,
    ) -> None:
        self.track = track
        self.embedding: Embedding | None = None
        views = [one.view for one in selections if one.view is not None]
        if features and any(view.cuts for view in views):
            raise StreamRPNError(
                "feature maps are those of whole frames; tiles and crops have none to attach"
            )
        self.engine = choose_engine(engine, device=device, dtype=dtype, features=features)
        if (model.quantised is not None) != (dtype == INT8):
            raise StreamRPNError(
                f"the model '{model.name}' as it was given computes in int8 and in nothing else"
                if model.quantised
                else f"the model '{model.name}' as it was given has no int8 form; only "
                f"{', '.join(IN_INT8)} has one, by its name and with its own numbers"
            )
        self.features = features
        self.images = images
        self.model = model
        if self.engine == "openvino":
            self.model, self.engine = _converted(model, required=engine == "openvino")
        # What lies outside of a region must take no place of what lies inside.
        regions = any(view.region is not None for view in views)
        if self.engine == "openvino":
            from stream_rpn.network.openvino import OpenVINONetwork

            choose_batch(str(batch), "cpu")  # which says what is wrong with it
            self.device, self.batch = "cpu", 1
            self.dtype = dtype
            if dtype == "auto":
                self.dtype = "bfloat16" if prefers_bfloat16() else "float32"
            converted = cast("Converted", self.model)
            self.embedding = converted.embedding() if embed else None
            self.network: Network = OpenVINONetwork(
                converted.keeping_all() if regions else converted,
                self.dtype,
                threads or available_cores(),
                images=images,
                embedding=self.embedding,
            )
        else:
            rpn = cast("RPN", model)
            self._compute_with_torch(
                rpn.keeping_all() if regions else rpn, device, dtype, str(batch), threads, embed
            )
        if views:
            self.network = ViewedNetwork(
                self.network,
                self.model.input_spec,
                self.model.proposal_spec,
                self.batch,
                images=images,
            )
        gates = {one.gate for one in selections}
        self.gate = gate or (gates.pop() if len(gates) == 1 else None)
        if self.gate is not None or gates:
            self.network = GatedNetwork(self.network, self.gate, self.batch, images=images)

    def _compute_with_torch(
        self,
        rpn: RPN,
        device_name: str,
        dtype_name: str,
        batch: str,
        threads: int | None,
        embed: bool,
    ) -> None:
        import torch

        from stream_rpn import compute
        from stream_rpn.network.eager import EagerNetwork
        from stream_rpn.network.gpu import GPUNetwork

        # torch knows of affinity, not of quotas.
        torch.set_num_threads(threads or min(torch.get_num_threads(), available_cores()))
        device = compute.choose_device(device_name)
        dtype = compute.choose_dtype(dtype_name, device)
        self.device, self.dtype = str(device), compute.DTYPE_NAMES[dtype]
        self.batch = choose_batch(batch, device.type)
        rpn = rpn.to(device, dtype, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.embedding = Embedding.of(rpn) if embed else None
        form = GPUNetwork if device.type == "cuda" else EagerNetwork
        self.network = form(
            rpn,
            device,
            dtype,
            self.batch,
            features=self.features,
            images=self.images,
            embedding=self.embedding,
        )

    def open(
        self,
        source: str | Source | Given,
        selection: Selection | None = None,
        *,
        stop: threading.Event | None = None,
        open_timeout: float = 30.0,
        notice: Callable[[str], None] = log.warning,
    ) -> Stream:
        """Opens a source and starts decoding it.

        Args:
            source: as `stream_rpn.sources.open_source` takes it, or what it returned; or an object
                that is one, see `stream_rpn.sources.given`.
            selection: which frames to use, all by default.
            stop: when set, no further frame is decoded and the stream ends with those under way.
            open_timeout: seconds for a URL or a pipe on standard input to open.
            notice: told in a sentence where much of such a pipe is kept before its first frame.

        Raises:
            StreamRPNError: the source cannot be opened.
        """
        selection, stop = selection or Selection(), stop or threading.Event()
        if isinstance(source, str):
            source = sources.open_source(
                source,
                decoder=selection.decoder,
                video_stream=selection.video_stream,
                device=self.device,
                max_pixels=selection.max_pixels,
                open_timeout=open_timeout,
                stopped=stop.is_set,
                notice=notice,
            )
        elif isinstance(source, Given):
            source = source.open(
                decoder=selection.decoder,
                video_stream=selection.video_stream,
                max_pixels=selection.max_pixels,
            )
        return Stream(self, source, selection, stop)

    def facts(self) -> dict[str, Any]:
        """Returns what computes, as summaries tell it: engine, device, dtype, batch and model.

        On a GPU, where no CUDA graph could be captured, also "without_cuda_graph": why. With a gate
        "gate", its numbers, and where it could not tell "without_gate": why.
        """
        return {
            "engine": self.engine,
            "device": self.device,
            "dtype": self.dtype,
            "batch": self.batch,
            "model": self.model.name,
            **self.network.facts(),
        }

    def provenance(self, selection: Selection) -> dict[str, Any]:
        """Returns what makes results, as `make_header` takes it: whose weights, where, and how."""
        return {
            "model": self.model.name,
            "weights": self.model.weights and asdict(self.model.weights),
            "engine": self.engine,
            "device": self.device,
            "dtype": self.dtype,
            "parameters": parameters(self.model, selection, self.gate, self.track, self.embedding),
        }

    @property
    def queue_size(self) -> int:
        """Decoded frames of a source that wait at most: two batches, and the ends of two more."""
        return 2 * self.batch + 2

    def process(self, frames: Iterable[list[Frame]], times: StageTimes) -> Iterator[Proposals]:
        """Yields the proposals of batches of frames, in order."""
        return self.network.process(frames, times)


class Stream(StreamStatistics, Closing):
    """The proposals of one source, frame by frame, while later frames are being decoded.

    Iterate once; `close` (or leaving the `with`) stops early and leaves no thread.

    Attributes:
        info: what is known of the source.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        source: Source,
        selection: Selection,
        stop: threading.Event,
    ) -> None:
        super().__init__(selection, pipeline.track)
        self.info = source.info
        self._source = source
        self._num_chosen = 0
        frames: Iterable[Frame] = self.times.each("decode", source)
        frames = itertools.takewhile(lambda _: not self._is_stopped(stop), frames)
        frames = itertools.islice(selection.frames(frames), selection.max_frames)
        frames = self._counted(frames)
        # Surfaces are never queued, as NVDEC has few: the thread that decodes them copies them.
        if not source.on_gpu:
            frames = prefetch(frames, pipeline.queue_size, name="decode")
        self._queues = pipeline.network.queues(frames, self.times)

    def __iter__(self) -> Iterator[Proposals]:
        return map(self.receive, self._queues)

    def _counted(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        for frame in frames:
            self._num_chosen += 1
            yield frame
            # A surface of NVDEC's small pool must not live on here.
            del frame

    @property
    def num_chosen(self) -> int:  # noqa: D102
        return self._num_chosen

    def _is_stopped(self, stop: threading.Event) -> bool:
        """Tells, where there is a frame left to take, whether it is not to be taken."""
        if stop.is_set():
            self.stopped = "interrupted"
        return stop.is_set()

    @property
    def queued(self) -> int:  # noqa: D102
        return len(self._queues)

    def close(self) -> None:
        """Stops decoding, joins the threads and closes the source."""
        self._queues.close()
        assert self._source is not None
        # Of a pipe that was left in the middle there may be no frame that was not taken.
        if self._source.cut_short:
            self.stopped = self.stopped or "interrupted"
        self._source.close()
        self.settle(self.selection.max_frames)


def _converted(model: Model, *, required: bool) -> tuple[Model, str]:
    """Returns the model as OpenVINO takes it, and the engine: torch for one that it cannot take."""
    from stream_rpn.network.converted import Converted, UnconvertibleError

    if isinstance(model, Converted):
        return model, "openvino"
    try:
        return Converted.of(cast("RPN", model)), "openvino"
    except UnconvertibleError as error:
        if required:
            raise StreamRPNError(f"the engine openvino cannot be used: {error}") from error
        return model, "torch"


def parameters(
    model: Model,
    selection: Selection,
    gate: GateSpec | None = None,
    track: TrackSpec | None = None,
    embedding: Embedding | None = None,
) -> dict[str, Any]:
    """Returns every number that shaped the results, for a result file's header."""
    gate = selection.gate or gate
    return {
        "trained": model.trained,
        "input": asdict(model.input_spec),
        "proposals": asdict(model.proposal_spec),
        "selection": selection.record(),
        **({} if selection.view is None else {"view": selection.view.record()}),
        **({} if gate is None else {"gate": asdict(gate)}),
        **({} if track is None else {"tracking": asdict(track)}),
        **({} if embedding is None else {"embedding": embedding.facts()}),
    }


__all__ = ["Pipeline", "Selection", "Stream", "StreamStatistics", "parameters"]
