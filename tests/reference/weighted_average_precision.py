"""Weighted average precision as its definition reads, in plain loops."""

from __future__ import annotations

from collections.abc import Sequence


def average_precision(scores: Sequence[float], labels: Sequence[int], weights: Sequence[float]) -> float | None:
    """Area under the monotone precision envelope; labels are 1, 0 and -1 (dropped). None without a positive."""
    kept = [(s, y, w) for s, y, w in zip(scores, labels, weights, strict=True) if y != -1]
    total = sum(w for _, y, w in kept if y == 1)
    if total == 0:
        return None
    recalls, precisions = [0.0], [0.0]
    for threshold in sorted({s for s, _, _ in kept}, reverse=True):
        found = sum(w for s, y, w in kept if s >= threshold and y == 1)
        seen = sum(w for s, _, w in kept if s >= threshold)
        recalls.append(found / total)
        precisions.append(found / seen)
    area = 0.0
    for i in range(1, len(recalls)):
        area += (recalls[i] - recalls[i - 1]) * max(precisions[i:])
    return area


def mean_average_precision(
    scores: Sequence[Sequence[float]], labels: Sequence[Sequence[int]], weights: Sequence[float]
) -> float:
    """Mean over the classes (columns) that have a positive."""
    per_class = [
        average_precision(column, truth, weights)
        for column, truth in zip(zip(*scores, strict=True), zip(*labels, strict=True), strict=True)
    ]
    known = [value for value in per_class if value is not None]
    return sum(known) / len(known)
