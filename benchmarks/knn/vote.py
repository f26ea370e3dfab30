"""Weighted votes of the nearest neighbours: all k from one search, by scatter-add."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_CELLS = 1 << 22  # votes held at once, rows times classes: 32 MiB


def true_class_ranks(
    similarities: NDArray[np.floating],
    neighbour_classes: NDArray[np.integer],
    targets: NDArray[np.integer],
    *,
    ks: Sequence[int],
    temperature: float,
    num_classes: int,
) -> dict[int, NDArray[np.int64]]:
    """Rank of the true class among the classes by votes, 0 the winner, for every k.

    A neighbour votes with exp(similarity / T) (Wu et al. 2018, section 3.4). Equal votes go to the smaller class
    index. A class without a vote has rank `num_classes`: it is no hit, at whatever depth one counts.

    Args:
        similarities: (Q, K) of each query's neighbours, nearest first, K at least the largest k.
        neighbour_classes: (Q, K) class indices.
        targets: (Q,) true class indices.
    """
    ranks = {k: np.empty(len(targets), np.int64) for k in ks}
    rows = max(1, _CELLS // num_classes)
    for start in range(0, len(targets), rows):
        part = slice(start, start + rows)
        # Only ratios of weights matter, and exp of an unnormalised similarity overflows: scale by the nearest one's.
        weights = np.exp((similarities[part] - similarities[part, :1]) / temperature, dtype=np.float64)
        # The furthest of many unnormalised neighbours may underflow, yet it voted.
        weights = np.maximum(weights, np.finfo(np.float64).tiny)
        n = len(weights)
        cells = np.arange(n)[:, None] * num_classes + neighbour_classes[part]
        votes = np.zeros(n * num_classes)
        counted = 0
        for k in sorted(ks):
            added = slice(counted, k)
            votes += np.bincount(cells[:, added].ravel(), weights[:, added].ravel(), minlength=n * num_classes)
            ranks[k][part] = _ranks(votes.reshape(n, num_classes), targets[part])
            counted = k
    return ranks


def _ranks(votes: NDArray[np.float64], targets: NDArray[np.integer]) -> NDArray[np.int64]:
    true = np.take_along_axis(votes, targets[:, None], axis=1)
    before = np.arange(votes.shape[1]) < targets[:, None]
    ahead = (votes > true) | ((votes == true) & before)
    return np.where(true[:, 0] > 0, ahead.sum(axis=1), votes.shape[1])
