"""Training of linear heads on a frozen encoder: one pass over the images feeds the heads of every probe."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.encoders.encoder import Encoder
from benchmarks.features.pool import Pooling, pool
from benchmarks.solvers.linear_heads import Bank, BankAdamW, BankOptimiser, Factor, bank_loss, target_ranks
from benchmarks.task import Labels, progress
from benchmarks.training.images import (
    FixedBatches,
    TrainingBatches,
    TrainingImages,
    Views,
    batch_loader,
    erase,
    erase_rng,
    network_input,
)
from benchmarks.training.loop import SAVE_STEPS, TrainingState, usable
from pretrain import distributed
from results.schema import Geometry

if TYPE_CHECKING:
    from benchmarks.training.probe_task import HeadsParams

KEPT_BYTES = 2**30  # per rank, for the features of each set that is evaluated again and again

FeatureKey = tuple[str, Pooling | None]  # an output of the encoder, and how its maps become vectors


class FrozenFeatures:
    """From uint8 images to the pooled outputs that heads read, in one pass of the encoder for all of them.

    Args:
        keys: outputs with their pooling; those that the encoder does not have are left out.
        crop: side of the images.
        precision: bf16 is autocast of the encoder.
        parts: parts of a batch that pass through the encoder one after the other.

    Attributes:
        channels: of each output, the channels of a batch norm.
        shapes: of each output as heads read it, without the images' axis: (dim,) of a vector or of a pooled map,
            (channels, h, w) of a map that is not pooled.
    """

    def __init__(
        self, encoder: Encoder, keys: Iterable[FeatureKey], crop: int, device: torch.device, precision: str = "fp32",
        parts: int = 1,
    ) -> None:  # fmt: skip
        self.encoder, self.device, self.precision, self.parts = encoder, device, precision, parts
        self.keys = tuple(key for key in dict.fromkeys(keys) if encoder.has(key[0]))
        self.outputs = tuple(dict.fromkeys(output for output, _ in self.keys))
        encoder.to(device)
        with torch.inference_mode():
            blank = torch.zeros(1, 3, crop, crop, dtype=torch.uint8, device=device)
            maps = encoder.outputs(encoder.normalise(blank), self.outputs)
            self.channels = {key: maps[key[0]].shape[1] for key in self.keys}
            self.shapes = {key: tuple(values.shape[1:]) for key, values in self._pooled(maps).items()}

    @torch.no_grad()
    def __call__(
        self, images: Tensor, lighting: Tensor | None = None, change: Callable[[Tensor], None] | None = None
    ) -> dict[FeatureKey, Tensor]:
        """Features of (N, 3, H, W) uint8 images on any device: (N, *shape) float32 for each key.

        N may be 0: a rank may have no image of a last small batch.

        Args:
            lighting: see `network_input`.
            change: changes the normalised images in place.
        """
        if not len(images):
            return {key: torch.zeros(0, *self.shapes[key], device=self.device) for key in self.keys}
        x = network_input(self.encoder, images.to(self.device, non_blocking=True), lighting)
        if change is not None:
            change(x)
        found = [self._features(part) for part in x.tensor_split(min(self.parts, len(x)))]
        return found[0] if len(found) == 1 else {key: torch.cat([each[key] for each in found]) for key in self.keys}

    def _features(self, x: Tensor) -> dict[FeatureKey, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            maps = self.encoder.outputs(x, self.outputs)
        return self._pooled({output: value.float() for output, value in maps.items()})

    def _pooled(self, maps: Mapping[str, Tensor]) -> dict[FeatureKey, Tensor]:
        return {key: maps[key[0]] if key[1] is None else pool(maps[key[0]], key[1]) for key in self.keys}


@dataclass(frozen=True)
class Evaluation:
    """A bank of heads on a set of images.

    Attributes:
        ranks: (heads, N) int16: how many classes a head ranks above the true one.
        loss: (heads,) mean cross-entropy.
    """

    ranks: Tensor
    loss: Tensor

    def accuracy(self) -> Tensor:
        """(heads,) float64 fraction of images whose true class comes first."""
        return (self.ranks < 1).double().mean(dim=1)


class EvaluationSet:
    """Images under the deterministic view.

    Encoder and view are fixed, so the features are computed once and kept where they fit in memory; else they are
    computed again, with the same result, at every evaluation.
    """

    def __init__(self, views: Views, items: NDArray[np.int64], frozen: FrozenFeatures, workers: int) -> None:
        self.views, self.items, self.frozen, self.workers = views, items, frozen, workers
        own = distributed.own_slice(len(items))
        self._keep = 4 * sum(map(math.prod, frozen.shapes.values())) * (own.stop - own.start) <= KEPT_BYTES
        self._kept: list[tuple[dict[FeatureKey, Tensor], Tensor]] | None = None

    @torch.no_grad()
    def evaluate(self, trainer: HeadTrainer) -> dict[str, Evaluation]:
        """Every bank on the images of all ranks, by output."""
        n, device = len(self.items), self.frozen.device
        heads = len(trainer.params.grid)
        ranks = {output: torch.zeros(heads, n, dtype=torch.int32, device=device) for output in trainer.banks}
        losses = {output: torch.zeros(heads, device=device) for output in trainer.banks}
        start = distributed.own_slice(n).start
        for features, targets in self._features():
            for output, bank in trainer.banks.items():
                logits = bank.eval()(trainer.inputs(output, features))
                ranks[output][:, start : start + len(targets)] = target_ranks(logits, targets).int()
                losses[output] += bank_loss(logits, targets, n)
            start += len(targets)
        return {
            output: Evaluation(distributed.sum_(ranks[output]).short().cpu(), distributed.sum_(losses[output]).cpu())
            for output in trainer.banks
        }

    def _features(self) -> Iterator[tuple[dict[FeatureKey, Tensor], Tensor]]:
        if self._kept is not None:
            yield from self._kept
            return
        kept = []
        sampler = FixedBatches(self.items)
        for images, _, targets in batch_loader(self.views, sampler, self.workers, self.frozen.device):
            batch = self.frozen(images), targets.to(self.frozen.device, non_blocking=True)
            if self._keep:
                kept.append(batch)
            yield batch
        self._kept = kept if self._keep else None


class ImageStream:
    """The images that probes are trained and measured on.

    Args:
        params: what the probes agree on (see `benchmarks.training.probe_task.ONE_PASS_FIELDS`), of any of them.
        kept, held: the items of train that heads are trained on, and that they are chosen by.
    """

    def __init__(
        self,
        params: HeadsParams,
        geometry: Geometry,
        frozen: FrozenFeatures,
        train: Labels,
        kept: NDArray[np.int64],
        held: NDArray[np.int64],
        test: Labels,
        *,
        workers: int,
        seed: int,
    ) -> None:
        self.params, self.frozen, self.workers, self.seed, self.items = params, frozen, workers, seed, kept
        images = TrainingImages(train.paths)
        self.views = Views(images, train.targets, geometry, params, seed)
        fixed = Views(images, train.targets, geometry, None, seed)
        tested = Views(TrainingImages(test.paths), test.targets, geometry, None, seed)
        self.heldout = EvaluationSet(fixed, held, frozen, workers) if len(held) else None
        self.test = EvaluationSet(tested, np.arange(len(test)), frozen, workers)
        self.steps_per_epoch = -(-len(kept) // params.batch_size)
        self.total_steps = params.total_steps(self.steps_per_epoch)


@dataclass
class ProbeState(TrainingState):
    """A probe after `steps` steps, see `TrainingState`.

    Attributes:
        banks: output -> state dict of its bank.
        momenta: output -> the optimiser's buffers.
        train_loss: output -> (heads,) mean loss over the last epoch.
        test_top1: output -> per evaluation, (heads,).
        heldout: output -> per evaluation, (2, heads) of accuracy and loss.
        last: output -> (heads, N) ranks of the true class at the last evaluation.
        best: output -> the same at each head's best evaluation so far.
        best_epoch: output -> (heads,) int64.
        loss_sums, images_seen: of the current epoch, where the state was saved inside it.
        kept: output -> (heads, N) ranks at the evaluation at which each head did best on the held-out part, where the
            protocol reports that one.
        kept_at: output -> (3, heads): epoch, held-out accuracy and held-out loss of that evaluation.
        best_tensors: output -> parameter -> (heads, ...) of the reported evaluation, where that is not the last.
    """

    banks: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    momenta: dict[str, list[Tensor]] = field(default_factory=dict)
    train_loss: dict[str, Tensor] = field(default_factory=dict)
    test_top1: dict[str, list[Tensor]] = field(default_factory=dict)
    heldout: dict[str, list[Tensor]] = field(default_factory=dict)
    last: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)
    kept_at: dict[str, Tensor] = field(default_factory=dict)
    best_tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    loss_sums: dict[str, Tensor] = field(default_factory=dict)
    images_seen: int = 0


class HeadTrainer:
    """A bank of heads and its optimiser for every group of outputs that a protocol reads and the encoder has.

    Attributes:
        keys: name of the bank -> what its heads read.
    """

    def __init__(self, params: HeadsParams, frozen: FrozenFeatures, classes: int, seed: int) -> None:
        self.params, self.device, self.parts = params, frozen.device, frozen.parts
        self.keys: dict[str, tuple[FeatureKey, ...]] = {
            name: keys for name, keys in params.reads(frozen.encoder.names).items() if set(keys) <= set(frozen.keys)
        }
        self.banks: dict[str, Bank] = {}
        self.optimisers: dict[str, BankOptimiser | BankAdamW] = {}
        for name, keys in self.keys.items():
            bank = params.bank(name, [frozen.shapes[key] for key in keys], frozen.channels[keys[0]], classes, seed)
            self.banks[name] = bank.to(frozen.device)
            self.optimisers[name] = params.optimiser_of(bank)

    def inputs(self, name: str, features: Mapping[FeatureKey, Tensor]) -> Tensor:
        """What a bank reads: its output, several vectors joined, or the tokens (N, P, C) of a map and of vectors."""
        read = [features[key] for key in self.keys[name]]
        if len(read) > 1 and read[0].ndim == 4:
            width = read[0].shape[1]
            vectors = [vector.unflatten(1, (-1, width)) for vector in read[1:]]  # one or several tokens each
            return torch.cat([*vectors, read[0].flatten(2).mT], dim=1)
        return read[0] if len(read) == 1 else torch.cat(read, dim=1)

    def update(
        self, features: Mapping[FeatureKey, Tensor], targets: Tensor, factor: Factor, batch_length: int
    ) -> dict[str, Tensor]:
        """One update of every bank.

        Args:
            features: (N, *shape) of this rank's part of the batch.
            targets: (N,).
            factor: of every head's rate, or of each.
            batch_length: images of the batch over all ranks.

        Returns:
            Output to (heads,) losses before the update: this rank's share of the mean.
        """
        losses = {}
        for output, bank in self.banks.items():
            parts = max(1, min(self.parts, len(targets))) if bank.separable else 1
            parts_of_loss = []
            read = self.inputs(output, features)
            for x, labels in zip(read.tensor_split(parts), targets.tensor_split(parts), strict=True):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.params.precision == "bf16"):
                    logits = bank.train()(x)
                loss = bank_loss(logits, labels, batch_length)
                loss.sum().backward()
                parts_of_loss.append(loss.detach())
            self.optimisers[output].step(factor)
            losses[output] = torch.stack(parts_of_loss).sum(dim=0) if parts > 1 else parts_of_loss[0]
        return losses


class Probe:
    """The heads of one protocol and their progress, resumed from `path` where there is a state with this key."""

    def __init__(self, params: HeadsParams, images: ImageStream, classes: int, *, key: str, path: Path) -> None:
        self.params, self.images, self.path = params, images, path
        self.trainer = HeadTrainer(params, images.frozen, classes, images.seed)
        self.state = ProbeState.load(path, key)
        with usable(path):
            for output, saved in self.state.banks.items():
                self.trainer.banks[output].load_state_dict(saved)
                momenta = self.trainer.optimisers[output].momenta
                for momentum, kept in zip(momenta, self.state.momenta[output], strict=True):
                    momentum.copy_(kept)
        self._start_epoch()
        self._images_seen = self.state.images_seen
        for output, total in self.state.loss_sums.items():
            self._loss_sums[output] += total.to(self._loss_sums[output].device)

    def _start_epoch(self) -> None:
        heads, device = len(self.params.grid), self.images.frozen.device
        self._loss_sums = {output: torch.zeros(heads, device=device) for output in self.trainer.banks}
        self._images_seen = 0

    def update(self, features: Mapping[FeatureKey, Tensor], targets: Tensor, step: int, batch_length: int) -> None:
        """One update of every head, see `HeadTrainer.update`."""
        factor = self.params.head_factor(step, self.images.steps_per_epoch)
        for output, loss in self.trainer.update(features, targets, factor, batch_length).items():
            # Summed over ranks now, so that rank 0 can save without the others.
            self._loss_sums[output] += distributed.sum_(loss * batch_length)
        self._images_seen += batch_length

    def end_epoch(self, step: int) -> None:
        """Evaluate if it is due, and write the state."""
        state, epoch = self.state, -(-(step + 1) // self.images.steps_per_epoch)
        state.train_loss = {o: s.cpu() / self._images_seen for o, s in self._loss_sums.items()}
        self._start_epoch()
        if epoch % self.params.evaluate_every == 0 or step + 1 == self.images.total_steps:
            started = time.perf_counter()
            self._evaluate(epoch)
            state.add_time("evaluate", started)
        state.loss_sums, state.images_seen = {}, 0
        self._save(step)

    def save(self, step: int) -> None:
        """Write the state inside an epoch."""
        self.state.loss_sums = {o: s.cpu() for o, s in self._loss_sums.items()}
        self.state.images_seen = self._images_seen
        self._save(step)

    def _save(self, step: int) -> None:
        state = self.state
        state.steps = step + 1
        state.banks = {output: bank.state_dict() for output, bank in self.trainer.banks.items()}
        state.momenta = {output: optimiser.momenta for output, optimiser in self.trainer.optimisers.items()}
        if distributed.rank() == 0:
            state.save(self.path)

    def _evaluate(self, epoch: int) -> None:
        """Measure on held-out part and test; keep the last evaluation and, head by head, the best on test."""
        state = self.state
        state.evaluated.append(epoch)
        if self.images.heldout is not None:
            for output, measured in self.images.heldout.evaluate(self.trainer).items():
                state.heldout.setdefault(output, []).append(torch.stack([measured.accuracy(), measured.loss.double()]))
        for output, measured in self.images.test.evaluate(self.trainer).items():
            top1 = measured.accuracy()
            before = state.test_top1.setdefault(output, [])
            better = top1 > torch.stack(before).amax(dim=0) if before else torch.ones_like(top1, dtype=torch.bool)
            before.append(top1)
            state.last[output] = measured.ranks
            state.best[output] = _where(better, measured.ranks, state.best.get(output))
            epochs = torch.full((len(top1),), epoch)
            state.best_epoch[output] = _where(better, epochs, state.best_epoch.get(output))
            reported = better
            if self.params.choose_epoch == "heldout":
                reported = self._keep_best_on_heldout(output, epoch, measured.ranks)
            if self.params.choose_epoch != "last":
                kept = state.best_tensors.get(output, {})
                state.best_tensors[output] = {
                    name: _where(reported, now, kept.get(name))
                    for name, now in self.trainer.banks[output].tensors().items()
                }

    def _keep_best_on_heldout(self, output: str, epoch: int, ranks: Tensor) -> Tensor:
        """Keep the ranks of the heads that now do better on the held-out part than before, and return which do.

        By accuracy, then by loss.
        """
        state = self.state
        accuracy, loss = state.heldout[output][-1]
        now = torch.stack([torch.full_like(accuracy, epoch), accuracy, loss])
        before = state.kept_at.get(output)
        if before is None:
            better = torch.ones_like(accuracy, dtype=torch.bool)
        else:
            better = (accuracy > before[1]) | ((accuracy == before[1]) & (loss < before[2]))
        state.kept[output] = _where(better, ranks, state.kept.get(output))
        state.kept_at[output] = now if before is None else torch.where(better, now, before)
        return better


def _where(better: Tensor, new: Tensor, old: Tensor | None) -> Tensor:
    """Head by head (dim 0): the new value where it is better, the old one elsewhere."""
    if old is None:
        return new.clone()
    return torch.where(better.view(-1, *[1] * (new.ndim - 1)), new, old)


def train_probes(probes: Sequence[Probe], images: ImageStream, *, show: bool = True) -> None:
    """Train every probe to the end, each from its own step.

    Raises:
        Stopped: a signal asked for it; the states are saved.
    """
    with distributed.stop_signals() as stop:
        _train_probes(probes, images, show, stop)


def _train_probes(probes: Sequence[Probe], images: ImageStream, show: bool, stop: Callable[[], bool]) -> None:
    first = min(probe.state.steps for probe in probes)
    sampler = TrainingBatches(images.items, images.params.batch_size, images.seed, first, images.total_steps)
    loader = batch_loader(images.views, sampler, images.workers, images.frozen.device)
    shown = progress(loader, "linear heads", total=len(sampler), show=show and distributed.rank() == 0)
    started = waiting = time.perf_counter()
    step = sampler.first_step - 1
    for step, (pixels, lighting, targets) in enumerate(shown, start=sampler.first_step):
        unfinished = [probe for probe in probes if probe.state.steps <= step]
        for probe in unfinished:
            probe.state.add_time("wait for images", waiting)
        change = None
        if images.params.erasing:
            length, rng = sampler.batch_length(step), erase_rng(images.seed, step)
            change = partial(
                erase, probability=images.params.erasing, rng=rng, rows=distributed.own_slice(length), length=length
            )
        features = images.frozen(pixels, lighting if images.params.lighting else None, change)
        targets = targets.to(images.frozen.device, non_blocking=True)
        for probe in unfinished:
            probe.update(features, targets, step, sampler.batch_length(step))
        if (step + 1) % images.steps_per_epoch == 0 or step + 1 == images.total_steps:
            for probe in unfinished:
                probe.state.add_time("train", started)
            for probe in unfinished:
                probe.end_epoch(step)
            started = time.perf_counter()
        elif (step + 1) % images.steps_per_epoch % SAVE_STEPS == 0:
            for probe in unfinished:
                probe.state.add_time("train", started)
                probe.save(step)
            started = time.perf_counter()
        if stop() and distributed.rank() == 0:
            break
        waiting = time.perf_counter()
    if step + 1 < images.total_steps:  # on rank 0
        for probe in probes:
            if probe.state.steps <= step:
                probe.state.add_time("train", started)
                probe.save(step)
        raise distributed.Stopped(probes[0].path)
