"""The entries of views and of the end-to-end mechanism, on one file and on a small net."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pretrain.recipe import Recipe
from results.schema import Architecture
from scripts.speed import pretrain as speed


@pytest.mark.slow
def test_the_entry_of_views_names_what_was_measured() -> None:
    views = speed.measure_views(files=1)
    assert all(name in str(views["note"]) for name in ("the tensor engine", speed.PLAIN, "decoding by PIL"))
    assert "albumentations" in str(views["note"])  # its rate, or how to install it


@pytest.mark.nightly
def test_the_difference_is_explained_by_passes_and_by_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(**changes: Any) -> Recipe:
        return Recipe(
            architecture=Architecture(name="resnet18"), batch_size=32, queue_size=64,
            augmentation={"crop": 64}, **changes,
        )  # fmt: skip

    monkeypatch.setattr(speed, "moco_v2", small)
    entry = speed.measure_end_to_end()
    assert entry["ratio"] > 1
    pairs = [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) to ([\d.]+) GB", entry["note"])]
    peak, kept, staying, both, float32 = pairs
    assert peak[0] > kept[0] > 0
    assert kept[1] == pytest.approx(2 * kept[0], rel=0.2)  # two encoders' activations for one's
    assert staying[1] / staying[0] == pytest.approx(6 / 4, rel=0.1)  # weights, gradients and momentum of both
    assert both == pytest.approx([a + b for a, b in zip(kept, staying, strict=True)], abs=0.02)
    assert float32[1] > float32[0] > staying[0]
