"""Peak memory of a pass: the same for four times as many images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np
from benchmarks.task import Labels, RunOptions
from results.files import PathList
from benchmarks.encoders.load import load_encoder
from benchmarks.features.extract import FeatureRequest
from benchmarks.features.store import FeatureStore
from results.schema import Geometry

folder, root, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
ids = tuple(f"{number:05}.jpg" for number in range(count))
labels = Labels(ids, PathList(folder, ids), ("a",), np.zeros(count, np.int64), tuple((id,) for id in ids))
geometry = Geometry(mode="shorter", resize=32, crop=32)
want = FeatureRequest(load_encoder("random:resnet18-w16-k3-nopool"), labels, geometry, {"embed": ("embed", None)})
FeatureStore(RunOptions(features=root, progress=False)).get([want])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.nightly
def test_peak_memory_does_not_grow_with_the_data_set(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    for number in range(8_000):
        path = tmp_path / "images" / f"{number:05}.jpg"
        if number < 50:
            Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(path)
        else:
            path.hardlink_to(tmp_path / "images" / f"{number % 50:05}.jpg")
    peaks = []
    for count in (2_000, 8_000):
        command = [sys.executable, "-c", MEASURE, tmp_path / "images", tmp_path / str(count), count]
        done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
        peaks.append(float(done.stdout))
    assert peaks[1] - peaks[0] < 8, peaks  # MiB; ids and groups of 6,000 more items, and their hash tables
