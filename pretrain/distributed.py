"""The collectives of pretraining. With a world of one each is the identity, so that every device runs the same code."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


def world_size() -> int:
    """Number of ranks; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without torchrun."""
    return dist.get_rank() if dist.is_initialized() else 0


@torch.no_grad()
def gather(part: Tensor) -> Tensor:
    """Every rank's (N, ...) joined along dim 0 in the order of ranks. No gradient flows through."""
    if world_size() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def shared_permutation(n: int, generator: torch.Generator) -> Tensor:
    """One random permutation of n items, rank 0's on every rank."""
    order = torch.randperm(n, generator=generator, device=generator.device)
    if world_size() > 1:
        dist.broadcast(order, src=0)
    return order


def own_slice(n: int) -> slice:
    """This rank's equal part of n items."""
    part = n // world_size()
    return slice(rank() * part, (rank() + 1) * part)
