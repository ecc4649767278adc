"""Converted models that are there already: one ships with the package, others lie in a cache.

A model is converted at its first use, which takes seconds and needs torch; from then on its graph
is read, which takes a twentieth and needs none. A graph in the cache is found by everything that it
was made of: weights, code, and the version of OpenVINO.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

import stream_rpn
from stream_rpn import models
from stream_rpn.cache import cache_folder
from stream_rpn.engines import INT8, prefers_int8
from stream_rpn.frame import StreamRPNError
from stream_rpn.models.provenance import Weights
from stream_rpn.network.converted import Converted

PACKAGE = Path(stream_rpn.__file__).parent


def find(model: str, weights: str | None = None) -> Converted | None:
    """Returns the graph of a model; None where it has not been made yet.

    Args:
        model: as `stream_rpn.load` takes it.
        weights: as `stream_rpn.load` takes them.
    """
    shipped = PACKAGE / "models" / f"{model}.xml"
    if weights is None and model in models.MODELS and shipped.is_file():
        converted = Converted.read(shipped)
        if converted is not None:
            return converted
    path = _cached(model, weights)
    return None if path is None else Converted.read(path)


def in_int8(model: str, weights: str | None, dtype: str) -> Converted | None:
    """Returns the graph in int8 that ships for a model, where it is what computes it here.

    Args:
        model: as `stream_rpn.load` takes it.
        weights: as `stream_rpn.load` takes them.
        dtype: "int8"; or "auto", which prefers it on some processors.

    Raises:
        StreamRPNError: int8 is asked for, and there is none of this model.
    """
    if dtype == INT8:
        models.check_int8(model, weights)
        found = find_int8(model)
        if found is None:
            raise StreamRPNError(
                f"the int8 graph that ships for {model} is damaged, or not of the weights that do; "
                "install stream-rpn anew (in a checkout: python -m bench.quantise)"
            )
        return found
    own = model in models.IN_INT8 and weights is None
    return find_int8(model) if own and dtype == "auto" and prefers_int8() else None


def find_int8(model: str) -> Converted | None:
    """Returns the graph in int8 that ships for a model; None where none is of its weights.

    Args:
        model: a name of the table.
    """
    found = Converted.read(int8_file(model))
    weights = Weights.of(model)
    if found is None or weights is None or found.quantised != weights.sha256:
        return None
    return found


def int8_file(model: str) -> Path:
    """Returns where the graph in int8 of a model of the table ships, or would."""
    return PACKAGE / "models" / f"{model}.int8.xml"


def keep(converted: Converted, model: str, weights: str | None = None) -> None:
    """Keeps a graph for `find`, where that is possible."""
    path = _cached(model, weights)
    if path is not None:
        with suppress(OSError):
            converted.save(path)


def _cached(model: str, weights: str | None) -> Path | None:
    """Returns where the graph lies or would lie; None for one that is not kept."""
    folder = cache_folder()
    source = model if weights is None else weights
    if folder is None or source == "random":
        return None
    named = model in models.MODELS
    if source in models.MODELS:
        source = models.MODELS[source].weights
        if source.endswith(".safetensors"):
            source = str(PACKAGE / "models" / source)
    digest = hashlib.sha256(_code())
    digest.update(model.encode() if named else b"")
    if os.path.isfile(source):
        try:
            with open(source, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError:
            return None
    elif named and weights is None and not source.endswith(".safetensors"):
        # Of torchvision, which checks what it fetches.
        digest.update(f"{source} {metadata.version('torchvision')}".encode())
    else:
        return None
    name = model if named else Path(model).stem
    return folder / f"{name}-{digest.hexdigest()[:20]}.xml"


@cache
def _code() -> bytes:
    """Returns a digest of the code that makes graphs, and of the version of OpenVINO."""
    versions = [metadata.version("openvino"), metadata.version("torch"), stream_rpn.__version__]
    digest = hashlib.sha256(" ".join(versions).encode())
    names = (
        "rpn.py",
        "anchors.py",
        "input_spec.py",
        "kernels/proposals.py",
        "network/converted.py",
    )
    made_by = [PACKAGE / name for name in names]
    for path in (*made_by, *sorted(PACKAGE.glob("models/*.py"))):
        digest.update(path.read_bytes())
    return digest.digest()
