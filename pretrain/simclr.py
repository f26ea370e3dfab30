"""SimCLR as the MoCo v2 note compares with it (Chen et al. 2020, arXiv 2002.05709, Algorithm 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain import distributed
from pretrain.contrast import Batch, Loss, Mechanism, ProjectedEncoder, spread
from pretrain.recipe import Recipe


class SimCLR(Mechanism):
    """One encoder for both views; each of 2N views is a query with one positive and 2N - 2 negatives (NT-Xent).

    Batch-norm statistics must span the ranks (`sync_bn`), for nothing is shuffled.

    Args:
        recipe: architecture, head, dim, batch_size, temperature and split_bn are used.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.temperature, self.batch_size = recipe.temperature, recipe.batch_size
        self.encoder_q = ProjectedEncoder(recipe)

    def forward(self, batch: Batch) -> Loss:
        n = len(batch.indices)
        z = self.encoder_q(torch.cat(batch.views))  # 2n x dim, this rank's
        everyones = torch.cat([distributed.gather_with_gradient(view) for view in z.split(n)])  # 2N x dim
        total = len(everyones) // 2
        first = torch.arange(n, device=z.device) + distributed.own_slice(total).start
        own, positive = torch.cat([first, first + total]), torch.cat([first + total, first])  # columns, per row of z
        logits = z @ everyones.T / self.temperature  # 2n x 2N
        logits = logits.scatter(1, own[:, None], -math.inf)  # no view is compared with itself
        return Loss(F.cross_entropy(logits, positive), _accuracy(logits, positive), spread(z.detach()))

    @property
    def chance_loss(self) -> float:
        return math.log(2 * self.batch_size - 1)


def _accuracy(logits: Tensor, positive: Tensor) -> Tensor:
    return (logits.argmax(dim=1) == positive).float().mean()
