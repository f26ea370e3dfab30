"""What the lists already show is refused before any feature is computed, and computed features are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.datasets.registry import Dataset
from benchmarks.evaluate import evaluate
from benchmarks.registry import TASK_NAMES, load_task
from benchmarks.task import FeatureTask, InputError, Labels, RunOptions

FEATURE_TASKS = [name for name in TASK_NAMES if issubclass(load_task(name), FeatureTask)]


class Counting(nn.Module):
    """An encoder that counts the images that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.images += len(images)
        maps = {f"feature{stage}": nn.functional.avg_pool2d(images, 2**stage) for stage in range(1, 6)}
        return {**maps, "embed": images.mean(dim=(2, 3))}


def measure(name: str, encoder: nn.Module, data: Path, out: Path) -> None:
    task = load_task(name)()
    protocol = task.default_protocol(embedded=True)
    changes = {"k": [1, 2]} if name in ("knn", "low-shot-svm") else None
    options = RunOptions(device="cpu", workers=0, progress=False, records=out / "records", features=out / "features")
    evaluate(encoder, protocol, data, task=task, changes=changes, options=options)


def test_there_are_feature_tasks() -> None:
    assert {"knn", "voc-svm", "low-shot-svm"} < set(FEATURE_TASKS)


@pytest.mark.parametrize("name", FEATURE_TASKS)
def test_labels_that_cannot_be_measured_cost_no_features(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No image in the training split."""
    read = Dataset.read

    def without_images(self: Dataset, split: str) -> Labels:
        labels = read(self, split)
        return labels.rows(np.zeros(0, np.int64)) if split.startswith("train") else labels

    monkeypatch.setattr(Dataset, "read", without_images)
    encoder = Counting()
    with pytest.raises(InputError):
        measure(name, encoder, data, tmp_path)
    probed = encoder.images  # by the loading of a module, which looks at its outputs
    assert probed <= 8
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.parametrize("name", FEATURE_TASKS)
def test_features_outlive_a_refusal(name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise InputError("not like this")

    with monkeypatch.context() as patch:
        patch.setattr(load_task(name), "run", refused)
        with pytest.raises(InputError, match="not like this"):
            measure(name, Counting(), data, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert written
    with monkeypatch.context() as patch:
        patch.setattr(load_task(name), "run", refused)
        with pytest.raises(InputError, match="not like this"):
            measure(name, Counting(), data, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == written
