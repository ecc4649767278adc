"""Put the proposal stage into a torchvision detector that you already have: one line.

    python examples/fuse_torchvision.py

The detections stay the same; on a GPU the proposal stage runs in a few fused launches. The weights
are random here, so that nothing is downloaded; use `weights="DEFAULT"` for the real ones.
"""

import time

import torch
from torchvision.models import detection

import stream_rpn

device = "cuda" if torch.cuda.is_available() else "cpu"
model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
model.eval().to(device)
images = [torch.rand(3, 480, 640, device=device), torch.rand(3, 640, 480, device=device)]


@torch.inference_mode()
def detect(label: str) -> list[dict[str, torch.Tensor]]:
    model(images)
    start = time.perf_counter()
    detections: list[dict[str, torch.Tensor]] = model(images)
    counts = [len(found["boxes"]) for found in detections]
    print(f"{label}: {counts} detections, {(time.perf_counter() - start) * 1e3:.1f} ms")
    return detections


before = detect("torchvision")
stream_rpn.fuse(model)
after = detect("fused")
for mine, theirs in zip(after, before, strict=True):
    torch.testing.assert_close(mine["boxes"], theirs["boxes"], atol=1e-2, rtol=1e-3)
stream_rpn.unfuse(model)
detect("unfused again")
