"""nms: candidates → greedy suppression per image and level → the best over all levels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stream_rpn.kernels.dispatch import fused_or_reference, opaque_op
from stream_rpn.kernels.nms_reference import nms_reference
from stream_rpn.kernels.proposals import Candidates, ProposalBatch
from stream_rpn.kernels.validation import check_suppression


@torch.no_grad()
def nms(
    candidates: Candidates,
    level_sizes: Sequence[int],
    *,
    nms_thresh: float,
    post_nms_top_n: int,
) -> ProposalBatch:
    """Returns the proposals that greedy suppression keeps, merged over levels by logit.

    A box suppresses every later box of its level with which its IoU is above `nms_thresh`. Equal
    logits stand by level, then anchor index.

    Args:
        candidates: as `propose` returns them: each level sorted, rejected slots with logit −inf.
        level_sizes: slots of each level, their sum M.
        nms_thresh: in (0, 1].
        post_nms_top_n: slots per image, at least 1.

    Raises:
        ValueError: a shape, device or number does not fit.
        TypeError: an argument is of another type.
    """
    if not isinstance(candidates, tuple) or len(candidates) != 3:
        raise TypeError(
            f"candidates must be the boxes, logits and anchors of Candidates, got "
            f"{type(candidates).__name__}"
        )
    boxes, logits, anchors = candidates
    for name, tensor, dtype in (
        ("boxes", boxes, torch.float32),
        ("logits", logits, torch.float32),
        ("anchors", anchors, torch.int32),
    ):
        if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"candidates.{name} must be a tensor of {dtype}, got {got}")
        if tensor.device != boxes.device:
            raise ValueError(
                f"candidates.{name} must be on the device of the boxes, {boxes.device}, "
                f"got {tensor.device}"
            )
    if boxes.ndim != 3 or boxes.shape[2] != 4:
        raise ValueError(f"candidates.boxes must be [B, M, 4], got {list(boxes.shape)}")
    for name, tensor in (("logits", logits), ("anchors", anchors)):
        if tensor.shape != boxes.shape[:2]:
            raise ValueError(
                f"candidates.{name} must be {list(boxes.shape[:2])}, got {list(tensor.shape)}"
            )
    if not isinstance(level_sizes, Sequence) or not all(isinstance(n, int) for n in level_sizes):
        raise TypeError(f"level_sizes must be a list of ints, got {level_sizes!r}")
    if not level_sizes or min(level_sizes) < 0 or sum(level_sizes) != boxes.shape[1]:
        raise ValueError(
            f"level_sizes must add up to the {boxes.shape[1]} candidates of an image, "
            f"got {tuple(level_sizes)}"
        )
    check_suppression(nms_thresh, post_nms_top_n)
    return ProposalBatch(
        *_nms_op(boxes, logits, anchors, list(level_sizes), float(nms_thresh), post_nms_top_n)
    )


@opaque_op("nms")
def _nms_op(
    boxes: Tensor,
    logits: Tensor,
    anchors: Tensor,
    level_sizes: Sequence[int],
    nms_thresh: float,
    post_nms_top_n: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    args = (boxes, logits, anchors, level_sizes, nms_thresh, post_nms_top_n)

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
    nms_thresh: float,
    post_nms_top_n: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch = boxes.shape[0]
    return (
        boxes.new_empty(batch, post_nms_top_n, 4),
        boxes.new_empty(batch, post_nms_top_n),
        boxes.new_empty(batch, post_nms_top_n, dtype=torch.int32),
        boxes.new_empty(batch, post_nms_top_n, dtype=torch.int32),
        boxes.new_empty(batch, dtype=torch.int32),
    )
