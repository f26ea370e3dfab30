"""Average precision in the three definitions of published VOC results, and what each image contributes to it.

All functions rank by descending decision value. Tied values share one threshold: precision and recall are read only
after the last of them, so that no order among them is favoured. The published scripts' envelope and the devkit's
11-point rule walk through ties one by one in whatever order the sort left them; without ties all agree with them
exactly.

The contribution of an image is the derivative of average precision in the image's weight, which the infinitesimal
jackknife (Jaeckel 1972; Efron 1982, "The Jackknife, the Bootstrap and Other Resampling Plans", chapter 6) calls its
influence. Influences of several problems on the same images add up, so that a mean over classes and drawn sets needs
one number per image where the decisions of all models would take thousands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ApRule = Literal["envelope", "sklearn", "11point"]
_TENTHS = np.arange(11)


@dataclass(frozen=True)
class AveragePrecisions:
    """Each (...,) in [0, 1], NaN where a row has no positive.

    Attributes:
        envelope: area under the monotone precision envelope at every recall change (VOC2010 rule; the test metric).
        step: sum of precision times recall change, not interpolated (scikit-learn; chooses the cost).
        eleven_point: mean over recalls 0, 0.1 … 1 of the best precision at that recall or beyond (VOC2007 rule).
    """

    envelope: NDArray[np.float64]
    step: NDArray[np.float64]
    eleven_point: NDArray[np.float64]

    def by(self, rule: ApRule) -> NDArray[np.float64]:
        """(...,) of one definition, by its name in a protocol."""
        return {"envelope": self.envelope, "sklearn": self.step, "11point": self.eleven_point}[rule]


def average_precisions(decisions: NDArray[np.floating], labels: NDArray[np.integer]) -> AveragePrecisions:
    """All three definitions for (..., N) decision values against labels of the same or broadcastable shape.

    Args:
        labels: 1 positive, 0 negative, -1 ignored: the item does not take part.

    Raises:
        ValueError: a decision value is NaN.
    """
    if np.isnan(decisions).any():
        raise ValueError("decision values contain NaN, which has no rank")
    decisions, labels = np.broadcast_arrays(decisions, labels)
    shape = decisions.shape[:-1]
    rows = zip(decisions.reshape(-1, decisions.shape[-1]), labels.reshape(-1, labels.shape[-1]), strict=True)
    found = np.array([_one_row(*row) for row in rows]).reshape(*shape, 3)
    return AveragePrecisions(found[..., 0], found[..., 1], found[..., 2])


def _one_row(decisions: NDArray[np.floating], labels: NDArray[np.integer]) -> tuple[float, float, float]:
    kept = labels >= 0
    positive = labels[kept] == 1
    total = int(positive.sum())
    if total == 0:
        return np.nan, np.nan, np.nan
    values = decisions[kept]
    # Only thresholds at which recall changes matter, and there are as many as distinct values among the positives.
    thresholds, counts = np.unique(values[positive], return_counts=True)
    hits = counts[::-1].cumsum()
    below = np.sort(values).searchsorted(thresholds[::-1], side="left")
    precision = hits / (len(values) - below)
    recall = hits / total
    change = np.diff(recall, prepend=0.0)
    best_beyond = np.maximum.accumulate(precision[::-1])[::-1]
    reached = (10 * hits).searchsorted(_TENTHS * total, side="left")  # in whole numbers, where 3/5 reaches 0.6
    return float(change @ best_beyond), float(change @ precision), float(best_beyond[reached].mean())


def pseudo_values(metric: float, influence: NDArray[np.float64]) -> NDArray[np.float32]:
    """(N,) numbers whose weighted mean is the metric under other weights of the images, to first order.

    Args:
        influence: (N,) derivatives, see `envelope_influence`. They sum to zero, since doubling all weights changes
            nothing.
    """
    return (metric + len(influence) * influence).astype(np.float32)


def envelope_influence(decisions: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """(N,) derivative of `AveragePrecisions.envelope` in the weight of each image; zero where it is ignored.

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
    # The envelope at each threshold is the best precision from there on; `best` says at which threshold that is.
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
    """Sums from each threshold to the last, and zero for images below all of them."""
    return np.append(values[::-1].cumsum()[::-1], 0.0)


# ---- of one ranked database, as revisited Oxford and Paris and Copydays define it ------------------------------------


def trapezoid_ap(ranks: NDArray[np.integer], positives: int) -> float:
    """Area under precision over recall by trapezoids.

    Args:
        ranks: of the positives that were found, from 0, ascending.
        positives: how many there are, found or not.
    """
    found = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, found / np.maximum(ranks, 1))
    after = (found + 1) / (ranks + 1)
    return float((before + after).sum() / 2 / positives)


def ranks_without_junk(
    order: NDArray[np.integer], positives: NDArray[np.integer], junk: NDArray[np.integer]
) -> NDArray[np.int64]:
    """Ranks of the positives, from 0, as if the junk were not in the database.

    Args:
        order: (M,) database rows, the most similar first.
    """
    is_junk = np.isin(order, junk)
    return np.asarray((np.cumsum(~is_junk) - 1)[np.isin(order, positives) & ~is_junk], np.int64)


def precision_at(ranks: NDArray[np.integer], k: int) -> float:
    """Share of positives among the first k, or among all up to the last positive where that comes sooner."""
    if not len(ranks):
        return 0.0
    depth = min(int(ranks.max()) + 1, k)
    return float((ranks < depth).sum() / depth)
