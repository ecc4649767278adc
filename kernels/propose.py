"""propose: raw head outputs of all levels → the best anchors, decoded, clipped and filtered."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stream_rpn.kernels.dispatch import fused_or_reference, opaque_op
from stream_rpn.kernels.proposals import Candidates, level_sizes
from stream_rpn.kernels.propose_reference import propose_reference
from stream_rpn.kernels.validation import check_finite, check_heads, check_selection


@torch.no_grad()
def propose(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    base_anchors: Sequence[Tensor],
    strides: Sequence[tuple[int, int]],
    image_sizes: Tensor,
    *,
    pre_nms_top_n: int,
    score_thresh: float,
    min_size: float,
) -> Candidates:
    """Returns the candidates of a batch: the highest logits of each level, decoded and clipped.

    Rejected are logits of NaN or −inf, boxes that are not finite, boxes with a side below
    `min_size` after clipping, and probabilities below `score_thresh`. Head outputs may
    have any strides and be float32, float16 or bfloat16; everything is computed in float32.

    Args:
        objectness: per level [B, A, H, W] logits, or [B, 2A, H, W] with background|object
            interleaved per anchor (the logit is object − background).
        deltas: per level [B, 4A, H, W], dx, dy, dw, dh per anchor.
        base_anchors: per level [A, 4] float32.
        strides: per level (y, x) input pixels per cell.
        image_sizes: [B, 2] (height, width) to clip to, any real dtype.
        pre_nms_top_n: candidates per level, at least 1.
        score_thresh: in [0, 1].
        min_size: in pixels of the network input, at least 0.

    Raises:
        ValueError: a shape, device or number does not fit.
        TypeError: an argument is of another type.
    """
    check_heads(objectness, deltas, base_anchors, strides, image_sizes)
    check_selection(pre_nms_top_n, score_thresh, min_size)
    flat_strides = [side for stride in strides for side in stride]
    return Candidates(
        *_propose_op(
            list(objectness),
            list(deltas),
            list(base_anchors),
            flat_strides,
            image_sizes,
            pre_nms_top_n,
            float(score_thresh),
            float(min_size),
        )
    )


@opaque_op("propose")
def _propose_op(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    base_anchors: Sequence[Tensor],
    strides: Sequence[int],
    image_sizes: Tensor,
    pre_nms_top_n: int,
    score_thresh: float,
    min_size: float,
) -> tuple[Tensor, Tensor, Tensor]:
    # On a GPU this check would wait for the device; there the boxes are rejected one by one.
    if not image_sizes.is_cuda:
        check_finite(base_anchors)
    pairs = list(zip(strides[::2], strides[1::2], strict=True))
    heads = (objectness, deltas, base_anchors, pairs, image_sizes)
    limits = (pre_nms_top_n, score_thresh, min_size)

    def fused() -> tuple[Tensor, Tensor, Tensor]:
        from stream_rpn.kernels.propose_triton import propose_triton

        return propose_triton(*heads, *limits)

    def reference() -> tuple[Tensor, Tensor, Tensor]:
        return propose_reference(*heads, *limits)

    return fused_or_reference("propose", image_sizes, fused, reference)


@torch.library.register_fake("stream_rpn::propose")  # type: ignore[untyped-decorator]
def _(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    base_anchors: Sequence[Tensor],
    strides: Sequence[int],
    image_sizes: Tensor,
    pre_nms_top_n: int,
    score_thresh: float,
    min_size: float,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, size = image_sizes.shape[0], sum(level_sizes(objectness, base_anchors, pre_nms_top_n))
    return (
        image_sizes.new_empty(batch, size, 4, dtype=torch.float32),
        image_sizes.new_empty(batch, size, dtype=torch.float32),
        image_sizes.new_empty(batch, size, dtype=torch.int32),
    )
