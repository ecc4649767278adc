"""The proposals of annotated images, as a stream of them gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from stream_rpn.frame import Proposals
from stream_rpn.sources.given import Given

if TYPE_CHECKING:
    from stream_rpn.evaluation.coco import CocoDataset
    from stream_rpn.pipeline import Pipeline


def propose_dataset(pipeline: Pipeline, dataset: CocoDataset) -> Iterator[Proposals]:
    """Yields the proposals of annotated images, in pixels of the images, in their order.

    Images are read while others are computed, and pass through all that frames of a source do.

    Args:
        pipeline: the network.
        dataset: the images, one at least.

    Raises:
        StreamRPNError: an image cannot be read, or is not of the size that is annotated.
    """
    path = str(dataset.path)
    pixels = Given(path, (dataset[index].image for index in range(len(dataset))))
    with pipeline.open(pixels) as stream:
        images = dataset.images().items()
        for proposals, (image_id, image) in zip(stream, images, strict=True):
            yield replace(proposals, image_id=image_id, name=image.name, source=path)
