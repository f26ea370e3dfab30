"""Features, kNN, linear probe, logistic regression, fine-tuning and SVM on a GPU give what they give on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.evaluate import evaluate
from benchmarks.features.pool import AdaptivePooling
from benchmarks.finetune import FineTuneParams
from benchmarks.knn import KnnParams
from benchmarks.linear import ProbeParams
from benchmarks.registry import load_task
from benchmarks.solvers.exact_knn import exact_knn
from benchmarks.task import Params, RunOptions
from results.schema import Protocol, Record, Source
from tests.gpu.conftest import AnyGpu
from tests.reference.linear_tiny import GEOMETRY, tiny_labels

POOLED = {f"feature{n}": AdaptivePooling(grid=2) for n in (1, 2)}
CASES: dict[str, Params] = {
    "knn": KnnParams(k=(1, 3), temperature=0.07, normalise=True, features="embed", top=(1,), exclude_self=True),
    "linear": ProbeParams(outputs=("embed",), lrs=(1.0,), weight_decays=(1e-3,), epochs=2, batch_size=8),
    "multihead": ProbeParams(
        outputs=("feature1", "feature2"), pooling=POOLED, batch_norm="affine", lrs=(0.1,), epochs=2, batch_size=8,
        heldout=0.25, lighting=0.1,
    ),
    "finetune": FineTuneParams(lrs=(0.05,), head_multipliers=(10.0,), weight_decay=1e-3, epochs=2, batch_size=8),
}  # fmt: skip


ON_FOLDERS: dict[str, dict[str, Any]] = {
    "low-shot-svm": {"k": (1, 4), "sets": 2},
    "linear-stored": {"penalties": (1e-2, 1e-3), "heldout": 0.25},
}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 24, 3, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        one = self.norm(self.first(x)).relu()
        two = self.second(one).relu()
        return {"feature1": one, "feature2": two, "embed": two.mean((2, 3))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    tiny_labels(root, "train", 8, seed=0)
    tiny_labels(root, "val", 5, seed=1)
    return root


def measured(name: str, folder: Path, out: Path, device: str) -> Record:
    task = load_task(name)()
    options = RunOptions(
        device=device, workers=0, progress=False, records=out / device / "records", features=out / device / "features"
    )
    if name not in CASES:
        protocol = task.default_protocol(embedded=False, dataset="imagefolder").changed(**ON_FOLDERS[name])
        return evaluate(Network(), protocol, folder, task=task, options=options)
    params = CASES[name]
    protocol = Protocol.of(
        params, benchmark="test", variant="test", harness=name, dataset="imagefolder", train_split="train",
        test_split="val", geometry=GEOMETRY, primary=params.columns()[0], metric="test",
        source=Source(repository="test"), selection="fixed",
    )  # fmt: skip
    return evaluate(Network(), protocol, folder, task=task, options=options)


@pytest.mark.parametrize("name", [*CASES, *ON_FOLDERS])
def test_scores_are_those_of_the_cpu(name: str, folder: Path, gpu: AnyGpu, tmp_path: Path) -> None:
    """Equal scores: the images are so different that rounding does not change which class wins."""
    cpu, cuda = (measured(name, folder, tmp_path, device) for device in ("cpu", "cuda"))
    assert cpu.status == cuda.status == "ok"
    for column, score in cpu.scores.items():
        assert cuda.scores[column].value == pytest.approx(score.value, abs=1e-3), column
    assert cuda.hardware.gpu == torch.cuda.get_device_name()
    assert cuda.hardware.float32 == "ieee"
    assert cpu.hardware.gpu is cpu.hardware.float32 is None
    assert cpu.key == cuda.key  # the device is no part of the question


def test_features_are_those_of_the_cpu_to_rounding(folder: Path, gpu: AnyGpu, tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        measured("knn", folder, tmp_path, device)
    for path in (tmp_path / "cpu" / "features").rglob("embed.npy"):
        (other,) = (tmp_path / "cuda" / "features").rglob(f"{path.parent.name}/embed.npy")
        assert np.allclose(np.load(path), np.load(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalise", [True, False])
def test_neighbours_are_those_of_the_cpu(normalise: bool, gpu: AnyGpu) -> None:
    draws = np.random.default_rng(0)
    gallery, queries = (draws.normal(size=(n, 24)).astype(np.float32) for n in (700, 60))
    found: dict[str, Any] = {}
    for device in ("cpu", "cuda"):
        found[device] = exact_knn(gallery, queries, 5, normalise=normalise, engine="torch", device=device)
    assert found["cuda"].engine == "torch float16"
    assert np.array_equal(found["cpu"].indices, found["cuda"].indices)
    assert np.allclose(found["cpu"].similarities, found["cuda"].similarities, rtol=0, atol=1e-12)
