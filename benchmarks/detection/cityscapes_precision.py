"""Average precision of instances as the Cityscapes benchmark defines it (Cordts et al. 2016, section 4.2).

The rules are those of the owner's evaluation: objects of fewer than 100 pixels, groups and void areas are ignored, and
the area below the curve of precision over recall is taken with central differences, without an envelope.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.datasets.cityscapes import LABEL_IDS

OVERLAPS = np.arange(0.5, 0.951, 0.05)
SMALLEST = 100  # pixels
VOID = [label for label in range(34) if label not in LABEL_IDS.values()]


@dataclass(frozen=True)
class _Matches:
    """One class in one image: P predictions, G objects that count.

    Attributes:
        scores: (P,).
        overlaps: (P, G) intersection over union.
        ignored: (P,) part of a prediction that lies on void, groups and small objects.
    """

    scores: NDArray[np.float64]
    overlaps: NDArray[np.float64]
    ignored: NDArray[np.float64]


class CityscapesPrecision:
    """Collects images and measures them together.

    Args:
        classes: names, in the order of the class indices.
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self.images: list[list[_Matches]] = []

    def add(self, truth: Path, masks: NDArray[Any], classes: NDArray[Any], scores: NDArray[Any]) -> None:
        """One image: its instanceIds file, and (P, H, W) boolean masks, (P,) class indices and (P,) scores."""
        with Image.open(truth) as image:
            instances = np.asarray(image)
        self.images.append(
            [
                _match(instances, LABEL_IDS[name], masks[classes == index], scores[classes == index])
                for index, name in enumerate(self.classes)
            ]
        )

    def per_class(self) -> NDArray[np.float64]:
        """(10 overlaps, C classes) fractions; NaN for a class that no image shows."""
        return np.array(
            [
                [
                    average_precision([image[kind] for image in self.images], overlap)
                    for kind in range(len(self.classes))
                ]
                for overlap in OVERLAPS
            ]
        )


def _match(instances: NDArray[Any], label: int, masks: NDArray[Any], scores: NDArray[Any]) -> _Matches:
    filled = masks.astype(bool).any(axis=(1, 2)) if len(masks) else np.zeros(0, dtype=bool)
    masks, scores = masks[filled].astype(bool), scores[filled]
    values, counts = np.unique(instances, return_counts=True)
    own = [(v, n) for v, n in zip(values.tolist(), counts.tolist(), strict=True) if v == label or v // 1000 == label]
    counted = [(v, n) for v, n in own if v >= 1000 and n >= SMALLEST]
    # A small group is ignored twice over, as the owner counts it.
    passed_over = [v for v, n in own if v < 1000] + [v for v, n in own if n < SMALLEST]
    void = np.isin(instances, VOID)
    overlaps, ignored = np.zeros((len(masks), len(counted))), np.zeros(len(masks))
    for row, mask in enumerate(masks):
        inside, size = instances[mask], int(mask.sum())
        shared = [int((inside == value).sum()) for value, _ in counted]
        overlaps[row] = [s / (size + n - s) for s, (_, n) in zip(shared, counted, strict=True)]
        ignored[row] = (void[mask].sum() + sum(int((inside == value).sum()) for value in passed_over)) / size
    return _Matches(scores.astype(np.float64), overlaps, ignored)


def average_precision(images: list[_Matches], overlap: float) -> float:
    """Of one class at one overlap."""
    right: list[bool] = []
    scores: list[float] = []
    missed = 0
    for image in images:
        used = np.zeros(len(image.scores), dtype=bool)
        for column in image.overlaps.T:
            candidates = np.flatnonzero((column > overlap) & ~used)
            if not len(candidates):
                missed += 1
                continue
            used[candidates[0]] = True
            best = float(image.scores[candidates].max())
            right.append(True)
            scores.append(best)
            # Further predictions of the same object are mistakes, the surest of them the match.
            for _, score in zip(candidates[1:], np.sort(image.scores[candidates])[-2::-1], strict=True):
                right.append(False)
                scores.append(float(score))
        alone = ~(image.overlaps > overlap).any(axis=1) & (image.ignored <= overlap)
        right += [False] * int(alone.sum())
        scores += image.scores[alone].tolist()
    objects = sum(image.overlaps.shape[1] for image in images)
    if not objects:
        return float("nan")
    if not scores:
        return 0.0
    order = np.argsort(scores)
    hits = np.array(right)[order]
    _, starts = np.unique(np.array(scores)[order], return_index=True)
    below = np.concatenate(([0], np.cumsum(hits)))[starts]  # hits that a threshold at this score leaves out
    found = hits.sum() - below
    precision = np.append(found / (len(hits) - starts), 1.0)
    recall = np.append(found / (hits.sum() + missed), 0.0)
    widths = np.convolve(np.concatenate(([recall[0]], recall, [0.0])), [-0.5, 0.0, 0.5], "valid")
    return float(precision @ widths)
