"""MoCo written down as plainly as the paper's Algorithm 1: lists, loops, no in-place tricks. The core is held to it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class PlainMoCo:
    """One device, so that shuffling the keys' order is undone exactly where the norms see the whole batch."""

    def __init__(
        self, encoder: nn.Module, queue: Tensor, momentum: float, temperature: float, symmetric: bool = False
    ) -> None:
        self.f_q, self.f_k = encoder, copy.deepcopy(encoder)
        self.queue = [column.clone() for column in queue.T]  # oldest first in the order of the buffer
        self.at = 0
        self.momentum, self.temperature, self.symmetric = momentum, temperature, symmetric

    def loss(self, view_1: Tensor, view_2: Tensor) -> Tensor:
        with torch.no_grad():
            for theta_k, theta_q in zip(self.f_k.parameters(), self.f_q.parameters(), strict=True):
                theta_k.copy_(self.momentum * theta_k + (1 - self.momentum) * theta_q)
        total, keys = self.contrast(view_1, view_2)
        if self.symmetric:
            other, first_keys = self.contrast(view_2, view_1)
            total, keys = total + other, [*first_keys, *keys]
        for key in keys:
            self.queue[self.at] = key
            self.at = (self.at + 1) % len(self.queue)
        return total

    def contrast(self, view_q: Tensor, view_k: Tensor) -> tuple[Tensor, list[Tensor]]:
        q = self.f_q(view_q)
        with torch.no_grad():
            k = self.f_k(view_k)
        return mean_loss(list(q), list(k), self.queue, self.temperature), list(k)


def mean_loss(queries: list[Tensor], keys: list[Tensor], negatives: list[Tensor], temperature: float) -> Tensor:
    """InfoNCE, one query after the other."""
    total = queries[0].new_zeros(())
    for query, key in zip(queries, keys, strict=True):
        scores = [torch.dot(query, key)] + [torch.dot(query, negative) for negative in negatives]
        total = total - torch.log_softmax(torch.stack(scores) / temperature, dim=0)[0]
    return total / len(queries)
