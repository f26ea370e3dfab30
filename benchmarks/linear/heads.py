"""A bank of linear heads on one output of the encoder: as many classifiers as there are rates and decays, one GEMM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain import distributed


class ChannelNorm(nn.Module):
    """Batch norm over the channels of frozen maps, synchronised over ranks, without scale and shift.

    The same numbers as `nn.BatchNorm2d(channels, affine=False)` on (N, C, h, w) maps. Nothing here needs a gradient, as
    the encoder is frozen; a scale and shift, where a protocol has them, belong to the heads.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.channels, self.momentum, self.eps = channels, momentum, eps
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(N, C * P) flattened pooled maps to the same, normalised per channel."""
        maps = x.unflatten(1, (self.channels, -1))
        if self.training:
            # Mean first, then squares about it: E[x^2] - E[x]^2 would lose digits.
            count = distributed.sum_(torch.tensor(float(maps[:, 0].numel()), dtype=x.dtype, device=x.device))
            mean = distributed.sum_(maps.sum(dim=(0, 2))) / count
            var = distributed.sum_((maps - mean[:, None]).square().sum(dim=(0, 2))) / count
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        else:
            mean, var = self.running_mean, self.running_var
        return ((maps - mean[:, None]) * (var + self.eps).rsqrt()[:, None]).flatten(1)


class HeadBank(nn.Module):
    """`heads` independent classifiers that read the same features.

    Every head starts from the same draw, so a bank of H heads does what H runs with one head each would do.

    Args:
        dim: of the features, `channels` times the pooled positions.
        channels: what a batch norm runs over.
        batch_norm: `none`, `plain`, or `affine` with a scale and shift per channel of every head's own.
        init_std: of the weights' normal distribution; biases start at 0.
    """

    def __init__(
        self,
        dim: int,
        channels: int,
        classes: int,
        heads: int,
        *,
        batch_norm: str = "none",
        init_std: float = 0.01,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        first = torch.empty(classes, dim).normal_(0, init_std, generator=generator)
        self.channels = channels
        self.weight = nn.Parameter(first.expand(heads, -1, -1).clone())
        self.bias = nn.Parameter(torch.zeros(heads, classes))
        self.norm = ChannelNorm(channels) if batch_norm != "none" else None
        if batch_norm == "affine":
            self.scale = nn.Parameter(torch.ones(heads, channels))
            self.shift = nn.Parameter(torch.zeros(heads, channels))
        self.affine = batch_norm == "affine"

    def decayed(self) -> list[bool]:
        """For each of `parameters()`, whether weight decay applies: not to a batch norm's scale and shift."""
        return [name in ("weight", "bias") for name, _ in self.named_parameters()]

    def forward(self, features: Tensor) -> Tensor:
        """(N, dim) to logits (N, heads, classes)."""
        heads, classes, dim = self.weight.shape
        x = features if self.norm is None else self.norm(features)
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if self.affine:
            # The scale and shift go into the linear layer, so that all heads still share one GEMM.
            spread = weight.unflatten(2, (self.channels, -1))
            bias = bias + torch.einsum("hkcp,hc->hk", spread, self.shift)
            weight = (spread * self.scale[:, None, :, None]).flatten(2)
        return F.linear(x, weight.reshape(heads * classes, dim), bias.reshape(-1)).view(-1, heads, classes)

    def tensors(self) -> dict[str, Tensor]:
        """Every head's weights and batch norm, (heads, ...) on CPU, named as in `nn.Linear` and `nn.BatchNorm2d`."""
        found: dict[str, Tensor] = {"weight": self.weight, "bias": self.bias}
        if self.norm is not None:
            for name in ("running_mean", "running_var"):
                found[f"bn.{name}"] = self.norm.get_buffer(name).expand(len(self.weight), -1)
        if self.affine:
            found |= {"bn.weight": self.scale, "bn.bias": self.shift}
        return {name: tensor.detach().cpu() for name, tensor in found.items()}


def bank_loss(logits: Tensor, targets: Tensor, batch_length: int) -> Tensor:
    """Each head's cross-entropy, summed over this rank's images and divided by the length of the whole batch.

    Args:
        logits: (N, heads, classes).
        targets: (N,).
        batch_length: images over all ranks.

    Returns:
        (heads,). Their sum is what is differentiated: the heads do not meet, so each gets its own gradient.
    """
    heads = logits.shape[1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)
    losses = F.cross_entropy(logits, targets.repeat_interleave(heads), reduction="none")
    return losses.view(-1, heads).sum(dim=0) / batch_length
