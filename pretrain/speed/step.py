"""The whole step, from files to updated weights, beside the step as it is commonly written."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.contrast import Batch
from pretrain.cost import Stepper
from pretrain.moco import MoCo
from pretrain.recipe import Recipe
from pretrain.sources import Files
from pretrain.speed.entry import entry, seconds_of
from pretrain.speed.overhead import bare_passes
from pretrain.speed.setting import BATCH, CPU, moco_v2, photographs
from pretrain.trainer import Trainer

STEPS = 2
WORKERS = (0, 2)  # loader workers: beside an update that wants every core they may cost more than they bring


def measure_step() -> dict[str, Any]:
    """Images from files to updated weights; a few steps with everything that they need, the loader's start included.

    Each side has the same cores and runs with every number of loader workers in turn; its best one counts.
    """
    own = moco_v2(precision="bf16", augmentation={"engine": "tensor"})
    plain = moco_v2()
    with tempfile.TemporaryDirectory() as folder:
        files = photographs(Path(folder), BATCH * STEPS)
        ours, theirs = {}, {}
        for workers in WORKERS:
            fast = Trainer(own, files, CPU, workers)
            fast.prepare()
            fast.update(next(fast.loader.epoch(0)))  # warm
            theirs[workers] = seconds_of(_PlainStep(plain, files, workers).run) / STEPS
            ours[workers] = statistics.median(seconds_of(lambda run=fast: _run(run)) for _ in range(2)) / STEPS  # type: ignore[misc]
        loader = Trainer(own, files, CPU, 0).loader
        alone = seconds_of(lambda: list(loader.epoch(2))) / STEPS
    stepper = Stepper(own, CPU)
    stepper.step()
    update, passes = (
        min(times) for times in zip(*((stepper.timed(), bare_passes(stepper)) for _ in range(2)), strict=True)
    )
    step = min(ours.values())
    return entry(
        "pretrain-step",
        step,
        min(theirs.values()),
        "float32, NCHW, all augmentation by PIL in loader workers, tensors updated one by one",
        passes,
        "the encoders' bare passes in bfloat16",
        f"seconds per step of {BATCH} images at 224 pixels, {BATCH / step:.1f} images/s, over {STEPS} steps from files "
        f"to updated weights; with {_by_workers(ours)} against {_by_workers(theirs)}, the best of each side counts; "
        f"measured alone: bare passes {passes:.2f} s, the whole update {update:.2f} s, decoding and augmentation in "
        f"the process itself {alone:.2f} s",
    )


def _run(trainer: Trainer) -> None:
    for batch in trainer.loader.epoch(1):
        trainer.update(batch)


def _by_workers(seconds: dict[int, float]) -> str:
    return ", ".join(f"{workers} workers {s:.2f} s" for workers, s in seconds.items())


class _PlainStep:
    """The pretraining step as it is commonly written: float32, NCHW, PIL in loader workers, a loop over parameters."""

    def __init__(self, recipe: Recipe, files: Files, workers: int) -> None:
        self.trainer = Trainer(recipe, files, CPU, workers)
        self.trainer.model.to(memory_format=torch.contiguous_format).train()

    def run(self) -> None:
        trainer = self.trainer
        model = trainer.model
        assert isinstance(model, MoCo)
        for batch in trainer.loader.epoch(1):
            view_q, view_k = (view.contiguous() for view in batch.views)
            loss = self.loss(model, Batch((view_q, view_k), batch.indices))
            trainer.optimizer.zero_grad()
            loss.backward()
            trainer.optimizer.step()

    def loss(self, model: MoCo, batch: Batch) -> Tensor:
        q = model.encoder_q(batch.views[0])
        with torch.no_grad():
            for k_parameter, q_parameter in zip(
                model.encoder_k.parameters(), model.encoder_q.parameters(), strict=True
            ):
                k_parameter.data = k_parameter.data * model.key_momentum + q_parameter.data * (1 - model.key_momentum)
            k = model.encoder_k(batch.views[1])
        positive = torch.einsum("nc,nc->n", q, k)[:, None]
        negative = torch.einsum("nc,ck->nk", q, model.queue.clone().detach())
        logits = torch.cat([positive, negative], dim=1) / model.temperature
        start = int(model.queue_ptr)
        model.queue[:, start : start + len(k)] = k.T
        model.queue_ptr[0] = (start + len(k)) % model.queue.shape[1]
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))
