"""Files that users hand us, mutated: a result or one sentence, never a traceback, never a hang."""

import copy
import io
import json
import pickle
import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stream_rpn.evaluation.coco import CocoDataset
from stream_rpn.evaluation.files import Annotated, read_predictions
from stream_rpn.frame import StreamRPNError
from stream_rpn.models.checkpoint import read_checkpoint
from stream_rpn.sources.picture import decode, decode_rgb
from tests.synthetic_coco import write_dataset

MUTATIONS = 120
LONGEST_SECONDS = 5.0

ODD_VALUES = [
    None, True, -1, 0, 1.5, 1e308, 1 << 70, float("nan"), float("inf"), "", "7", "x", "\ud800",
    [], [1], [[1, 2, 3, 4]], {}, {"id": 1},
]  # fmt: skip


def mutated(data: bytes, count: int = MUTATIONS) -> Iterator[bytes]:
    """Yields copies that are cut, changed here and there, doubled or filled up."""
    rng = random.Random(len(data))
    for _ in range(count):
        copied = bytearray(data)
        at = rng.randrange(len(copied))
        match rng.randrange(6):
            case 0:
                del copied[at:]
            case 1:
                for _ in range(rng.randrange(1, 8)):
                    copied[rng.randrange(len(copied))] = rng.randrange(256)
            case 2:
                copied[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF]))
            case 3:
                del copied[at : at + rng.randrange(1, 64)]
            case 4:
                copied[at:at] = copied[at : at + rng.randrange(1, 64)]
            case 5:
                copied[at:] = bytes(len(copied) - at)
        yield bytes(copied)


def odd_values(content: object) -> Iterator[object]:
    """Yields copies of a JSON value with one value anywhere in it replaced or left out."""
    rng = random.Random(0)
    for _ in range(3 * MUTATIONS):
        copied = copy.deepcopy(content)
        holder, key = None, None
        part = copied
        while isinstance(part, dict | list) and part and (holder is None or rng.random() < 0.85):
            holder = part
            key = rng.choice(list(part)) if isinstance(part, dict) else rng.randrange(len(part))
            part = part[key]
        if rng.random() < 0.15:
            del holder[key]
        else:
            holder[key] = rng.choice(ODD_VALUES)
        yield copied


class Outcomes:
    """Counts what came of each file: anything but a result or a sentence is a failure."""

    def __init__(self) -> None:
        self.read = self.refused = 0

    def of(self, call, *arguments) -> None:
        started = time.monotonic()
        try:
            call(*arguments)
            self.read += 1
        except StreamRPNError as error:
            self.refused += 1
            sentence = str(error)
        else:
            sentence = ""
        assert "\n" not in sentence
        assert len(sentence) < 800
        assert time.monotonic() - started < LONGEST_SECONDS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "jpeg"}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("BMP", {}),
        ("GIF", {}),
        ("PPM", {}),
        ("TGA", {}),
        ("QOI", {}),
        ("JPEG2000", {}),
        ("AVIF", {}),
    ],
)
def test_pictures(kind: str, options: dict):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x112] = 7
    Image.fromarray(pixels).save(file, kind, exif=exif, **options)
    outcomes = Outcomes()
    for data in [b"", b"\xff\xd8", *mutated(file.getvalue())]:
        for reader in (decode, decode_rgb):
            outcomes.of(reader, data)
    assert outcomes.refused > 10


def test_annotations(tmp_path: Path):
    annotations, images = write_dataset(tmp_path, count=2)
    content = json.loads(annotations.read_text())
    outcomes = Outcomes()

    def read() -> None:
        dataset = CocoDataset(annotations, [images])
        for index in range(len(dataset)):
            sample = dataset[index]
            assert np.isfinite(sample.boxes).all()

    for changed in odd_values(content):
        annotations.write_text(json.dumps(changed))
        outcomes.of(read)
    for data in mutated(json.dumps(content).encode()):
        annotations.write_bytes(data)
        outcomes.of(read)
    assert outcomes.read > 10 < outcomes.refused


IMAGES = {image_id: Annotated(f"{image_id}.jpg", 64, 48) for image_id in (1, 2)}


def test_results_of_coco(tmp_path: Path):
    rows = [
        {"image_id": 1 + index % 2, "bbox": [1, 2, 3 + index, 4], "score": 0.5, "category_id": 1}
        for index in range(4)
    ]
    outcomes = Outcomes()
    path = tmp_path / "r.json"
    for changed in odd_values(rows):
        path.write_text(json.dumps(changed))
        outcomes.of(read_predictions, path, IMAGES)
    for data in mutated(json.dumps(rows).encode()):
        path.write_bytes(data)
        outcomes.of(read_predictions, path, IMAGES)
    assert outcomes.read > 10 < outcomes.refused


def test_proposals_of_detectron2(tmp_path: Path):
    content = {
        "ids": [1, 2],
        "boxes": [np.ones((3, 4), np.float32), np.ones((2, 4), np.float32)],
        "objectness_logits": [np.ones(3, np.float32), np.ones(2, np.float32)],
        "bbox_mode": 0,
    }
    outcomes = Outcomes()
    path = tmp_path / "r.pkl"
    for changed in odd_values(content):
        path.write_bytes(pickle.dumps(changed))
        outcomes.of(read_predictions, path, IMAGES)
    for data in mutated(pickle.dumps(content)):
        path.write_bytes(data)
        outcomes.of(read_predictions, path, IMAGES)
    assert outcomes.read > 10 < outcomes.refused


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_checkpoints(tmp_path: Path, suffix: str):
    from safetensors.torch import save_file

    path = tmp_path / f"weights.{suffix}"
    state = {f"backbone.{index}.weight": torch.ones(3, 4) for index in range(3)}
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state, "epoch": 3}, path)
    outcomes = Outcomes()
    for data in [b"", *mutated(path.read_bytes())]:
        path.write_bytes(data)
        outcomes.of(read_checkpoint, path)
    if suffix == "pth":
        for changed in odd_values({"model": state}):
            torch.save(changed, path)
            outcomes.of(read_checkpoint, path)
    assert outcomes.refused > 10
