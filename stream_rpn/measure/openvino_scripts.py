"""The scripts that people write today to run a detector on a CPU: a decoder in front of OpenVINO.

Both run NanoDet-Plus with our weights as it is published: with its shuffles, raw outputs, 80
classes, some requests at a time over all cores. One is the script that tutorials lead to: OpenCV
decodes and resizes, numpy decodes boxes, `cv2.dnn.NMSBoxes`. The other is written with care: PyAV
decodes, swscale shrinks YUV, OpenVINO takes bytes, and torchvision's compiled `nms` sees the best
1,000 of all levels. They do less than the product: no timestamps, damage, clocks or number formats.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, cast

import av
import numpy as np
import openvino as ov
import torch
import torchvision
from av.video.reformatter import VideoReformatter
from openvino.preprocess import PrePostProcessor
from torch import Tensor, nn

from stream_rpn.engines import prefers_bfloat16
from stream_rpn.input_spec import padded_size, resized_size
from stream_rpn.models.gfl_head import GFLHead
from stream_rpn.models.ghost_pan import GhostPAN
from stream_rpn.models.nanodet_plus import STRIDES
from stream_rpn.models.shufflenet_v2 import ShuffleNetV2, Stage
from stream_rpn.network.openvino import core
from stream_rpn.rpn import RPN

MODELS = ("nanodet_m", "nanodet_m_1.5x")
CLASSES, BINS = 80, 8
# ImageNet's, of BGR in 0–255, as NanoDet's configuration has them.
MEAN, STD = [103.53, 116.28, 123.675], [57.375, 57.12, 58.395]
BEST = 1000


class ShuffledStage(Stage):
    """A stage that moves its channels, as ShuffleNetV2 is published."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        first, *rest = cast(Iterable[Any], self)
        x = _shuffled(first.branch1(x), first.branch2(x))
        for unit in rest:
            stays, goes = x.chunk(2, dim=1)
            x = _shuffled(stays, unit.branch2(goes))
        return x


def _shuffled(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack((first, second), dim=2).flatten(1, 2)


class Published(nn.Module):
    """NanoDet-Plus with its shuffles: BGR images to [B, 112, H, W] per level.

    Args:
        rpn: whose weights it gets.
    """

    def __init__(self, rpn: RPN) -> None:
        super().__init__()
        # The state dict has the published order of channels, which modules of our own reorder.
        state = rpn.state_dict()
        widths = [state[f"backbone.fpn.reduce_layers.{i}.0.weight"].shape[1] for i in range(3)]
        channels = state["backbone.fpn.reduce_layers.0.0.weight"].shape[0]
        self.body, self.fpn = ShuffleNetV2(widths), GhostPAN(widths, channels)
        self.head = cast(GFLHead, rpn.head)
        for name, part in (("body", self.body), ("fpn", self.fpn)):
            prefix = f"backbone.{name}."
            part.load_state_dict(
                {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
            )
        for stage in (self.body.stage2, self.body.stage3, self.body.stage4):
            stage.__class__ = ShuffledStage
        first: Any = self.body.conv1[0]
        first.weight.data = first.weight.data.flip(1)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns the raw outputs of images [B, 3, H, W], finest level first."""
        layers = zip(self.head.cls_convs, self.head.gfl_cls, strict=True)
        maps = self.fpn(*self.body(images))
        return [last(tower(m)) for (tower, last), m in zip(layers, maps, strict=True)]


class Script:
    """What both scripts have in common: the network compiled for one size, and boxes written.

    Args:
        rpn: NanoDet-Plus.
        top: boxes a frame.

    Attributes:
        bytes_in: whether OpenVINO takes bytes, and normalises.
    """

    bytes_in = True

    def __init__(self, rpn: RPN, top: int) -> None:
        self._spec, self._top = rpn.input_spec, top
        self._nms = rpn.proposal_spec.nms_thresh
        self._network = Published(rpn).eval()
        self._queues: dict[tuple[int, int], ov.AsyncInferQueue] = {}

    def frames(self, path: str, out: str | Path, limit: int | None = None) -> Iterator[None]:
        """Runs over a file into JSON lines at `out`; yields after each frame.

        Frames are under way before the first has been written: whoever wants so many only says so
        as the `limit`, or the machine computes some that nobody counts.
        """
        with av.open(path) as container:
            stream = container.streams.video[0]
            height, width = stream.height, stream.width
        size = resized_size(height, width, self._spec.min_size, self._spec.max_size)
        padded = padded_size(size, self._spec.size_divisor)
        if padded not in self._queues:
            self._queues[padded] = ov.AsyncInferQueue(self._compile(padded))
        queue = self._queues[padded]
        cells = _cells(padded)
        scale = np.tile([width / size[1], height / size[0]], 2).astype(np.float32)
        done: dict[int, np.ndarray] = {}

        def finished(request: Any, index: int) -> None:
            outputs = [request.get_output_tensor(level).data for level in range(len(STRIDES))]
            done[index] = self._boxes(outputs, cells) * scale

        queue.set_callback(finished)
        written = 0

        def write(file: TextIO) -> Iterator[None]:
            nonlocal written
            while written in done:
                _write(file, written, done.pop(written))
                written += 1
                yield

        try:
            with open(out, "w") as file:
                images = self._images(path, size, padded, len(queue))
                for index, image in enumerate(islice(images, limit)):
                    queue.start_async({0: image}, index)
                    yield from write(file)
                queue.wait_all()
                yield from write(file)
        finally:
            # Its callbacks want the lock that the queue's end would hold.
            queue.wait_all()

    def _images(
        self, path: str, size: tuple[int, int], padded: tuple[int, int], requests: int
    ) -> Iterator[np.ndarray]:
        raise NotImplementedError

    def _boxes(self, outputs: list[np.ndarray], cells: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _compile(self, padded: tuple[int, int]) -> ov.CompiledModel:
        with warnings.catch_warnings():
            # It traces in a way that torch calls old, which nobody who measures can change.
            warnings.simplefilter("ignore")
            graph = ov.convert_model(self._network, example_input=torch.rand(1, 3, *padded))
        graph.reshape([1, 3, *padded])
        if self.bytes_in:
            steps = PrePostProcessor(graph)
            steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
            steps.input().model().set_layout(ov.Layout("NCHW"))
            steps.input().preprocess().convert_element_type(ov.Type.f32).mean(MEAN).scale(STD)
            graph = steps.build()
        config = {"PERFORMANCE_HINT": "THROUGHPUT"}
        # Left alone it takes bfloat16 wherever there is AVX-512, however slow that is.
        config["INFERENCE_PRECISION_HINT"] = "bf16" if prefers_bfloat16() else "f32"
        return core().compile_model(graph, "CPU", config)


class Simple(Script):
    """OpenCV, numpy and `cv2.dnn.NMSBoxes`."""

    bytes_in = False

    def _images(
        self, path: str, size: tuple[int, int], padded: tuple[int, int], requests: int
    ) -> Iterator[np.ndarray]:
        cv2 = importlib.import_module("cv2")
        capture = cv2.VideoCapture(path)
        below, right = padded[0] - size[0], padded[1] - size[1]
        mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
        while True:
            there, image = capture.read()
            if not there:
                break
            image = cv2.resize(image, size[::-1])
            image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT)
            yield ((image.astype(np.float32) - mean) / std).transpose(2, 0, 1)[None]
        capture.release()

    def _boxes(self, outputs: list[np.ndarray], cells: np.ndarray) -> np.ndarray:
        cv2 = importlib.import_module("cv2")
        boxes, scores, start = [], [], 0
        for output in outputs:
            rows = output[0].reshape(CLASSES + 4 * BINS, -1)
            level = cells[start : start + rows.shape[1]]
            start += rows.shape[1]
            score = 1 / (1 + np.exp(-rows[:CLASSES].max(0)))
            best = np.argsort(-score)[:BEST]
            corners = _decoded(rows[CLASSES:, best], level[best])
            boxes.append(np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1))
            scores.append(score[best])
        sides, score = np.concatenate(boxes), np.concatenate(scores)
        kept = cv2.dnn.NMSBoxes(sides.tolist(), score.tolist(), 0.0, self._nms, top_k=BEST)
        chosen = sides[np.asarray(kept, np.int64)[: self._top]]
        return np.concatenate((chosen[:, :2], chosen[:, :2] + chosen[:, 2:]), 1)


class Careful(Script):
    """PyAV, swscale on YUV, bytes, and torchvision's compiled `nms`."""

    def _images(
        self, path: str, size: tuple[int, int], padded: tuple[int, int], requests: int
    ) -> Iterator[np.ndarray]:
        reformatter = VideoReformatter()
        # A picture may be written only when its request is over; the queue has no more of them.
        ring = [np.zeros((1, *padded, 3), np.uint8) for _ in range(requests + 2)]
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for index, frame in enumerate(container.decode(stream)):
                small = reformatter.reformat(
                    frame, size[1], size[0], "yuv420p", interpolation="AREA"
                )
                image = ring[index % len(ring)]
                image[0, : size[0], : size[1]] = small.to_ndarray(format="bgr24")
                yield image

    def _boxes(self, outputs: list[np.ndarray], cells: np.ndarray) -> np.ndarray:
        rows = np.concatenate([o[0].reshape(CLASSES + 4 * BINS, -1) for o in outputs], 1)
        logits = rows[:CLASSES].max(0)
        best = np.argpartition(-logits, min(BEST, len(logits) - 1))[:BEST]
        best = best[np.argsort(-logits[best])]
        boxes = _decoded(rows[CLASSES:, best], cells[best])
        keep = torchvision.ops.nms(
            torch.from_numpy(boxes), torch.from_numpy(logits[best]), self._nms
        )
        kept: np.ndarray = boxes[keep[: self._top].numpy()]
        return kept


SCRIPTS: dict[str, tuple[str, Callable[[RPN, int], Script]]] = {
    "OpenCV + OpenVINO script": ("cv2", Simple),
    "PyAV + OpenVINO script, tuned": ("av", Careful),
}


def _cells(padded: tuple[int, int]) -> np.ndarray:
    """Returns x, y and stride of every cell [N, 3], level after level."""
    rows = []
    for stride in STRIDES:
        y, x = np.mgrid[: -(-padded[0] // stride), : -(-padded[1] // stride)]
        rows.append(np.stack((x.ravel() * stride, y.ravel() * stride, np.full(x.size, stride)), 1))
    return np.concatenate(rows).astype(np.float32)


def _decoded(bins: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Returns boxes [N, 4] of bins [32, N]."""
    masses = bins.reshape(4, BINS, -1)
    masses = np.exp(masses - masses.max(1, keepdims=True))
    weighted = np.tensordot(np.arange(BINS, dtype=np.float32), masses, (0, 1))
    left, top, right, bottom = weighted / masses.sum(1) * cells[:, 2]
    x, y = cells[:, 0], cells[:, 1]
    return np.stack((x - left, y - top, x + right, y + bottom), 1).astype(np.float32)


def _write(file: TextIO, index: int, boxes: np.ndarray) -> None:
    file.write(json.dumps({"frame": index, "boxes": boxes.round(2).tolist()}) + "\n")
