"""Linear heads on maps: many rates trained together by AdamW, their schedules, and bilinear cross-entropy by pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from benchmarks.dense.masks import VOID
from benchmarks.solvers.linear_heads import HeadBank
from benchmarks.training.params import NotNegative, Rates
from results.schema import Params

Schedule = Literal["poly", "cosine", "one_cycle"]


class HeadParams(Params):
    """Linear heads with a batch norm of their own scale and shift, one per rate, trained by AdamW.

    Attributes:
        rates: learning rates, each a head; all heads see the same batches.
        decay: weight decay of every parameter, as torch's AdamW has it.
        dropout: fraction of the channels of an image that are zeroed; the heads share the draws.
        warmup: iterations of linear warm-up.
        schedule: poly of power 1, cosine, or one cycle with a cycled first moment, to `iterations`.
        clip: largest norm of a head's gradient; 0 is none.
        batch_size: images.
    """

    rates: Rates
    decay: NotNegative
    betas: tuple[float, float] = (0.9, 0.999)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    warmup: int = Field(ge=0)
    schedule: Schedule
    clip: NotNegative = 0.0
    iterations: int = Field(gt=0)
    batch_size: int = Field(gt=0)


def rate_factor(params: HeadParams, step: int) -> float:
    """The factor of every rate at `step` (from 0).

    The first two are mmcv's warm-up (ratio 1e-6) times the decaying rate, then the decay alone; dinov3's cosine lags
    one step behind, as its scheduler is first stepped in the second iteration, and is read one step ahead.
    """
    total = params.iterations
    if params.schedule == "one_cycle":
        if step < params.warmup:
            return 1e-3 + (1 + math.cos(math.pi * step / total)) / 2 * step / params.warmup
        least = 1 / 25 / 1000
        return least + (1 - least) * (1 + math.cos(math.pi * (step + 1) / total)) / 2
    if params.schedule == "cosine":
        step = max(step - 1, 0)
    warming = 1 - (1 - step / params.warmup) * (1 - 1e-6) if step < params.warmup else 1.0
    if params.schedule == "poly" or step < params.warmup:
        return warming * (1 - step / total)
    return (1 + math.cos(math.pi * (step + 1) / total)) / 2


def first_moment(params: HeadParams, step: int) -> float:
    """AdamW's beta1 at `step`: one cycle raises it from 0.85 to 0.95 after a warm-up, in which it is 0 by its code."""
    if params.schedule != "one_cycle":
        return params.betas[0]
    if step < params.warmup:
        return 0.0
    share = (step - params.warmup) / (params.iterations - params.warmup)
    return 0.95 + (0.85 - 0.95) * (1 + math.cos(math.pi * share)) / 2


class BankAdamW:
    """What `torch.optim.AdamW` with its own rate would do to every head of a bank, in one pass.

    Args:
        clip: largest norm of the gradient of a head's parameters together; 0 is none.
    """

    def __init__(self, bank: HeadBank, rates: Sequence[float], decay: float, beta2: float, clip: float = 0.0) -> None:
        self.parameters = list(bank.parameters())
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.rates = torch.tensor(rates)
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
            rate = _per_head(self.rates.to(p), p) * factor
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
    return maps * (kept.to(maps) / (1 - share))[:, :, None, None]


def backward_pixels(logits: Tensor, targets: Tensor) -> list[float]:
    """Backpropagate each head's cross-entropy and return its value; only one head's upsampled logits exist at a time.

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
        losses.append(float(loss.detach()))
    logits.backward(leaf.grad)
    return losses
