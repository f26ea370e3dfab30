"""AP of instances against figures of the owner's own programme, cityscapesScripts 0bcc4a7, on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.detection.metrics import CityscapesPrecision

# Label ids of the owner; the first four are drawn, predictions are of all eight.
CLASSES = {"person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33}
LABELS = list(CLASSES.values())
SIZE = (96, 128)

# AP (mean over ten overlaps) and AP50 of person, rider, car and truck; the others are not to be seen.
OWNER = {
    0: (
        (0.28874999999999995, 0.02866161616161616, 0.04721212121212121, 0.013476840619697764),
        (0.5416666666666666, 0.09617003367003367, 0.17386363636363636, 0.04642857142857143),
    ),
    1: (
        (0.19733153907496012, 0.0628583916083916, 0.13377085877085876, 0.35490598963944553),
        (0.6366883116883117, 0.15643939393939393, 0.3869149369149369, 0.6864850427350427),
    ),
    2: (
        (0.07643428834774617, 0.1380787037037037, 0.04730494505494505, 0.023611111111111107),
        (0.21759672619047618, 0.42777777777777776, 0.10571428571428572, 0.09722222222222221),
    ),
}


def scene(rng: np.random.Generator) -> tuple[Any, list[tuple[Any, int, float]]]:
    """Instance ids with void, groups and small objects; masks near the truth, doubled, merged, nowhere and empty."""
    truth = np.full(SIZE, 7)
    truth[:8] = rng.choice([0, 3, 4])  # void
    counts = dict.fromkeys(LABELS, 0)
    for _ in range(rng.integers(4, 12)):
        label = int(rng.choice(LABELS[:4]))
        height, width = rng.integers(4, 40, 2)
        top, left = rng.integers(0, SIZE[0] - height), rng.integers(0, SIZE[1] - width)
        group = rng.random() < 0.15
        truth[top : top + height, left : left + width] = label if group else 1000 * label + counts[label]
        counts[label] += not group
    found: list[tuple[Any, int, float]] = []
    for value in np.unique(truth):
        label = int(value) // 1000 if value >= 1000 else int(value)
        for _ in range(rng.integers(0, 4) if label in LABELS else 0):
            mask = np.roll(truth == value, tuple(rng.integers(-4, 5, 2)), (0, 1))
            if rng.random() < 0.3:
                mask = mask | (truth == rng.choice(np.unique(truth)))
            kind = label if rng.random() < 0.85 else int(rng.choice(LABELS))
            # Of one digit, so that scores tie.
            found.append((mask, kind, round(float(rng.random()), 1)))
    nowhere = np.zeros(SIZE, dtype=bool)
    nowhere[70:90, 100:120] = True
    return truth, [*found, (nowhere, int(rng.choice(LABELS)), 0.85), (np.zeros(SIZE, dtype=bool), 24, 0.9)]


@pytest.mark.parametrize("seed", OWNER)
def test_every_class_has_the_ap_that_the_owner_gives(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    measured = CityscapesPrecision(tuple(CLASSES))
    for number in range(6):
        truth, found = scene(rng)
        file = tmp_path / f"{number}.png"
        Image.fromarray(truth.astype(np.uint16)).save(file)
        masks, kinds, scores = zip(*found, strict=True)
        measured.add(file, np.stack(masks), np.array([LABELS.index(kind) for kind in kinds]), np.array(scores))
    values = measured.per_class()
    assert np.isnan(values[:, 4:]).all()
    assert values.mean(axis=0)[:4] == pytest.approx(OWNER[seed][0], abs=1e-9)
    assert values[0, :4] == pytest.approx(OWNER[seed][1], abs=1e-9)
