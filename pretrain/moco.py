"""Momentum contrast (He et al. 2020, arXiv 1911.05722, Algorithm 1; v2: Chen et al. 2020, arXiv 2003.04297)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain import distributed
from pretrain.mechanism import Batch, Mechanism, PartLoss, PartStatistics, ProjectedEncoder, slices, spread
from pretrain.recipe import Recipe


def info_nce(q: Tensor, k: Tensor, negatives: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(K+1)-way cross entropy with the positive as class 0 (MoCo v1, equation 1), and its accuracy.

    Args:
        q, k: (N, dim), positives row by row.
        negatives: (dim, K), the same for every query.
    """
    positive = (q * k).sum(dim=1, keepdim=True)  # N x 1
    logits = torch.cat([positive, q @ negatives], dim=1) / temperature  # N x (1 + K)
    loss = F.cross_entropy(logits, logits.new_zeros(len(q), dtype=torch.long))
    return loss, (logits[:, 0] > logits[:, 1:].amax(dim=1)).float().mean()


class MoCo(Mechanism):
    """The query encoder, its slowly following copy, and the queue of keys.

    Args:
        recipe: architecture, head, dim, queue_size, key_momentum, temperature, symmetric and split_bn are used.
        generator: of the shuffles and of the initial queue.
    """

    queue: Tensor
    queue_ptr: Tensor

    def __init__(self, recipe: Recipe, generator: torch.Generator) -> None:
        super().__init__()
        self.key_momentum, self.temperature, self.symmetric = recipe.key_momentum, recipe.temperature, recipe.symmetric
        self.generator = generator
        self.encoder_q = ProjectedEncoder(recipe)
        # Copied after the initialisation is complete, so that both start from the same weights.
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        keys = torch.randn(recipe.dim, recipe.queue_size, generator=generator, device=generator.device)
        self.register_buffer("queue", F.normalize(keys, dim=0))  # dim x K
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def losses(self, batch: Batch, parts: int = 1) -> Iterator[PartLoss]:
        view_q, view_k = batch.views
        self.update_key_encoder()
        k = self.keys(view_k, parts)  # N x dim, no gradient
        negatives = self.queue.clone()  # dim x K: the queue as it stood before this batch
        if self.symmetric:  # the views change places, and both losses add up (the authors' CIFAR notebook)
            other_k = self.keys(view_q, parts)
            self.enqueue(torch.cat([other_k, k]))
        else:
            self.enqueue(k)
        statistics = PartStatistics(self.encoder_q, parts)
        for part in slices(len(k), parts):
            q = self.encoder_q(view_q[part])  # N x dim
            loss, accuracy = info_nce(q, k[part], negatives, self.temperature)
            if self.symmetric:
                other_q = self.encoder_q(view_k[part])
                loss = loss + info_nce(other_q, other_k[part], negatives, self.temperature)[0]
            yield PartLoss(loss, accuracy, spread(q.detach()))
            statistics.part_is_over()

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """theta_k = m theta_k + (1 - m) theta_q, over parameters only: batch-norm statistics are the key's own."""
        theta_k: list[Tensor] = list(self.encoder_k.parameters())
        theta_q: list[Tensor] = list(self.encoder_q.parameters())
        torch._foreach_lerp_(theta_k, theta_q, 1 - self.key_momentum)

    @torch.no_grad()
    def keys(self, view_k: Tensor, parts: int = 1) -> Tensor:
        """The momentum encoder's keys. Its batches are shuffled, so that no key shares statistics with its query."""
        own, unshuffle = distributed.shuffle(view_k, self.generator)
        statistics, found = PartStatistics(self.encoder_k, parts), []
        for part in slices(len(own), parts):
            found.append(self.encoder_k(own[part]))
            statistics.part_is_over()
        return unshuffle(torch.cat(found) if parts > 1 else found[0])

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Every rank's keys replace the oldest ones. The queue's length is a multiple of their number."""
        keys = distributed.gather(keys)
        size = self.queue.shape[1]
        if size % len(keys):
            raise ValueError(f"a queue of {size} keys does not fill in whole batches of {len(keys)}")
        start = self.queue_ptr + torch.arange(len(keys), device=keys.device)  # stays on the device: no host sync
        self.queue.index_copy_(1, start, keys.T.to(self.queue.dtype))
        self.queue_ptr.add_(len(keys)).remainder_(size)

    @property
    def chance_loss(self) -> float:
        """log(K + 1), once for each direction of the loss."""
        return math.log(self.queue.shape[1] + 1) * (2 if self.symmetric else 1)

    def fill(self, images_seen: int) -> float:
        """Until it is 1 some negatives are the random vectors that the queue began with."""
        return min(1.0, images_seen * (2 if self.symmetric else 1) / self.queue.shape[1])
