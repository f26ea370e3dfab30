"""Linear heads trained one at a time by torch's own layers and optimisers, and a LARS written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PlainHead(nn.Module):
    """(N, C, h, w) maps or (N, D) vectors to logits, as the reference benchmarks write it."""

    def __init__(self, weight: Tensor, channels: int, batch_norm: str) -> None:
        super().__init__()
        self.channels = channels
        self.bn = nn.BatchNorm2d(channels, affine=batch_norm == "affine") if batch_norm != "none" else nn.Identity()
        self.fc = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.fc.weight.copy_(weight)
            self.fc.bias.zero_()

    def forward(self, features: Tensor) -> Tensor:
        maps = features.reshape(len(features), self.channels, -1, 1)
        return self.fc(self.bn(maps).flatten(1))


def train_plain_sgd(
    head: PlainHead,
    batches: Sequence[tuple[Tensor, Tensor]],
    factors: Sequence[float],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> list[float]:
    """One update per batch; gives the losses. Weight decay spares the batch norm."""
    groups = [
        {"params": list(head.fc.parameters()), "weight_decay": weight_decay},
        {"params": list(head.bn.parameters()), "weight_decay": 0.0},
    ]
    optimiser = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)
    losses = []
    head.train()
    for (features, targets), factor in zip(batches, factors, strict=True):
        for group in optimiser.param_groups:
            group["lr"] = lr * factor
        loss = nn.functional.cross_entropy(head(features), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def train_plain_lars(
    head: PlainHead,
    batches: Sequence[tuple[Tensor, Tensor]],
    factors: Sequence[float],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    eta: float,
) -> None:
    """LARS (You et al. 2017, algorithm 1) on weight and bias, each with its own trust ratio and velocity."""
    velocity = {name: torch.zeros_like(p) for name, p in head.named_parameters()}
    for (features, targets), factor in zip(batches, factors, strict=True):
        head.zero_grad()
        nn.functional.cross_entropy(head(features), targets).backward()
        with torch.no_grad():
            for name, parameter in head.named_parameters():
                size, slope = parameter.norm().item(), parameter.grad.norm().item()
                trust = eta * size / (slope + weight_decay * size + 1e-8) if size and slope else 1.0
                step = trust * lr * factor * (parameter.grad + weight_decay * parameter)
                velocity[name] = momentum * velocity[name] + step
                parameter -= velocity[name]
