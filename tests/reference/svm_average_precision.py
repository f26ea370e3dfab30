"""Average precision item by item, as the VOC devkit and the publications define it, for values without ties."""

from __future__ import annotations

from collections.abc import Sequence


def precision_recall(decisions: Sequence[float], positive: Sequence[bool]) -> list[tuple[float, float]]:
    """(precision, recall) after each item, by descending decision value."""
    order = sorted(range(len(decisions)), key=lambda i: -decisions[i])
    total, hits, found = sum(positive), 0, []
    for rank, i in enumerate(order, start=1):
        hits += positive[i]
        found.append((hits / rank, hits / total))
    return found


def devkit_2007(decisions: Sequence[float], positive: Sequence[bool]) -> float:
    """Mean over recalls 0, 0.1 … 1 of the best precision at that recall or beyond."""
    curve = precision_recall(decisions, positive)
    total = 0.0
    for tenth in range(11):
        total += max((precision for precision, recall in curve if recall >= tenth / 10), default=0.0)
    return total / 11


def devkit_2010(decisions: Sequence[float], positive: Sequence[bool]) -> float:
    """Area under the precision envelope made monotone from the right, at every recall change."""
    curve = precision_recall(decisions, positive)
    recalls = [0.0, *(recall for _, recall in curve), 1.0]
    precisions = [0.0, *(precision for precision, _ in curve), 0.0]
    for i in reversed(range(len(precisions) - 1)):
        precisions[i] = max(precisions[i], precisions[i + 1])
    return sum((recalls[i] - recalls[i - 1]) * precisions[i] for i in range(1, len(recalls)))


def mean_precision_at_hits(decisions: Sequence[float], positive: Sequence[bool]) -> float:
    """Mean of the precision at each positive."""
    order = sorted(range(len(decisions)), key=lambda i: -decisions[i])
    curve = precision_recall(decisions, positive)
    at_hits = [precision for i, (precision, _) in zip(order, curve, strict=True) if positive[i]]
    return sum(at_hits) / len(at_hits)
