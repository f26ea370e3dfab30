"""What each test image contributes to an average precision, to first order: one number instead of a decision.

Average precision is a function of the weights of its images, which are all one. Its derivative in an image's weight is
what the infinitesimal jackknife (Jaeckel 1972; Efron 1982, "The Jackknife, the Bootstrap and Other Resampling Plans",
chapter 6) calls the influence of the image. Derivatives of several problems on the same images add up, so that a mean
over classes and drawn sets needs no more room than one problem: ranks of all of them would take as many times more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pseudo_values(metric: float, influence: NDArray[np.float64]) -> NDArray[np.float32]:
    """(N,) numbers whose weighted mean is the metric under other weights of the images, to first order.

    Args:
        influence: (N,) derivatives, see `envelope_influence`. They sum to zero, since twice all weights change nothing.
    """
    return (metric + len(influence) * influence).astype(np.float32)


def envelope_influence(decisions: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """(N,) derivative of `average_precision.envelope_ap` in the weight of each image; zero where it is ignored.

    Where a precision is the best beyond several recalls, it changes their part of the area too. Where two are equally
    good the envelope has no derivative, and the one of the lower recall is followed.

    Args:
        decisions: (N,) decision values. Tied ones share a threshold.
        labels: (N,) 1 positive, 0 negative, -1 ignored.

    Raises:
        ValueError: there is no positive.
    """
    positive = labels == 1
    if not positive.any():
        raise ValueError("average precision needs a positive image")
    # From the highest threshold down, at distinct values among the positives: elsewhere recall does not change.
    thresholds, counts = np.unique(-decisions[positive], return_counts=True)
    hits = counts.cumsum()
    level = thresholds.searchsorted(-decisions, side="left")  # the first threshold that an image is above
    known = labels >= 0
    seen = np.bincount(level[known], minlength=len(thresholds) + 1)[:-1].cumsum()
    precision = hits / seen
    # Which precision is the envelope at each threshold: the best from there on.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    best = np.where(precision == envelope, np.arange(len(precision)), len(precision))
    best = np.minimum.accumulate(best[::-1])[::-1]
    area = np.bincount(best, weights=counts, minlength=len(precision)) / hits[-1]
    ap = float(area @ precision)
    # An image counts in every precision from its own level on: as one more seen, and maybe as one more found.
    as_found, as_seen = (_from_each_on(area * share / seen) for share in (np.ones_like(precision), precision))
    found = as_found[level] + np.append((envelope - ap) / hits[-1], 0.0)[level]
    return np.where(known, np.where(positive, found, 0.0) - as_seen[level], 0.0)


def _from_each_on(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums from each threshold to the last, and nothing for what is below all of them."""
    return np.append(values[::-1].cumsum()[::-1], 0.0)
