"""What a model is to everybody but those who compute it."""

from __future__ import annotations

import copy
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Self

from stream_rpn.frame import StreamRPNError
from stream_rpn.input_spec import InputSpec
from stream_rpn.kernels.proposals import ProposalSpec

if TYPE_CHECKING:
    from stream_rpn.models.provenance import Weights

FIELDS = {"top": "post_nms_top_n", "pre_nms": "pre_nms_top_n", "nms": "nms_thresh"}
"""Of `ProposalSpec`, by the names that options have; those of the others are the fields'."""


class Model:
    """A region proposal network: an `RPN` of torch, or the same converted for another engine.

    Attributes:
        name: in result files.
        trained: whether its weights mean anything.
        weights: where they came from, None where nobody can tell.
        quantised: of a graph in int8, the SHA-256 of the file of weights that it was made of; None
            of what computes in the formats of floating numbers.
        input_spec: how frames become its input.
        proposal_spec: how its outputs become proposals.
        num_levels: of its feature maps.
    """

    name: str = "custom"
    trained: bool = True
    weights: Weights | None = None
    quantised: str | None = None
    input_spec: InputSpec
    proposal_spec: ProposalSpec
    num_levels: int

    def keeping_all(self) -> Self:
        """Returns a copy, with the same weights, that gives all that suppression leaves."""
        kept = copy.copy(self)
        spec = self.proposal_spec
        everything = max(spec.post_nms_top_n, spec.pre_nms_top_n * self.num_levels)
        kept.proposal_spec = replace(spec, post_nms_top_n=everything)
        return kept

    def override(self, **changes: float | int | None) -> Self:
        """Changes fields of the proposal spec in place (None leaves one alone); returns self.

        They go by their own names, or by those of `FIELDS`.

        Raises:
            ValueError: a number is out of its range.
        """
        given = {FIELDS.get(name, name): v for name, v in changes.items() if v is not None}
        self.proposal_spec = replace(self.proposal_spec, **given)  # type: ignore[arg-type]
        return self

    def resize(self, size: int | None) -> Self:
        """Changes the shorter side of the input in place (None leaves it alone); returns self.

        The limit of the longer side grows in proportion and never shrinks.

        Raises:
            StreamRPNError: the size is not positive.
        """
        if size is None:
            return self
        if size < 1:
            raise StreamRPNError(f"the input size must be at least 1 pixel, got {size}")
        spec = self.input_spec
        longest = max(spec.max_size, ceil(spec.max_size * size / spec.min_size))
        self.input_spec = replace(spec, min_size=size, max_size=longest)
        return self
