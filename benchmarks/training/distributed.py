"""The collectives of the probes. With a world of one each is the identity: one process and many run the same code."""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch import distributed as dist


def join(device: str) -> torch.device:
    """Join the group that torchrun started, if it did, and give this rank's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    if device == "cuda" and world_size() > 1:
        own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(own)
        return own
    return torch.device(device)


def world_size() -> int:
    """Number of ranks; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without torchrun."""
    return dist.get_rank() if dist.is_initialized() else 0


def own_part(n: int) -> slice:
    """This rank's share of n items, as equal as can be; the first ranks take what is left over."""
    share, rest = divmod(n, world_size())
    start = rank() * share + min(rank(), rest)
    return slice(start, start + share + (rank() < rest))


def sum_(tensor: Tensor) -> Tensor:
    """The sum over ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()
