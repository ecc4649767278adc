"""Put the proposal stage into a torchvision detector that you already have: one line.

    python examples/fuse_torchvision.py

The detections stay the same; on a GPU the proposal stage runs in a few fused launches. Nothing is
downloaded: the weights are random. So that there are detections to compare, whose scores lie
further apart than rounding takes them, batch norms have met the pictures before, and the last
layers are as sure of themselves as trained ones. Use `weights="DEFAULT"` for the real ones.
"""

import time

import torch
from torch import nn
from torchvision.models import detection
from torchvision.ops import box_iou

import stream_rpn

LEAST = 20  # detections, below which the comparison would say nothing


def pictures(device: str) -> list[torch.Tensor]:
    """Returns two pictures of soft spots."""
    spots = torch.rand(2, 3, 12, 16)
    return [
        nn.functional.interpolate(one[None], size, mode="bicubic").clamp(0, 1)[0].to(device)
        for one, size in zip(spots, ((240, 320), (320, 240)), strict=True)
    ]


@torch.no_grad()
def detector(images: list[torch.Tensor]) -> nn.Module:
    """Returns a detector that finds things in these pictures."""
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    model.to(images[0].device).eval()
    # Otherwise what comes out of a network this deep is the same everywhere.
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the mean of all that came
    model.backbone.train()
    for image in images:
        model.backbone(model.transform([image])[0].tensors)
    model.backbone.eval()
    for layer in (model.rpn.head.cls_logits, model.roi_heads.box_predictor.cls_score):
        layer.weight.mul_(10)
    return model


@torch.inference_mode()
def detect(model: nn.Module, images: list[torch.Tensor], label: str) -> list[dict]:
    model(images)
    start = time.perf_counter()
    detections = model(images)
    counts = [len(found["boxes"]) for found in detections]
    print(f"{label}: {counts} detections, {(time.perf_counter() - start) * 1e3:.1f} ms")
    return detections


def check_same(ours: list[dict], theirs: list[dict]) -> None:
    """Ends the program where one side finds what the other does not."""
    for mine, other in zip(ours, theirs, strict=True):
        if min(len(mine["boxes"]), len(other["boxes"])) < LEAST:
            raise SystemExit("too few detections to compare")
        same = (
            (box_iou(mine["boxes"], other["boxes"]) > 0.99)
            & (mine["labels"][:, None] == other["labels"])
            & ((mine["scores"][:, None] - other["scores"]).abs() < 1e-2)
        )
        agreeing = min(same.any(dim=1).float().mean(), same.any(dim=0).float().mean())
        # Two that tie within a rounding may change places, and with them what they suppress.
        if agreeing < 0.95:
            raise SystemExit(f"detections differ: {agreeing:.0%} are the same")


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    images = pictures(device)
    model = detector(images)
    before = detect(model, images, "torchvision")
    stream_rpn.fuse(model)
    after = detect(model, images, "fused")
    check_same(after, before)
    stream_rpn.unfuse(model)
    detect(model, images, "unfused again")
    print("the same detections")


if __name__ == "__main__":
    main()
