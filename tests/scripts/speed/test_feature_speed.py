"""Decoders give the same pictures, both sides the same features, and a suite every benchmark together and alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from benchmarks.encoders.load import load_encoder
from scripts.speed import features as speed


def test_every_decoder_gives_the_picture(tmp_path: Path) -> None:
    (path,) = speed.write_jpegs(tmp_path, 1)
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
def test_the_entry_of_decoders_names_what_was_measured() -> None:
    found = speed.measure_decoders(files=1)
    assert all(name in str(found["note"]) for name in ("torchvision.io", "PIL, scaled DCT", "pil-draft"))


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


@pytest.mark.nightly
def test_the_suite_is_measured_against_its_parts() -> None:
    found = speed.measure_suite("random:resnet18-w8-k3-nopool:0", classes=2)
    assert "4 benchmarks" in str(found["note"])
    assert float(found["baseline_s"]) > float(found["ours_s"]) > 0
    assert 0 < float(found["limit_s"]) < float(found["baseline_s"])
