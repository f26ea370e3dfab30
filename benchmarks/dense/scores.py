"""Scores: intersection over union from one confusion matrix over a test set, matched classes, and depth errors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.dense.masks import MaskFormat
from benchmarks.task import Outcome
from results.schema import Score

Areas = NDArray[np.int64]  # (N, 3, C) pixels of the intersection, the prediction and the truth, per image and class
Rule = Literal["present", "every"]  # mean over the classes that occur, or over all with 0 for one that does not


def areas(predicted: NDArray[np.uint8], truth: NDArray[np.uint8], style: MaskFormat) -> NDArray[np.int64]:
    """(3, C) pixels of one image for each of `style.values`; pixels whose truth is ignored do not count.

    Args:
        predicted, truth: (H, W) mask values.
    """
    counted = ~np.isin(truth, style.ignored)
    predicted, truth = predicted[counted], truth[counted]
    each = (truth[predicted == truth], predicted, truth)
    return np.stack([np.bincount(of, minlength=256) for of in each])[:, list(style.values)]


def areas_of_each(
    predicted: Iterable[NDArray[np.uint8]], truth: Iterable[NDArray[np.uint8]], style: MaskFormat
) -> Areas:
    """`areas` of every image."""
    return np.stack([areas(one, other, style) for one, other in zip(predicted, truth, strict=True)])


def confusions(predicted: NDArray[np.uint8], truth: NDArray[np.uint8], classes: int, ignored: int) -> NDArray[np.int64]:
    """(N, C, C) pixels of each image by true class (first) and predicted class; pixels whose truth is ignored, or no
    class, do not count.

    Args:
        predicted, truth: (N, H, W) class indices.
    """
    found = np.zeros((len(truth), classes, classes), np.int64)
    for row, (one, other) in enumerate(zip(predicted, truth, strict=True)):
        counted = (other != ignored) & (other < classes)
        pairs = other[counted].astype(np.int64) * classes + one[counted]
        found[row] = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    return found


def areas_of_confusions(confusion: NDArray[np.int64]) -> Areas:
    """(N, C, C) confusion matrices to (N, 3, C) areas."""
    return np.stack([np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(1), confusion.sum(2)], axis=1)


def matched(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N, C, C) the confusion matrices with predicted classes renamed: Hungarian matching by IoU over all images."""
    from scipy.optimize import linear_sum_assignment

    total = confusion.sum(0).astype(np.float64)
    union = total.sum(0, keepdims=True) + total.sum(1, keepdims=True) - total
    overlap = total / np.maximum(union, 1e-8)
    true, predicted = linear_sum_assignment(-overlap)
    renamed = np.empty_like(confusion)
    renamed[:, :, true] = confusion[:, :, predicted]
    return renamed


def class_ious(found: Areas) -> NDArray[np.float64]:
    """(C,) intersection over union of all images together; NaN for a class that is neither predicted nor true."""
    intersection, predicted, truth = found.sum(axis=0).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(intersection / (predicted + truth - intersection))


def mean_iou(found: Areas, rule: Rule = "present") -> float:
    """Mean intersection over union in percent."""
    each = class_ious(found)
    return 100 * float(np.nanmean(each) if rule == "present" else np.nan_to_num(each).mean())


def pixel_accuracy(found: Areas) -> float:
    """Percent of the scored pixels whose class is right."""
    intersection, _, truth = found.sum(axis=(0, 2))
    return 100 * float(intersection / truth)


def add_segmentation(
    outcome: Outcome, column: str, found: Areas, classes: tuple[str, ...], selection: str, rule: Rule = "present"
) -> None:
    """Add a mean-IoU column: score, IoU per class, and the areas of each image, which the bootstrap needs.

    Args:
        found: areas of the classes, and perhaps of ignored values behind them: predicted wrongly they count as classes
            without a true pixel, as in scikit-learn's jaccard_score; never predicted they are left out.
    """
    keep = np.arange(found.shape[2]) < len(classes)
    keep |= found[:, 1].sum(0) > 0
    found = found[:, :, keep]
    each = class_ious(found)
    outcome.scores[column] = Score(value=mean_iou(found, rule), n=len(found), selection=selection)
    outcome.per_class[column] = {
        name: 100 * float(value) for name, value in zip(classes, each, strict=False) if np.isfinite(value)
    }
    largest = found.max(initial=0)
    outcome.items[f"iou/{column}"] = found.astype(np.int32 if largest < 2**31 else np.int64)
    if rule == "every":
        outcome.items["iou_rule"] = np.array(rule)


# ---- depth -----------------------------------------------------------------------------------------------------------

EIGEN = (45, 471, 41, 601)  # rows and columns of a 480 x 640 image in which depth is scored
DEPTH_COLUMNS = ("RMSE", "δ1", "AbsRel")


def scored_depth(truth: NDArray[np.float32], low: float, high: float) -> NDArray[np.bool_]:
    """(H, W) pixels inside the Eigen crop, at the image's scale, whose depth lies strictly between the bounds."""
    height, width = truth.shape
    inside = np.zeros(truth.shape, np.bool_)
    top, bottom = (int(edge / 480 * height) for edge in EIGEN[:2])
    left, right = (int(edge / 640 * width) for edge in EIGEN[2:])
    inside[top:bottom, left:right] = True
    return inside & (truth > low) & (truth < high)


def depth_errors(predicted: NDArray[np.float32], truth: NDArray[np.float32], scored: NDArray[np.bool_]) -> list[float]:
    """RMSE in metres, δ1 and AbsRel of one image, in the order of `DEPTH_COLUMNS`; NaN where no pixel is scored."""
    p, t = predicted[scored].astype(np.float64), truth[scored].astype(np.float64)
    if not len(t):
        return [np.nan] * 3
    return [
        float(np.sqrt(np.mean((p - t) ** 2))),
        float(np.mean(np.maximum(p / t, t / p) < 1.25)),
        float(np.mean(np.abs(p - t) / t)),
    ]


def add_depth(outcome: Outcome, errors: NDArray[np.float64], ending: str, selection: str) -> None:
    """Add the columns of (N, 3) errors of each image: means over the images, as the source has it."""
    for name, values in zip(DEPTH_COLUMNS, errors.T, strict=True):
        seen = np.isfinite(values)
        column = f"{name}{ending}"
        outcome.scores[column] = Score(
            value=float(values[seen].mean()) if seen.any() else None, n=int(seen.sum()), unit="1", selection=selection
        )
        if seen.all():
            outcome.items[f"pseudo_value/{column}"] = values.astype(np.float32)
