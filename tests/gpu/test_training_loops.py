"""Inside a step of a training loop the host does not wait for the GPU; what is evaluated in between may."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.attentive import Attentive, AttentiveParams
from benchmarks.dense import classifiers
from benchmarks.dense.linear import LinearDepth, LinearSegmentation
from benchmarks.encoders.encoder import Encoder
from benchmarks.finetune import FineTuneImageNet, FineTuneParams
from benchmarks.linear import AvgPoolLinear, MultiheadLinear
from benchmarks.registry import find_protocol
from benchmarks.task import Labels, RunOptions
from benchmarks.training.task import TrainingParams
from tests.builders import folder_protocol, small_vit
from tests.gpu.conftest import AnyGpu
from tests.gpu.tiny import hook_batches, network
from tests.reference.finetune_plain import tiny_encoder
from tests.reference.linear_probes import MAPS, ONE
from tests.reference.linear_tiny import tiny_labels

OPTIONS = RunOptions(device="cuda", workers=0, progress=False)
ATTENTIVE = AttentiveParams(
    form="vjepa2", lrs=(0.03, 0.3), weight_decays=(0.1,), epochs=1, warmup=1, batch_size=4, heldout=0.25, blocks=2,
    attention_heads=2, warmup_lr=1e-3,
)  # fmt: skip
TUNED = FineTuneParams(
    lrs=(0.05,), head_multipliers=(10.0,), weight_decay=1e-3, epochs=1, batch_size=4, lighting=0.1, jitter=0.2
)
MAE: dict[str, Any] = {
    "optimiser": "adamw", "layer_decay": 0.65, "mean_pool": True, "drop_path": 0.2, "erasing": 0.9, "mixup": 0.8,
    "cutmix": 1.0, "smoothing": 0.1, "precision": "bf16", "lighting": 0.0, "head_multipliers": (1.0,),
}  # fmt: skip
SHORT: dict[str, Any] = {"epochs": 1, "batch_size": 4}


def vit() -> Encoder:
    return small_vit(depth=2, img_size=16)


CASES: dict[str, tuple[Any, TrainingParams, Callable[[], Encoder]]] = {
    "linear, many rates": (
        AvgPoolLinear(), ONE.changed(**SHORT, drops=(), erasing=0.9, heldout=0.25, lrs=(0.1, 1.0)), network,
    ),
    "linear, LARS": (AvgPoolLinear(), ONE.changed(**SHORT, drops=(), optimiser="lars"), network),
    "multihead": (MultiheadLinear(), MAPS.changed(**SHORT), network),
    "multihead, groups of batch norms": (MultiheadLinear(), MAPS.changed(**SHORT, norm_groups=2), network),
    "probe in parts": (AvgPoolLinear(accumulate=2), ONE.changed(**SHORT, drops=()), network),
    "attentive, vjepa2": (Attentive(), ATTENTIVE, network),
    "attentive, ep": (
        Attentive(), ATTENTIVE.changed(form="ep", queries=2, blocks=0, attention_heads=0, warmup_lr=0.0), network,
    ),
    "fine-tuning": (FineTuneImageNet(), TUNED, tiny_encoder),
    "fine-tuning, layer decay": (FineTuneImageNet(), TUNED.changed(**MAE), vit),
    "fine-tuning in parts": (FineTuneImageNet(accumulate=2), TUNED, lambda: tiny_encoder(norm=False)),
}  # fmt: skip


class Guard:
    """Wraps the batches of a loop: from the second step on, the host may not wait between two of them."""

    def __init__(self, gpu: AnyGpu, steps: int) -> None:
        self.gpu, self.steps, self.guarded = gpu, steps, 0

    def __call__(self, batches: Iterable[Any]) -> Iterator[Any]:
        for step, batch in enumerate(batches, start=1):
            inside = 1 < step < self.steps  # the first makes the state, and after the last one it is evaluated
            self.guarded += inside
            with self.gpu.no_waits() if inside else nullcontext():
                yield batch


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Labels, Labels]:
    folder = tmp_path_factory.mktemp("images")
    return tiny_labels(folder, "train", 8, seed=0), tiny_labels(folder, "val", 2, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_step_does_not_wait(
    name: str, labels: tuple[Labels, Labels], gpu: AnyGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, params, encoder = CASES[name]
    protocol = folder_protocol(params, task.name, params.columns()[0], benchmark="test")
    guard = Guard(gpu, steps=(24 - round(24 * params.heldout)) // 4)
    hook_batches(monkeypatch, guard)
    task.run(protocol, encoder(), *labels, tmp_path, OPTIONS)
    assert guard.guarded == guard.steps - 2


@pytest.mark.slow
@pytest.mark.parametrize("task", [LinearSegmentation(), LinearDepth()], ids=lambda task: task.name)
def test_a_step_of_a_dense_head_does_not_wait(
    task: Any, small_data: Path, gpu: AnyGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = task.default_protocol(embedded=True).changed(
        iterations=5, evaluate_every=5, batch_size=2, warmup=1, crop=32 if task.name == "seg-linear" else (32, 32)
    )
    guard = Guard(gpu, steps=5)
    hook_batches(monkeypatch, guard)
    from benchmarks.datasets.registry import find_dataset

    data = find_dataset(protocol.dataset, small_data)
    train, test = data.read(protocol.train_split), data.read(protocol.test_split)
    task.run(protocol, network().to("cuda"), train, test, tmp_path, OPTIONS)
    assert guard.guarded == 3


def test_a_step_on_stored_patches_does_not_wait(gpu: AnyGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.random.default_rng(0)
    rows, shares = draws.normal(size=(40, 6)).astype(np.float32), draws.random((40, 3)).astype(np.float32)
    params = classifiers.CachedLinearParams.model_validate(
        find_protocol("ade20k_seg_linear_cached.demo").changed(epochs=1, batch_size=8).params
    )
    guard, batches = Guard(gpu, steps=5), classifiers._batches
    monkeypatch.setattr(classifiers, "_batches", lambda *arguments: guard(batches(*arguments)))
    classifiers.train_bank(rows, np.arange(40), shares, params, 0, "cuda", show=False)
    assert guard.guarded == 3
