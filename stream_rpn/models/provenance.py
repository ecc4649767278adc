"""Which weights a model has, told without loading them: what a result file says of its making."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stream_rpn import models

RANDOM = "random"


@dataclass(frozen=True, slots=True)
class Weights:
    """Where weights came from.

    Attributes:
        file: the name of the file; of torchvision's that of the enum's member; "random".
        sha256: of the file's bytes, None where no file could be read.
    """

    file: str
    sha256: str | None

    @classmethod
    def of(cls, model: str, weights: str | os.PathLike[str] | None = None) -> Weights | None:
        """Returns the weights that `stream_rpn.load` takes; None where it has none of its own.

        Args:
            model: as `stream_rpn.load` takes it.
            weights: as `stream_rpn.load` takes them.
        """
        source = model if weights is None else os.fspath(weights)
        path = weights_file(source)
        if path is not None:
            with suppress(OSError), open(path, "rb") as file:
                return cls(path.name, hashlib.file_digest(file, "sha256").hexdigest())
        if source in models.MODELS:
            source = models.MODELS[source].weights
        return cls(source, None) if source else None


def weights_file(source: str) -> Path | None:
    """Returns the file of weights that a name stands for, None where none lies here.

    Those of torchvision are where torch keeps what it fetched.

    Args:
        source: a model of the table or a file.
    """
    if source not in models.MODELS:
        path = Path(source)
    else:
        source = models.MODELS[source].weights
        ours = source.endswith(".safetensors")
        path = Path(models.__file__).parent / source if ours else _fetched(source)
    return path if os.path.isfile(path) else None


def _fetched(name: str) -> Path:
    import torch
    from torchvision.models import get_weight

    url: str = get_weight(name).url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
