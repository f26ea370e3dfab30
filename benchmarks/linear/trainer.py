"""A bank of heads on every output that a protocol reads, and one update of them all."""

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
        for output in settings.outputs:
            if output not in frozen.outputs:
                continue
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

    def update(
        self, features: Mapping[str, Tensor], targets: Tensor, factor: float, batch_length: int
    ) -> dict[str, Tensor]:
        """One update of every bank.

        Args:
            features: output to (N, D), of this rank's part of the batch.
            targets: (N,).
            factor: of every head's rate.
            batch_length: images of the batch over all ranks.

        Returns:
            Output to (heads,) losses before the update: this rank's share of the mean.
        """
        device, losses = self.frozen.device, {}
        for output, bank in self.banks.items():
            with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
                logits = bank.train()(features[output])
            loss = bank_loss(logits, targets, batch_length)
            loss.sum().backward()
            self.optimisers[output].step(factor)
            losses[output] = loss.detach()
        return losses
