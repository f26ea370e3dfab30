"""The entries of decoders and views measure the same pictures on every side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.speed import decoders as speed
from scripts.speed.features import write_jpegs


def test_every_decoder_gives_the_picture(tmp_path: Path) -> None:
    (path,) = write_jpegs(tmp_path, 1)
    works, _ = speed.decoders()
    expected = np.asarray(works["PIL"](path), np.float32)
    for name, decode in works.items():
        found = np.asarray(decode(path), np.float32)
        if name == "torchvision.io":
            found = found.transpose(1, 2, 0)
        if "scaled" in name or "half" in name:
            assert np.allclose(found.mean(axis=(0, 1)), expected.mean(axis=(0, 1)), atol=2)
        else:
            assert found.shape == expected.shape
            assert np.abs(found - expected).mean() < 1.5
    assert speed.eighth(path).size == (63, 47)


@pytest.mark.slow
def test_the_entries_name_what_was_measured() -> None:
    found = speed.measure_decoders(files=1)
    assert all(name in str(found["note"]) for name in ("torchvision.io", "PIL, scaled DCT", "pil-draft"))
    views = speed.measure_views(files=1)
    assert all(name in str(views["note"]) for name in ("the tensor engine", speed.PLAIN, "decoding by PIL"))
    assert "albumentations" in str(views["note"])  # its rate, or how to install it
