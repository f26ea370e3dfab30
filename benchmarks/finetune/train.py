"""One fine-tuning from its first epoch to its last: SGD, schedule, evaluations, and going on after a kill."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.encoders.encoder import Encoder
from benchmarks.finetune import checkpoint
from benchmarks.finetune.checkpoint import State
from benchmarks.finetune.network import Classifier
from benchmarks.finetune.settings import FineTuneSettings
from benchmarks.progress import progress
from benchmarks.training.loader import FixedBatches, TrainingBatches, Views, batches
from benchmarks.training.network_input import network_input
from benchmarks.training.ranking import target_ranks
from benchmarks.training.sync_norm import synchronise
from pretrain import distributed

EVALUATION_BATCH = 256


class FineTuning:
    """A network, the images that it is trained and measured on, and how far it is.

    Args:
        settings: of one cell.
        train: random views, of which `items` are trained on.
        test: deterministic views, of which `tested` are measured on.
        state: file of what a killed run goes on from.
        key: see `State.key`.
    """

    def __init__(
        self,
        settings: FineTuneSettings,
        encoder: Encoder,
        classes: int,
        train: Views,
        items: NDArray[np.int64],
        test: Views,
        tested: NDArray[np.int64],
        *,
        state: Path,
        key: str,
        workers: int,
        seed: int,
    ) -> None:
        self.settings, self.encoder, self.device, self.workers = settings, encoder, encoder.device, workers
        self.train_views, self.test_views, self.tested, self.path = train, test, tested, state
        self.classifier = Classifier(encoder, classes, train.geometry.crop, settings, seed)
        self.network: nn.Module = self.classifier
        if distributed.world_size() > 1:
            synchronise(self.classifier, self.device)
            # Every rank computes the same batch statistics, so there is nothing to broadcast.
            self.network = DistributedDataParallel(self.classifier, forward_sync_buffers=False)
        ((lr, multiplier),) = settings.grid
        self.rates = (lr, lr * multiplier)
        self.optimiser = torch.optim.SGD(
            [{"params": parameters} for parameters in self.classifier.groups()],
            lr=lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
        )
        self.state = checkpoint.load(state, key)
        if self.state.steps:
            self.classifier.load_state_dict(self.state.network)
            self.optimiser.load_state_dict(self.state.optimiser)
        self.steps_per_epoch = -(-len(items) // settings.batch_size)
        self.order = TrainingBatches(
            items, settings.batch_size, seed, self.state.steps, settings.total_steps(self.steps_per_epoch)
        )

    def train(self, described: str, *, show: bool = True) -> State:
        """Train to the end from wherever the state is."""
        loader = batches(self.train_views, self.order, self.workers, self.device)
        shown = progress(loader, described, total=len(self.order), show=show and distributed.rank() == 0)
        loss_sum, seen, started = torch.zeros((), device=self.device), 0, time.perf_counter()
        for step, (images, lighting, targets) in enumerate(shown, start=self.state.steps):
            length = self.order.batch_length(step)
            loss_sum += self._step(images, lighting, targets, step, length) * length
            seen += length
            if (step + 1) % self.steps_per_epoch:
                continue
            self.state.train_loss = float(distributed.sum_(loss_sum)) / seen
            self._spent("train", started)
            self._end_of_epoch(step)
            loss_sum, seen, started = torch.zeros((), device=self.device), 0, time.perf_counter()
        return self.state

    def _step(self, images: Tensor, lighting: Tensor, targets: Tensor, step: int, length: int) -> Tensor:
        """One update; gives this rank's share of the mean loss."""
        factor = self.settings.rate_factor(step, self.steps_per_epoch)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.network.train()
        logits = self._logits(self.network, images, lighting if self.settings.lighting else None)
        loss = F.cross_entropy(logits, targets.to(self.device, non_blocking=True), reduction="sum") / length
        self.optimiser.zero_grad(set_to_none=True)
        # Gradients are averaged over ranks, and the loss of the whole batch is the sum of their shares.
        (loss * distributed.world_size()).backward()
        self.optimiser.step()
        return loss.detach()

    def _logits(self, network: nn.Module, images: Tensor, lighting: Tensor | None = None) -> Tensor:
        x = network_input(self.encoder, images.to(self.device, non_blocking=True), lighting)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            logits: Tensor = network(x)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _end_of_epoch(self, step: int) -> None:
        state, epoch = self.state, (step + 1) // self.steps_per_epoch
        if epoch % self.settings.evaluate_every == 0 or epoch == self.settings.epochs:
            started = time.perf_counter()
            self._evaluate(epoch)
            self._spent("evaluate", started)
        state.steps = step + 1
        if distributed.rank() == 0:
            state.network, state.optimiser = self.classifier.state_dict(), self.optimiser.state_dict()
            checkpoint.save(state, self.path)
        distributed.barrier()

    @torch.no_grad()
    def _evaluate(self, epoch: int) -> None:
        self.classifier.eval()
        ranks = torch.zeros(len(self.tested), dtype=torch.int32, device=self.device)
        loss = torch.zeros((), device=self.device)
        start = distributed.own_slice(len(self.tested)).start
        for images, _, labels in batches(
            self.test_views, FixedBatches(self.tested, EVALUATION_BATCH), self.workers, self.device
        ):
            targets = labels.to(self.device, non_blocking=True)
            logits = self._logits(self.classifier, images)
            ranks[start : start + len(targets)] = target_ranks(logits[:, None], targets)[0].int()
            loss += F.cross_entropy(logits, targets, reduction="sum")
            start += len(targets)
        state = self.state
        state.last = distributed.sum_(ranks).short().cpu()
        top1 = float((state.last < 1).double().mean())
        if top1 > max(state.top1, default=-1.0):
            state.best, state.best_epoch = state.last, epoch
        state.evaluated.append(epoch)
        state.top1.append(top1)
        state.loss.append(float(distributed.sum_(loss)) / len(self.tested))

    def _spent(self, phase: str, started: float) -> None:
        self.state.timing[phase] = self.state.timing.get(phase, 0.0) + time.perf_counter() - started
