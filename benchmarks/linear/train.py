"""Probes from their first epoch to their last: batches, schedule, evaluations, and going on after a kill."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.contract import InputError, Labels
from benchmarks.linear import checkpoint
from benchmarks.linear.evaluation import FixedSet
from benchmarks.linear.frozen import FrozenFeatures
from benchmarks.linear.settings import ProbeSettings
from benchmarks.linear.trainer import HeadTrainer
from benchmarks.progress import progress
from benchmarks.training.held_out import held_out
from benchmarks.training.loader import Images, TrainingBatches, Views, batches
from benchmarks.training.settings import ViewSettings
from pretrain import distributed
from results.schema import Geometry

EVALUATION_BATCH = 256
KEPT_BYTES = 2**30  # of the features of a set that is evaluated again and again


class Pass:
    """The images that probes are trained and measured on: one pass of the encoder over them feeds every probe.

    Args:
        settings: what the probes agree on (see `shareable`), of any of them.

    Raises:
        InputError: a part of train is to be held out, and no class has two images.
    """

    def __init__(
        self,
        settings: ProbeSettings,
        geometry: Geometry,
        frozen: FrozenFeatures,
        train: Labels,
        test: Labels,
        *,
        workers: int,
        seed: int,
    ) -> None:
        self.settings, self.frozen, self.workers, self.seed = settings, frozen, workers, seed
        self.fit, held = held_out(train, settings.heldout, seed)
        if settings.heldout and not len(held):
            raise InputError("no class has two images in train, so none can be held out to choose by: give more images")
        images = Images(train.paths)
        self.views = Views(images, train.targets, geometry, settings, seed)
        fixed = Views(images, train.targets, geometry, None, seed)
        tested = Views(Images(test.paths), test.targets, geometry, None, seed)
        options = {"batch_size": EVALUATION_BATCH, "workers": workers, "limit": KEPT_BYTES}
        self.heldout = FixedSet(fixed, held, frozen, **options) if len(held) else None
        self.test = FixedSet(tested, np.arange(len(test)), frozen, **options)
        self.steps_per_epoch = -(-len(self.fit) // settings.batch_size)
        self.total_steps = settings.total_steps(self.steps_per_epoch)

    def order(self, first_step: int) -> TrainingBatches:
        """The batches from `first_step` to the end."""
        return TrainingBatches(self.fit, self.settings.batch_size, self.seed, first_step, self.total_steps)


# What one pass over the images cannot do in two ways at once.
SHARED = (*ViewSettings.model_fields, "batch_size", "epochs", "iterations", "heldout", "precision")


def shareable(settings: Sequence[ProbeSettings]) -> bool:
    """Whether these probes can be trained in one pass: the same views in the same order, and one pooling per output."""
    first = settings[0]
    poolings: dict[str, Any] = {}
    return all(
        all(getattr(one, name) == getattr(first, name) for name in SHARED)
        and all(poolings.setdefault(o, one.pooling.get(o)) == one.pooling.get(o) for o in one.outputs)
        for one in settings
    )


def train_probes(probes: Sequence[Probe], images: Pass, *, show: bool = True) -> None:
    """Train every probe to the end from wherever it is."""
    order = images.order(min(probe.state.steps for probe in probes))
    loader = batches(images.views, order, images.workers, images.frozen.device)
    shown = progress(loader, "linear heads", total=len(order), show=show and distributed.rank() == 0)
    started = waiting = time.perf_counter()
    for step, (pixels, lighting, targets) in enumerate(shown, start=order.first_step):
        behind = [probe for probe in probes if probe.state.steps <= step]
        for probe in behind:
            probe.spent("wait for images", waiting)
        features = images.frozen(pixels, lighting if images.settings.lighting else None)
        targets = targets.to(images.frozen.device, non_blocking=True)
        for probe in behind:
            probe.update(features, targets, step, order.batch_length(step))
        if (step + 1) % images.steps_per_epoch == 0 or step + 1 == images.total_steps:
            for probe in behind:
                probe.spent("train", started)
            for probe in behind:
                probe.end_of_epoch(step)
            started = time.perf_counter()
        waiting = time.perf_counter()


class Probe:
    """A protocol's heads, and how far they are.

    Args:
        workdir: folder of the state that a killed run goes on from.
        key: see `ProbeState.key`.
    """

    def __init__(
        self, settings: ProbeSettings, images: Pass, classes: int, *, key: str, workdir: Path, seed: int
    ) -> None:
        self.settings, self.images, self.workdir = settings, images, workdir
        self.trainer = HeadTrainer(settings, images.frozen, classes, seed)
        self.state = checkpoint.load(workdir, key)
        self._restore()
        self._forget_epoch()

    def update(self, features: Mapping[str, Tensor], targets: Tensor, step: int, length: int) -> None:
        """One update of every head, see `HeadTrainer.update`."""
        factor = self.settings.rate_factor(step, self.images.steps_per_epoch)
        for output, loss in self.trainer.update(features, targets, factor, length).items():
            self._loss_sums[output] += loss * length
        self._images_seen += length

    def end_of_epoch(self, step: int) -> None:
        """Evaluate where it is due, and write the state."""
        state, epoch = self.state, -(-(step + 1) // self.images.steps_per_epoch)
        state.train_loss = {o: distributed.sum_(s).cpu() / self._images_seen for o, s in self._loss_sums.items()}
        self._forget_epoch()
        if epoch % self.settings.evaluate_every == 0 or step + 1 == self.images.total_steps:
            started = time.perf_counter()
            self._evaluate(epoch)
            self.spent("evaluate", started)
        state.steps = step + 1
        state.banks = {output: bank.state_dict() for output, bank in self.trainer.banks.items()}
        state.momenta = {output: optimiser.momenta for output, optimiser in self.trainer.optimisers.items()}
        if distributed.rank() == 0:
            checkpoint.save(state, self.workdir)
        distributed.barrier()

    def spent(self, phase: str, started: float) -> None:
        """Put the seconds since `started` on the clock."""
        self.state.timing[phase] = self.state.timing.get(phase, 0.0) + time.perf_counter() - started

    def _forget_epoch(self) -> None:
        heads, device = len(self.settings.grid), self.images.frozen.device
        self._loss_sums = {output: torch.zeros(heads, device=device) for output in self.trainer.banks}
        self._images_seen = 0

    def _evaluate(self, epoch: int) -> None:
        """Held-out part and test; remembers the last evaluation and, head by head, the best on test."""
        state = self.state
        state.evaluated.append(epoch)
        if self.images.heldout is not None:
            for output, found in self.images.heldout.evaluate(self.trainer.banks).items():
                state.heldout.setdefault(output, []).append(torch.stack([found.accuracy(), found.loss.double()]))
        for output, found in self.images.test.evaluate(self.trainer.banks).items():
            top1 = found.accuracy()
            before = state.test_top1.setdefault(output, [])
            better = top1 > torch.stack(before).amax(dim=0) if before else torch.ones_like(top1, dtype=torch.bool)
            before.append(top1)
            state.last[output] = found.ranks
            state.best[output] = _where(better, found.ranks, state.best.get(output))
            epochs = torch.full((len(top1),), epoch)
            state.best_epoch[output] = _where(better, epochs, state.best_epoch.get(output))
            if self.settings.choose_epoch == "best":
                kept = state.best_tensors.get(output, {})
                state.best_tensors[output] = {
                    name: _where(better, now, kept.get(name))
                    for name, now in self.trainer.banks[output].tensors().items()
                }

    def _restore(self) -> None:
        for output, saved in self.state.banks.items():
            self.trainer.banks[output].load_state_dict(saved)
            for momentum, kept in zip(self.trainer.optimisers[output].momenta, self.state.momenta[output], strict=True):
                momentum.copy_(kept)


def _where(better: Tensor, new: Tensor, old: Tensor | None) -> Tensor:
    """Head by head (dim 0): the new value where it is better, the old one elsewhere."""
    if old is None:
        return new.clone()
    return torch.where(better.view(-1, *[1] * (new.ndim - 1)), new, old)
