"""A network that is shown parts of frames, and gives the proposals that lie where they are wanted.

What a `ViewSpec` asks for is done here, around any network: frames are cut into views, which go
through it like frames of their own, and of their results one is made again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from stream_rpn.frame import Frame, Proposals
from stream_rpn.input_spec import InputSpec
from stream_rpn.kernels.proposals import ProposalSpec
from stream_rpn.network.network import Network
from stream_rpn.queues import Queue, Queues, prefetch
from stream_rpn.timing import StageTimes
from stream_rpn.views import View, cut

# Pixels of the network's input: what comes so near to the edge where a tile was cut is cut off, and
# whole in another view.
CUT_OFF = 2.0
# Boxes that are suppressed at a time: one by one takes ten times as long.
AT_A_TIME = 256


class ViewedNetwork(Network):
    """Makes one result of those of all views of a frame.

    A proposal is kept where its centre lies in the region. A region takes nothing from the limits
    of the others: `network` must give what suppression leaves, and the best of those in the region
    are counted out here. Boxes of several views are suppressed once more, by the same threshold,
    all levels together, as an object is of another level in a tile. `levels`, `anchors` and
    `input_boxes` are those of the view that showed the object best.

    Args:
        network: what looks.
        input_spec: what it wants of a frame.
        proposal_spec: the limits of results.
        batch: frames that `network` takes at a time.
        images: keep the decoded frame in results.
    """

    def __init__(
        self,
        network: Network,
        input_spec: InputSpec,
        proposal_spec: ProposalSpec,
        batch: int,
        *,
        images: bool,
    ) -> None:
        self._network = network
        self._input_spec, self._limits = input_spec, proposal_spec
        self._batch, self._images = batch, images

    def queues(  # noqa: D102
        self, frames: Iterable[Frame | None], times: StageTimes, *, latency: bool = False
    ) -> Queues[Proposals]:
        views = _Views(frames, times, self._input_spec, keep_images=self._images)
        looked = self._network.queues(views, times, latency=latency)
        results = prefetch(self._results(looked, views, times), 2 * self._batch, name="merge")
        return Queues(frames, views, looked, last=results)

    def process(  # noqa: D102
        self, frames: Iterable[list[Frame]], times: StageTimes
    ) -> Iterator[Proposals]:
        each = (frame for batch in frames for frame in batch)
        views = _Views(each, times, self._input_spec, keep_images=self._images)
        looked = self._network.process(([v] for v in views if v is not None), times)
        yield from self._results(looked, views, times)

    def facts(self) -> dict[str, Any]:  # noqa: D102
        return self._network.facts()

    def _results(
        self, looked: Iterable[Proposals], views: _Views, times: StageTimes
    ) -> Iterator[Proposals]:
        found: list[Proposals] = []
        for proposals in looked:
            found.append(proposals)
            frame, count, shown = views.under_way[0]
            if len(found) == count:
                views.under_way.popleft()
                with times.measure("merge"):
                    result = self._merged(frame, shown, found)
                found = []
                yield result

    def _merged(self, frame: Frame, shown: list[View], found: list[Proposals]) -> Proposals:
        top = self._limits.post_nms_top_n
        if not shown:
            (whole,) = found
            return whole[_kept(frame, whole.boxes)[:top]]
        parts = [
            self._part(frame, view, shown[-1], one) for view, one in zip(shown, found, strict=True)
        ]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        rows = np.argsort(-columns["scores"], kind="stable")
        if len(shown) > 1:
            rows = rows[suppressed(columns["boxes"][rows], self._limits.nms_thresh, top)]
        best = {name: column[rows[:top]] for name, column in columns.items()}
        return Proposals.of(
            frame,
            boxes=best["boxes"],
            scores=best["scores"],
            levels=best["levels"],
            anchors=best["anchors"],
            input_boxes=best["input_boxes"],
            embeddings=best.get("embeddings"),
            input_size=found[-1].input_size,
            strides=found[-1].strides,
            keep_image=self._images,
        )

    def _part(
        self, frame: Frame, view: View, whole: View, found: Proposals
    ) -> dict[str, np.ndarray]:
        """Returns what counts of one view, with boxes in pixels of the frame."""
        rows = _uncut(found, view, whole)
        boxes = found.boxes[rows] + np.array([view.x1, view.y1, view.x1, view.y1], np.float32)
        inside = _kept(frame, boxes)[: self._limits.post_nms_top_n]
        rows = rows[inside]
        return {
            "boxes": boxes[inside],
            "scores": found.scores[rows],
            "levels": found.levels[rows],
            "anchors": found.anchors[rows],
            "input_boxes": found.input_boxes[rows],
            **({} if found.embeddings is None else {"embeddings": found.embeddings[rows]}),
        }


def _kept(frame: Frame, boxes: np.ndarray) -> np.ndarray:
    """Returns the rows of the boxes [N, 4] whose centres lie in the frame's region."""
    if frame.view is None or frame.view.region is None:
        return np.arange(len(boxes))
    inside = frame.view.region.inside(frame.width, frame.height)
    x = ((boxes[:, 0] + boxes[:, 2]) / 2).astype(int).clip(0, frame.width - 1)
    y = ((boxes[:, 1] + boxes[:, 3]) / 2).astype(int).clip(0, frame.height - 1)
    return np.flatnonzero(inside[y, x])


def _uncut(found: Proposals, view: View, whole: View) -> np.ndarray:
    """Returns the rows of what does not touch an edge where a tile was cut out of the whole."""
    height, width = found.input_size
    x, y = CUT_OFF * view.width / max(width, 1), CUT_OFF * view.height / max(height, 1)
    x1, y1, x2, y2 = found.boxes.T
    cut_off = (x1 < x) & (view.x1 > whole.x1)
    cut_off |= (y1 < y) & (view.y1 > whole.y1)
    cut_off |= (x2 > view.width - x) & (view.x2 < whole.x2)
    cut_off |= (y2 > view.height - y) & (view.y2 < whole.y2)
    return np.flatnonzero(~cut_off)


def suppressed(boxes: np.ndarray, threshold: float, top: int) -> np.ndarray:
    """Returns the rows of at most `top` boxes [N, 4] that non-maximum suppression leaves.

    They stand best first; a box goes where its IoU with a better one that stays exceeds the
    threshold.
    """
    kept = np.zeros(0, int)
    for begin in range(0, len(boxes), AT_A_TIME):
        rows = np.arange(begin, min(begin + AT_A_TIME, len(boxes)))
        rows = rows[~_overlapping(boxes[rows], boxes[kept], threshold).any(axis=1)]
        among = _overlapping(boxes[rows], boxes[rows], threshold)
        stays = np.ones(len(rows), bool)
        for index in range(len(rows)):
            if stays[index]:
                stays[index + 1 :] &= ~among[index, index + 1 :]
        kept = np.concatenate([kept, rows[stays]])
        if len(kept) >= top:
            break
    return kept[:top]


def _overlapping(boxes: np.ndarray, others: np.ndarray, threshold: float) -> np.ndarray:
    """Returns [N, M] bool, where the IoU of boxes [N, 4] and others [M, 4] exceeds `threshold`."""
    near = np.maximum(boxes[:, None, :2], others[None, :, :2])
    far = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    both = np.maximum(far - near, 0).prod(axis=2)
    areas, other_areas = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, others))
    over: np.ndarray = both > threshold * (areas[:, None] + other_areas[None] - both)
    return over


class _Views(Queue):
    """The views of frames, in order, for the network's first thread.

    Attributes:
        under_way: the frames that have no result yet; how many views each has, and what those that
            were cut show. Of one that the network is shown as it is, none was.
    """

    def __init__(
        self,
        frames: Iterable[Frame | None],
        times: StageTimes,
        spec: InputSpec,
        *,
        keep_images: bool,
    ) -> None:
        self.under_way: deque[tuple[Frame, int, list[View]]] = deque()
        self._frames, self._times, self._spec = frames, times, spec
        self._keep_images = keep_images

    def __iter__(self) -> Iterator[Frame | None]:
        for frame in self._frames:
            if frame is None:
                yield None
                continue
            # The network lets go of the picture of what it is shown, and so is this to.
            image = frame.image if self._keep_images else None
            kept = replace(frame, image=image)  # type: ignore[arg-type]
            if frame.view is None or not frame.view.cuts:
                self.under_way.append((kept, 1, []))
                yield frame
            else:
                views = frame.view.views(frame.width, frame.height, self._spec)
                shown: list[View] = []
                self.under_way.append((kept, len(views), shown))
                for view in views:
                    with self._times.measure("cut"):
                        part, rectangle = cut(frame, view)
                    shown.append(rectangle)
                    yield part
                    del part
            # Otherwise these would keep the picture alive while the next is waited for.
            del frame, kept, image

    def __len__(self) -> int:
        return len(self.under_way)

    def stop(self) -> None:
        if isinstance(self._frames, Queue):
            self._frames.stop()

    def close(self) -> None:
        self.stop()
