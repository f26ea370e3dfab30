"""Linear heads on maps: many rates trained together by AdamW, and bilinear cross-entropy by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.dense.masks import VOID
from benchmarks.solvers.linear_heads import HeadBank
from pretrain.distributed import sent


class BankAdamW:
    """What `torch.optim.AdamW` with its own rate would do to every head of a bank, in one pass.

    Args:
        clip: largest norm of the gradient of a head's parameters together; 0 is none.
    """

    def __init__(self, bank: HeadBank, rates: Sequence[float], decay: float, beta2: float, clip: float = 0.0) -> None:
        self.parameters = list(bank.parameters())
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.rates = torch.tensor(rates).to(self.parameters[0])
        self.decay, self.beta2, self.clip = decay, beta2, clip
        self.beta1_product, self.steps = 1.0, 0

    @torch.no_grad()
    def step(self, factor: float, beta1: float) -> None:
        """Update with every rate multiplied by `factor`, and clear the gradients."""
        self.steps += 1
        self.beta1_product = beta1**self.steps  # as torch: the present beta, to the power of all steps
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self.clip:
            norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
            share = (self.clip / (norms + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(_per_head(share, gradient))
        for p, gradient, first, second in zip(self.parameters, gradients, self.first, self.second, strict=True):
            rate = _per_head(self.rates, p) * factor
            p.mul_(1 - rate * self.decay)
            first.lerp_(gradient, 1 - beta1)
            second.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
            root = (second / (1 - self.beta2**self.steps)).sqrt_().add_(1e-8)
            p.sub_(rate / (1 - self.beta1_product) * first / root)
            p.grad = None

    def state(self) -> dict[str, Any]:
        """Tensors and numbers that `restore` takes."""
        return {"first": self.first, "second": self.second, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        for own, saved in ((self.first, state["first"]), (self.second, state["second"])):
            for tensor, value in zip(own, saved, strict=True):
                tensor.copy_(value)
        self.steps = state["steps"]


def _per_head(values: Tensor, parameter: Tensor) -> Tensor:
    return values.view(-1, *[1] * (parameter.ndim - 1))


def head_bank(channels: int, outputs: int, heads: int, seed: int, *, norm: bool = True) -> HeadBank:
    """Heads that start alike: weights N(0, 0.01), biases 0, and a batch norm with a scale and shift of each head."""
    generator = torch.Generator().manual_seed(seed)
    return HeadBank(channels, channels, outputs, heads, batch_norm="affine" if norm else "none", generator=generator)


def on_maps(bank: HeadBank, maps: Tensor) -> Tensor:
    """(N, C, h, w) maps to (heads, N, outputs, h, w) of every head."""
    count, _, height, width = maps.shape
    found: Tensor = bank(maps.permute(0, 2, 3, 1).flatten(0, 2))
    return found.view(count, height, width, *found.shape[1:]).permute(3, 0, 4, 1, 2)


def dropped(maps: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Maps with a random share of each image's channels zeroed, and the others enlarged (Dropout2d)."""
    if not share:
        return maps
    kept = torch.rand(maps.shape[:2], generator=generator) >= share
    return maps * (sent(kept, maps.device).to(maps) / (1 - share))[:, :, None, None]


def backward_pixels(logits: Tensor, targets: Tensor) -> Tensor:
    """Backpropagate each head's cross-entropy and return the (heads,) values.

    Only one head's upsampled logits exist at a time.

    The loss is the mean over all pixels, of which ignored ones count 0 (mmsegmentation's default, and dinov3's).

    Args:
        logits: (heads, N, K, h, w), with a graph behind them.
        targets: (N, H, W) class indices, 255 where ignored.
    """
    leaf = logits.detach().requires_grad_()
    losses = []
    for head in range(len(leaf)):
        upsampled = F.interpolate(leaf[head], targets.shape[1:], mode="bilinear", align_corners=False)
        loss = F.cross_entropy(upsampled, targets, ignore_index=VOID, reduction="sum") / targets.numel()
        loss.backward()
        losses.append(loss.detach())
    logits.backward(leaf.grad)
    return torch.stack(losses)
