"""The proposals of annotated images, one after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from stream_rpn.frame import Proposals
from stream_rpn.rpn import RPN, propose_image

if TYPE_CHECKING:
    from stream_rpn.evaluation.coco import CocoDataset


def propose_dataset(
    rpn: RPN, dataset: CocoDataset, *, limit: int | None = None
) -> Iterator[Proposals]:
    """Yields the proposals of annotated images, in pixels of the images.

    Args:
        rpn: the network; runs on its own device in its own dtype.
        dataset: the images.
        limit: only the first so many.
    """
    for index in range(len(dataset) if limit is None else min(limit, len(dataset))):
        sample = dataset[index]
        yield replace(
            propose_image(rpn, sample.image),
            frame=index,
            image_id=sample.image_id,
            name=sample.name,
            source=str(dataset.path),
        )
