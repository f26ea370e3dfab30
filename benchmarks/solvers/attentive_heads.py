"""Banks of attentive heads: each pools an image's tokens by attention to learned queries, and classifies the result.

Every form is one layer of cross-attention from learned queries. The queries do not depend on the image, so queries and
keys are multiplied first, and values are projected after pooling: both are exact (attention sums to one, and a key's
bias shifts all scores of a query alike, so it cancels and is left out), and many heads cost little more than one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.solvers.linear_heads import MOMENTUM, Bank, BatchStatistics, ChannelNorm
from pretrain.distributed import sum_with_gradient

NORM_EPS = 1e-6
STD = 0.02  # of queries, and of all weights of CAPI's and V-JEPA's heads


class AttentiveBank(Bank, ABC):
    """`heads` independent attentive classifiers on (N, P, dim) tokens; every head starts from the same draw.

    Args:
        attention_heads: parts of the width that attend by themselves.
        queries: learned queries of each head; more than one only for `EfficientBank`.
        blocks: self-attention blocks on the tokens before they are pooled; only for `JepaBank`.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        heads: int,
        *,
        attention_heads: int = 1,
        queries: int = 1,
        blocks: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.classes, self.heads = dim, classes, heads
        self.attention_heads, self.queries, self.blocks = attention_heads, queries, blocks
        self._generator = generator
        self.build()
        del self._generator

    @abstractmethod
    def build(self) -> None:
        """Make the parameters."""

    @abstractmethod
    def pooled(self, tokens: Tensor) -> Tensor:
        """(N, P, dim) tokens to the (N, heads, width) that the linear layer reads."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, P, dim) tokens, or a map (N, dim, h, w) of them, to logits (N, heads, classes)."""
        if tokens.ndim == 4:
            tokens = tokens.flatten(2).transpose(1, 2)
        bias = self._parameters.get("bias")
        return linear(self.pooled(tokens), self.get_parameter("weight"), bias)

    def _add(self, name: str, values: Tensor) -> None:
        self.register_parameter(name, nn.Parameter(values.expand(self.heads, *values.shape).clone()))

    def _add_constant(self, name: str, *shape: int, value: float = 0.0) -> None:
        self._add(name, torch.full(shape, value))

    def _add_normal(self, name: str, *shape: int, divided_by: float = 1.0) -> None:
        self._add(name, torch.empty(shape).normal_(0, STD, generator=self._generator) / divided_by)

    def _add_uniform(self, name: str, *shape: int, fan_in: int) -> None:
        """As torch initialises weight and bias of a linear layer."""
        self._add(name, torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=self._generator))

    def _attend(self, tokens: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Multi-head cross-attention of one query per head.

        Args:
            tokens: (N, P, dim), or (N, heads, P, dim) where every head has its own.
            query: (heads, dim).
            key, value: (heads, dim, dim) weights.

        Returns:
            (N, heads, dim).
        """
        parts = self.attention_heads, self.dim // self.attention_heads
        keyed = torch.einsum("hmk,hmkd->hmd", query.unflatten(1, parts), key.unflatten(1, parts))
        found = attention_pool(tokens, keyed * parts[1] ** -0.5)
        return torch.einsum("nhmd,hmkd->nhmk", found, value.unflatten(1, parts)).flatten(2)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer per head: (N, heads, ..., d) by (heads, e, d) and (heads, e) to (N, heads, ..., e)."""
    shape = x.shape
    between = math.prod(shape[2:-1])
    out = torch.einsum("nhpd,hed->nhpe", x.reshape(shape[0], shape[1], between, shape[-1]), weight)
    if bias is not None:
        out = out + bias[:, None]
    return out.reshape(*shape[:-1], weight.shape[1])


def attention_pool(tokens: Tensor, queries: Tensor) -> Tensor:
    """Means of the tokens, weighted by softmax over their products with queries.

    Args:
        tokens: (N, P, d), or (N, heads, P, d).
        queries: (heads, M, d).

    Returns:
        (N, heads, M, d).
    """
    heads, several, dim = queries.shape
    if tokens.ndim == 4:
        weights = torch.einsum("nhpd,hmd->nhmp", tokens, queries).softmax(dim=-1)
        return torch.einsum("nhmp,nhpd->nhmd", weights, tokens)
    weights = (tokens @ queries.reshape(-1, dim).T).softmax(dim=1)
    return (weights.transpose(1, 2) @ tokens).view(len(tokens), heads, several, dim)


def self_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v of (N, heads, attention heads, P, d).

    CUDA's fused kernels take four dimensions. Of five, torch would keep all P² weights of every head for the backward
    pass.
    """
    if not q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v)
    found = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
    return found.unflatten(0, q.shape[:2])


class EfficientBank(AttentiveBank):
    """Efficient probing (Psomas et al.): many queries on bare tokens, each pools its own slice of projected values.

    No key projection and one head of full width; a batch norm without scale and shift between pooling and linear layer.
    """

    def build(self) -> None:
        self._add_normal("query", self.queries, self.dim)
        self._add_uniform("value", self.dim, self.dim, fan_in=self.dim)
        self._add_uniform("weight", self.classes, self.dim, fan_in=self.dim)
        self._add_uniform("bias", self.classes, fan_in=self.dim)
        self.norm = PooledNorm(self.heads * self.dim, eps=NORM_EPS)

    def pooled(self, tokens: Tensor) -> Tensor:
        found = attention_pool(tokens, self.get_parameter("query") * self.dim**-0.5)
        values = self.get_parameter("value").unflatten(1, (self.queries, -1))
        sliced = torch.einsum("nhqd,hqkd->nhqk", found, values).flatten(1)
        normed: Tensor = self.norm(sliced)
        return normed.unflatten(1, (self.heads, -1))

    def tensors(self) -> dict[str, Tensor]:
        statistics = {name: self.norm.get_buffer(name) for name in ("running_mean", "running_var")}
        return super().tensors() | {f"bn.{name}": s.view(self.heads, -1).cpu() for name, s in statistics.items()}


class AimBank(AttentiveBank):
    """AIM's probe (El-Nouby et al. 2024): batch norm over the tokens, one query, linear layers without bias."""

    def build(self) -> None:
        self._add_normal("query", self.dim)
        for name in ("key", "value"):
            self._add_uniform(name, self.dim, self.dim, fan_in=self.dim)
        self._add_uniform("weight", self.classes, self.dim, fan_in=self.dim)
        self.norm = ChannelNorm(self.dim, eps=NORM_EPS)

    def pooled(self, tokens: Tensor) -> Tensor:
        flat = tokens.transpose(1, 2).flatten(1)  # as the channels of a map
        normed = self.norm(flat).unflatten(1, (self.dim, -1)).transpose(1, 2)
        return self._attend(normed, *(self.get_parameter(name) for name in ("query", "key", "value")))

    def tensors(self) -> dict[str, Tensor]:
        statistics = {name: self.norm.get_buffer(name) for name in ("running_mean", "running_var")}
        return super().tensors() | {f"bn.{name}": s.expand(self.heads, -1).cpu() for name, s in statistics.items()}


class CapiBank(AttentiveBank):
    """CAPI's attentive probe (Darcet et al. 2025): one query on bare tokens, weight decay spares biases."""

    def build(self) -> None:
        self._add_normal("query", self.dim)
        for name in ("key", "value"):
            self._add_normal(name, self.dim, self.dim)
        self._add_constant("value_bias", self.dim)
        self._add_normal("weight", self.classes, self.dim)
        self._add_constant("bias", self.classes)

    def pooled(self, tokens: Tensor) -> Tensor:
        found = self._attend(tokens, *(self.get_parameter(name) for name in ("query", "key", "value")))
        return found + self.get_parameter("value_bias")

    def decayed(self) -> list[bool]:
        return ["bias" not in name for name, _ in self.named_parameters()]


class JepaBank(AttentiveBank):
    """V-JEPA 2's probe (Assran et al. 2025): self-attention blocks on the tokens, then a cross-attention block."""

    def build(self) -> None:
        for block in range(self.blocks):
            self._add_linear(f"block{block}_qkv", 3 * self.dim)
            # Residual branches start smaller the deeper they lie.
            self._add_linear(f"block{block}_proj", self.dim, divided_by=math.sqrt(2 * (block + 1)))
            self._add_norms_and_mlp(f"block{block}", block + 1)
        self._add_normal("query", self.dim)
        self._add_linear("cross_query", self.dim)
        self._add_normal("key", self.dim, self.dim)
        self._add_linear("value", self.dim)
        self._add_norms_and_mlp("cross", max(1, self.blocks))
        self._add_uniform("weight", self.classes, self.dim, fan_in=self.dim)
        self._add_uniform("bias", self.classes, fan_in=self.dim)

    def _add_linear(self, name: str, out: int, width: int | None = None, divided_by: float = 1.0) -> None:
        self._add_normal(name, out, width or self.dim, divided_by=divided_by)
        self._add_constant(f"{name}_bias", out)

    def _add_norms_and_mlp(self, name: str, depth: int) -> None:
        for norm in ("norm1", "norm2"):
            self._add_constant(f"{name}_{norm}", self.dim, value=1.0)
            self._add_constant(f"{name}_{norm}_bias", self.dim)
        self._add_linear(f"{name}_fc1", 4 * self.dim)
        self._add_linear(f"{name}_fc2", self.dim, 4 * self.dim, divided_by=math.sqrt(2 * depth))

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self.get_parameter(name), self.get_parameter(f"{name}_bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        """Layer norm of (N, heads, P, dim), each head with its own scale and shift."""
        scale, shift = self.get_parameter(name), self.get_parameter(f"{name}_bias")
        return F.layer_norm(x, (self.dim,)) * scale[:, None] + shift[:, None]

    def _mlp(self, x: Tensor, name: str) -> Tensor:
        hidden = self._linear(self._norm(x, f"{name}_norm2"), f"{name}_fc1")
        return x + self._linear(F.gelu(hidden), f"{name}_fc2")

    def pooled(self, tokens: Tensor) -> Tensor:
        x = tokens[:, None].expand(-1, self.heads, -1, -1)
        for block in range(self.blocks):
            qkv = self._linear(self._norm(x, f"block{block}_norm1"), f"block{block}_qkv")
            # (N, heads, P, 3 * dim) to three of (N, heads, attention heads, P, width of a part)
            q, k, v = qkv.unflatten(3, (3, self.attention_heads, -1)).permute(3, 0, 1, 4, 2, 5)
            attended = self_attention(q, k, v).transpose(2, 3).flatten(3)
            x = self._mlp(x + self._linear(attended, f"block{block}_proj"), f"block{block}")
        start = self.get_parameter("query")
        asked = torch.einsum("hd,hed->he", start, self.get_parameter("cross_query"))
        asked = asked + self.get_parameter("cross_query_bias")
        normed = self._norm(x, "cross_norm1")
        found = self._attend(normed, asked, self.get_parameter("key"), self.get_parameter("value"))
        y = start + found + self.get_parameter("value_bias")
        return self._mlp(y[:, :, None], "cross")[:, :, 0]


BANKS: Mapping[str, type[AttentiveBank]] = {
    "ep": EfficientBank, "aim": AimBank, "capi": CapiBank, "vjepa2": JepaBank,
}  # fmt: skip


class PooledNorm(BatchStatistics):
    """`nn.BatchNorm1d(features, affine=False)` on (N, features), synchronised over ranks, with gradients."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = MOMENTUM, eps
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        """(N, features) to the same; a rank's N may be 0."""
        if not self.training:
            return (x - self.running_mean) * (self.running_var + self.eps).rsqrt()
        # Mean first, then squares about it: E[x^2] - E[x]^2 would lose digits.
        count = sum_with_gradient(x.new_full((), float(len(x))))
        mean = sum_with_gradient(x.sum(dim=0)) / count
        var = sum_with_gradient((x - mean).square().sum(dim=0)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1).clamp(min=1)), self.momentum)
        return (x - mean) * (var + self.eps).rsqrt()
