"""Recall before, during and after training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from stream_rpn.evaluation.coco import CocoDataset
from stream_rpn.evaluation.recall import LIMITS, Recall
from stream_rpn.rpn import RPN, propose_image

# What decides which weights are the best: the field's one number.
SCORE = "AR@100"


class Validation:
    """Measures the recall of a model on images that it is not trained on.

    Args:
        dataset: the images.
        limit: images to measure on, the first ones, while training goes on.
    """

    def __init__(self, dataset: CocoDataset, limit: int) -> None:
        self.dataset = dataset
        self.limit = min(limit, len(dataset))

    def measure(
        self, model: RPN, *, everything: bool, progress: Callable[[int, int], None]
    ) -> tuple[dict[str, float], float]:
        """Returns the recall as `Recall.summary` names it, and the score of the first images.

        The score is that of the same images at every measurement, so that it can be compared.

        Args:
            model: the network, in eval mode.
            everything: measure on all images, not only on the first.
            progress: called with the images measured and those to measure, after each.
        """
        count = len(self.dataset) if everything else self.limit
        spec = model.proposal_spec
        model.proposal_spec = replace(spec, post_nms_top_n=max(LIMITS))
        predictions = {}
        try:
            for index in range(count):
                sample = self.dataset[index]
                predictions[sample.image_id] = propose_image(model, sample.image).boxes
                progress(index + 1, count)
        finally:
            model.proposal_spec = spec
        truth = self.dataset.ground_truth()
        ids = list(predictions)

        def recall(of: list[int]) -> Recall:
            return Recall(predictions, {image_id: truth[image_id] for image_id in of})

        summary = recall(ids).summary()
        first = ids[: self.limit]
        score = summary[SCORE] if len(first) == len(ids) else recall(first).average(100)
        return summary, score
