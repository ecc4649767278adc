"""The first run on a GPU tries the kernels there, once for each kind of launch."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

import stream_rpn
from stream_rpn.cache import cache_folder
from stream_rpn.kernels import dispatch, trial
from stream_rpn.network.cudnn import is_depthwise
from stream_rpn.rpn import RPN

_KERNELS = Path(trial.__file__).parent


def try_kernels(rpn: RPN, device: torch.device, dtype: torch.dtype) -> None:
    """Holds the kernels that `rpn` needs to their references, unless that was done before.

    Where they differ, one RuntimeWarning says so and the reference serves in this process. What
    passed is remembered in the cache folder, by GPU, driver, versions and the kernels' code.

    Args:
        rpn: the model: its levels, anchors and limits are what is tried.
        device: where it runs; nothing is tried without CUDA or Triton.
        dtype: of its outputs.
    """
    if device.type != "cuda" or find_spec("triton") is None:
        return
    folder = cache_folder()
    passed = folder / f"kernels-{_digest(rpn, device, dtype)}.passed" if folder else None
    if passed is not None and passed.is_file():
        return
    given = rpn.proposal_spec
    spec = replace(given, pre_nms_top_n=min(given.pre_nms_top_n, trial.MOST_CANDIDATES))
    heads = trial.hard_heads(
        [len(base) for base in rpn.base_anchors],
        spec.pre_nms_top_n,
        dtype,
        softmax=rpn.head.softmax,
    )
    differences = [
        *trial.proposals_differ(heads, spec, device),
        *trial.preprocessing_differs(dtype, device, antialias=rpn.input_spec.antialias),
        *trial.passes_differ(dtype, device),
        *trial.depthwise_differs(_depthwise_sides(rpn), dtype, device),
    ]
    for op, result in differences:
        dispatch.distrust(op, device, result)
    if passed is not None and not differences:
        with suppress(OSError):
            passed.touch()


def _depthwise_sides(rpn: RPN) -> list[int]:
    convolutions = [layer for layer in rpn.modules() if isinstance(layer, nn.Conv2d)]
    return sorted({conv.kernel_size[0] for conv in convolutions if is_depthwise(conv)})


def _digest(rpn: RPN, device: torch.device, dtype: torch.dtype) -> str:
    driver = Path("/proc/driver/nvidia/version")
    facts = (
        torch.cuda.get_device_name(device),
        driver.read_text() if driver.is_file() else torch.version.cuda,
        torch.__version__,
        metadata.version("triton"),
        stream_rpn.__version__,
        [len(base) for base in rpn.base_anchors],
        rpn.head.softmax,
        rpn.proposal_spec,
        rpn.input_spec.antialias,
        _depthwise_sides(rpn),
        dtype,
    )
    digest = hashlib.sha256(repr(facts).encode())
    for path in sorted(_KERNELS.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:20]
