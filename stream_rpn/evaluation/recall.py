"""Recall of proposals: what the field reports of a region proposal network.

Average recall AR@k (Hosang et al. 2015) is the mean over IoU 0.5, 0.55, …, 0.95 of the share of
objects that the k best proposals of each image cover; R50@k and R70@k are that share at IoU 0.5
and 0.7. Proposals and objects are matched one to one as in detectron2's box-proposal evaluation:
again and again the object that is covered best takes the proposal that covers it best, and both
leave. Crowd regions are no objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stream_rpn.frame import Proposals

if TYPE_CHECKING:
    pass

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
LIMITS = (10, 100, 300, 1000)
CURVE_LIMITS = (1, 2, 5, 10, 20, 50, 100, 200, 300, 500, 1000)
# COCO's classes of object size, by box area in pixels of the annotated images. They were made for
# images of about 640 pixels: at another image scale they are other objects.
AREAS: dict[str, tuple[float, float]] = {
    "all": (0.0, float("inf")),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, float("inf")),
}


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the IoU [N, M] of boxes [N, 4] and others [M, 4]; 0 where both have no area."""
    top_left = np.maximum(boxes[:, None, :2], others[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    intersection = (bottom_right - top_left).clip(min=0).prod(axis=-1)
    areas, other_areas = ((b[:, 2:] - b[:, :2]).prod(axis=-1) for b in (boxes, others))
    union = areas[:, None] + other_areas[None] - intersection
    result: np.ndarray = np.divide(
        intersection, union, out=np.zeros_like(intersection), where=union > 0
    )
    return result


def match(overlaps: np.ndarray) -> np.ndarray:
    """Returns for each object the IoU [G] with its own proposal, 0 without one.

    Args:
        overlaps: IoU [P, G] of proposals and objects.
    """
    left = overlaps.copy()
    result = np.zeros(overlaps.shape[1])
    for _ in range(min(overlaps.shape)):
        proposal, target = np.unravel_index(left.argmax(), left.shape)
        best = left[proposal, target]
        if best <= 0:
            break
        result[target] = best
        left[proposal] = -1
        left[:, target] = -1
    return result


class Recall:
    """The recall of the objects of all images.

    Args:
        predictions: by image id, boxes [P, 4], best first. A missing image has none.
        ground_truth: by image id, boxes [G, 4].
        limits: numbers of proposals per image.

    Attributes:
        num_images: images, with and without objects.
    """

    def __init__(
        self,
        predictions: Mapping[int, np.ndarray],
        ground_truth: Mapping[int, np.ndarray],
        limits: Sequence[int] = LIMITS,
    ) -> None:
        self.limits = tuple(limits)
        self.num_images = len(ground_truth)
        nothing = np.zeros((0, 4))
        found: dict[tuple[str, int], list[np.ndarray]] = {
            (area, limit): [np.zeros(0)] for area in AREAS for limit in self.limits
        }
        for image_id, gt_boxes in ground_truth.items():
            boxes = np.asarray(gt_boxes, dtype=np.float64)
            proposals = np.asarray(predictions.get(image_id, nothing), dtype=np.float64)
            overlaps = iou(proposals, boxes)
            sizes = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
            for area, (low, high) in AREAS.items():
                chosen = (sizes >= low) & (sizes < high)
                if chosen.any():
                    for limit in self.limits:
                        found[area, limit].append(match(overlaps[:limit, chosen]))
        self._overlaps = {key: np.concatenate(parts) for key, parts in found.items()}

    def num_objects(self, area: str = "all") -> int:
        """Returns how many objects there are of a size."""
        return len(self._overlaps[area, self.limits[0]])

    def at(self, iou_thresh: float, limit: int, area: str = "all") -> float:
        """Returns the share of objects covered at an IoU; NaN without objects."""
        overlaps = self._overlaps[area, limit]
        # IoU 0.7 of whole pixels, 7/10, must count as 0.7 whatever the rounding.
        return float((overlaps >= iou_thresh - 1e-9).mean()) if len(overlaps) else float("nan")

    def average(self, limit: int, area: str = "all") -> float:
        """Returns AR@limit; NaN without objects."""
        return float(np.mean([self.at(t, limit, area) for t in IOU_THRESHOLDS]))

    def summary(self) -> dict[str, float]:
        """Returns "images", "objects", "AR@10", "R50@10", "R70@10", "objects/small", ….

        Sizes without an object have their count only.
        """
        result: dict[str, float] = {"images": self.num_images}
        for area in AREAS:
            suffix = "" if area == "all" else f"/{area}"
            result[f"objects{suffix}"] = self.num_objects(area)
            if area != "all" and not self.num_objects(area):
                continue
            for limit in self.limits:
                result[f"AR@{limit}{suffix}"] = self.average(limit, area)
                result[f"R50@{limit}{suffix}"] = self.at(0.5, limit, area)
                result[f"R70@{limit}{suffix}"] = self.at(0.7, limit, area)
        return result


def enough(recall: Recall, share: float = 0.95) -> int:
    """Returns how many proposals find that share of what the largest limit finds (by AR).

    Between limits AR is taken to be straight over the logarithm of their number.
    """
    limits = sorted(recall.limits)
    found = np.array([recall.average(limit) for limit in limits])
    wanted = share * found[-1]
    return round(float(np.exp(np.interp(wanted, np.maximum.accumulate(found), np.log(limits)))))


def evaluate(
    predictions: Mapping[int, np.ndarray],
    ground_truth: Mapping[int, np.ndarray],
    limits: Sequence[int] = LIMITS,
) -> dict[str, float]:
    """Returns `Recall(predictions, ground_truth, limits).summary()`."""
    return Recall(predictions, ground_truth, limits).summary()


def by_image(results: Iterable[Proposals]) -> dict[int, np.ndarray]:
    """Returns boxes [P, 4] by image id, or by frame index where there is none."""
    return {p.frame if p.image_id is None else p.image_id: p.boxes for p in results}
