"""Pictures to pretrain on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images" / "train" / "things"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(33):  # one more than two batches: the incomplete last one is dropped
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((40, 40)).save(folder / f"{number:02d}.png")
    return tmp_path / "images"
