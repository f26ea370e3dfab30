"""Average precision of a ranked database, as revisited Oxford and Paris and Copydays define it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


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
