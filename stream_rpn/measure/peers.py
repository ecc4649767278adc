"""Programs that others would run instead, written with their own functions and settings.

Every peer turns a file into JSON lines of boxes: a decoder, a model, `json.dumps`. Two models:

* torchvision's detector up to its proposals, with the same weights (its transform, its backbone,
  its RPN): as it comes, in float32, and tuned: channels-last and autocast where bfloat16 is faster;
* our model, behind other decoders (OpenCV, TorchCodec, Ultralytics' loader): what is then compared
  is decoding, conversion to RGB, batching, and the lack of threads between the stages.

Packages that are not installed are skipped by name; nothing here needs the network.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import av
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from stream_rpn import preprocess
from stream_rpn.compute import DTYPES, prefers_bfloat16
from stream_rpn.frame import StreamRPNError
from stream_rpn.input_spec import frame_boxes
from stream_rpn.measure.meter import Meter
from stream_rpn.models.checkpoint import load_model
from stream_rpn.pipeline import Pipeline
from stream_rpn.rpn import RPN

# Our models that are torchvision's, and the builders of its detectors.
TORCHVISION_DETECTORS = {
    "resnet50_fpn": "fasterrcnn_resnet50_fpn",
    "resnet50_fpn_v2": "fasterrcnn_resnet50_fpn_v2",
    "mobilenet_v3_large_fpn": "fasterrcnn_mobilenet_v3_large_fpn",
    "mobilenet_v3_large_320_fpn": "fasterrcnn_mobilenet_v3_large_320_fpn",
}

Batches = Iterator[list[Tensor]]  # of RGB images [3, H, W] uint8
Boxes = Callable[[list[Tensor]], list[Tensor]]  # [N, 4] in pixels of each image


def pyav(path: str, batch: int) -> Batches:
    """PyAV as its manual has it: `to_ndarray(format="rgb24")`."""
    with av.open(path) as container:
        images = (
            torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            for frame in container.decode(video=0)
        )
        yield from _grouped(images, batch)


def opencv(path: str, batch: int) -> Batches:
    """OpenCV's VideoCapture, turned from BGR."""
    cv2 = importlib.import_module("cv2")
    capture = cv2.VideoCapture(path)

    def images() -> Iterator[Tensor]:
        while True:
            there, image = capture.read()
            if not there:
                return
            rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            yield torch.from_numpy(rgb).permute(2, 0, 1)

    try:
        yield from _grouped(images(), batch)
    finally:
        capture.release()


def torchcodec(path: str, batch: int) -> Batches:
    """TorchCodec's VideoDecoder on the CPU, with as many threads as FFmpeg likes."""
    decoders = importlib.import_module("torchcodec.decoders")
    decoder = decoders.VideoDecoder(path, num_ffmpeg_threads=0, seek_mode="approximate")
    yield from _grouped(iter(decoder), batch)


def ultralytics(path: str, batch: int) -> Batches:
    """The loader behind Ultralytics' `predict(video, stream=True)`, without its model."""
    # Its first import would otherwise install what it misses, and write to the terminal.
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    os.environ.setdefault("YOLO_VERBOSE", "false")
    loaders = importlib.import_module("ultralytics.data.loaders")
    logging.getLogger("ultralytics").setLevel(logging.ERROR)
    for _, images, _ in loaders.LoadImagesAndVideos(path, batch=batch):
        # Its predictor turns BGR the same way, on the stacked batch.
        yield [torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1) for image in images]


# Name → (package, decoder).
DECODERS: dict[str, tuple[str, Callable[[str, int], Batches]]] = {
    "PyAV to RGB": ("av", pyav),
    "OpenCV": ("cv2", opencv),
    "TorchCodec": ("torchcodec", torchcodec),
    "Ultralytics loader": ("ultralytics", ultralytics),
}


class TorchvisionProposer(nn.Module):
    """torchvision's transform, backbone and RPN with the weights of a model of ours.

    Args:
        model: a name of `stream_rpn.models.MODELS` or a checkpoint, as `load_model` takes it.
        weights: as `load_model` takes them.
        size: shorter side of the input, None for the model's own.
        top: proposals per image, None for the model's own number.

    Raises:
        StreamRPNError: the model's head is one that torchvision's RPN has no place for.
    """

    def __init__(
        self,
        model: str,
        weights: str | None = None,
        *,
        size: int | None = None,
        top: int | None = None,
    ) -> None:
        super().__init__()
        rpn = load_model(model, weights, fold=False).override(post_nms_top_n=top)
        detector = TORCHVISION_DETECTORS.get(rpn.name)
        parts = _of_detector(detector, rpn) if detector and size is None else _of_parts(rpn, size)
        self.transform, self.backbone, self.rpn = parts
        if top is not None:
            stage: Any = self.rpn  # the number has no public name
            stage._post_nms_top_n = dict.fromkeys(("training", "testing"), top)
        self.eval()

    def forward(self, batch: list[Tensor]) -> list[Tensor]:
        """Returns the proposals [N, 4] in the pixels of each image [3, H, W] in [0, 1]."""
        images, _ = self.transform(batch)
        features = self.backbone(images.tensors)
        if isinstance(features, Tensor):
            features = {"0": features}
        boxes, _ = self.rpn(images, features)
        return [
            resize_boxes(found.float(), list(size), list(image.shape[-2:]))
            for found, size, image in zip(boxes, images.image_sizes, batch, strict=True)
        ]


def _of_detector(builder: str, rpn: RPN) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Returns the parts of torchvision's own detector, with our weights in them."""
    build = getattr(torchvision.models.detection, builder)
    detector = build(weights=None, weights_backbone=None).eval()
    state = {
        key if key.startswith("backbone.") else f"rpn.{key}": tensor
        for key, tensor in rpn.state_dict().items()
    }
    missing = detector.load_state_dict(state, strict=False)
    behind = all(key.startswith("roi_heads.") for key in missing.missing_keys)
    if missing.unexpected_keys or not behind:
        raise RuntimeError(f"{builder} and our {rpn.name} have different layers: {missing}")
    return detector.transform, detector.backbone, detector.rpn


def _of_parts(rpn: RPN, size: int | None) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Returns torchvision's transform and RPN around our backbone and head."""
    if rpn.head.softmax:
        raise StreamRPNError(
            f"the two-class head of '{rpn.name}' has no counterpart in torchvision's RPN"
        )
    spec, proposals = rpn.input_spec, rpn.proposal_spec
    transform = GeneralizedRCNNTransform(
        size or spec.min_size,
        max(spec.max_size, spec.max_size * (size or 0) // spec.min_size),
        list(spec.mean),
        list(spec.std),
        size_divisible=spec.size_divisor,
    )
    per_level = tuple((1.0,) * rpn.head.num_anchors for _ in rpn.base_anchors)
    anchors = AnchorGenerator(per_level, ((1.0,),) * len(per_level))
    anchors.cell_anchors = rpn.base_anchors
    network = RegionProposalNetwork(
        anchors,
        rpn.head,
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n=dict.fromkeys(("training", "testing"), proposals.pre_nms_top_n),
        post_nms_top_n=dict.fromkeys(("training", "testing"), proposals.post_nms_top_n),
        nms_thresh=proposals.nms_thresh,
        score_thresh=proposals.score_thresh,
    )
    network.min_size = proposals.min_size  # its constructor does not take it
    return transform, rpn.backbone, network


def torchvision_boxes(proposer: TorchvisionProposer, device: torch.device, *, tuned: bool) -> Boxes:
    """Returns torchvision's way from images to boxes.

    Args:
        proposer: moved to `device` in place.
        device: where to compute.
        tuned: channels-last, and autocast to bfloat16 where that is faster.
    """
    proposer.to(device)

    def autocast() -> AbstractContextManager[Any]:
        if tuned and prefers_bfloat16(device):
            return torch.autocast(device.type, torch.bfloat16)
        return nullcontext()

    if tuned:
        proposer.to(memory_format=torch.channels_last)

    def run(images: list[Tensor]) -> list[Tensor]:
        with autocast():
            found: list[Tensor] = proposer([image.to(device) / 255 for image in images])
            return found

    return run


def our_boxes(pipeline: Pipeline) -> Boxes:
    """Returns our model on RGB images: everything of ours but decoding, planes and threads."""
    rpn = cast(RPN, pipeline.model)

    def run(images: list[Tensor]) -> list[Tensor]:
        inputs, image_sizes = preprocess.image_to_input(
            [image.to(pipeline.device) for image in images],
            rpn.input_spec,
            device=pipeline.device,
            dtype=DTYPES[pipeline.dtype],
            channels_last=True,
        )
        kept = rpn(inputs, image_sizes)
        rows = zip(kept.boxes.cpu().numpy(), kept.count.tolist(), image_sizes.tolist(), strict=True)
        return [
            torch.from_numpy(frame_boxes(boxes[:n], size, (image.shape[-2], image.shape[-1])))
            for (boxes, n, size), image in zip(rows, images, strict=True)
        ]

    return run


@dataclass
class Peer:
    """One alternative to the pipeline.

    Attributes:
        name: for tables.
        decoder: a name of `DECODERS`.
        boxes: images to boxes.
        batch: images per call.
        missing: why it cannot run here, or "".
    """

    name: str
    decoder: str
    boxes: Boxes
    batch: int = 1
    missing: str = ""

    def frames(self, path: str, out: str | Path) -> Iterator[None]:
        """Runs it over a file into JSON lines at `out`; yields after each frame."""
        index = 0
        batches = DECODERS[self.decoder][1](path, self.batch)
        with open(out, "w") as file, torch.inference_mode():
            for images in batches:
                for boxes in self.boxes(images):
                    file.write(json.dumps({"frame": index, "boxes": boxes.tolist()}) + "\n")
                    index += 1
                    yield


def peers(
    pipeline: Pipeline, model: str, weights: str | None = None, *, size: int | None = None
) -> list[Peer]:
    """Returns the peers of a pipeline of torch, those that cannot run here with the reason why."""
    found = []
    top = pipeline.model.proposal_spec.post_nms_top_n
    for name, tuned in (("torchvision loop", False), ("torchvision loop, tuned", True)):
        try:
            proposer = TorchvisionProposer(model, weights, size=size, top=top)
        except StreamRPNError as error:
            found.append(Peer(name, "PyAV to RGB", our_boxes(pipeline), missing=str(error)))
            continue
        boxes = torchvision_boxes(proposer, torch.device(pipeline.device), tuned=tuned)
        found.append(Peer(name, "PyAV to RGB", boxes, pipeline.batch if tuned else 1))
    for name, (package, _) in DECODERS.items():
        peer = Peer(f"{name}, our model", name, our_boxes(pipeline), pipeline.batch)
        if importlib.util.find_spec(package) is None:
            peer.missing = f"{package} is not installed"
        found.append(peer)
    return found


@dataclass
class ScriptPeer(Peer):
    """A script that does all of it itself."""

    script: Any = None

    def frames(self, path: str, out: str | Path) -> Iterator[None]:  # noqa: D102
        yield from self.script.frames(path, out)


def scripts(pipeline: Pipeline) -> list[Peer]:
    """Returns the OpenVINO scripts, for a pipeline of torch with a model that they can run."""
    if importlib.util.find_spec("openvino") is None:
        return []
    from stream_rpn.measure import openvino_scripts

    rpn = cast(RPN, pipeline.model)
    if rpn.name not in openvino_scripts.MODELS or pipeline.device != "cpu":
        return []
    found: list[Peer] = []
    for name, (package, script) in openvino_scripts.SCRIPTS.items():
        made = script(rpn.float(), rpn.proposal_spec.post_nms_top_n)
        peer = ScriptPeer(name, package, our_boxes(pipeline), script=made)
        if importlib.util.find_spec(package) is None:
            peer.missing = f"{package} is not installed"
        found.append(peer)
    return found


def measure_peer(peer: Peer, path: str, out: Path, seconds: float) -> dict[str, Any]:
    """Returns name and frames/s of a peer in its steady state, or why there are none.

    A file that ends before the time is up is read again; that it must be opened again is counted.
    """
    if peer.missing:
        return {"name": peer.name, "skipped": peer.missing}

    def endless() -> Generator[None]:
        while True:
            yield from peer.frames(path, out)

    frames = endless()
    started = time.perf_counter()
    try:
        for _ in range(peer.batch):
            next(frames)
        warm_up = time.perf_counter() - started
        count = 0
        with Meter() as meter:
            while count % peer.batch or meter.elapsed() < seconds:
                next(frames)
                count += 1
    except Exception as error:
        # A package of somebody else's that does not get along with this file or machine.
        return {"name": peer.name, "skipped": f"{type(error).__name__}: {error}".split("\n")[0]}
    finally:
        frames.close()
    return {
        "name": peer.name,
        "fps": round(count / meter.usage.seconds, 3),
        "frames": count,
        "warm_up_seconds": round(warm_up, 3),
        "cpu_utilisation": round(meter.usage.cpu_utilisation, 3),
        "others_utilisation": meter.usage.others_utilisation,
    }


def _grouped(images: Iterator[Tensor], size: int) -> Batches:
    batch: list[Tensor] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
