"""Makes the default model's graph in int8, for the package: python -m bench.quantise --data DIR.

DIR holds coco/annotations_train.json with coco/train-*.tar. What the layers see of some of these
pictures settles the ranges of int8 (NNCF's quantisation after training); the pictures that recall
is measured on are not among them. After a change of the default model's weights it is due again,
after `python -m bench.graph`: a test says so.
"""

import argparse
import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset15 as op

from stream_rpn import yuv
from stream_rpn.evaluation.coco import CocoDataset
from stream_rpn.input_spec import padded_size, resized_size
from stream_rpn.models import DEFAULT_MODEL, graphs
from stream_rpn.models.provenance import Weights
from stream_rpn.network.openvino import core
from stream_rpn.network.openvino_stage import colored
from stream_rpn.sources.given import Given


def inputs(dataset, indices, spec):
    """Yields pictures [1, 3, H, W] float32 as the layers see them, by the engine's operators."""
    planes = op.parameter([1, 3, -1, -1], np.uint8)
    matrix, size = op.parameter([3, 4], np.float32), op.parameter([2], np.float32)
    graph = ov.Model([op.result(colored(planes, matrix, size, spec))], [planes, matrix, size], "")
    seen = core().compile_model(graph, "CPU")
    pixels = Given(str(dataset.path), (dataset[index].image for index in indices))
    with pixels.open() as frames:
        for frame in frames:
            shape = resized_size(frame.height, frame.width, spec.min_size, spec.max_size)
            out = np.zeros((1, 3, *padded_size(shape, spec.size_divisor)), np.uint8)
            by = yuv.shrink(frame, shape, out[0])
            yield seen([out, np.float32(by), np.float32(shape)])[0].copy()


def save(model, path):
    """Writes a graph without what is for people: names and blanks are a quarter of its file."""
    for number, node in enumerate(model.heads.get_ordered_ops()):
        node.set_friendly_name(str(number))
    model.save(path, half=True)
    path.write_text(re.sub(r">\s+<", "><", path.read_text()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=100, help="to settle the ranges by (100)")
    arguments = parser.parse_args()
    folder = arguments.data / "coco"
    annotations = folder / "annotations_train.json"
    if not annotations.is_file():
        sys.exit(f"bench.quantise: there is no {annotations}; --data names the folder of coco/")
    if importlib.util.find_spec("nncf") is None:
        sys.exit("bench.quantise: NNCF, which quantises, is not installed: pip install nncf")
    import nncf

    model = graphs.find(DEFAULT_MODEL)
    dataset = CocoDataset(annotations, sorted(folder.glob("train-*.tar")), cache_bytes=0)
    step = max(len(dataset) // arguments.pictures, 1)
    chosen = range(0, len(dataset), step)[: arguments.pictures]
    calibration = list(inputs(dataset, chosen, model.input_spec))
    heads = nncf.quantize(
        model.heads,
        nncf.Dataset(calibration),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(calibration),
        # In float32, which costs no time: what reads the stem's map, whose one range for all its
        # channels loses most, and what becomes of the last convolutions' output.
        ignored_scope=nncf.IgnoredScope(
            patterns=[
                r".*\.body\.stage2\.0\.branch[12]\.0/.*onvolution",
                r".*\.rpn\.head/.*",
            ]
        ),
        # Weights over channels in 7 bits: without VNNI two products are added in 16 bits.
        # Biases as they are: what suits the means of these pictures loses on unlike ones.
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.ENABLE, disable_bias_correction=True
        ),
    )
    made_of = Weights.of(DEFAULT_MODEL).sha256
    path = graphs.int8_file(DEFAULT_MODEL)
    save(replace(model, heads=heads, quantised=made_of), path)
    print(f"{path}: {path.stat().st_size + path.with_suffix('.bin').stat().st_size} bytes")


if __name__ == "__main__":
    main()
