"""The speed pair measures the same features on both sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from benchmarks.encoders.load import load_encoder
from scripts.speed import features as speed


@pytest.mark.slow
def test_files_are_of_the_size_that_they_are_said_to_be(tmp_path: Path) -> None:
    first, again = speed.write_jpegs(tmp_path / "a", 2), speed.write_jpegs(tmp_path / "b", 2)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert first[0].read_bytes() != first[1].read_bytes()
    with Image.open(first[0]) as image:
        assert image.size == (500, 375)
    assert 50_000 < first[0].stat().st_size < 200_000


@pytest.mark.slow
def test_ours_and_the_loop_give_the_same_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "WORKERS", 0)
    paths = speed.write_jpegs(tmp_path / "images", 3)
    encoder = load_encoder("random:resnet18").to("cpu")
    network = models.resnet18()
    network.fc = torch.nn.Identity()
    network.load_state_dict(encoder.module.state_dict())
    theirs = speed.plain_loop(network.eval(), paths)
    ours = speed.stored(encoder, paths, tmp_path / "store", "fp32")
    assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
