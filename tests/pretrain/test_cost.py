"""The cost of a step, and the dry run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pretrain.recipe import Augmentation, Recipe
from pretrain.train import small_batch
from pretrain.trainer import Stepper
from results.schema import Architecture
from tests.pretrain.tiny_runs import run
from tests.processes import Program
from tests.simulated_cuda import simulated_cuda

SCRIPT = """
from pretrain.trainer import measure_cost
from pretrain.recipe import Recipe
from results.schema import Architecture
recipe = Recipe(architecture=Architecture(name="resnet18"), augmentation={"crop": 32}, batch_size=32, queue_size=64)
ballast = b"x" * 2_000_000_000
print(measure_cost(recipe, "cpu", 1).peak_gib)
"""


@pytest.mark.slow
def test_peak_memory_is_the_steps_own_even_if_a_large_process_asks() -> None:
    """The child of a process of 2 GB inherits its peak (getrusage), in which a small step would drown."""
    large = Program(SCRIPT)
    assert large.wait() == 0, large.said
    peak = float(large.said.splitlines()[-1])
    weights = 2 * 11_700_000 * 4 / 2**30  # two ResNet-18
    assert weights < peak < 1.5  # with what the child inherits, the growth would be none or over 1.8


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
    for batch, parts, crop, measured, on_gpu in (
        (256, 1, 224, 8, 32), (24, 1, 224, 8, 24), (18, 1, 224, 6, 18), (128, 8, 32, 128, 128), (256, 8, 224, 16, 32),
        (7, 1, 224, 7, 7), (512, 8, 32, 256, 512),
    ):  # fmt: skip
        recipe = Recipe(batch_size=batch, queue_size=2 * batch, split_bn=parts, augmentation=Augmentation(crop=crop))
        assert small_batch(recipe) == small_batch(recipe, "mps") == measured
        assert small_batch(recipe, "cuda") == on_gpu


def test_a_timed_step_begins_and_ends_with_the_gpu_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"architecture": Architecture(name="resnet18", width=8), "batch_size": 2, "queue_size": 4, "split_bn": 1}
    happened: list[str] = []
    with simulated_cuda():
        stepper = Stepper(Recipe(**small, augmentation={"crop": 32}), torch.device("cuda", 0))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: happened.append(str(device)))
        monkeypatch.setattr(stepper, "step", lambda: happened.append("step"))
        assert stepper.timed() >= 0
    assert happened == ["cuda:0", "step", "cuda:0"]
