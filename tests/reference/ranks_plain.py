"""Several ranks simulated in one process: the same encoder on each rank's part of the batch, own statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PerRank(nn.Module):
    """An encoder as DDP ranks run it: batch norm sees one rank's images.

    Args:
        views: number of views that are joined in the batch; a rank holds its images in all of them.
    """

    def __init__(self, encoder: nn.Module, ranks: int, views: int = 1) -> None:
        super().__init__()
        self.encoder, self.ranks, self.views = encoder, ranks, views

    def forward(self, images: Tensor) -> Tensor:
        parts = torch.arange(len(images)).view(self.views, self.ranks, -1)
        out: list[Tensor] = [torch.empty(0)] * len(images)
        for rank in range(self.ranks):
            own = parts[:, rank].flatten().tolist()
            for place, embedding in zip(own, self.encoder(images[own]), strict=True):
                out[place] = embedding
        return torch.stack(out)


class ShuffledRanks(nn.Module):
    """ShuffleBN: the ranks' images change places before the encoder and come back after it."""

    def __init__(self, encoder: nn.Module, ranks: int, orders: torch.Generator) -> None:
        super().__init__()
        self.per_rank, self.orders = PerRank(encoder, ranks), orders

    def forward(self, images: Tensor) -> Tensor:
        order = torch.randperm(len(images), generator=self.orders).tolist()
        shuffled = self.per_rank(images[order])
        return torch.stack([shuffled[order.index(place)] for place in range(len(images))])
