"""The VOC 2007 rule for average precision, written out plainly (Everingham et al. 2010, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Counted up as the implementations do: 0.6 is then a bit more than 3 of 5, and a recall of 3 of 5 falls short of it.
TENTHS = [tenth * 0.1 for tenth in range(11)]
Box = tuple[float, float, float, float]  # both edges inside, counted from 1


@dataclass(frozen=True)
class Truth:
    image: str
    box: Box
    difficult: bool = False


@dataclass(frozen=True)
class Detection:
    image: str
    score: float
    box: Box


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of boxes whose edges are inside."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def average_precision(truths: Sequence[Truth], detections: Sequence[Detection], least: float) -> float:
    """Eleven points. A detection is right where it overlaps by more than `least` with an object that is not taken."""
    objects = sum(not truth.difficult for truth in truths)
    taken: set[int] = set()
    right, wrong = 0, 0
    curve: list[tuple[float, float]] = []  # recall, precision
    for detection in sorted(detections, key=lambda d: -d.score):
        candidates = [
            (overlap(truth.box, detection.box), -n) for n, truth in enumerate(truths) if truth.image == detection.image
        ]
        best, number = max(candidates, default=(0.0, 0))
        number = -number
        if best > least and truths[number].difficult:
            pass
        elif best > least and number not in taken:
            taken.add(number)
            right += 1
        else:
            wrong += 1
        if right + wrong and objects:
            curve.append((right / objects, right / (right + wrong)))
    points = [max((p for r, p in curve if r >= tenth), default=0.0) for tenth in TENTHS]
    return sum(points) / 11
