"""A model for other runtimes: backbone and head as one graph, and a JSON file that tells the rest.

The graph goes from the network's input to the raw outputs of its head, for any size and number of
images. What is around it, a resize before and a handful of operations behind, the JSON file says in
numbers and in words: strides, anchors, normalisation, limits.
"""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stream_rpn
from stream_rpn import signals
from stream_rpn.frame import StreamRPNError

if TYPE_CHECKING:
    from torch import Tensor

    from stream_rpn.rpn import RPN

FORMAT = 1

# What ONNX Runtime, TensorRT and OpenVINO of the last years all read.
_OPSET = 17

_STEPS = [
    "Resize: scale = min(min_size / shorter side, max_size / longer side); each side becomes "
    "floor(side * scale), bilinear without aligned corners, antialiased where 'antialias' is true.",
    "Normalise RGB in [0, 1]: (value - mean) / std. Pad with zeros, right and below, to multiples "
    "of 'size_divisor'.",
    "Run the graph. 'objectness' is [batch, A, H, W]; where 'softmax' is true it is [batch, 2A, H, "
    "W], background and object of each anchor in turn, and the logit is object - background. "
    "'deltas' is [batch, 4A, H, W]: dx, dy, dw, dh of each anchor in turn.",
    "Anchor a of cell (y, x) is base_anchors[a] (x1, y1, x2, y2) moved by (x * stride[1], y * "
    "stride[0]), in pixels of the padded input. Where 'stride' is null it is, on each axis, the "
    "size of the padded input divided by that of the map, rounded down.",
    "On each level take the 'pre_nms_top_n' highest logits. Decode: the centre of the anchor moved "
    "by (dx * width, dy * height), its sides times exp(min(dw, log(1000 / 16))) and exp(min(dh, "
    "log(1000 / 16))).",
    "Clip boxes to the resized image without its padding. Leave out those with a side under "
    "'min_size' of 'proposals' and those whose score, sigmoid(logit), is under 'score_thresh'.",
    "Non-maximum suppression by 'nms_thresh' on each level by itself; of what all levels keep the "
    "'post_nms_top_n' best are the proposals. Divide by the scale of each axis (resized side / "
    "side) for pixels of the image.",
]


def export(rpn: RPN, path: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
    """Writes a model's backbone and head as one graph, and beside it a JSON file with the rest.

    The model stays as it is. Nothing stands under these names before all of it is whole.

    Args:
        rpn: the model; its limits and sizes are those that the JSON file tells.
        path: ends with ".onnx", or ".xml" for OpenVINO, whose weights go to ".bin" beside it.
        overwrite: whether files that exist may be replaced.

    Returns:
        The files: the graph, its weights where they are apart, the JSON file.

    Raises:
        StreamRPNError: the name ends otherwise, a file exists or cannot be written, a package is
            missing, or the layers cannot be exported.
    """
    path = Path(path)
    files = check_files(path, overwrite=overwrite)
    try:
        # Beside its place, so that it gets there by a rename.
        with signals.temporary_folder(f".{path.stem}-", within=path.parent) as folder:
            part = folder / path.name
            _WRITERS[path.suffix](rpn, part)
            description = json.dumps(describe(rpn, path.name), indent=1, ensure_ascii=False)
            Path(f"{part}.json").write_text(f"{description}\n", encoding="utf-8")
            # The graph last: who finds it finds the others.
            for file in reversed(files):
                os.replace(part.with_name(file.name), file)
    except OSError as error:
        raise StreamRPNError(
            f"{str(path)!r} cannot be written: {error.strerror or error}"
        ) from error
    return files


def check_files(path: Path, *, overwrite: bool) -> list[Path]:
    """Returns the files that `export` writes: the graph first, the JSON file last.

    Raises:
        StreamRPNError: the name ends otherwise than a graph's, its folder does not exist, a package
            is missing, or a file exists and may not be replaced.
    """
    if path.suffix not in _WRITERS:
        raise StreamRPNError(
            f"{str(path)!r} is no name of a graph; it must end with {' or '.join(_WRITERS)}"
        )
    if not os.path.isdir(path.parent):
        raise StreamRPNError(f"{str(path)!r} cannot be written: its folder does not exist")
    package, remedy = _PACKAGES[path.suffix]
    if find_spec(package) is None:
        raise StreamRPNError(f"{package} is not installed; `pip install {remedy}` provides it")
    weights = [path.with_suffix(".bin")] if path.suffix == ".xml" else []
    files = [path, *weights, Path(f"{path}.json")]
    for file in files:
        if os.path.exists(file) and not overwrite:
            raise StreamRPNError(f"{str(file)!r} exists; name another, or ask to overwrite it")
    return files


def describe(rpn: RPN, graph: str) -> dict[str, Any]:
    """Returns what the JSON file beside the graph of that name says."""
    strides = rpn.given_strides or [None] * rpn.num_levels
    return {
        "format": FORMAT,
        "stream_rpn": stream_rpn.__version__,
        "model": rpn.name,
        "trained": rpn.trained,
        "graph": graph,
        "input": {
            "name": "images",
            "shape": ["batch", 3, "height", "width"],
            "channels": "RGB",
            "range": [0, 1],
            **asdict(rpn.input_spec),
        },
        "levels": [
            {
                "objectness": f"objectness_{level}",
                "deltas": f"deltas_{level}",
                "stride": stride,
                "softmax": rpn.head.softmax,
                "base_anchors": base_anchors.tolist(),
            }
            for level, (stride, base_anchors) in enumerate(
                zip(strides, rpn.base_anchors, strict=True)
            )
        ],
        "proposals": asdict(rpn.proposal_spec),
        "steps": _STEPS,
    }


def _output_names(num_levels: int) -> list[str]:
    return [f"{kind}_{level}" for kind in ("objectness", "deltas") for level in range(num_levels)]


def _write_onnx(rpn: RPN, path: Path) -> None:
    import torch

    from stream_rpn.rpn import Layers

    layers = Layers(copy.deepcopy(rpn).to("cpu", torch.float32)).eval().requires_grad_(False)
    outputs = _output_names(rpn.num_levels)
    axes = {"images": {0: "batch", 2: "height", 3: "width"}}
    for name in outputs:
        level = name.rpartition("_")[2]
        axes[name] = {0: "batch", 2: f"height_{level}", 3: f"width_{level}"}
    side = rpn.input_spec.size_divisor
    sizes = [(side * -(-h // side), side * -(-w // side)) for h, w in ((128, 192), (224, 160))]
    first, second = torch.rand(2, 3, *sizes[0]), torch.rand(1, 3, *sizes[1])
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            # That it traces, as for OpenVINO: torch's other exporter takes ten times as long, and
            # does not take every model. And of numbers that become constants: whether one did is
            # tried out below.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                layers,
                (first,),
                str(path),
                dynamo=False,
                input_names=["images"],
                output_names=outputs,
                dynamic_axes=axes,
                opset_version=_OPSET,
            )
            expected = layers(second)
    except OSError:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise StreamRPNError(f"{rpn.name} cannot be exported to ONNX: {reason}") from error
    if find_spec("openvino") is not None:
        from stream_rpn.network.openvino import core

        compiled = core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        _check(rpn.name, expected, list(compiled([second.numpy()]).values()))


def _check(name: str, expected: Sequence[Tensor], found: Sequence[Any]) -> None:
    """Holds what the graph computes to what the layers do, on pictures of another size."""
    for ours, theirs in zip(expected, found, strict=True):
        # Far above what rounding does, far below what a wrong constant does.
        limit = 1e-2 * max(float(ours.abs().max()), 1e-3)
        if theirs.shape != tuple(ours.shape) or abs(theirs - ours.numpy()).max() > limit:
            raise StreamRPNError(
                f"{name} cannot be exported: as a graph, its layers compute something else on "
                "pictures of other sizes; they depend on more than the values of their input"
            )


def _write_openvino(rpn: RPN, path: Path) -> None:
    import openvino

    from stream_rpn.network.converted import Converted, UnconvertibleError

    try:
        heads = Converted.of(rpn).heads.clone()
        for result in heads.get_results()[2 * rpn.num_levels :]:
            heads.remove_result(result)  # the maps
    except UnconvertibleError as error:
        raise StreamRPNError(f"{rpn.name} cannot be exported to OpenVINO: {error}") from error
    heads.reshape([-1, 3, -1, -1])
    heads.inputs[0].get_tensor().set_names({"images"})
    for output, name in zip(heads.outputs, _output_names(rpn.num_levels), strict=True):
        output.get_tensor().set_names({name})
    try:
        openvino.save_model(heads, path, compress_to_fp16=False)
    except RuntimeError as error:
        # It does not know why: a stream of C++ only knows that it failed.
        why = " ".join(str(error).split())[:200]
        raise OSError(f"perhaps the disk is full ({why})") from error


_PACKAGES = {".onnx": ("onnx", "'stream-rpn[export]'"), ".xml": ("openvino", "openvino")}

_WRITERS = {".onnx": _write_onnx, ".xml": _write_openvino}
