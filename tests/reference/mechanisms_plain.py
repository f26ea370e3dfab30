"""What MoCo is compared with, written down plainly: end-to-end, memory bank, SimCLR."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from tests.reference.moco_plain import mean_loss


class PlainEndToEnd:
    """Each query against all keys of its batch, with gradients into both encoders."""

    def __init__(self, encoder: nn.Module, temperature: float) -> None:
        self.f_q, self.f_k = encoder, copy.deepcopy(encoder)
        self.temperature = temperature

    def loss(self, view_q: Tensor, view_k: Tensor) -> Tensor:
        q, k = self.f_q(view_q), self.f_k(view_k)
        total = q.new_zeros(())
        for i, query in enumerate(q):
            others = [key for j, key in enumerate(k) if j != i]
            total = total + mean_loss([query], [k[i]], others, self.temperature)
        return total / len(q)


class PlainSimCLR:
    """NT-Xent over all 2N views of one encoder."""

    def __init__(self, encoder: nn.Module, temperature: float) -> None:
        self.f = encoder
        self.temperature = temperature

    def loss(self, view_1: Tensor, view_2: Tensor) -> Tensor:
        n = len(view_1)
        z = self.f(torch.cat([view_1, view_2]))
        total = z.new_zeros(())
        for i in range(2 * n):
            positive = (i + n) % (2 * n)
            others = [z[j] for j in range(2 * n) if j not in (i, positive)]
            total = total + mean_loss([z[i]], [z[positive]], others, self.temperature)
        return total / (2 * n)


class PlainMemoryBank:
    """Lists of vectors; the same draws from a generator of the same seed as the core's."""

    def __init__(self, encoder: nn.Module, bank: Tensor, k: int, temperature: float, nce: bool, seed: int) -> None:
        self.f = encoder
        self.bank = [vector.clone() for vector in bank]
        self.k, self.temperature, self.nce = k, temperature, nce
        self.draws = torch.Generator().manual_seed(seed)
        torch.rand(bank.shape, generator=self.draws)  # the bank itself came first
        self.z: float | None = None

    def loss(self, view: Tensor, indices: list[int]) -> Tensor:
        v = self.f(view)
        stored = [self.bank[i] for i in indices]
        shape = (len(v), self.k) if self.nce else (self.k,)
        drawn = torch.randint(len(self.bank), shape, generator=self.draws).tolist()
        if self.nce:
            total = self.noise_contrast(v, stored, drawn)
        else:
            total = mean_loss(list(v), stored, [self.bank[i] for i in drawn], self.temperature)
        for i, new in zip(indices, v.detach(), strict=True):
            moved = 0.5 * self.bank[i] + 0.5 * new
            self.bank[i] = moved / moved.norm()
        return total

    def noise_contrast(self, v: Tensor, stored: list[Tensor], drawn: list[list[int]]) -> Tensor:
        n = len(self.bank)
        scores = []
        for query, own, others in zip(v, stored, drawn, strict=True):
            vectors = [own, *(self.bank[i] for i in others)]
            scores.append([torch.exp(torch.dot(query, vector) / self.temperature) for vector in vectors])
        if self.z is None:
            flat = [s.item() for row in scores for s in row]
            self.z = n * math.fsum(flat) / len(flat)
        noise = self.k / n
        total = v.new_zeros(())
        for own, *others in scores:
            p = own / self.z
            total = total - torch.log(p / (p + noise + 1e-7))
            for other in others:
                total = total - torch.log(noise / (other / self.z + noise + 1e-7))
        return total / len(v)
