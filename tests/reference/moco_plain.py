"""MoCo written down as plainly as the paper's Algorithm 1: lists, loops, no in-place tricks. The core is held to it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class PlainMoCo:
    """One device, so that shuffling the keys' order is undone exactly where the norms see the whole batch."""

    def __init__(self, encoder: nn.Module, queue: Tensor, momentum: float, temperature: float) -> None:
        self.f_q, self.f_k = encoder, copy.deepcopy(encoder)
        self.queue = [column.clone() for column in queue.T]  # oldest first in the order of the buffer
        self.at = 0
        self.momentum, self.temperature = momentum, temperature

    def loss(self, view_q: Tensor, view_k: Tensor) -> Tensor:
        q = self.f_q(view_q)
        with torch.no_grad():
            for theta_k, theta_q in zip(self.f_k.parameters(), self.f_q.parameters(), strict=True):
                theta_k.copy_(self.momentum * theta_k + (1 - self.momentum) * theta_q)
            k = self.f_k(view_k)
        total = q.new_zeros(())
        for query, key in zip(q, k, strict=True):
            scores = [torch.dot(query, key)] + [torch.dot(query, negative) for negative in self.queue]
            total = total - torch.log_softmax(torch.stack(scores) / self.temperature, dim=0)[0]
        for key in k:
            self.queue[self.at] = key
            self.at = (self.at + 1) % len(self.queue)
        return total / len(q)
