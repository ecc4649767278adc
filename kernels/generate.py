"""generate_proposals: the whole proposal stage, `select_candidates` and then `nms`.

On a CPU a shorter way is tried first, which ends as both of them do where it comes to an end.
"""

import torch

from stream_rpn.kernels.nms import nms
from stream_rpn.kernels.nms_reference import nms_in_order
from stream_rpn.kernels.proposals import HeadOutputs, ProposalBatch, ProposalSpec
from stream_rpn.kernels.propose import select_checked
from stream_rpn.kernels.propose_reference import decode_selected, flatten_levels, select
from stream_rpn.kernels.validation import check_finite, check_heads, check_spec


def generate_proposals(heads: HeadOutputs, spec: ProposalSpec) -> ProposalBatch:
    """Returns the kept proposals of a batch: at most `spec.post_nms_top_n` an image, best first.

    The same head outputs give the same bits, whatever else is in the batch, from run to run.
    Nothing waits for the device where the Triton kernels run. Proposals carry no gradient.

    1. Select the `pre_nms_top_n` anchors of every level with the highest logits.
    2. Decode: their deltas move them to where the head sees an object.
    3. Clip the boxes to the image.
    4. Filter: reject boxes that were not finite before, that have a side below `min_size` now, or a
       probability below `score_thresh`.
    5. Suppress, in each level by itself, boxes whose IoU with a better one is above `nms_thresh`.
    6. Merge the levels by logit and keep the best `post_nms_top_n`.

    Args:
        heads: the head outputs.
        spec: the limits.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: an argument is of another type.
    """
    check_heads(heads)
    check_spec(spec)
    if heads.image_sizes.device.type == "cpu" and not torch.compiler.is_compiling():
        found = best_of_all_levels(heads, spec)
        if found is not None:
            return found
    candidates = select_checked(heads, spec)  # steps 1 to 4
    return nms(candidates, heads.level_sizes(spec.pre_nms_top_n), spec)  # steps 5 and 6


# The walk visits about four times as many candidates as it keeps, sometimes six.
ENOUGH = 6


@torch.no_grad()
def best_of_all_levels(heads: HeadOutputs, spec: ProposalSpec) -> ProposalBatch | None:
    """Returns what `generate_proposals` does, from the best anchors of all levels together.

    The walk of `nms_reference` goes through the candidates of all levels by logit and stops when it
    has kept enough. Among the best pre_nms_top_n of *all* anchors no level has more than it may
    have, so a walk through those that keeps post_nms_top_n is the beginning of the whole one, and
    most candidates need neither be selected nor decoded. None where it did not keep as many.
    """
    check_finite(heads.base_anchors)
    if spec.pre_nms_top_n < ENOUGH * spec.post_nms_top_n:
        return None
    flat = flatten_levels(heads)
    selected = select(flat.logits, min(spec.pre_nms_top_n, flat.logits.shape[1]))
    candidates, levels = decode_selected(flat, selected, heads, spec)
    found = nms_in_order(candidates, levels, spec)
    return found if bool((found.count == spec.post_nms_top_n).all()) else None
