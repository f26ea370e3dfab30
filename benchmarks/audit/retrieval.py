"""A cheap score without a parameter to tune, and the uncertainty of a difference between two of them.

The score is the mean average precision of retrieval: each image ranks those of all other sources by cosine of
standardised features, and images of its class are the hits. Every source has two parts in it, as a query and in the
gallery, and the uncertainty has to count both: it is the delete-a-group jackknife (Kott 2001), which takes each group
of sources in turn out of both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor

GROUPS = 60


@dataclass(frozen=True)
class Retrieval:
    """`score`, and `without` (G,) each group of sources, in percent."""

    score: float
    without: NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """In points. `standard_error` is that of the paired difference; a gain above `half_width` is no luck."""

    gain: float
    standard_error: float
    half_width: float

    @property
    def higher(self) -> bool:
        return self.gain > self.half_width

    @property
    def lower(self) -> bool:
        return self.gain < -self.half_width


def jackknife_groups(sources: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """(N,) the group of each image; all images of a source are in one."""
    names, index = np.unique(sources, return_inverse=True)
    groups = min(GROUPS, len(names))
    return (np.random.default_rng(seed).permutation(len(names)) % groups)[index]


def retrieval(
    features: Tensor, classes: NDArray[np.int64], sources: NDArray[np.int64], groups: NDArray[np.int64]
) -> Retrieval:
    """The score of (N, D) finite features; queries without a hit among other sources are left out."""
    centred = features.double() - features.double().mean(0)
    spread = centred.square().mean(0).sqrt()
    unit = torch.nn.functional.normalize(centred / spread.where(spread > 0, torch.inf), dim=1)
    own_class, own_source, group = (torch.from_numpy(a) for a in (classes, sources, groups))
    order = (unit @ unit.T).round(decimals=9).argsort(dim=1, descending=True, stable=True)  # equal rows stay ties
    ranked = own_source[order] != own_source[:, None]
    hits = (own_class[order] == own_class[:, None]) & ranked
    ranked_group = group[order].to(torch.uint8)
    score = _mean_precision(hits, ranked)
    without = []
    for number in range(int(group.max()) + 1):
        queries = group != number
        left = ranked_group[queries] != number
        without.append(_mean_precision(hits[queries] & left, ranked[queries] & left))
    return Retrieval(score, np.array(without))


def _mean_precision(hits: Tensor, ranked: Tensor) -> float:
    hit, rank = hits.float(), ranked.float().cumsum(1)
    found = hit.cumsum(1)
    total = found[:, -1]
    precision = (found / rank.clamp(min=1) * hit).sum(1) / total.clamp(min=1)
    return 100 * float(precision[total > 0].double().mean())


def difference(varied: Retrieval, card: Retrieval, level: float) -> Difference:
    """How much higher `varied` scores; by chance its gain exceeds the half width with a probability of `level`."""
    groups = len(card.without)
    paired = varied.without - card.without
    error = float(np.sqrt((groups - 1) / groups * np.square(paired - paired.mean()).sum()))
    return Difference(varied.score - card.score, error, float(student.ppf(1 - level, groups - 1)) * error)
