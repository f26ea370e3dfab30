"""The corruptions of the drawings against the definitions of ImageNet-C, written plainly."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from benchmarks.demo.writers import CORRUPTIONS

PICTURE = Image.fromarray(np.random.default_rng(0).integers(40, 200, (32, 48, 3), dtype=np.uint8))
PIXELS = np.asarray(PICTURE, float) / 255


def corrupted(name: str, severity: int, image: Image.Image = PICTURE) -> np.ndarray:
    found = CORRUPTIONS[name](image, severity, np.random.default_rng(1))
    assert found.size == image.size
    return np.asarray(found, float) / 255


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_it_gets_worse(name: str) -> None:
    smooth = PICTURE.resize((6, 4)).resize((48, 32))
    clean = np.asarray(smooth, float) / 255
    errors = [float(np.abs(corrupted(name, severity, smooth) - clean).mean()) for severity in (1, 3, 5)]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_noise_has_the_stated_size() -> None:
    grey = Image.new("RGB", (100, 100), (128, 128, 128))
    assert corrupted("gaussian_noise", 1, grey).std() == pytest.approx(0.08, rel=0.02)


def test_contrast_shrinks_towards_the_mean_of_each_channel() -> None:
    mean = PIXELS.mean((0, 1))
    np.testing.assert_allclose(corrupted("contrast", 4), mean + 0.1 * (PIXELS - mean), atol=1 / 255)


def test_pixelate_keeps_a_quarter_of_the_side() -> None:
    blocks = corrupted("pixelate", 5)
    assert len({tuple(row) for row in blocks.reshape(-1, 3)}) <= 8 * 12
