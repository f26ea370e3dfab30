"""The learning rate over a run, and the optimisers of the settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.recipe import Recipe


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """The rate at `epoch`, which counts from 0 and may be fractional. The reference moves it once an epoch."""
    if epoch < recipe.warmup_epochs:
        return recipe.lr * epoch / recipe.warmup_epochs
    if recipe.schedule == "step":
        return recipe.lr * math.prod(recipe.decay_factor for at in recipe.steps_at if epoch >= at)
    if recipe.schedule == "exponential":
        return recipe.lr * recipe.decay_factor ** math.floor(epoch)
    start = recipe.cosine_from
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (epoch - start) / (recipe.epochs - start)))


def build_optimizer(recipe: Recipe, modules: Iterable[nn.Module]) -> torch.optim.Optimizer:
    """Over all parameters of the modules.

    SGD decays every parameter, as MoCo's reference does. LARS leaves biases and norms out of decay and adaptation.
    """
    parameters = [p for module in modules for p in module.parameters()]
    settings: dict[str, Any] = {"lr": recipe.lr, "momentum": recipe.sgd_momentum}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, **settings, weight_decay=recipe.weight_decay)
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay, "adapt": True},
        {"params": vectors, "weight_decay": 0.0, "adapt": False},
    ]
    return LARS(groups, **settings)


class LARS(torch.optim.Optimizer):
    """SGD with a rate per tensor (You et al. 2017, arXiv 1708.03888), in the form that SimCLR's release uses.

    The gradient with weight decay is scaled by trust * |w| / |g + decay w| before it enters the momentum buffer, and
    the rate is inside the buffer.

    Args:
        params: groups with `weight_decay` and `adapt`; a group without `adapt` is plain SGD.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, momentum: float, trust_coefficient: float = 0.001
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "adapt": True, "trust": trust_coefficient}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            parameters: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in parameters if p.grad is not None]
            if not parameters:
                continue
            buffers: list[Tensor] = [
                self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in parameters
            ]
            moves = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
            if group["adapt"]:
                weights, norms = torch._foreach_norm(parameters), torch._foreach_norm(moves)
                rates = [
                    torch.where((w > 0) & (g > 0), group["trust"] * w / g, 1.0)
                    for w, g in zip(weights, norms, strict=True)
                ]
                torch._foreach_mul_(moves, rates)
            torch._foreach_mul_(moves, group["lr"])
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, moves)
            torch._foreach_sub_(parameters, buffers)
        return loss
