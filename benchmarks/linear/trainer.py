"""One step of training: a pass of the frozen encoder over a batch feeds the bank of every output."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.linear.frozen import FrozenFeatures
from benchmarks.linear.heads import HeadBank, bank_loss
from benchmarks.linear.optimiser import BankOptimiser
from benchmarks.linear.settings import ProbeSettings


class HeadTrainer:
    """A bank and its optimiser for every output that the encoder has."""

    def __init__(self, settings: ProbeSettings, frozen: FrozenFeatures, classes: int, seed: int) -> None:
        self.settings, self.frozen = settings, frozen
        self.banks: dict[str, HeadBank] = {}
        self.optimisers: dict[str, BankOptimiser] = {}
        for output in frozen.outputs:
            draws = seed * len(settings.outputs) + settings.outputs.index(output)
            bank = HeadBank(
                frozen.dims[output],
                frozen.channels[output],
                classes,
                len(settings.grid),
                batch_norm=settings.batch_norm,
                init_std=settings.init_std,
                generator=torch.Generator().manual_seed(draws),
            ).to(frozen.device)
            self.banks[output] = bank
            self.optimisers[output] = BankOptimiser(list(bank.parameters()), bank.decayed(), settings)

    def step(
        self, images: Tensor, lighting: Tensor, targets: Tensor, factor: float, batch_length: int
    ) -> dict[str, Tensor]:
        """One pass of the encoder and one update of every bank.

        Args:
            images: (N, 3, H, W) uint8, this rank's part of the batch.
            lighting: (N, 3), see `FrozenFeatures`.
            targets: (N,).
            factor: of every head's rate.
            batch_length: images of the batch over all ranks.

        Returns:
            Output to (heads,) losses before the update: this rank's share of the mean.
        """
        features = self.frozen(images, lighting if self.settings.lighting else None)
        return self.update(features, targets.to(self.frozen.device, non_blocking=True), factor, batch_length)

    def update(
        self, features: Mapping[str, Tensor], targets: Tensor, factor: float, batch_length: int
    ) -> dict[str, Tensor]:
        """As `step`, from the encoder's outputs."""
        device, losses = self.frozen.device, {}
        for output, bank in self.banks.items():
            with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
                logits = bank.train()(features[output])
            loss = bank_loss(logits, targets, batch_length)
            loss.sum().backward()
            self.optimisers[output].step(factor)
            losses[output] = loss.detach()
        return losses
