"""The VOC07 SVM protocol class by class and cost by cost with scikit-learn, as the publications describe it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC


def normalised(features: NDArray) -> NDArray:
    doubled = features.astype(np.float64)
    return doubled / (np.linalg.norm(doubled, axis=1, keepdims=True) + 1e-5)


def classifier(cost: float) -> LinearSVC:
    return LinearSVC(C=cost, class_weight={1: 2, -1: 1}, tol=1e-8, max_iter=100_000, dual=False)


def full(
    train: NDArray, train_labels: NDArray, test: NDArray, costs: Sequence[float], *, drop_ignored: bool = False
) -> tuple[NDArray, NDArray, NDArray]:
    """(costs, C) cross-validated scikit-learn AP, (C,) first best cost, (C, N) decisions of the refit on test."""
    x, x_test = normalised(train), normalised(test)
    cv, chosen, decisions = np.zeros((len(costs), train_labels.shape[1])), [], []
    for c, labels in enumerate(train_labels.T):
        kept = labels >= 0 if drop_ignored else np.ones(len(labels), bool)
        rows, signs = x[kept], np.where(labels[kept] == 1, 1, -1)
        for i, cost in enumerate(costs):
            for fit, held_out in StratifiedKFold(3).split(rows, signs):
                found = classifier(cost).fit(rows[fit], signs[fit]).decision_function(rows[held_out])
                cv[i, c] += average_precision_score(signs[held_out] == 1, found) / 3
        best = costs[int(cv[:, c].argmax())]
        chosen.append(best)
        decisions.append(classifier(best).fit(rows, signs).decision_function(x_test))
    return cv, np.array(chosen), np.array(decisions)
