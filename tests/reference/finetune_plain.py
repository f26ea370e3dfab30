"""Fine-tuning written out: a tiny network with batch norm, a linear layer, and SGD by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from benchmarks.encoders.encoder import Encoder
from results.schema import Architecture, EncoderCard


class TinyNet(nn.Module):
    """Two convolutions with batch norm, and an unused classifier as released networks carry one."""

    passes: ClassVar[int] = 0  # of every instance in training mode, copies too

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8)
        )
        if not norm:
            self.body[1] = self.body[4] = nn.Identity()
        self.unused = nn.Linear(8, 5)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)

    def forward(self, x: Tensor) -> Tensor:
        TinyNet.passes += self.training
        return self.body(x).relu().mean((2, 3))


def tiny_encoder(norm: bool = True) -> Encoder:
    """The network as an encoder whose input is halved around grey."""
    net = TinyNet(norm)
    card = EncoderCard(
        name="tiny",
        source="test",
        architecture=Architecture(name="module:tiny"),
        weights_sha256="0" * 64,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
    )
    return Encoder(card, net, lambda x, names: {"embed": net(x)}, ("embed",))


def plain_input(pixels: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 to what `tiny_encoder`'s network takes."""
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std


def train_plain(
    net: nn.Module,
    head: nn.Linear,
    batches: Sequence[tuple[Tensor, Tensor]],
    factors: Sequence[float],
    *,
    lr: float,
    multiplier: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """One update per batch: v = momentum v + (gradient + decay w), w -= rate v, the head's rate multiplied."""
    velocity: dict[nn.Parameter, Tensor] = {}
    net.train()
    for (x, targets), factor in zip(batches, factors, strict=True):
        parameters = [*net.parameters(), *head.parameters()]
        gradients = torch.autograd.grad(
            nn.functional.cross_entropy(head(net(x)), targets), parameters, allow_unused=True
        )
        own = set(head.parameters())
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is None:
                    continue
                step = gradient + weight_decay * parameter
                velocity[parameter] = momentum * velocity.get(parameter, torch.zeros_like(step)) + step
                parameter -= lr * factor * (multiplier if parameter in own else 1.0) * velocity[parameter]
