"""The entries of `make speed` for a GPU run, on small sizes."""

from __future__ import annotations

import pytest
import torch

from scripts.speed import gpu as speed
from scripts.speed.pretrain import moco_v2
from tests.gpu.conftest import AnyGpu

SMALL = {"architecture": {"name": "resnet18", "width": 8}, "batch_size": 16, "split_bn": 2, "queue_size": 32}


@pytest.mark.slow
def test_every_entry_can_be_measured(gpu: AnyGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "REPEATS", 1)
    recipe = moco_v2(precision="bf16", augmentation={"crop": 32}, **SMALL)
    for entry in (
        speed.time_gpu_step(recipe),
        speed.time_gpu_augmentation(recipe),
        speed.time_gpu_extraction("resnet18-w8", crop=32, batch=4),
        speed.time_gpu_knn(gallery=600, queries=20, dim=16),
    ):
        assert float(entry["ours_s"]) > 0
        assert float(entry["limit_s"]) > 0
        assert torch.cuda.get_device_name() in str(entry["note"])
    assert set(speed.entries()) == {"gpu-step", "gpu-augment", "gpu-extract", "gpu-extract-vit", "gpu-knn"}
