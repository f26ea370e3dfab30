"""Three definitions of average precision that VOC figures are given in, and which one a number has must be said.

All take decision values and 0/1 labels, and rank by descending value. Tied values share one threshold: precision and
recall are read only after the last of them, so that no order among them can be favoured. The published scripts'
envelope and the devkit's 11-point rule walk through ties one by one in whatever order the sort left them; without
ties all agree with them exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.svm.settings import ApRule

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
        """(...,) of one of them, by its name in a protocol."""
        return {"envelope": self.envelope, "sklearn": self.step, "11point": self.eleven_point}[rule]


def average_precisions(decisions: NDArray[np.floating], labels: NDArray[np.integer]) -> AveragePrecisions:
    """All three, for (..., N) decision values against labels of the same or broadcastable shape.

    Args:
        labels: 1 positive, 0 negative, -1 ignored: the item does not take part.

    Raises:
        ValueError: a decision value is NaN.
    """
    if np.isnan(decisions).any():
        raise ValueError("decision values contain NaN, which has no rank")
    decisions, labels = np.broadcast_arrays(decisions, labels)
    shape = decisions.shape[:-1]
    flat = decisions.reshape(-1, decisions.shape[-1])
    marks = labels.reshape(-1, labels.shape[-1])
    found = np.array([_one(row, mark) for row, mark in zip(flat, marks, strict=True)]).reshape(*shape, 3)
    return AveragePrecisions(found[..., 0], found[..., 1], found[..., 2])


def envelope_ap(decisions: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """See `AveragePrecisions.envelope`."""
    return average_precisions(decisions, labels).envelope


def step_ap(decisions: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """See `AveragePrecisions.step`."""
    return average_precisions(decisions, labels).step


def eleven_point_ap(decisions: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """See `AveragePrecisions.eleven_point`."""
    return average_precisions(decisions, labels).eleven_point


def _one(decisions: NDArray[np.floating], labels: NDArray[np.integer]) -> tuple[float, float, float]:
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
