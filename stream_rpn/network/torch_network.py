"""What the network's two forms in PyTorch share: the model and the way of its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stream_rpn.embedding import Embedding
from stream_rpn.frame import Frame, Proposals
from stream_rpn.input_spec import frame_boxes
from stream_rpn.kernels.proposals import ProposalBatch
from stream_rpn.network.network import Network
from stream_rpn.rpn import RPN


class Output(NamedTuple):
    """The network's results for a batch.

    Attributes:
        kept: the proposals, on the device.
        maps: feature maps [B, C, H, W] by name, if they are wanted.
        strides: per level (y, x) input pixels per cell.
        embeddings: [B, K, D] float16 of the proposals, on the device, if they are wanted.
    """

    kept: ProposalBatch
    maps: dict[str, Tensor]
    strides: tuple[tuple[int, int], ...]
    embeddings: Tensor | None = None

    @property
    def wanted(self) -> tuple[Tensor, ...]:
        """What the host is to have: the proposals, and their embeddings where there are any."""
        return (*self.kept, *(() if self.embeddings is None else (self.embeddings,)))


class TorchNetwork(Network):
    """A model on its device.

    Args:
        rpn: the model, on `device` in `dtype`.
        device: where it is.
        dtype: of its input.
        batch: frames per call; shorter batches are padded.
        features: attach the feature maps to the results.
        images: keep the decoded frame in the results.
        embedding: how boxes become vectors, None where they do not.
    """

    def __init__(
        self,
        rpn: RPN,
        device: torch.device,
        dtype: torch.dtype,
        batch: int,
        *,
        features: bool,
        images: bool,
        embedding: Embedding | None = None,
    ) -> None:
        self.rpn = rpn
        # The layers that compute the maps and the head's outputs.
        self._layers = rpn
        self.device = device
        self.dtype = dtype
        self.batch = batch
        self.features = features
        self.images = images
        self.embedding = embedding

    def _run(self, images: Tensor, image_sizes: Tensor, mark: Callable[[str], None]) -> Output:
        """Runs the network; `mark` is called with a stage's name after it."""
        rpn = self.rpn
        maps = self._layers.features(images)
        mark("backbone")
        objectness, deltas = self._layers.head(list(maps.values()))
        mark("head")
        strides = rpn.strides(images, list(maps.values()))
        kept = rpn.proposals_of_heads(objectness, deltas, strides, image_sizes)
        mark("proposals")
        embeddings = None
        if self.embedding is not None:
            embeddings = self.embedding.pool(list(maps.values()), kept.boxes)
            mark("embed")
        return Output(kept, maps if self.features else {}, strides, embeddings)

    def _results(
        self,
        frames: Sequence[Frame],
        sizes: Sequence[tuple[int, int]],
        wanted: Sequence[Tensor],
        output: Output,
    ) -> list[Proposals]:
        """Returns the records of a batch from what is `wanted` of its output, on the host."""
        boxes, scores, levels, anchors, counts, *vectors = (tensor.numpy() for tensor in wanted)
        results = []
        for row, frame in enumerate(frames):
            n = int(counts[row])
            results.append(
                Proposals.of(
                    frame,
                    boxes=frame_boxes(boxes[row, :n], sizes[row], (frame.height, frame.width)),
                    scores=scores[row, :n],
                    levels=levels[row, :n],
                    anchors=anchors[row, :n],
                    input_boxes=boxes[row, :n],
                    input_size=sizes[row],
                    strides=output.strides,
                    features={name: m[row] for name, m in output.maps.items()} or None,
                    embeddings=vectors[0][row, :n] if vectors else None,
                    keep_image=self.images,
                )
            )
        return results
