"""Intersection over union of predicted and true masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, bincount, stack

from benchmarks.segmentation.scenes import IGNORED


def areas(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """(3, C) int64 pixels of the intersection, the prediction and the truth, by class; ignored pixels count nowhere.

    Args:
        predicted, truth: (H, W) class indices.
    """
    counted = truth != IGNORED
    predicted, truth = predicted[counted].long(), truth[counted].long()
    each = (truth[predicted == truth], predicted, truth)
    return stack([bincount(of, minlength=classes)[:classes] for of in each])


@dataclass(frozen=True)
class SegmentationScore:
    """Percentages over all pixels of a test set (one confusion matrix, not a mean over images).

    Attributes:
        iou: of each class; NaN where neither prediction nor truth has it.
        accuracy: of each class; NaN where the truth has none.
        pixel_accuracy: of all pixels.
    """

    iou: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    pixel_accuracy: float

    @property
    def mean_iou(self) -> float:
        return float(np.nanmean(self.iou))

    @property
    def mean_accuracy(self) -> float:
        return float(np.nanmean(self.accuracy))


def score(per_image: Sequence[NDArray[np.int64]] | NDArray[np.int64]) -> SegmentationScore:
    """From the (3, C) areas of every image."""
    intersection, predicted, truth = np.sum(per_image, axis=0).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return SegmentationScore(
            iou=100 * intersection / (predicted + truth - intersection),
            accuracy=100 * intersection / truth,
            pixel_accuracy=float(100 * intersection.sum() / truth.sum()),
        )
