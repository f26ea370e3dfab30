"""The dry run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.plan import _small_batch
from pretrain.recipe import Augmentation, Recipe
from tests.pretrain.tiny_runs import run


def test_dry_run_says_what_it_would_take_and_writes_nothing(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(images, tmp_path / "out", "--dry-run") == 0
    plan = capsys.readouterr().out
    assert "33 images" in plan
    assert "hours" in plan
    assert not (tmp_path / "out").exists()


def test_dry_run_measures_a_batch_that_the_queue_takes() -> None:
    """A part of the batch, so that a queue of whole batches and the parts of batch norms fit it."""
    for batch, parts, crop, measured in ((256, 1, 224, 8), (24, 1, 224, 8), (18, 1, 224, 6), (128, 8, 32, 128),
                                         (256, 8, 224, 16), (7, 1, 224, 7), (512, 8, 32, 256)):  # fmt: skip
        recipe = Recipe(batch_size=batch, queue_size=2 * batch, split_bn=parts, augmentation=Augmentation(crop=crop))
        assert _small_batch(recipe) == measured
