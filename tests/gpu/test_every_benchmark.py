"""Every benchmark of the registry, from images to a record, on a GPU and on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.demo.compose import Counts, compose
from benchmarks.evaluate import evaluate
from benchmarks.registry import TASK_NAMES, TASKS, load_task
from benchmarks.task import RunOptions
from results.schema import Record
from tests.gpu.conftest import AnyGpu
from tests.gpu.tiny import Network

SHORT: dict[str, Any] = {"epochs": 1, "drops": (), "evaluate_every": 1, "batch_size": 32}
TUNED: dict[str, Any] = {**SHORT, "lrs": (0.01,), "head_multipliers": (10.0,)}
HEADS: dict[str, Any] = {"iterations": 2, "evaluate_every": 2, "warmup": 1, "batch_size": 2, "rates": (1e-3,)}
# What makes the demo's protocols quick.
CHANGES: dict[str, dict[str, Any]] = {
    "knn": {"k": (1, 3)},
    "linear": {**SHORT, "lrs": (0.1, 1.0)},
    "multihead": SHORT,
    "linear-grid": {"epochs": 1, "lrs": (0.01, 0.1), "batch_size": 32},
    "attentive": {"epochs": 1, "warmup": 0, "lrs": (1e-3, 1e-2), "batch_size": 32},
    "linear-stored": {"penalties": (1.0, 0.1), "tolerance": 1e-3},
    "logistic": {"costs": (0.01, 1.0), "search": "grid", "tolerance": 1e-3},
    "ncm": {},
    "few-shot": {"shots": (1, 2), "draws": 2},
    "voc-svm": {"costs": (0.1, 1.0), "folds": 2, "outputs": {"embed": None}},
    "low-shot-svm": {"k": (1,), "sets": 2, "costs": (1.0,)},
    "transfer": {"penalties": (10.0, 100.0), "tolerance": 1e-3},
    "robustness": {"costs": (0.1, 1.0), "tolerance": 1e-3},
    "retrieval": {"depth": 5},
    "label-free": {},
    "label-free-views": {"images": 6, "views": 3},
    "seg-linear": {**HEADS, "published": 1e-3},
    "seg-linear-cached": {"epochs": 1, "rates": (1e-3,)},
    "seg-logistic": {"costs": (1e-3, 1e-2), "tolerance": 1e-3},
    "seg-knn": {"k": (1, 3)},
    "seg-incontext": {"k": 3, "memory": (0,)},
    "depth-linear": {**HEADS, "published": 1e-3},
    "semi-1pct": {**TUNED, "labelled": 0.5},
    "semi-10pct": {**TUNED, "labelled": 0.5},
    "finetune": TUNED,
}
# The solver or loop of each runs in another case too, or costs seconds.
NIGHTLY = {
    "linear-grid", "linear-stored", "voc-svm", "label-free-views", "seg-linear-cached", "seg-logistic", "semi-1pct",
    "semi-10pct",
}  # fmt: skip
ENGINES = TASKS["Detection and segmentation"]  # of detectron2 and mmengine: their tests train on the CPU


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    compose(folder, progress=False, counts=Counts(12, 8, 6, drawings_per_class=6, corrupted_per_class=1))
    return folder


def measured(name: str, root: Path, out: Path, device: str) -> Record:
    task = load_task(name)()
    options = RunOptions(
        device=device, workers=0, progress=False, records=out / device / "records", features=out / device / "features"
    )
    protocol = task.default_protocol(embedded=True).changed(**CHANGES[name])
    return evaluate(Network(), protocol, root, task=task, options=options)


def test_no_benchmark_is_left_out() -> None:
    assert set(CHANGES) == set(TASK_NAMES) - set(ENGINES)


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.nightly) if n in NIGHTLY else n for n in CHANGES])
def test_scores_are_those_of_the_cpu(name: str, gpu: AnyGpu, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A real GPU rounds in another order, which may decide about two images that are a draw, or move a mean by 1e-3."""
    folder = request.getfixturevalue("data" if name.endswith("-svm") else "root")  # SVMs need each class in each split
    cpu, cuda = (measured(name, folder, tmp_path, device) for device in ("cpu", "cuda"))
    assert cpu.status == cuda.status == "ok"
    assert cpu.key == cuda.key
    assert cuda.hardware.gpu == torch.cuda.get_device_name()
    assert cuda.hardware.float32 == "ieee"
    assert cpu.hardware.gpu is cpu.hardware.float32 is None
    assert cpu.scores.keys() == cuda.scores.keys()
    assert cpu.scores
    for column, score in cpu.scores.items():
        if score.value is None:
            assert cuda.scores[column].value is None
            continue
        drawn = 200 / (score.n or 1) if score.unit == "%" and not gpu.draws_as_the_cpu else 0.0
        assert cuda.scores[column].value == pytest.approx(score.value, rel=1e-3, abs=1e-3 + drawn), column
