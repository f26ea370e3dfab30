"""Many linear classifiers on the same features, trained in one GEMM: heads, SGD, LARS, ranks of the true class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain import distributed

LARS_EPS = 1e-8
ADAM_EPS = 1e-8
MOMENTUM = 0.1  # of the running statistics, as of torch's batch norm

Factor = float | tuple[float, ...]  # of the rates: one for all heads, or one for each


class BatchStatistics(nn.Module):
    """A norm whose statistics are those of the whole batch."""


class ChannelNorm(BatchStatistics):
    """Batch norm over the channels of frozen maps, synchronised over ranks, without scale and shift.

    The same numbers as `nn.BatchNorm2d(channels, affine=False)` on (N, C, h, w) maps. No gradient is needed, as the
    encoder is frozen; a scale and shift belong to the heads.

    Args:
        groups: parts of the batch that are normalised by their own statistics, as on so many devices without
            synchronisation. The running statistics are those of the first part, as of the first device.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, groups: int = 1) -> None:
        super().__init__()
        self.channels, self.momentum, self.eps, self.groups = channels, MOMENTUM, eps, groups
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(N, C * P) flattened pooled maps to the same, normalised per channel."""
        maps = x.unflatten(1, (self.channels, -1))
        if self.training and self.groups > 1:
            return self._normalised_in_groups(maps).flatten(1)
        if self.training:
            # Mean first, then squares about it: E[x^2] - E[x]^2 would lose digits.
            count = distributed.sum_(x.new_full((), float(maps[:, 0].numel())))
            mean = distributed.sum_(maps.sum(dim=(0, 2))) / count
            var = distributed.sum_((maps - mean[:, None]).square().sum(dim=(0, 2))) / count
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        else:
            mean, var = self.running_mean, self.running_var
        return ((maps - mean[:, None]) * (var + self.eps).rsqrt()[:, None]).flatten(1)

    def _normalised_in_groups(self, maps: Tensor) -> Tensor:
        """(N, C, P) maps, each normalised by the statistics of its group; a group may lie on several ranks."""
        n = len(maps)
        if distributed.world_size() > 1:
            n = int(distributed.sum_(torch.tensor(float(n), device=maps.device)))
        rows = distributed.own_slice(n)
        groups = min(self.groups, n)
        group = torch.arange(rows.start, rows.stop, device=maps.device) * groups // n

        def sums(values: Tensor) -> Tensor:
            """(N, C) to the sum over each group, (groups, C)."""
            return distributed.sum_(values.new_zeros(groups, values.shape[1]).index_add_(0, group, values))

        count = sums(maps.new_full((len(maps), 1), maps.shape[2]))
        mean = sums(maps.sum(dim=2)) / count
        centred = maps - mean[group, :, None]
        var = sums(centred.square().sum(dim=2)) / count
        self.running_mean.lerp_(mean[0], self.momentum)
        self.running_var.lerp_(var[0] * (count[0] / (count[0] - 1)), self.momentum)
        return centred * (var[group, :, None] + self.eps).rsqrt()


class Bank(nn.Module):
    """Several heads that read the same features and share no parameter; every parameter has a first axis of heads."""

    def decayed(self) -> list[bool]:
        """For each of `parameters()`, whether weight decay applies."""
        return [True for _ in self.parameters()]

    @property
    def separable(self) -> bool:
        """Whether the parts of a batch may pass through the heads one after the other."""
        return not any(isinstance(module, BatchStatistics) for module in self.modules())

    def tensors(self) -> dict[str, Tensor]:
        """Every head's parameters and statistics, (heads, ...) on CPU."""
        return {name: tensor.detach().cpu() for name, tensor in self.named_parameters()}


class HeadBank(Bank):
    """`heads` independent classifiers that read the same features.

    Every head starts from the same draw, so a bank of H heads gives the result of H runs with one head each.

    Args:
        dim: width of the features, `channels` times the pooled positions.
        channels: channels of the batch norm.
        batch_norm: `none`, `plain`, or `affine` where every head has its own scale and shift per channel.
        norm_groups: of the batch norm, see `ChannelNorm`.
        init_std: standard deviation of the initial weights; biases start at 0. None is torch's default: weights and
            biases uniform up to 1 / sqrt(dim).
    """

    def __init__(
        self,
        dim: int,
        channels: int,
        classes: int,
        heads: int,
        *,
        batch_norm: str = "none",
        norm_groups: int = 1,
        init_std: float | None = 0.01,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        weight, bias = torch.empty(classes, dim), torch.zeros(classes)
        if init_std is not None:
            weight.normal_(0, init_std, generator=generator)
        else:
            for parameter in (weight, bias):
                parameter.uniform_(-(dim**-0.5), dim**-0.5, generator=generator)
        self.channels = channels
        self.weight = nn.Parameter(weight.expand(heads, -1, -1).clone())
        self.bias = nn.Parameter(bias.expand(heads, -1).clone())
        self.norm = ChannelNorm(channels, groups=norm_groups) if batch_norm != "none" else None
        if batch_norm == "affine":
            self.scale = nn.Parameter(torch.ones(heads, channels))
            self.shift = nn.Parameter(torch.zeros(heads, channels))
        self.affine = batch_norm == "affine"

    def decayed(self) -> list[bool]:
        """For each of `parameters()`, whether weight decay applies: it spares a batch norm's scale and shift."""
        return [name in ("weight", "bias") for name, _ in self.named_parameters()]

    def forward(self, features: Tensor) -> Tensor:
        """(N, dim) to logits (N, heads, classes)."""
        heads, classes, dim = self.weight.shape
        x = features if self.norm is None else self.norm(features)
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if self.affine:
            # Fold scale and shift into the linear layer, so that all heads still share one GEMM.
            spread = weight.unflatten(2, (self.channels, -1))
            bias = bias + torch.einsum("hkcp,hc->hk", spread, self.shift)
            weight = (spread * self.scale[:, None, :, None]).flatten(2)
        return _linear(x, weight.reshape(heads * classes, dim), bias.reshape(-1)).view(-1, heads, classes)

    def tensors(self) -> dict[str, Tensor]:
        """Every head's weights and batch norm, (heads, ...) on CPU, named as in `nn.Linear` and `nn.BatchNorm2d`."""
        found: dict[str, Tensor] = {"weight": self.weight, "bias": self.bias}
        if self.norm is not None:
            for name in ("running_mean", "running_var"):
                found[f"bn.{name}"] = self.norm.get_buffer(name).expand(len(self.weight), -1)
        if self.affine:
            found |= {"bn.weight": self.scale, "bn.bias": self.shift}
        return {name: tensor.detach().cpu() for name, tensor in found.items()}


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.linear`, whose float32 products on a CPU, there and back, are `row_products`."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    products: Tensor = _RowProducts.apply(x, weight)
    return products + bias


class _RowProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return distributed.row_products(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        of_x = distributed.row_products(gradient, weight.T) if ctx.needs_input_grad[0] else None
        return of_x, distributed.row_products(gradient.T, x.T)


def bank_loss(logits: Tensor, targets: Tensor, batch_length: int) -> Tensor:
    """Each head's cross-entropy, summed over this rank's images and divided by the length of the whole batch.

    Args:
        logits: (N, heads, classes).
        targets: (N,).
        batch_length: images over all ranks.

    Returns:
        (heads,). Differentiate their sum: the heads share no parameter, so each gets its own gradient.
    """
    heads = logits.shape[1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)
    losses = F.cross_entropy(logits, targets.repeat_interleave(heads), reduction="none")
    return losses.view(-1, heads).sum(dim=0) / batch_length


class BankOptimiser:
    """SGD or LARS on a bank: what `torch.optim.SGD`, or LARS, would do to every head apart, in one pass.

    SGD is torch's: momentum is over gradients and the rate multiplies the result, Nesterov or not. LARS is mmselfsup's
    (You et al. 2017, algorithm 1): the trust ratio eta |w| / (|g| + wd |w| + eps), 1 where either norm is 0, is taken
    per parameter and head, biases too, and momentum is over the steps. MAE's takes the ratio eta |w| / |g + wd w|, with
    momentum over gradients as SGD, and gives vectors neither a ratio nor decay.

    Args:
        bank: on its device.
        rates, weight_decays: of each head.
        lars_eta: eta of LARS; None is SGD.
        maes: LARS is MAE's.
    """

    def __init__(
        self,
        bank: Bank,
        rates: Sequence[float],
        weight_decays: Sequence[float],
        *,
        momentum: float = 0.9,
        nesterov: bool = False,
        lars_eta: float | None = None,
        maes: bool = False,
    ) -> None:
        self.momentum, self.nesterov, self.lars_eta, self.maes = momentum, nesterov, lars_eta, maes
        self.parameters = list(bank.parameters())
        self.momenta = [torch.zeros_like(p) for p in self.parameters]
        self._rates = [_per_head(rates, p) for p in self.parameters]
        self._etas = [lars_eta if p.ndim > 2 or not maes else None for p in self.parameters]
        self._decays = [
            _per_head(weight_decays, p) if decayed and any(weight_decays) and (p.ndim > 2 or not maes) else None
            for p, decayed in zip(self.parameters, bank.decayed(), strict=True)
        ]

    @torch.no_grad()
    def step(self, factor: Factor) -> None:
        """Sum the gradients over ranks, update with every rate multiplied by `factor`, and clear the gradients."""
        for parameter, momentum, rates, decays, eta in zip(
            self.parameters, self.momenta, self._rates, self._decays, self._etas, strict=True
        ):
            assert parameter.grad is not None
            gradient = distributed.sum_(parameter.grad)
            parameter.grad = None
            rate, of_steps = _scaled(rates, factor), self.lars_eta is not None and not self.maes
            if eta is not None and of_steps:
                # The ratio uses the bare gradient's norm, so it is taken before decay is added.
                rate = rate * _trust_ratio(parameter, gradient, decays, eta)
            if decays is not None:
                gradient.addcmul_(parameter, decays.expand_as(parameter))
            if eta is not None and self.maes:
                gradient.mul_(_trust_ratio(parameter, gradient, None, eta))
            if of_steps:
                gradient.mul_(rate)
            momentum.mul_(self.momentum).add_(gradient)
            update = gradient.add_(momentum, alpha=self.momentum) if self.nesterov else momentum
            if of_steps:
                parameter.sub_(update)
            else:
                parameter.addcmul_(update, rate.expand_as(parameter), value=-1)


class BankAdamW:
    """AdamW on a bank: what `torch.optim.AdamW` would do to every head apart (Loshchilov & Hutter 2019), in one pass.

    Args:
        bank: on its device.
        rates, weight_decays: of each head.
        clip: largest norm of the gradient of a head's parameters together; 0 does not clip.
        spare_norms: weight decay does not apply to a batch norm's scale and shift.
    """

    def __init__(
        self,
        bank: Bank,
        rates: Sequence[float],
        weight_decays: Sequence[float],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        clip: float = 0.0,
        spare_norms: bool = True,
    ) -> None:
        self.parameters, self.betas, self.clip = list(bank.parameters()), betas, clip
        steps = torch.zeros(())  # on the CPU: reading it there waits for no GPU
        self.momenta = [steps, *(torch.zeros_like(p) for _ in betas for p in self.parameters)]
        self._rates = [_per_head(rates, p) for p in self.parameters]
        self._decays = [
            _per_head(weight_decays if decayed or not spare_norms else [0.0] * len(weight_decays), p)
            for p, decayed in zip(self.parameters, bank.decayed(), strict=True)
        ]

    @torch.no_grad()
    def step(self, factor: Factor, beta1: float | None = None) -> None:
        """Sum the gradients over ranks, update with every rate multiplied by `factor`, and clear the gradients.

        Args:
            beta1: replaces the first of `betas` in this step; the correction takes it to the power of all steps, as in
                torch.
        """
        steps, *moments = self.momenta
        steps.add_(1)
        done, count = float(steps), len(self.parameters)
        beta1, beta2 = self.betas[0] if beta1 is None else beta1, self.betas[1]
        gradients = [distributed.sum_(p.grad) for p in self.parameters if p.grad is not None]
        if self.clip:
            norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
            kept = (self.clip / (norms + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(kept.view(-1, *[1] * (gradient.ndim - 1)))
        for parameter, gradient, first, second, rates, decays in zip(
            self.parameters, gradients, moments[:count], moments[count:], self._rates, self._decays, strict=True
        ):
            parameter.grad = None
            rate = _scaled(rates, factor)
            parameter.mul_(1 - rate * decays)
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            spread = (second / (1 - beta2**done)).sqrt_().add_(ADAM_EPS)
            parameter.sub_(rate / (1 - beta1**done) * first / spread)


def _scaled(rates: Tensor, factor: Factor) -> Tensor:
    """The (heads, 1, ...) rates times one factor for all heads, or times each head's own."""
    if not isinstance(factor, tuple):
        return rates * factor
    return rates * distributed.sent(torch.tensor(factor, dtype=rates.dtype), rates.device).view_as(rates)


def _trust_ratio(parameter: Tensor, gradient: Tensor, decays: Tensor | None, eta: float) -> Tensor:
    inner = tuple(range(1, parameter.ndim))
    weight = torch.linalg.vector_norm(parameter, dim=inner, keepdim=True)
    slope = torch.linalg.vector_norm(gradient, dim=inner, keepdim=True)
    decayed = weight * decays if decays is not None else 0.0
    ratio = eta * weight / (slope + decayed + LARS_EPS)
    return torch.where((weight != 0) & (slope != 0), ratio, torch.ones_like(ratio))


def _per_head(values: Sequence[float], parameter: Tensor) -> Tensor:
    """(heads, 1, ...), to be multiplied with the parameter."""
    return torch.tensor(values, dtype=parameter.dtype, device=parameter.device).view(-1, *[1] * (parameter.ndim - 1))


@torch.no_grad()
def target_ranks(logits: Tensor, targets: Tensor) -> Tensor:
    """How many classes each head ranks above the true one: top-k is right where this is below k.

    Ties go to the class of the lower number. A head that has diverged to NaN is wrong everywhere.

    Args:
        logits: (N, heads, classes).
        targets: (N,).

    Returns:
        (heads, N) int64.
    """
    own = logits.gather(2, targets[:, None, None].expand(-1, logits.shape[1], 1))
    equal = logits == own
    behind = torch.arange(logits.shape[2], device=logits.device) >= targets[:, None, None]
    return (~((logits < own) | (equal & behind))).sum(dim=2).T


def top_k_percent(ranks: Tensor, k: int) -> float:
    """Top-k accuracy in percent, from the ranks of every image."""
    return 100 * float((ranks < k).double().mean())
