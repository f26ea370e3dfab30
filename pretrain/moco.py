"""Momentum contrast (He et al. 2020, arXiv 1911.05722, Algorithm 1; v2: Chen et al. 2020, arXiv 2003.04297)."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain import distributed
from pretrain.backbone import ResNet
from pretrain.recipe import Recipe


class Loss(NamedTuple):
    """What one step gives: the loss to minimise, and the share of queries whose key outscores every negative."""

    loss: Tensor
    accuracy: Tensor


class QueryEncoder(nn.Module):
    """Backbone and projection head; the output is L2-normalised, (N, dim).

    v1's head is one linear layer, v2's has a hidden layer as wide as the features. Neither has a batch norm; both keep
    torch's default initialisation, as the reference does.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.backbone = ResNet(recipe.architecture, recipe.split_bn)
        width = self.backbone.channels
        self.head: nn.Module = nn.Linear(width, recipe.dim)
        if recipe.head == "mlp":
            self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), self.head)

    def forward(self, images: Tensor) -> Tensor:
        out = self.head(self.backbone(images))
        return F.normalize(out.to(torch.promote_types(out.dtype, torch.float32)), dim=1)


class MoCo(nn.Module):
    """The query encoder, its slowly following copy, and the queue of keys.

    Args:
        recipe: dim, queue_size, key_momentum, temperature, head, architecture and split_bn are used.
        generator: of the shuffles and of the initial queue.
    """

    queue: Tensor
    queue_ptr: Tensor

    def __init__(self, recipe: Recipe, generator: torch.Generator) -> None:
        super().__init__()
        self.key_momentum, self.temperature, self.generator = recipe.key_momentum, recipe.temperature, generator
        self.encoder_q: nn.Module = QueryEncoder(recipe)
        # Copied after the initialisation is complete, so that both start from the same weights.
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        keys = torch.randn(recipe.dim, recipe.queue_size, generator=generator, device=generator.device)
        self.register_buffer("queue", F.normalize(keys, dim=0))  # dim x K
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def forward(self, view_q: Tensor, view_k: Tensor) -> Loss:
        """Two views (N, 3, H, W) of the same images, to the loss over this rank's queries."""
        q = self.encoder_q(view_q)  # N x dim
        k = self.keys(view_k)  # N x dim, no gradient
        positive = (q * k).sum(dim=1, keepdim=True)  # N x 1
        negative = q @ self.queue.clone()  # N x K: the queue as it stood before this batch
        logits = torch.cat([positive, negative], dim=1) / self.temperature
        loss = F.cross_entropy(logits, logits.new_zeros(len(q), dtype=torch.long))  # the positive is class 0
        self.enqueue(k)
        return Loss(loss, (logits[:, 0] > logits[:, 1:].amax(dim=1)).float().mean())

    @torch.no_grad()
    def keys(self, view_k: Tensor) -> Tensor:
        """The momentum encoder's keys. Its batches are shuffled, so that no key shares statistics with its query."""
        self.update_key_encoder()
        everyone = distributed.gather(view_k)
        order = distributed.shared_permutation(len(everyone), self.generator)
        k = self.encoder_k(everyone[order][distributed.own_slice(len(everyone))])
        return distributed.gather(k)[order.argsort()][distributed.own_slice(len(everyone))]

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """theta_k = m theta_k + (1 - m) theta_q, over parameters only: batch-norm statistics are the key's own."""
        theta_k: list[Tensor] = list(self.encoder_k.parameters())
        theta_q: list[Tensor] = list(self.encoder_q.parameters())
        torch._foreach_lerp_(theta_k, theta_q, 1 - self.key_momentum)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Every rank's keys replace the oldest ones. The queue's length is a multiple of the total batch."""
        keys = distributed.gather(keys)
        size = self.queue.shape[1]
        if size % len(keys):
            raise ValueError(f"a queue of {size} keys does not fill in whole batches of {len(keys)}")
        start = self.queue_ptr + torch.arange(len(keys), device=keys.device)  # stays on the device: no host sync
        self.queue.index_copy_(1, start, keys.T.to(self.queue.dtype))
        self.queue_ptr.add_(len(keys)).remainder_(size)
