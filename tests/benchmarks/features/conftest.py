from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.features import shards
from benchmarks.task import Labels


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    """22 pictures in two classes."""
    random = np.random.default_rng(0)
    paths = []
    for number in range(22):
        path = tmp_path / f"{number:02}.png"
        Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    ids = tuple(p.name for p in paths)
    return Labels(ids, tuple(paths), ("a", "b"), np.arange(22, dtype=np.int64) % 2, tuple((i,) for i in ids))


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> int:
    """Shards of 4 rows, so that 22 images have six."""
    monkeypatch.setattr(shards, "SHARD_ROWS", 4)
    return 4
