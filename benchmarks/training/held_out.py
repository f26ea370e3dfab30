"""The part of train that is kept from training, to choose among heads by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.contract import Labels


def held_out(labels: Labels, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split train in two: items to train on, and items to choose by. Both ascending.

    Of each class `fraction` is held out, rounded, but at least one item and never all. Items that share a source stay
    on one side, so a class of few sources may have less.
    """
    if fraction == 0:
        return np.arange(len(labels)), np.array([], dtype=np.int64)
    sizes = np.bincount(labels.targets, minlength=len(labels.classes))
    quota = np.minimum(np.maximum(1, np.round(fraction * sizes).astype(np.int64)), np.maximum(sizes - 1, 0))
    family = _families(labels)
    by_family = np.argsort(family, kind="stable")
    members = np.split(by_family, np.cumsum(np.bincount(family))[:-1])
    held: list[int] = []
    for which in np.random.default_rng(seed).permutation(len(members)):
        counts = np.bincount(labels.targets[members[which]], minlength=len(quota))
        if (counts <= quota).all():
            quota = quota - counts
            held += members[which].tolist()
    out = np.sort(np.array(held, dtype=np.int64))
    return np.setdiff1d(np.arange(len(labels)), out), out


def _families(labels: Labels) -> NDArray[np.int64]:
    """(N,) numbers that are equal for items which share a source, directly or by way of other items."""
    leader: dict[str, str] = {}

    def find(source: str) -> str:
        while leader.setdefault(source, source) != source:
            leader[source] = leader[leader[source]]  # halve the way for the next who asks
            source = leader[source]
        return source

    for first, *others in labels.groups:
        for other in others:
            leader[find(other)] = find(first)
    return np.unique([find(sources[0]) for sources in labels.groups], return_inverse=True)[1].astype(np.int64)
