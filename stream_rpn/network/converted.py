"""Models of torch as OpenVINO's graphs, with all that is known of them, in one file each.

A graph goes from the network's input to the raw outputs of its head, for any size of the input.
Whoever has the file needs neither torch nor the model's code.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import openvino as ov

from stream_rpn import signals
from stream_rpn.embedding import Embedding, input_side
from stream_rpn.input_spec import InputSpec
from stream_rpn.kernels.proposals import ProposalSpec
from stream_rpn.model import Model
from stream_rpn.network.openvino_stage import Level

if TYPE_CHECKING:
    from stream_rpn.rpn import RPN

# Of the record in the file; a file of another format is made anew.
FORMAT = 2
_RECORD = ["stream_rpn"]


class UnconvertibleError(Exception):
    """A model that OpenVINO cannot take over, or not without changing what it computes."""


@dataclass(kw_only=True)
class Converted(Model):
    """A model as OpenVINO has it.

    Attributes:
        heads: from images [1, 3, H, W] float32 to the objectness of each level, then its deltas,
            then its map.
        levels: what decoding needs to know of each.
        name: as in `Model`.
        trained: as in `Model`.
        input_spec: as in `Model`.
        proposal_spec: as in `Model`.
        quantised: as in `Model`.
    """

    heads: ov.Model
    levels: tuple[Level, ...]
    name: str
    trained: bool
    input_spec: InputSpec
    proposal_spec: ProposalSpec
    quantised: str | None = None

    def __post_init__(self) -> None:
        self.num_levels = len(self.levels)

    @classmethod
    def of(cls, rpn: RPN) -> Converted:
        """Returns an RPN converted, which stays as it is; it takes seconds.

        Raises:
            UnconvertibleError: its layers cannot be, or compute something else afterwards.
        """
        return cls(
            heads=_heads(rpn),
            levels=levels_of(rpn),
            name=rpn.name,
            trained=rpn.trained,
            input_spec=rpn.input_spec,
            proposal_spec=rpn.proposal_spec,
        )

    def embedding(self) -> Embedding:
        """Returns how boxes are pooled from its maps."""
        heads = self.heads.clone()
        side = input_side(self.input_spec.size_divisor)
        heads.reshape([1, 3, side, side])
        maps = [output.shape for output in heads.outputs[2 * len(self.levels) :]]
        strides = [
            level.stride or (side // shape[2], side // shape[3])
            for level, shape in zip(self.levels, maps, strict=True)
        ]
        return Embedding.choose(strides, [shape[1] for shape in maps])

    @classmethod
    def read(cls, path: Path) -> Converted | None:
        """Returns what `save` wrote; None where it is not there, damaged or of another format."""
        if not path.is_file():
            return None
        from stream_rpn.network.openvino import core

        try:
            heads = core().read_model(path)
            record = json.loads(heads.get_rt_info(_RECORD).astype(str))
            if record.pop("format") != FORMAT or record.pop("weights") != _digest(path):
                return None
            levels = tuple(
                Level(
                    None if level["stride"] is None else tuple(level["stride"]),
                    np.array(level["base_anchors"], np.float32),
                    level["softmax"],
                )
                for level in record.pop("levels")
            )
            input_spec = record.pop("input")
            for name in ("mean", "std"):
                input_spec[name] = tuple(input_spec[name])
            return cls(
                heads=heads,
                levels=levels,
                input_spec=InputSpec(**input_spec),
                proposal_spec=ProposalSpec(**record.pop("proposals")),
                **record,
            )
        except (RuntimeError, OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def save(self, path: Path, *, half: bool = False) -> None:
        """Writes `path` and its neighbour with the weights, each whole or not at all.

        Args:
            path: ends with ".xml".
            half: round weights to float16, for half the size.

        Raises:
            OSError: they cannot be written.
        """
        record = {
            "format": FORMAT,
            "name": self.name,
            "trained": self.trained,
            "input": asdict(self.input_spec),
            "proposals": asdict(self.proposal_spec),
            "quantised": self.quantised,
            "levels": [
                {**asdict(level), "base_anchors": level.base_anchors.tolist()}
                for level in self.levels
            ],
        }
        heads = self.heads.clone()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.stem}.{os.getpid()}.xml")
        with signals.undone(part, part.with_suffix(".bin")):
            try:
                # Twice: the record tells what the weights of the first are.
                ov.save_model(heads, part, compress_to_fp16=half)
                heads.set_rt_info(json.dumps({**record, "weights": _digest(part)}), _RECORD)
                ov.save_model(heads, part, compress_to_fp16=half)
            except RuntimeError as error:
                raise OSError(str(error)) from error
            # The graph last: a reader that finds it finds its weights.
            os.replace(part.with_suffix(".bin"), path.with_suffix(".bin"))
            os.replace(part, path)


# Of RPNs that are used again and again: by the backbone, which one with other limits shares. What
# could not be converted is known as well.
_known: WeakKeyDictionary[Any, tuple[bytes, ov.Model | UnconvertibleError]] = WeakKeyDictionary()


def _heads(rpn: RPN) -> ov.Model:
    from stream_rpn.rpn import RPN

    if type(rpn) is not RPN or any(m._forward_hooks for m in rpn.modules()):
        raise UnconvertibleError("it is a subclass of RPN or has hooks, which may do anything")
    now = _fingerprint(rpn)
    before, heads = _known.get(rpn.backbone, (b"", None))
    if before != now or heads is None:
        try:
            heads = _convert(rpn)
        except UnconvertibleError as error:
            heads = error
        _known[rpn.backbone] = (now, heads)
    if isinstance(heads, UnconvertibleError):
        raise heads
    return heads


def _fingerprint(rpn: RPN) -> bytes:
    """Returns a digest of all that conversion sees: weights, and the settings of layers."""
    digest = hashlib.sha256(repr(rpn).encode())
    for module in rpn.modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str)}
        del plain["training"]  # what is converted is a copy in eval mode
        digest.update(repr(sorted(plain.items())).encode())
    for tensor in (*rpn.parameters(), *rpn.buffers()):
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.digest()


def levels_of(rpn: RPN) -> tuple[Level, ...]:
    """Returns what decoding needs to know of each level of an RPN."""
    strides = rpn.given_strides or [None] * rpn.num_levels
    return tuple(
        Level(stride, base.cpu().numpy(), rpn.head.softmax)
        for stride, base in zip(strides, rpn.base_anchors, strict=True)
    )


def _convert(rpn: RPN) -> ov.Model:
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    from stream_rpn.network.openvino import core
    from stream_rpn.rpn import Layers

    # The graph holds the memory of the weights, which their owner may go on training.
    rpn = copy.deepcopy(rpn).to("cpu", torch.float32)
    layers = Layers(rpn, maps=True).eval()
    side = rpn.input_spec.size_divisor
    sizes = [(side * -(-h // side), side * -(-w // side)) for h, w in ((128, 192), (224, 160))]
    first, second = (torch.rand(1, 3, *size) for size in sizes)
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            # Tracing warns of numbers that become constants; whether one did is tried out below.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(layers, first, check_trace=False)  # type: ignore[no-untyped-call]
        # Not `openvino.convert_model`, which would send statistics of its use.
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced)  # the frontend does not keep it alive
        heads = frontend.convert(frontend.load(decoder))
        # What reading a graph and compiling it would otherwise do at every start.
        with suppress(ImportError):
            from openvino._offline_transformations import apply_moc_transformations

            apply_moc_transformations(heads, cf=False)
        heads.reshape([1, 3, -1, -1])
        with torch.inference_mode():
            expected = layers(second)
        found = core().compile_model(heads, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(
            [second.numpy()]
        )
    except Exception as error:
        raise UnconvertibleError(f"OpenVINO cannot take over the layers ({error})") from error
    for ours, theirs in zip(expected, found.values(), strict=True):
        # Far above what rounding does, far below what a wrong constant does.
        limit = 1e-2 * max(float(ours.abs().max()), 1e-3)
        if theirs.shape != ours.shape or np.abs(theirs - ours.numpy()).max() > limit:
            raise UnconvertibleError(
                "converted for OpenVINO, its layers compute something else on pictures of other "
                "sizes; they depend on more than the values of their input"
            )
    return heads


def _digest(path: Path) -> str:
    """Returns a digest of the weights beside a graph."""
    with path.with_suffix(".bin").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
