"""generate_proposals: the whole proposal stage, `propose` and then `nms`.

On a CPU a shorter way is tried first, which ends as both of them do where it comes to an end.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stream_rpn.kernels.nms import nms
from stream_rpn.kernels.nms_reference import nms_in_order
from stream_rpn.kernels.proposals import ProposalBatch, level_sizes
from stream_rpn.kernels.propose import propose
from stream_rpn.kernels.propose_reference import decode_selected, in_a_row, select
from stream_rpn.kernels.validation import (
    check_finite,
    check_heads,
    check_selection,
    check_suppression,
)


def generate_proposals(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    base_anchors: Sequence[Tensor],
    strides: Sequence[tuple[int, int]],
    image_sizes: Tensor,
    *,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    nms_thresh: float,
    score_thresh: float = 0.0,
    min_size: float = 0.0,
) -> ProposalBatch:
    """Returns the kept proposals of a batch: at most `post_nms_top_n` an image, best first.

    The same head outputs give the same bits, whatever else is in the batch, from run to run.
    Nothing waits for the device where the Triton kernels run. Proposals carry no gradient.

    Args:
        objectness: per level [B, A, H, W] logits, or [B, 2A, H, W] (background|object interleaved).
        deltas: per level [B, 4A, H, W], dx, dy, dw, dh per anchor.
        base_anchors: per level [A, 4] float32.
        strides: per level (y, x) input pixels per cell.
        image_sizes: [B, 2] (height, width) of the resized images without padding.
        pre_nms_top_n: candidates per level.
        post_nms_top_n: slots per image.
        nms_thresh: suppress where IoU exceeds this, in (0, 1].
        score_thresh: keep probabilities of at least this, in [0, 1].
        min_size: keep boxes whose sides are both at least this, in input pixels.

    Raises:
        ValueError: a shape, device or number does not fit.
        TypeError: an argument is of another type.
    """
    if image_sizes.device.type == "cpu" and not torch.compiler.is_compiling():
        found = best_of_all_levels(
            objectness,
            deltas,
            base_anchors,
            strides,
            image_sizes,
            pre_nms_top_n,
            post_nms_top_n,
            nms_thresh,
            score_thresh,
            min_size,
        )
        if found is not None:
            return found
    candidates = propose(
        objectness,
        deltas,
        base_anchors,
        strides,
        image_sizes,
        pre_nms_top_n=pre_nms_top_n,
        score_thresh=score_thresh,
        min_size=min_size,
    )
    return nms(
        candidates,
        level_sizes(objectness, base_anchors, pre_nms_top_n),
        nms_thresh=nms_thresh,
        post_nms_top_n=post_nms_top_n,
    )


# The walk visits about four times as many candidates as it keeps, sometimes six.
ENOUGH = 6


@torch.no_grad()
def best_of_all_levels(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    base_anchors: Sequence[Tensor],
    strides: Sequence[tuple[int, int]],
    image_sizes: Tensor,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    nms_thresh: float,
    score_thresh: float,
    min_size: float,
) -> ProposalBatch | None:
    """Returns what `generate_proposals` does, from the best anchors of all levels together.

    The walk of `nms_reference` goes through the candidates of all levels by logit and stops when it
    has kept enough. Among the best pre_nms_top_n of *all* anchors no level has more than it may
    have, so a walk through those that keeps post_nms_top_n is the beginning of the whole one, and
    most candidates need neither be selected nor decoded. None where it did not keep as many.
    """
    check_heads(objectness, deltas, base_anchors, strides, image_sizes)
    check_finite(base_anchors)
    check_selection(pre_nms_top_n, score_thresh, min_size)
    check_suppression(nms_thresh, post_nms_top_n)
    if pre_nms_top_n < ENOUGH * post_nms_top_n:
        return None
    heads = in_a_row(objectness, deltas, base_anchors)
    boxes, logits, anchors, levels = decode_selected(
        heads,
        select(heads.logits, min(pre_nms_top_n, heads.logits.shape[1])),
        [level.shape[3] for level in objectness],
        base_anchors,
        strides,
        image_sizes,
        score_thresh,
        min_size,
    )
    found = nms_in_order(boxes, logits, anchors, levels, nms_thresh, post_nms_top_n)
    return found if bool((found.count == post_nms_top_n).all()) else None
