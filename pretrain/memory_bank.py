"""The memory bank: one stored vector per image, negatives drawn from all of them (MoCo v1, Figure 2b).

The mechanism is instance discrimination's (Wu et al. 2018, arXiv 1805.01978); MoCo v1 compares with it under its own
InfoNCE loss, and `bank_loss = "nce"` is the loss of the original release.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain import distributed
from pretrain.contrast import Batch, Loss, Mechanism, ProjectedEncoder, info_nce, spread
from pretrain.recipe import Recipe

NCE_EPSILON = 1e-7  # of the original release's criterion


class MemoryBank(Mechanism):
    """One encoder, one view, and the bank. A vector moves only when its image is seen again.

    InfoNCE draws one set of K negatives per step; NCE draws K for every query. Either may draw a query's own image,
    as the original release does. There is no shuffle: a stored vector shares no statistics with its query.

    Args:
        recipe: architecture, head, dim, queue_size (K), temperature, bank_loss, bank_momentum and split_bn are used.
        generator: of the initial bank and of the draws; the same on every rank.
        images: number of images in the data set.
    """

    bank: Tensor
    partition: Tensor
    views: ClassVar[int] = 1

    def __init__(self, recipe: Recipe, generator: torch.Generator, images: int) -> None:
        super().__init__()
        self.k, self.temperature, self.momentum = recipe.queue_size, recipe.temperature, recipe.bank_momentum
        self.loss, self.generator = recipe.bank_loss, generator
        self.encoder_q = ProjectedEncoder(recipe)
        bound = math.sqrt(3 / recipe.dim)
        vectors = torch.rand(images, recipe.dim, generator=generator, device=generator.device)
        self.register_buffer("bank", (2 * vectors - 1) * bound)  # images x dim
        self.register_buffer("partition", torch.full((1,), -1.0))  # NCE's constant Z, once the first batch has set it

    def forward(self, batch: Batch) -> Loss:
        v = self.encoder_q(batch.views[0])  # N x dim
        stored = self.bank[batch.indices]  # N x dim, as they were before this batch
        if self.loss == "infonce":
            negatives = self.bank[self._draw((self.k,))].T  # dim x K
            loss, accuracy = info_nce(v, stored, negatives, self.temperature)
        else:
            loss, accuracy = self._nce(v, stored)
        self.update(batch.indices, v.detach())
        return Loss(loss, accuracy, spread(v.detach()))

    def _nce(self, v: Tensor, stored: Tensor) -> tuple[Tensor, Tensor]:
        """Is a vector the image's or noise? (Wu et al. 2018, section 3.2), with Z as the first batch estimates it."""
        images = len(self.bank)
        drawn = self.bank[self._draw((len(v), self.k))]  # N x K x dim
        scores = torch.cat([(v * stored).sum(dim=1, keepdim=True), torch.einsum("nd,nkd->nk", v, drawn)], dim=1)
        scores = (scores / self.temperature).exp()  # N x (1 + K)
        estimate = distributed.gather(scores.detach().mean()[None]).mean() * images
        self.partition.copy_(torch.where(self.partition < 0, estimate, self.partition))  # no host sync
        p = scores / self.partition
        noise = self.k / images
        data = (p[:, 0] / (p[:, 0] + noise + NCE_EPSILON)).log()
        other = (noise / (p[:, 1:] + noise + NCE_EPSILON)).log().sum(dim=1)
        return -(data + other).mean(), (scores[:, 0] > scores[:, 1:].amax(dim=1)).float().mean()

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        """Image numbers. Every rank draws for all ranks and keeps its part, so that the generators stay in step."""
        if len(shape) == 1:
            return torch.randint(len(self.bank), shape, generator=self.generator, device=self.generator.device)
        everyones = (shape[0] * distributed.world_size(), *shape[1:])
        drawn = torch.randint(len(self.bank), everyones, generator=self.generator, device=self.generator.device)
        return drawn[distributed.own_slice(everyones[0])]

    @torch.no_grad()
    def update(self, indices: Tensor, v: Tensor) -> None:
        """Every rank's images: m old + (1 - m) new, normalised."""
        indices, v = distributed.gather(indices), distributed.gather(v)
        moved = torch.lerp(v.to(self.bank.dtype), self.bank[indices], self.momentum)
        self.bank.index_copy_(0, indices, F.normalize(moved, dim=1))

    @property
    def chance_loss(self) -> float:
        """InfoNCE: log(K + 1). NCE: its two terms where every vector is as probable as noise."""
        return math.log(self.k + 1) + (self.k * math.log1p(1 / self.k) if self.loss == "nce" else 0.0)

    def fill(self, images_seen: int) -> float:
        """In the first pass over the data no image is seen twice."""
        return min(1.0, images_seen / len(self.bank))
