"""Weights: reading them from our files and torchvision's, and writing ours.

Ours are safetensors with the keys `backbone.…` and `head.…` and the model's name as metadata. Those
of any torchvision FasterRCNN, MaskRCNN or KeypointRCNN load as they are: `rpn.head.…` is our head,
and everything behind the proposals (`roi_heads.…`) is left aside, as are the names that wrappers
(DataParallel, torch.compile, Lightning) put in front. detectron2's R50-FPN are renamed. Pickles are
only ever read with `weights_only=True`, or as arrays alone.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from numpy._core import multiarray
from torch import Tensor, nn

from stream_rpn import models, signals
from stream_rpn.frame import StreamRPNError
from stream_rpn.limits import check_unpacked
from stream_rpn.models.detectron2_fpn import from_detectron2, is_detectron2
from stream_rpn.pickles import read_arrays
from stream_rpn.rpn import RPN, fold_batch_norms

# Under which training scripts keep the weights beside an optimizer and the like.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights", "checkpoint")

# DataParallel, AveragedModel and torch.compile name what they wrap, at any depth.
_WRAPPED = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod)\.")
_BACKBONE = re.compile(r"(?:(?<=\.)|^)backbone\.")

# What training scripts, torchvision's own among them, keep beside weights: nothing that can act.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    *(
        (getattr(multiarray, name), f"{module}.multiarray.{name}")
        for module in ("numpy.core", "numpy._core")  # of numpy 1 and 2
        for name in ("scalar", "_reconstruct")
    ),
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd"),
]


def load_model(
    model: str = models.DEFAULT_MODEL, weights: str | Path | None = None, *, fold: bool = True
) -> RPN:
    """Returns a model of the table with its weights, in eval mode.

    Args:
        model: a name of the table, or a checkpoint file, whose architecture is then found by the
            names and shapes of its tensors (or, in our own files, by the name they carry).
        weights: a checkpoint file instead of the model's own weights; "random" for seeded random
            ones, with which proposals mean nothing but speed can be measured. A model that has no
            weights of its own gets these, too.
        fold: fold the batch norms into the convolutions (same results up to rounding, faster).

    Raises:
        StreamRPNError: unknown model, unreadable file, tensors that do not fit, NaN among them, or
            weights that must be fetched while offline.
    """
    with _one_thread():
        rpn = _load_model(str(model), weights)
        return fold_batch_norms(rpn) if fold else rpn  # type: ignore[return-value]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limits torch to one thread: on weights, threads would wait longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _load_model(model: str, weights: str | Path | None) -> RPN:
    models.check(model, weights)
    if models.is_checkpoint(model):
        state, metadata = read_checkpoint(model)
        name = metadata.get("model") or _recognise(state, model)
        rpn = models.find(name).build()
        _load(rpn, state, model)
    else:
        name = model
        entry = models.find(name)
        rpn = entry.build()
        if str(weights) == "random":
            _randomise(rpn)
            rpn.trained = False
        elif weights is not None:
            _load(rpn, read_checkpoint(weights)[0], weights)
        else:
            _load_own_weights(rpn, name, entry)
    rpn.name = name
    return rpn.eval()


def save_weights(rpn: nn.Module, path: str | Path, *, model: str, half: bool = False) -> None:
    """Writes the weights of an RPN as safetensors, with the name of its architecture.

    Args:
        rpn: the network.
        path: the file.
        model: a name of the table.
        half: round to float16, for half the size.
    """
    from safetensors.torch import save

    dtype = torch.float16 if half else None
    state = {
        name: tensor.to("cpu", dtype).contiguous() for name, tensor in rpn.state_dict().items()
    }
    # Not by `save_file`: nobody else may read its files, and they are there before they are whole.
    with signals.replaced(Path(path)) as beside:
        beside.write_bytes(save(state, metadata={"model": model}))


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a checkpoint file under our key names, and its metadata.

    Raises:
        StreamRPNError: missing, cut off, no checkpoint, or a pickle that holds more than tensors.
    """
    path = Path(path)
    models.check_file(path)
    metadata: dict[str, str] = {}
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            state = _unpickled(path)
    except StreamRPNError:
        raise
    except pickle.UnpicklingError as error:
        raise StreamRPNError(
            f"the checkpoint '{path}' holds more than tensors (or is damaged); only files that "
            "torch.load reads with weights_only=True are accepted, such as one of the model's "
            "state_dict() alone"
        ) from error
    except Exception as error:
        raise StreamRPNError(
            f"the checkpoint '{path}' cannot be read: it is cut off, damaged or no checkpoint "
            f"({_one_line(error)})"
        ) from error
    tensors = _tensors(state, path)
    if is_detectron2(tensors):
        return from_detectron2(tensors), {"model": "resnet50_fpn_detectron2"}
    return tensors, metadata


def _unpickled(path: Path) -> Any:
    if path.suffix == ".pkl" and not zipfile.is_zipfile(path):
        # Not torch's: detectron2's model zoo has plain pickles of arrays.
        return read_arrays(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_unpacked(sum(item.file_size for item in archive.infolist()), path)
    with torch.serialization.safe_globals(_HARMLESS):
        return torch.load(path, map_location="cpu", weights_only=True)


def _tensors(state: Any, path: Path) -> dict[str, Tensor]:
    """Returns the tensors of what a file holds, under our names."""
    for _ in _WRAPPERS:
        inner = [state[w] for w in _WRAPPERS if isinstance(state, Mapping) and w in state]
        state = next((table for table in inner if isinstance(table, Mapping)), state)
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor | np.ndarray)
        for name, value in state.items()
    ):
        raise StreamRPNError(f"the checkpoint '{path}' holds no table of named tensors")
    return {
        name: _plain(value, name, path) for name, value in _unwrapped(state, path) if _is_ours(name)
    }


def _unwrapped(state: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Any]]:
    """Yields names and values as a detector of its own has them, whatever it was part of."""
    named = [(_WRAPPED.sub("", name), value) for name, value in state.items()]
    fronts = {
        name[: found.start()] for name, _ in named if (found := _BACKBONE.search(name)) is not None
    }
    if len(fronts) > 1:
        raise StreamRPNError(
            f"the checkpoint '{path}' holds several networks, of names that begin with "
            f"{' and '.join(map(repr, sorted(fronts)))}; save the state_dict() of one alone"
        )
    # Beside a detector that is part of something larger stands what is not the detector's.
    front = next(iter(fronts), "")
    for name, value in named:
        if name.startswith(front):
            yield _our_key(name.removeprefix(front)), value


def _plain(value: Tensor | np.ndarray, name: str, path: Path) -> Tensor:
    """Returns a dense tensor of real numbers, or refuses what is none."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise StreamRPNError(f"the checkpoint '{path}' holds no numbers in '{name}'")
        return torch.from_numpy(np.array(value))
    kinds = {
        "without values (of the device meta)": value.is_meta,
        "quantised": value.is_quantized,
        "complex": value.is_complex(),
        "sparse or nested": value.is_nested or value.layout != torch.strided,
    }
    for kind, is_it in kinds.items():
        if is_it:
            raise StreamRPNError(
                f"the checkpoint '{path}' has '{name}' {kind}; only dense tensors of real numbers "
                "are accepted"
            )
    return value


def _is_ours(key: str) -> bool:
    others = ("num_batches_tracked", "n_averaged")  # the second is AveragedModel's
    return not key.startswith("roi_heads.") and not key.endswith(others)


def _our_key(key: str) -> str:
    key = key.removeprefix("rpn.")
    for name in ("weight", "bias"):
        # torchvision before 0.13 had one convolution and no Sequential around it.
        if key == f"head.conv.{name}":
            return f"head.conv.0.0.{name}"
    return key


def _load(rpn: RPN, state: Mapping[str, Tensor], path: str | Path) -> None:
    wanted = {name: t for name, t in rpn.state_dict().items() if _is_ours(name)}
    missing = sorted(wanted.keys() - state.keys())
    surplus = sorted(state.keys() - wanted.keys())
    if missing or surplus:
        example = f"it lacks '{missing[0]}'" if missing else f"it has '{surplus[0]}' besides"
        raise StreamRPNError(
            f"the checkpoint '{path}' is of another architecture: {example} "
            f"({len(missing)} tensors missing, {len(surplus)} unknown)"
        )
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise StreamRPNError(
                f"the checkpoint '{path}' is of another architecture: '{name}' is "
                f"{list(tensor.shape)}, expected {list(wanted[name].shape)}"
            )
    state = {name: tensor.float() for name, tensor in state.items()}
    # All at once: over a hundred small operations would take as long as half the start-up.
    if not torch.cat([tensor.flatten() for tensor in state.values()]).isfinite().all():
        bad = next(name for name, tensor in state.items() if not tensor.isfinite().all())
        raise StreamRPNError(f"the checkpoint '{path}' holds NaN or infinity in '{bad}'")
    rpn.load_state_dict(state, strict=False)


def layout(state: Mapping[str, Tensor]) -> str:
    """Returns a short digest of the names and shapes of a model's tensors, whatever their values.

    Equal ones are of one architecture, so that none need be built to be compared with.
    """
    lines = [f"{name} {list(t.shape)}\n" for name, t in sorted(state.items()) if _is_ours(name)]
    return hashlib.sha256("".join(lines).encode(errors="surrogatepass")).hexdigest()[:12]


def _recognise(state: Mapping[str, Tensor], path: str) -> str:
    """Returns the one model of the table whose tensors have these names and shapes.

    Models that differ in other things alone (input size, anchors of equal number, the limits of
    proposals) look the same here: a file that several fit needs its architecture said.

    Raises:
        StreamRPNError: none fits, or several do.
    """
    found = layout(state)
    fitting = [name for name, entry in models.MODELS.items() if entry.layout == found]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise StreamRPNError(
            f"the checkpoint '{path}' fits {' and '.join(fitting)}; say which with "
            f"--model NAME --weights {path}"
        )
    raise StreamRPNError(
        f"the checkpoint '{path}' fits no model of the table ({', '.join(models.MODELS)})"
    )


def _load_own_weights(rpn: RPN, name: str, entry: models.ModelEntry) -> None:
    if not entry.weights:
        rpn.trained = False
        _randomise(rpn)
        return
    if entry.weights.endswith(".safetensors"):
        with resources.as_file(resources.files(models) / entry.weights) as path:
            _load(rpn, read_checkpoint(path)[0], path)
        return
    from torchvision.models import get_weight

    try:
        # torch announces downloads on standard output, where results may go.
        with redirect_stdout(sys.stderr):
            state = get_weight(entry.weights).get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise StreamRPNError(
            f"the weights of '{name}' ({entry.megabytes:.0f} MB) could not be fetched "
            f"({_one_line(error)}); connect to the internet once, give a checkpoint with --weights "
            "FILE, or measure speed only with --weights random"
        ) from error
    if entry.backbone_only:
        rpn.trained = False
        _randomise(rpn)
        rpn.backbone.load_state_dict(
            {
                key.removeprefix("features."): tensor
                for key, tensor in state.items()
                if key.startswith("features.")
            }
        )
        return
    _load(rpn, {_our_key(key): t for key, t in state.items() if _is_ours(key)}, entry.weights)
    if entry.weights == "FasterRCNN_ResNet50_FPN_Weights.COCO_V1":
        # These weights were converted from a network whose batch norms had no epsilon.
        for layer in rpn.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eps = 0.0


def _randomise(rpn: RPN) -> None:
    """Gives an RPN seeded random weights whose scores vary from anchor to anchor."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    for layer in rpn.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in rpn.head.predictors():
        nn.init.normal_(layer.weight, std=0.01)
    torch.set_rng_state(state)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "…"
