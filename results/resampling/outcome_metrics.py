"""The metrics that can be computed again from what happened to each test item, under any weights of the items."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RULES = ("envelope", "sklearn", "11point")


class WeightedMean:
    """Of (N,) values: accuracy is that of right and wrong items, another metric that of its pseudo-values."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values.astype(np.float64)

    def __call__(self, weights: Floats) -> Floats:
        """(N, B) item weights to (B,) weighted means."""
        return (self.values @ weights) / weights.sum(axis=0)


class MeanAveragePrecision:
    """Mean over classes of one of three definitions of average precision.

    Items with the same decision value enter together, so that their order means nothing. Classes without a positive
    are left out of the mean.

    Args:
        decision: (N, C), the higher the surer.
        targets: (N, C) of 1, 0 and -1 (ignored).
        rule: `envelope`, the area under the monotone envelope of precision at every change of recall (VOC2010 and
            later); `sklearn`, precision times change of recall, not interpolated; `11point`, the mean of the envelope
            at recalls 0, 0.1 … 1 (VOC2007).

    Raises:
        ValueError: no class has a positive, or another rule.
    """

    def __init__(self, decision: NDArray[Any], targets: NDArray[Any], rule: str = "envelope") -> None:
        if rule not in RULES:
            raise ValueError(f"{rule} is no rule of average precision; known are {', '.join(RULES)}")
        self.rule = rule
        self.classes: list[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]] = []
        for scores, labels in zip(decision.T, targets.T, strict=True):
            rows = np.flatnonzero(labels != -1)
            rows = rows[np.argsort(-scores[rows].astype(np.float64), kind="stable")]
            positive = labels[rows] == 1
            if not positive.any():
                continue
            level = np.concatenate([[0], np.cumsum(scores[rows][1:] != scores[rows][:-1])])  # equal decisions share one
            # recall changes only where a positive enters, and precision between two such levels only falls
            levels = np.unique(level[positive])
            ends = np.searchsorted(level, levels, side="right")
            starts = np.concatenate([[0], ends[:-1]])
            first_positives = np.searchsorted(level[positive], levels)
            self.classes.append((rows[: ends[-1]], starts, rows[positive], first_positives))
        if not self.classes:
            raise ValueError("average precision needs a class with at least one positive item")

    def __call__(self, weights: Floats) -> Floats:
        """(N, B) item weights to (B,) weighted mean average precisions."""
        total = np.zeros(weights.shape[1])
        for rows, starts, positives, first_positives in self.classes:
            seen = np.add.reduceat(weights[rows], starts, axis=0).cumsum(axis=0)
            entering = np.add.reduceat(weights[positives], first_positives, axis=0)
            found = entering.cumsum(axis=0)
            precision = found / seen
            total += self._of_class(precision, entering, found)
        return total / len(self.classes)

    def _of_class(self, precision: Floats, entering: Floats, found: Floats) -> Floats:
        """(levels, B) precision, weight of the positives of a level and of all up to it, to (B,)."""
        if self.rule == "sklearn":
            return np.asarray((precision * entering).sum(axis=0) / found[-1])
        envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        if self.rule == "envelope":
            return np.asarray((envelope * entering).sum(axis=0) / found[-1])
        below = [(found < (tenth / 10 - 1e-9) * found[-1]).sum(axis=0) for tenth in range(11)]  # 3 of 5 reach 0.6
        return np.take_along_axis(envelope, np.array(below), 0).mean(axis=0)


class MeanIntersectionOverUnion:
    """Of all pixels together, mean over the classes that prediction or truth have somewhere."""

    def __init__(self, areas: NDArray[Any]) -> None:
        pixels = areas.astype(np.float64)
        self.intersection = pixels[:, 0]
        self.union = pixels[:, 1] + pixels[:, 2] - pixels[:, 0]
        present = self.union.any(axis=0)
        if not present.any():
            raise ValueError("intersection over union needs a class that is predicted or true somewhere")
        self.intersection, self.union = self.intersection[:, present], self.union[:, present]

    def __call__(self, weights: Floats) -> Floats:
        """(N, B) item weights to (B,) weighted means."""
        return np.mean((self.intersection.T @ weights) / (self.union.T @ weights), axis=0)
