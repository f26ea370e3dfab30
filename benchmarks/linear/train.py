"""A probe from its first epoch to its last: batches, schedule, evaluations, and going on after a kill."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.contract import InputError, Labels
from benchmarks.linear import checkpoint, distributed
from benchmarks.linear.checkpoint import ProbeState
from benchmarks.linear.evaluation import FixedSet
from benchmarks.linear.frozen import FrozenFeatures
from benchmarks.linear.held_out import held_out
from benchmarks.linear.loader import Batch, Images, TrainingBatches, Views, batches
from benchmarks.linear.settings import ProbeSettings
from benchmarks.linear.trainer import HeadTrainer
from benchmarks.progress import progress
from results.schema import Geometry

EVALUATION_BATCH = 256
KEPT_BYTES = 2**30  # of the features of a set that is evaluated again and again


class Probe:
    """Heads on a frozen encoder, the images that they are trained and measured on, and how far they are.

    Args:
        workdir: folder of the state that a killed run goes on from.
        key: see `ProbeState.key`.

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
        key: str,
        workdir: Path,
        workers: int,
        seed: int,
    ) -> None:
        self.settings, self.frozen, self.workdir, self.workers = settings, frozen, workdir, workers
        self.trainer = HeadTrainer(settings, frozen, len(train.classes), seed)

        fit, held = held_out(train, settings.heldout, seed)
        if settings.heldout and not len(held):
            raise InputError("no class has two images in train, so none can be held out to choose by: give more images")
        images = Images(train.paths)
        self.views = Views(images, train.targets, geometry, settings, seed)
        fixed = Views(images, train.targets, geometry, None, seed)
        tested = Views(Images(test.paths), test.targets, geometry, None, seed)
        options = {"batch_size": EVALUATION_BATCH, "workers": workers, "limit": KEPT_BYTES}
        self.heldout = FixedSet(fixed, held, frozen, **options) if len(held) else None
        self.test = FixedSet(tested, np.arange(len(test)), frozen, **options)
        self.steps_per_epoch = -(-len(fit) // settings.batch_size)
        self.total_steps = settings.total_steps(self.steps_per_epoch)
        self.state = checkpoint.load(workdir, key)
        self._restore()
        self.order = TrainingBatches(fit, settings.batch_size, seed, self.state.steps, self.total_steps)

    def train(self, *, show: bool = True) -> ProbeState:
        """Train to the end from wherever the state is."""
        heads, device = len(self.settings.grid), self.frozen.device
        sums = {output: torch.zeros(heads, device=device) for output in self.trainer.banks}
        images_seen, started = 0, time.perf_counter()
        for step, (images, lighting, targets) in enumerate(self._batches(show), start=self.state.steps):
            length = self.order.batch_length(step)
            factor = self.settings.rate_factor(step, self.steps_per_epoch)
            for output, loss in self.trainer.step(images, lighting, targets, factor, length).items():
                sums[output] += loss * length
            images_seen += length
            if (step + 1) % self.steps_per_epoch and step + 1 < self.total_steps:
                continue
            self.state.train_loss = {o: distributed.sum_(s).cpu() / images_seen for o, s in sums.items()}
            self._spent("train", started)
            self._end_of_epoch(step)
            sums = {output: torch.zeros_like(total) for output, total in sums.items()}
            images_seen, started = 0, time.perf_counter()
        return self.state

    def _batches(self, show: bool) -> Iterator[Batch]:
        """The rest of the run's batches, with the time spent waiting for them on the clock."""
        loader = batches(self.views, self.order, self.workers, self.frozen.device)
        shown = progress(loader, "linear heads", total=len(self.order), show=show and distributed.rank() == 0)
        while True:
            started = time.perf_counter()
            batch = next(shown, None)
            self._spent("wait for images", started)
            if batch is None:
                return
            yield batch

    def _end_of_epoch(self, step: int) -> None:
        state, epoch = self.state, -(-(step + 1) // self.steps_per_epoch)
        if epoch % self.settings.evaluate_every == 0 or step + 1 == self.total_steps:
            started = time.perf_counter()
            self._evaluate(epoch)
            self._spent("evaluate", started)
        state.steps = step + 1
        state.banks = {output: bank.state_dict() for output, bank in self.trainer.banks.items()}
        state.momenta = {output: optimiser.momenta for output, optimiser in self.trainer.optimisers.items()}
        if distributed.rank() == 0:
            checkpoint.save(state, self.workdir)
        distributed.barrier()

    def _evaluate(self, epoch: int) -> None:
        """Held-out part and test; remembers the last evaluation and, head by head, the best on test."""
        state = self.state
        state.evaluated.append(epoch)
        if self.heldout is not None:
            for output, found in self.heldout.evaluate(self.trainer.banks).items():
                state.heldout.setdefault(output, []).append(torch.stack([found.accuracy(), found.loss.double()]))
        for output, found in self.test.evaluate(self.trainer.banks).items():
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

    def _spent(self, phase: str, started: float) -> None:
        self.state.timing[phase] = self.state.timing.get(phase, 0.0) + time.perf_counter() - started


def _where(better: Tensor, new: Tensor, old: Tensor | None) -> Tensor:
    """Head by head (dim 0): the new value where it is better, the old one elsewhere."""
    if old is None:
        return new.clone()
    return torch.where(better.view(-1, *[1] * (new.ndim - 1)), new, old)
