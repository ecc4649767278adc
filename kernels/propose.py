"""select_candidates: raw head outputs → each level's best anchors, decoded, clipped, filtered."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stream_rpn.kernels.dispatch import fused_or_reference, opaque_op
from stream_rpn.kernels.proposals import Candidates, HeadOutputs, ProposalSpec
from stream_rpn.kernels.propose_reference import select_candidates_reference
from stream_rpn.kernels.validation import check_finite, check_heads, check_spec


def select_candidates(heads: HeadOutputs, spec: ProposalSpec) -> Candidates:
    """Returns the candidates of a batch: the highest logits of each level, decoded and clipped.

    Rejected are logits of NaN or −inf, boxes that are not finite, boxes with a side below
    `spec.min_size` after clipping, and probabilities below `spec.score_thresh`. Everything is
    computed in float32.

    Args:
        heads: the head outputs.
        spec: the limits; those of suppression do not count here.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: an argument is of another type.
    """
    check_heads(heads)
    check_spec(spec)
    return select_checked(heads, spec)


@torch.no_grad()
def select_checked(heads: HeadOutputs, spec: ProposalSpec) -> Candidates:
    """Returns what `select_candidates` does of arguments that have been checked."""
    return Candidates(
        *_select_candidates_op(
            list(heads.objectness),
            list(heads.deltas),
            list(heads.base_anchors),
            [side for stride in heads.strides for side in stride],
            heads.image_sizes,
            *spec.to_lists(),
        )
    )


# A torch op's schema takes tensors, numbers and lists of them only: the records are taken apart in
# the call above and put together again here, and nowhere else.
@opaque_op("select_candidates")
def _select_candidates_op(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    base_anchors: Sequence[Tensor],
    strides: Sequence[int],
    image_sizes: Tensor,
    counts: Sequence[int],
    thresholds: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    # On a GPU this check would wait for the device; there the boxes are rejected one by one.
    if not image_sizes.is_cuda:
        check_finite(base_anchors)
    pairs = list(zip(strides[::2], strides[1::2], strict=True))
    heads = HeadOutputs(objectness, deltas, base_anchors, pairs, image_sizes)
    spec = ProposalSpec.from_lists(counts, thresholds)

    def fused() -> Candidates:
        from stream_rpn.kernels.propose_triton import select_candidates_triton

        return select_candidates_triton(heads, spec)

    def reference() -> Candidates:
        return select_candidates_reference(heads, spec)

    found = fused_or_reference("select_candidates", image_sizes, fused, reference)
    return found.boxes, found.logits, found.anchors


@torch.library.register_fake("stream_rpn::select_candidates")  # type: ignore[untyped-decorator]
def _(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    base_anchors: Sequence[Tensor],
    strides: Sequence[int],
    image_sizes: Tensor,
    counts: Sequence[int],
    thresholds: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    # Counts are symbols here at times, which the record of the limits would refuse.
    pre_nms_top_n, *_ = counts
    heads = HeadOutputs(objectness, deltas, base_anchors, (), image_sizes)
    batch, size = image_sizes.shape[0], sum(heads.level_sizes(pre_nms_top_n))
    return (
        image_sizes.new_empty(batch, size, 4, dtype=torch.float32),
        image_sizes.new_empty(batch, size, dtype=torch.float32),
        image_sizes.new_empty(batch, size, dtype=torch.int32),
    )
