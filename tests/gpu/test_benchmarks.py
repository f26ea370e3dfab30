"""Stored features and nearest neighbours on a GPU are those of the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.evaluate import evaluate
from benchmarks.knn import KnnParams
from benchmarks.solvers.exact_knn import exact_knn
from benchmarks.task import RunOptions
from results.command_line import log_device
from results.schema import Record
from tests.builders import folder_protocol
from tests.gpu.conftest import AnyGpu
from tests.gpu.tiny import Network
from tests.reference.linear_tiny import tiny_labels

KNN = KnnParams(k=(1, 3), temperature=0.07, normalise=True, features="embed", top=(1,), exclude_self=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    tiny_labels(root, "train", 8, seed=0)
    tiny_labels(root, "val", 5, seed=1)
    return root


def measured(folder: Path, out: Path, device: str) -> Record:
    options = RunOptions(
        device=device, workers=0, progress=False, records=out / device / "records", features=out / device / "features"
    )
    protocol = folder_protocol(KNN, "knn", "k=1", benchmark="test", metric="test", selection="fixed")
    return evaluate(Network(), protocol, folder, options=options)


@pytest.mark.slow
def test_features_are_those_of_the_cpu_to_rounding(
    folder: Path, gpu: AnyGpu, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for device, said in (("cpu", "device: cpu"), ("cuda", f"device: cuda ({torch.cuda.get_device_name()}, driver ")):
        log_device.cache_clear()
        caplog.clear()
        measured(folder, tmp_path, device)
        assert caplog.messages[0].startswith(said)
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
