"""kNN as one would write it on paper: float64, one query at a time, dictionaries of votes."""

from __future__ import annotations

import math

import numpy as np


def neighbours(gallery, query, k, *, normalise=True, excluded=-1):
    """Rows and similarities of the k nearest, nearest first, ties by smaller row; and the gap behind the k-th."""
    query = [float(x) for x in query]
    length = math.sqrt(math.fsum(x * x for x in query)) if normalise else 1.0
    found = []
    for row, vector in enumerate(gallery):
        if row == excluded:
            continue
        vector = [float(x) for x in vector]
        size = math.sqrt(math.fsum(x * x for x in vector)) if normalise else 1.0
        found.append((math.fsum(x * y for x, y in zip(query, vector, strict=True)) / length / size, row))
    found.sort(key=lambda pair: (-pair[0], pair[1]))
    gap = found[k - 1][0] - found[k][0] if k < len(found) else math.inf
    return [row for _, row in found[:k]], [s for s, _ in found[:k]], gap


def ranking(rows, similarities, classes, temperature):
    """Classes that got a vote, most votes first, ties by smaller class."""
    votes = {}
    for row, similarity in zip(rows, similarities, strict=True):
        votes[classes[row]] = votes.get(classes[row], 0.0) + math.exp(similarity / temperature)
    return sorted(votes, key=lambda c: (-votes[c], c))


def neighbours_by_matrix(gallery, queries, k):
    """As `neighbours` for many queries by one float64 product: rows (Q, k) and gaps (Q,)."""
    g = gallery.astype(np.float64)
    q = queries.astype(np.float64)
    s = (q / np.linalg.norm(q, axis=1, keepdims=True)) @ (g / np.linalg.norm(g, axis=1, keepdims=True)).T
    order = np.argsort(-s, axis=1, kind="stable")
    ranked = np.take_along_axis(s, order, axis=1)
    return order[:, :k], ranked[:, k - 1] - ranked[:, k]
