"""The records that travel through the pipeline: StreamInfo, Frame, Proposals.

Boxes are always (x1, y1, x2, y2) float32 in pixel-edge coordinates of the *displayed* frame: after
the container's rotation, before any stretching by the sample aspect ratio. Sizes named `width` and
`height` are of the displayed frame, too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack, overload

from stream_rpn.drops import Drop

if TYPE_CHECKING:
    import av
    import numpy as np
    import supervision
    import torch
    from PIL import Image

    from stream_rpn.drawing import DrawStyle
    from stream_rpn.gate import GateSpec
    from stream_rpn.pictures import Picture
    from stream_rpn.views import ViewSpec


class StreamRPNError(Exception):
    """An error in an input, an output or an argument, in one sentence for the user.

    The command line prints it without a traceback and exits with 2, or with 3 when results had
    already been produced.
    """


@dataclass(frozen=True, slots=True)
class Color:
    """The colour encoding of a stream's planes.

    Attributes:
        matrix: "bt601", "bt709" or "bt2020".
        full_range: True for 0–255 luma, False for 16–235.
        tagged: False where the stream does not say and the matrix was chosen by the frame height.
        transfer: FFmpeg's name, e.g. "bt709", "smpte2084" (HDR10), "unknown"; recorded, not undone.
    """

    matrix: str
    full_range: bool
    tagged: bool
    transfer: str = "unknown"


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """The description of a source that is open; the header of every result file.

    Attributes:
        source: the source as the user named it.
        stem: a short name for output files, e.g. "video" for "/tmp/video.mp4".
        width: pixels of the displayed frame, after rotation.
        height: pixels of the displayed frame, after rotation.
        rotation: degrees clockwise that were applied for display: 0, 90, 180 or 270.
        mirrored: whether frames were mirrored left to right, as they are stored, before that.
        sample_aspect_ratio: width / height of one pixel; recorded, not applied.
        fps: average frame rate, None where neither container nor stream says.
        num_frames: declared number of frames, None where unknown; never relied upon.
        duration_seconds: declared duration, None where unknown.
        color: how the planes encode colour.
        codec: e.g. "h264".
        pixel_format: e.g. "yuv420p".
        interlaced: True where the first frame says so; recorded, frames are used as they are.
        decoder: the decoder really in use, e.g. "h264 (software)".
        live: True for cameras and network streams, where frames may be dropped.
        decoder_note: why the decoder is not the one that was hoped for, or "".
        clock: what the times of frames are: "timestamps" of the container; the "decoding order" of
            an AVI, which has no others, put into the order in which frames are shown; counted by
            the "frame rate" that a raw stream names; by the "arrival" of what is live and has
            none; or "none".
    """

    source: str
    stem: str
    width: int
    height: int
    rotation: int = 0
    mirrored: bool = False
    sample_aspect_ratio: float = 1.0
    fps: float | None = None
    num_frames: int | None = None
    duration_seconds: float | None = None
    color: Color = field(default_factory=lambda: Color("bt601", full_range=False, tagged=False))
    codec: str = ""
    pixel_format: str = ""
    interlaced: bool = False
    decoder: str = ""
    live: bool = False
    decoder_note: str = ""
    clock: str = "none"


@dataclass(slots=True)
class Frame:
    """One decoded frame on its way to the network.

    Attributes:
        index: position among all decoded frames of the source, from 0.
        pts: presentation timestamp in the stream's time base, None where the container has none.
        pts_seconds: when it is shown, None where nothing tells. It never falls: where the source's
            clock starts anew, it goes on (of a live source by the time of arrival); until then it
            is pts in seconds. Of streams without timestamps see `StreamInfo.clock`.
        width: pixels of the displayed frame, after rotation.
        height: pixels of the displayed frame, after rotation.
        rotation: degrees clockwise to turn the planes by for display: 0, 90, 180 or 270.
        color: how the planes encode colour.
        image: the decoded planes as PyAV hands them over (yuv420p, nv12 or p010le; or a CUDA
            surface in nv12/p010le), not turned, but mirrored where the source asks for that.
        drops: what was lost just before this frame.
        image_id: the id of an image in an annotation file, for image sources.
        name: the file name, for image sources.
        arrived: `time.monotonic()` at which the last packet of a live frame came; None for files,
            whose frames are never dropped.
        source_index: which of the sources that run together, from 0.
        mirrored: whether `image` was mirrored left to right when it was decoded.
        view: what is looked at of it; None for all.
        gate: how much must have changed; None leaves that to the pipeline.
    """

    index: int
    pts: int | None
    pts_seconds: float | None
    width: int
    height: int
    rotation: int
    color: Color
    image: av.VideoFrame
    drops: tuple[Drop, ...] = ()
    image_id: int | None = None
    name: str | None = None
    arrived: float | None = None
    source_index: int = 0
    mirrored: bool = False
    view: ViewSpec | None = None
    gate: GateSpec | None = None


class Proposal(NamedTuple):
    """One of the proposals of a frame.

    Attributes:
        box: [4] float32, x1, y1, x2, y2 in pixels of the displayed frame.
        score: objectness probability.
        level: index of the feature level.
        anchor: anchor index within the level.
        track_id: as in `Proposals.track_ids`; None where objects were not followed.
    """

    box: np.ndarray
    score: float
    level: int
    anchor: int
    track_id: int | None = None


@dataclass(slots=True)
class Proposals:
    """The region proposals of one frame, best first.

    Iterating gives each `Proposal`, `proposals[0]` the best one; a slice, a mask such as
    `proposals[proposals.scores > 0.5]` or a list of indices the `Proposals` of those. A notebook
    shows them as a picture.

    Attributes:
        frame: index among all frames of the source, unchanged by strides and start times.
        pts: presentation timestamp in the stream's time base, or None.
        pts_seconds: pts in seconds, or None.
        width: pixels of the displayed frame.
        height: pixels of the displayed frame.
        boxes: [N, 4] float32, x1, y1, x2, y2 in pixels of the displayed frame.
        scores: [N] float32 objectness probabilities, descending.
        levels: [N] int32 index of the feature level.
        anchors: [N] int32 anchor index (y·W + x)·A + a within the level.
        input_boxes: [N, 4] float32, the same boxes in pixels of the network's input.
        input_size: (height, width) of the resized frame in the network's input, without padding.
        strides: per level (y, x) input pixels per cell; 1 / stride is RoIAlign's spatial scale.
        drops: what was lost just before this frame.
        image: the decoded frame, mirrored as the source asks; kept only where pictures are wanted.
        features: level name → feature map [C, H, W], only when asked for.
        image_id: the id of an image in an annotation file, for image sources.
        name: the file name, for image sources.
        source: the source as the user named it.
        rotation: degrees clockwise that `image` must be turned by to be as displayed.
        color: how the planes of `image` encode colour.
        arrived: `time.monotonic()` at which a live frame's last packet came; None for files.
        source_index: which of the sources that run together, from 0.
        unix_seconds: the same moment as `arrived`, by the machine's calendar.
        held: the frame whose proposals these are, where the picture has not changed since and the
            network did not look at this one; None where it did.
        track_ids: [N] int64, the same number for the same object in all frames of a source, from
            1, and −1 for boxes of none; None where objects were not followed.
        embeddings: [N, D] float16, a vector of length 1 for each box, whose products are cosines:
            see `stream_rpn.embedding`; None where they were not asked for.
    """

    frame: int
    pts: int | None
    pts_seconds: float | None
    width: int
    height: int
    boxes: np.ndarray
    scores: np.ndarray
    levels: np.ndarray
    anchors: np.ndarray
    input_boxes: np.ndarray
    input_size: tuple[int, int] = (0, 0)
    strides: tuple[tuple[int, int], ...] = ()
    drops: tuple[Drop, ...] = ()
    image: av.VideoFrame | None = None
    features: dict[str, torch.Tensor] | None = None
    image_id: int | None = None
    name: str | None = None
    source: str = ""
    rotation: int = 0
    color: Color | None = None
    arrived: float | None = None
    source_index: int = 0
    unix_seconds: float | None = None
    held: int | None = None
    track_ids: np.ndarray | None = None
    embeddings: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        frame: Frame,
        *,
        boxes: np.ndarray,
        scores: np.ndarray,
        levels: np.ndarray,
        anchors: np.ndarray,
        input_boxes: np.ndarray,
        input_size: tuple[int, int] = (0, 0),
        strides: tuple[tuple[int, int], ...] = (),
        features: dict[str, torch.Tensor] | None = None,
        embeddings: np.ndarray | None = None,
        keep_image: bool = False,
    ) -> Proposals:
        """Returns the proposals of `frame`, with all that is known of it.

        `keep_image` keeps its picture, too; the others are as in the attributes.
        """
        return cls(
            frame=frame.index,
            pts=frame.pts,
            pts_seconds=frame.pts_seconds,
            width=frame.width,
            height=frame.height,
            boxes=boxes,
            scores=scores,
            levels=levels,
            anchors=anchors,
            input_boxes=input_boxes,
            input_size=input_size,
            strides=strides,
            drops=frame.drops,
            image=frame.image if keep_image else None,
            features=features,
            embeddings=embeddings,
            image_id=frame.image_id,
            name=frame.name,
            rotation=frame.rotation,
            color=frame.color,
            arrived=frame.arrived,
            source_index=frame.source_index,
        )

    def held_for(self, frame: Frame, keep_image: bool) -> Proposals:
        """Returns the same proposals for a later frame, whose picture has not changed.

        Arrays and maps are shared. `keep_image` keeps its picture.
        """
        looked = self.frame if self.held is None else self.held
        return replace(
            self,
            frame=frame.index,
            pts=frame.pts,
            pts_seconds=frame.pts_seconds,
            drops=frame.drops,
            image=frame.image if keep_image else None,
            image_id=frame.image_id,
            name=frame.name,
            arrived=frame.arrived,
            unix_seconds=None,
            held=looked,
        )

    @property
    def age_seconds(self) -> float | None:
        """Seconds since the frame's last packet came, by now; None for files."""
        return None if self.arrived is None else time.monotonic() - self.arrived

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        best = f", best {self.scores[0]:.3f}" if len(self) else ""
        return f"Proposals(frame={self.frame}, {len(self)} boxes{best}, {self.width}x{self.height})"

    def __iter__(self) -> Iterator[Proposal]:
        columns = (self.scores, self.levels, self.anchors, self.track_ids)
        return map(Proposal, self.boxes, *(c.tolist() for c in columns if c is not None))

    @overload
    def __getitem__(self, key: int | np.integer[Any]) -> Proposal: ...
    @overload
    def __getitem__(
        self, key: slice | np.ndarray | torch.Tensor | Sequence[int] | Sequence[bool]
    ) -> Proposals: ...
    def __getitem__(self, key: Any) -> Proposal | Proposals:
        import numpy as np

        rows = np.arange(len(self))[np.asarray(key) if hasattr(key, "__array__") else key]
        if rows.ndim == 0:
            return Proposal(*next(iter(self[rows[None]])))
        if rows.ndim > 1:
            raise IndexError("proposals have one axis; index them by a mask [N] or indices")
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen = {name: v[rows] for name, v in values.items() if isinstance(v, np.ndarray)}
        return replace(self, **chosen)

    def draw(
        self, image: Picture | None = None, *, top: int = 20, **style: Unpack[DrawStyle]
    ) -> Image.Image:
        """Returns a picture with the best boxes, of tracks alone where objects were followed.

        Args:
            image: the frame's picture, as `stream_rpn.propose` takes it; it stays as it is. By
                default the frame's own where results carry it (`images=True`), else plain gray.
            top: how many boxes are drawn.
            **style: nms, labels, color, thickness and stamp, see `stream_rpn.drawing.DrawStyle`.

        Raises:
            ValueError: the picture has another size or shape than the frame, or neither is known.
            TypeError: it is no picture.
            StreamRPNError: a file cannot be read, or the style is none.
        """
        from stream_rpn.pictures import drawn

        return drawn(self, image, top, **style)

    def _repr_png_(self) -> bytes | None:
        """Returns what a notebook shows."""
        from stream_rpn.pictures import png

        return png(self)

    def numpy(self) -> dict[str, np.ndarray]:
        """Returns boxes, scores, levels, anchors, and any track_ids and embeddings; no copies."""
        names = ("boxes", "scores", "levels", "anchors", "track_ids", "embeddings")
        arrays = {name: getattr(self, name) for name in names}
        return {name: array for name, array in arrays.items() if array is not None}

    def torch(self, device: str = "cpu") -> dict[str, torch.Tensor]:
        """Returns the arrays of `numpy` as tensors (on the CPU without a copy)."""
        import torch

        return {name: torch.from_numpy(array).to(device) for name, array in self.numpy().items()}

    def supervision(self) -> supervision.Detections:
        """Returns `supervision.Detections` (class 0, confidence = score); needs supervision."""
        from stream_rpn.tables import detections

        return detections(self)
