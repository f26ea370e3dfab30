"""Intersection over union of predicted and true masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, bincount, stack

from benchmarks.segmentation.protocols import IGNORED
from benchmarks.training.trials import TrialScores


def areas(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """(3, C) int64 pixels of the intersection, the prediction and the truth, by class. Ignored pixels do not count.

    Args:
        predicted, truth: (H, W) class indices.
    """
    counted = truth != IGNORED
    predicted, truth = predicted[counted].long(), truth[counted].long()
    each = (truth[predicted == truth], predicted, truth)
    return stack([bincount(of, minlength=classes)[:classes] for of in each])


def score(per_image: NDArray[np.int64], classes: tuple[str, ...]) -> TrialScores:
    """Scores over all pixels of a test set (one confusion matrix, not a mean over images).

    IoU has no value for a class that is in neither prediction nor truth, accuracy none for one that the truth lacks.

    Args:
        per_image: (N, 3, C) areas.
        classes: C names.
    """
    intersection, predicted, truth = per_image.sum(axis=0).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = 100 * intersection / (predicted + truth - intersection)
        accuracy = 100 * intersection / truth
        pixels = float(100 * intersection.sum() / truth.sum())
    scores = TrialScores(areas=per_image)
    scores.add("mIoU", classes, iou)
    scores.add("mAcc", classes, accuracy)
    scores.columns |= {"mIoU": float(np.nanmean(iou)), "mAcc": float(np.nanmean(accuracy)), "aAcc": pixels}
    return scores
