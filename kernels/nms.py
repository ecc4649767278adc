"""nms: candidates → greedy suppression per image and level → the best over all levels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stream_rpn.kernels.dispatch import fused_or_reference, opaque_op
from stream_rpn.kernels.nms_reference import nms_reference
from stream_rpn.kernels.proposals import Candidates, ProposalBatch, ProposalSpec
from stream_rpn.kernels.validation import check_candidates, check_spec


@torch.no_grad()
def nms(candidates: Candidates, level_sizes: Sequence[int], spec: ProposalSpec) -> ProposalBatch:
    """Returns the proposals that greedy suppression keeps, merged over levels by logit.

    A box suppresses every later box of its level with which its IoU is above `spec.nms_thresh`.
    Equal logits stand by level, then anchor index. The best `spec.post_nms_top_n` are kept.

    Args:
        candidates: as `select_candidates` returns them: each level sorted, rejected slots with
            logit −inf.
        level_sizes: slots of each level, their sum M.
        spec: the limits, of which `nms_thresh` and `post_nms_top_n` count here.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: an argument is of another type.
    """
    check_candidates(candidates, level_sizes)
    check_spec(spec)
    return ProposalBatch(*_nms_op(*candidates, list(level_sizes), *spec.to_lists()))


@opaque_op("nms")
def _nms_op(
    boxes: Tensor,
    logits: Tensor,
    anchors: Tensor,
    level_sizes: Sequence[int],
    counts: Sequence[int],
    thresholds: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    args = (
        Candidates(boxes, logits, anchors),
        level_sizes,
        ProposalSpec.from_lists(counts, thresholds),
    )

    def fused() -> ProposalBatch:
        from stream_rpn.kernels.nms_triton import nms_triton

        return nms_triton(*args)

    def reference() -> ProposalBatch:
        return nms_reference(*args)

    proposals = fused_or_reference("nms", boxes, fused, reference)
    return proposals.boxes, proposals.scores, proposals.levels, proposals.anchors, proposals.count


@torch.library.register_fake("stream_rpn::nms")  # type: ignore[untyped-decorator]
def _(
    boxes: Tensor,
    logits: Tensor,
    anchors: Tensor,
    level_sizes: Sequence[int],
    counts: Sequence[int],
    thresholds: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    # Counts are symbols here at times, which the record would refuse.
    _, post_nms_top_n, *_ = counts
    batch = boxes.shape[0]
    return (
        boxes.new_empty(batch, post_nms_top_n, 4),
        boxes.new_empty(batch, post_nms_top_n),
        boxes.new_empty(batch, post_nms_top_n, dtype=torch.int32),
        boxes.new_empty(batch, post_nms_top_n, dtype=torch.int32),
        boxes.new_empty(batch, dtype=torch.int32),
    )
