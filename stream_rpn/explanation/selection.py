"""What selection and suppression did, and what they would have done under other limits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from stream_rpn.explanation.ledger import Anchors, Fate, Ledger, chosen, first_above
from stream_rpn.explanation.look import Look
from stream_rpn.kernels.generate import generate_proposals
from stream_rpn.kernels.nms import nms
from stream_rpn.kernels.proposals import ProposalSpec

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
OTHER_K = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
# Candidates that a page can show; the best of them, and all that were kept.
SHOWN, SHOWN_AT_MOST = 1000, 4000
_CANDIDATES = [int(fate) for fate in (Fate.SUPPRESSED, Fate.BEYOND_TOP, Fate.PROPOSED)]


@dataclass(frozen=True)
class OtherK:
    """What another `pre_nms` would have given.

    Attributes:
        k: candidates per level.
        candidates: of all levels together.
        proposals: after suppression.
        common: how many of them are proposals as it is.
    """

    k: int
    candidates: int
    proposals: int
    common: int


@dataclass(frozen=True)
class Suppression:
    """Suppression under one threshold.

    Attributes:
        threshold: of the IoU.
        kept: places in `Explanation.candidates` of those that were kept, best first.
        total: how many were kept, those that are no longer shown included.
        suppressors: [len(candidates)] int64 the place of who suppressed each; -1 for those that
            were kept, -2 for those that `top` leaves out.
        overlaps: [len(candidates)] float32, the IoU with that.
    """

    threshold: float
    kept: np.ndarray
    total: int
    suppressors: np.ndarray
    overlaps: np.ndarray


def other_k(seen: Look, every: Anchors) -> list[OtherK]:
    """Returns what the stage gives with fewer and with more candidates per level."""
    now = set(zip(seen.proposals.levels.tolist(), seen.proposals.anchors.tolist(), strict=True))
    largest, own = max(every.sizes), seen.spec.pre_nms_top_n
    found = []
    for k in sorted({*(k for k in OTHER_K if k < largest), min(own, largest), largest}):
        kept = generate_proposals(seen.heads, _limited(seen, every, pre_nms_top_n=k))
        count = int(kept.count)
        names = zip(kept.levels[0, :count].tolist(), kept.anchors[0, :count].tolist(), strict=True)
        candidates = sum(seen.heads.level_sizes(k))
        found.append(OtherK(k, candidates, count, len(now & set(names))))
    return found


def _limited(seen: Look, every: Anchors, **changes: float) -> ProposalSpec:
    """Returns the limits with changes, and no more slots than anchors."""
    top = min(seen.spec.post_nms_top_n, len(every.logits))
    return replace(seen.spec, **{"post_nms_top_n": top, **changes})  # type: ignore[arg-type]


def best_candidates(seen: Look, book: Ledger) -> torch.Tensor:
    """Returns the numbers of the best candidates: a thousand, and all up to the last kept one."""
    _, _, slots = chosen(seen, book.every, seen.spec)
    valid = slots[torch.isin(book.fates[slots], torch.tensor(_CANDIDATES))].sort().values
    order = valid[book.every.logits[valid].argsort(descending=True, stable=True)]
    proposed = torch.isin(order, book.proposed()).nonzero()
    count = max(SHOWN, int(proposed[-1]) + 1 if len(proposed) else 0)
    return order[: min(count, SHOWN_AT_MOST)]


def suppressions(seen: Look, every: Anchors, shown: torch.Tensor) -> list[Suppression]:
    """Returns what suppression does to the candidates [n] that are shown, by threshold."""
    candidates, sizes, _ = chosen(seen, every, seen.spec)
    places = torch.full((len(every.logits),), -1)
    places[shown] = torch.arange(len(shown))
    starts = torch.tensor([*every.starts, 0])
    found = []
    for threshold in sorted({*THRESHOLDS, seen.spec.nms_thresh}):
        kept = nms(candidates, sizes, _limited(seen, every, nms_thresh=threshold))
        count = int(kept.count)
        numbers = starts[kept.levels[0, :count].long()] + kept.anchors[0, :count].long()
        suppressors, overlaps = torch.full((len(shown),), -2), torch.zeros(len(shown))
        for level in range(len(every.sizes)):
            of_level = (every.levels[shown] == level).nonzero()[:, 0]
            by, overlap = first_above(
                every, shown[of_level], numbers[every.levels[numbers] == level], threshold
            )
            # Who is not shown is behind all who are, and so suppresses none of them.
            suppressors[of_level] = torch.where(by >= 0, places[by], -2)
            overlaps[of_level] = overlap
        visible = places[numbers]
        visible = visible[visible >= 0]
        suppressors[visible] = -1
        found.append(
            Suppression(threshold, visible.numpy(), count, suppressors.numpy(), overlaps.numpy())
        )
    return found
