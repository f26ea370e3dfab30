"""Seeded features and labels about as hard to classify as those of a real encoder on VOC07."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Trainval images of VOC07 with each class, from the lists of the data set in alphabetical order.
VOC07_POSITIVES = (238, 243, 330, 181, 244, 186, 713, 337, 445, 141, 200, 421, 287, 245, 2008, 245, 96, 229, 261, 256)
VOC07_TRAIN, VOC07_TEST = 5011, 4952
_MAX_LATENT = 2048


@dataclass(frozen=True)
class SyntheticSplit:
    """Features with their labels.

    Attributes:
        features: (N, D) float32, non-negative.
        targets: (N, C) int8: 1 present, 0 absent, -1 ignored.
    """

    features: NDArray[np.float32]
    targets: NDArray[np.int8]


def synthetic_voc(
    train: int,
    test: int,
    dim: int,
    *,
    seed: int = 0,
    positives: tuple[int, ...] = VOC07_POSITIVES,
    signal: tuple[float, float] = (0.7, 2.0),
) -> tuple[SyntheticSplit, SyntheticSplit]:
    """A training and a test split with the class frequencies of VOC07.

    Latent coordinates have a power-law spectrum, as features of convolutional nets do; each class adds a direction of
    its own with a strength that varies between images; a rectified random projection makes them features, whose mean
    is as large against their spread as after a ReLU.

    Args:
        positives: of each class among 5011 images.
        signal: strength of the hardest and of the easiest class.
    """
    rng = np.random.default_rng(seed)
    count, classes = train + test, len(positives)
    present = rng.random((count, classes)) < np.array(positives) / VOC07_TRAIN
    latent_dim = min(dim, _MAX_LATENT)
    spectrum = 3 * np.arange(1, latent_dim + 1, dtype=np.float32) ** -0.45
    directions = rng.standard_normal((classes, latent_dim), dtype=np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    strength = rng.permutation(np.linspace(*signal, classes)) * rng.gamma(4, 0.25, (count, classes))
    latent = rng.standard_normal((count, latent_dim), dtype=np.float32) * spectrum
    latent += (present * strength).astype(np.float32) @ directions
    projection = rng.standard_normal((latent_dim, dim), dtype=np.float32) * np.float32(2 / np.sqrt(latent_dim))
    offset = rng.standard_normal(dim, dtype=np.float32) * np.float32(0.3)
    features = np.maximum(latent @ projection + offset, 0)
    targets = present.astype(np.int8)
    targets[~present & (rng.random((count, classes)) < 0.006)] = -1
    return SyntheticSplit(features[:train], targets[:train]), SyntheticSplit(features[train:], targets[train:])
