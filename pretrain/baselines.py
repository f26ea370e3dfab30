"""The mechanisms that the MoCo papers compare with: end-to-end, the memory bank, and SimCLR."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain import distributed
from pretrain.mechanism import Batch, Mechanism, PartLoss, PartStatistics, ProjectedEncoder, slices, spread
from pretrain.moco import info_nce
from pretrain.recipe import Recipe

NCE_EPSILON = 1e-7  # of the criterion in the memory bank's original release


class EndToEnd(Mechanism):
    """Two encoders, both trained by back-propagation (MoCo v1, Figure 2a and section 4.1).

    Negatives are the keys of the other images. The dictionary is as long as the batch over all ranks. Keys are shuffled
    between norms as in `pretrain.moco`.

    Args:
        recipe: architecture, head, dim, batch_size, temperature and split_bn are used.
        generator: of the shuffles.
    """

    trained: ClassVar[tuple[str, ...]] = ("encoder_q", "encoder_k")

    def __init__(self, recipe: Recipe, generator: torch.Generator) -> None:
        super().__init__()
        self.temperature, self.keys, self.generator = recipe.temperature, recipe.batch_size, generator
        self.encoder_q = ProjectedEncoder(recipe)
        self.encoder_k = copy.deepcopy(self.encoder_q)

    def losses(self, batch: Batch, parts: int = 1) -> Iterator[PartLoss]:
        view_q, view_k = batch.views
        q = self.encoder_q(view_q)  # N x dim
        part, unshuffle = distributed.shuffle(view_k, self.generator)
        k = unshuffle(self.encoder_k(part))  # N x dim
        everyones = distributed.gather_with_gradient(k)  # batch_size x dim
        own = distributed.own_slice(len(everyones))
        positive = torch.arange(own.start, own.stop, device=q.device)
        logits = q @ everyones.T / self.temperature  # N x batch_size
        loss = F.cross_entropy(logits, positive)
        yield PartLoss(loss, (logits.argmax(dim=1) == positive).float().mean(), spread(q.detach()))

    @property
    def chance_loss(self) -> float:
        return math.log(self.keys)


class MemoryBank(Mechanism):
    """One encoder, one view, and a stored vector per image, updated when the image is seen (MoCo v1, Figure 2b).

    The mechanism is instance discrimination's (Wu et al. 2018, arXiv 1805.01978). MoCo v1 compares with it under its
    own InfoNCE loss; `bank_loss = "nce"` is the loss of the original release.

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

    def losses(self, batch: Batch, parts: int = 1) -> Iterator[PartLoss]:
        stored = self.bank[batch.indices]  # N x dim, as they were before this batch
        negatives = self.bank[self._draw((self.k,))].T if self.loss == "infonce" else None  # dim x K
        statistics = PartStatistics(self.encoder_q, parts)
        for part in slices(len(stored), parts):
            v = self.encoder_q(batch.views[0][part])  # N x dim
            if negatives is not None:
                loss, accuracy = info_nce(v, stored[part], negatives, self.temperature)
            else:
                loss, accuracy = self._nce(v, stored)
            self.update(batch.indices[part], v.detach())
            yield PartLoss(loss, accuracy, spread(v.detach()))
            statistics.part_is_over()

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


class SimCLR(Mechanism):
    """SimCLR as the MoCo v2 note compares with it (Chen et al. 2020, arXiv 2002.05709, Algorithm 1).

    One encoder for both views; each of 2N views is a query with one positive and 2N - 2 negatives (NT-Xent).
    Batch-norm statistics must span the ranks (`sync_bn`), because nothing is shuffled.

    Args:
        recipe: architecture, head, dim, batch_size, temperature and split_bn are used.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.temperature, self.batch_size = recipe.temperature, recipe.batch_size
        self.encoder_q = ProjectedEncoder(recipe)

    def losses(self, batch: Batch, parts: int = 1) -> Iterator[PartLoss]:
        n = len(batch.indices)
        z = self.encoder_q(torch.cat(batch.views))  # 2n x dim, this rank's
        everyones = torch.cat([distributed.gather_with_gradient(view) for view in z.split(n)])  # 2N x dim
        total = len(everyones) // 2
        first = torch.arange(n, device=z.device) + distributed.own_slice(total).start
        own, positive = torch.cat([first, first + total]), torch.cat([first + total, first])  # columns of each row of z
        logits = z @ everyones.T / self.temperature  # 2n x 2N
        logits = logits.scatter(1, own[:, None], -math.inf)  # no view is compared with itself
        accuracy = (logits.argmax(dim=1) == positive).float().mean()
        yield PartLoss(F.cross_entropy(logits, positive), accuracy, spread(z.detach()))

    @property
    def chance_loss(self) -> float:
        return math.log(2 * self.batch_size - 1)
