"""generate_proposals: the whole proposal stage, `propose` and then `nms`."""

from collections.abc import Sequence

from torch import Tensor

from stream_rpn.kernels.nms import nms
from stream_rpn.kernels.proposals import ProposalBatch
from stream_rpn.kernels.propose import level_sizes, propose


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
