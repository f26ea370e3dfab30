"""Small seeded splits for tests of the SVM harnesses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.task import Labels, Split
from scripts.speed.svm import synthetic_voc

CLASSES = ("bird", "boat", "cat", "dog")


def labels(targets: NDArray, classes: tuple[str, ...] = CLASSES) -> Labels:
    ids = tuple(f"{i:06d}" for i in range(len(targets)))
    return Labels(ids, tuple(Path(f"{i}.jpg") for i in ids), classes, targets, tuple((i,) for i in ids))


def splits(train: int = 240, test: int = 160, **dims: int) -> tuple[Split, Split]:
    """Multi-label splits whose features of every name are about the same images; `dims` gives their dimensions."""
    features: tuple[dict[str, NDArray], dict[str, NDArray]] = ({}, {})
    targets: list[NDArray] = []
    for name, dim in (dims or {"embed": 60}).items():
        parts = synthetic_voc(train, test, dim, positives=(600, 900, 1400, 2000), signal=(1.0, 3.0))
        targets = [part.targets for part in parts]
        for kept, part in zip(features, parts, strict=True):
            kept[name] = part.features
    return Split(labels(targets[0]), features[0]), Split(labels(targets[1]), features[1])


def single_label(split: Split) -> Split:
    """The same features with class indices: the first class that an image has, else the last one."""
    targets = np.where((split.labels.targets == 1).any(1), (split.labels.targets == 1).argmax(1), len(CLASSES) - 1)
    return Split(labels(targets.astype(np.int64)), split.features)
