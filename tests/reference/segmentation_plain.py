"""Mean intersection over union, counted pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def plain_iou(
    predicted: list[NDArray[np.int64]], truth: list[NDArray[np.int64]], classes: int, ignored: int = 255
) -> tuple[list[float], list[float], float]:
    """Per-class IoU, per-class accuracy (NaN where undefined) and pixel accuracy, in percent."""
    confusion = [[0] * classes for _ in range(classes)]
    for guess, true in zip(predicted, truth, strict=True):
        for g, t in zip(guess.ravel().tolist(), true.ravel().tolist(), strict=True):
            if t != ignored:
                confusion[t][g] += 1
    iou, accuracy = [], []
    for c in range(classes):
        row, column = sum(confusion[c]), sum(confusion[t][c] for t in range(classes))
        union = row + column - confusion[c][c]
        iou.append(100 * confusion[c][c] / union if union else math.nan)
        accuracy.append(100 * confusion[c][c] / row if row else math.nan)
    total = sum(map(sum, confusion))
    return iou, accuracy, 100 * sum(confusion[c][c] for c in range(classes)) / total
