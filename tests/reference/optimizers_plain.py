"""The recipes' optimisers written down plainly: one tensor after the other, their states in a dictionary."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

TRUST = 0.001  # SimCLR's release (lars_optimizer.py, EETA_DEFAULT)


class PlainSGD:
    """Heavy-ball momentum with weight decay in the gradient, on every tensor (MoCo's reference)."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        self.parameters = list(parameters)
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.velocity: dict[int, Tensor] = {}

    def zero_grad(self) -> None:
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for number, p in enumerate(self.parameters):
            assert p.grad is not None
            gradient = p.grad + self.weight_decay * p
            old = self.velocity.get(number)
            self.velocity[number] = gradient if old is None else self.momentum * old + gradient
            p.copy_(p - self.lr * self.velocity[number])


class PlainLARS(PlainSGD):
    """A rate per matrix, inside the velocity; vectors (biases, norms) are neither decayed nor adapted (SimCLR)."""

    @torch.no_grad()
    def step(self) -> None:
        for number, p in enumerate(self.parameters):
            assert p.grad is not None
            gradient, rate = p.grad, self.lr
            if p.dim() > 1:
                gradient = gradient + self.weight_decay * p
                if p.norm() > 0 and gradient.norm() > 0:
                    rate = self.lr * TRUST * (p.norm() / gradient.norm()).item()
            self.velocity[number] = self.momentum * self.velocity.get(number, torch.zeros_like(p)) + rate * gradient
            p.copy_(p - self.velocity[number])
