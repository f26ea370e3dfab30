"""Images are decoded once for all encoders, and again when a file has changed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.training import loader
from benchmarks.training.loader import Images, Views
from benchmarks.training.settings import ViewSettings
from tests.reference.linear_tiny import GEOMETRY, tiny_labels


def test_images_are_decoded_once_for_all_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = tiny_labels(tmp_path, "train", 40, seed=0)
    decoded: list[Path] = []

    def counting(path: Path) -> Image.Image:
        decoded.append(path)
        return loader_decode(path)

    loader_decode = loader.decode
    monkeypatch.setattr(loader, "decode", counting)
    first = Images(labels.paths)
    once = len(decoded)
    second = Images(labels.paths)
    assert first.in_memory
    assert second[3] is first[3]
    assert len(decoded) - once < once < 2 * len(labels)  # only the sample by which the size is estimated
    path = labels.paths[3]
    Image.fromarray(np.full((20, 24, 3), 7, np.uint8)).save(path)
    os.utime(path, ns=(1, 1))
    assert np.asarray(Images(labels.paths)[3]).max() == 7
    assert np.asarray(first[3]).max() != 7


def test_a_view_is_drawn_once_for_all_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = tiny_labels(tmp_path, "train", 4, seed=0)
    settings = ViewSettings(jitter=0.4, lighting=0.1)

    def views(**changes: object) -> Views:
        how = {"geometry": GEOMETRY, "settings": settings, "seed": 0, **changes}
        return Views(Images(labels.paths), labels.targets, **how)  # type: ignore[arg-type]

    first = views()[(2, 5)]
    drawn: list[int] = []
    make = Views._drawn
    monkeypatch.setattr(Views, "_drawn", lambda self, *which: drawn.append(1) or make(self, *which))
    again = views()[(2, 5)]
    assert all(torch.equal(a, b) for a, b in zip(first[:2], again[:2], strict=True))
    assert (first[2], drawn) == (1, [])
    for other in (views(seed=1), views(settings=settings.model_copy(update={"jitter": 0.0})), views(settings=None)):
        assert not torch.equal(other[(2, 5)][0], first[0])
    views()[(3, 5)], views()[(2, 6)]
    assert len(drawn) == 5
    monkeypatch.setattr(Images(labels.paths).kept, "room", 10)
    views()[(9, 0)], views()[(9, 0)]
    assert len(drawn) == 7  # no room left


def test_what_does_not_fit_is_read_when_asked_for(tmp_path: Path) -> None:
    labels = tiny_labels(tmp_path, "train", 2, seed=0)
    images = Images(labels.paths, limit=100)
    assert not images.in_memory
    assert images[1].size == (24, 20)
