"""SGD and LARS for banks of heads: dim 0 of every parameter is the head, and each head has its own rate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.linear.settings import ProbeSettings
from pretrain import distributed

LARS_EPS = 1e-8


class BankOptimiser:
    """What `torch.optim.SGD`, or LARS, would do to every head apart, in one pass over the bank.

    SGD is torch's: momentum is over gradients and the rate multiplies what comes out, Nesterov or not. LARS is
    mmselfsup's (You et al. 2017, algorithm 1): the trust ratio eta |w| / (|g| + wd |w| + eps), 1 where either norm is
    0, is taken per parameter and head, biases too, and momentum is over what the rate has multiplied.

    Args:
        parameters: each (heads, ...), on their device.
        decayed: for each, whether weight decay applies.
        settings: optimiser, momentum and the grid of (rate, weight decay), one per head.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decayed: Sequence[bool], settings: ProbeSettings) -> None:
        self.settings = settings
        self.parameters = list(parameters)
        self.momenta = [torch.zeros_like(p) for p in self.parameters]
        rates, decays = zip(*settings.grid, strict=True)
        self._rates = [_per_head(rates, p) for p in self.parameters]
        self._decays = [
            _per_head(decays, p) if d and any(decays) else None for p, d in zip(self.parameters, decayed, strict=True)
        ]

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Sum the gradients over ranks, update with every rate multiplied by `factor`, and forget the gradients."""
        for parameter, momentum, rates, decays in zip(
            self.parameters, self.momenta, self._rates, self._decays, strict=True
        ):
            assert parameter.grad is not None
            gradient = distributed.sum_(parameter.grad)
            parameter.grad = None
            rate = rates * factor
            if self.settings.optimiser == "lars":
                # The ratio is of the bare gradient's norm, so it is taken before decay is added.
                rate = rate * self._trust(parameter, gradient, decays)
            if decays is not None:
                gradient.addcmul_(parameter, decays.expand_as(parameter))
            if self.settings.optimiser == "lars":
                gradient.mul_(rate)
            momentum.mul_(self.settings.momentum).add_(gradient)
            update = gradient.add_(momentum, alpha=self.settings.momentum) if self.settings.nesterov else momentum
            if self.settings.optimiser == "lars":
                parameter.sub_(update)
            else:
                parameter.addcmul_(update, rate.expand_as(parameter), value=-1)

    def _trust(self, parameter: Tensor, gradient: Tensor, decays: Tensor | None) -> Tensor:
        inner = tuple(range(1, parameter.ndim))
        weight = torch.linalg.vector_norm(parameter, dim=inner, keepdim=True)
        slope = torch.linalg.vector_norm(gradient, dim=inner, keepdim=True)
        decayed = weight * decays if decays is not None else 0.0
        ratio = self.settings.lars_eta * weight / (slope + decayed + LARS_EPS)
        return torch.where((weight != 0) & (slope != 0), ratio, torch.ones_like(ratio))


def _per_head(values: Sequence[float], parameter: Tensor) -> Tensor:
    """(heads, 1, ...), to be multiplied with the parameter."""
    return torch.tensor(values, dtype=parameter.dtype, device=parameter.device).view(-1, *[1] * (parameter.ndim - 1))
