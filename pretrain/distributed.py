"""The collectives of pretraining. With a world of one each is the identity, so that every device runs the same code."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the ranks that torchrun started; does nothing without it."""
    if "RANK" not in os.environ:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def own_device(name: str) -> torch.device:
    """The device of that name; of several GPUs the one of this rank (torchrun's LOCAL_RANK).

    Raises:
        ValueError: there is none here.
    """
    try:
        device = torch.device(name)
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    if device.type != "cuda" or device.index is not None or "LOCAL_RANK" not in os.environ:
        return device
    own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(own)
    return own


def world_size() -> int:
    """Number of ranks; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without torchrun."""
    return dist.get_rank() if dist.is_initialized() else 0


def own_slice(n: int) -> slice:
    """This rank's equal part of n items."""
    part = n // world_size()
    return slice(rank() * part, (rank() + 1) * part)


@torch.no_grad()
def gather(part: Tensor) -> Tensor:
    """Every rank's (N, ...) joined along dim 0 in the order of ranks. No gradient flows through."""
    if world_size() == 1:
        return part
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def gather_with_gradient(part: Tensor) -> Tensor:
    """As `gather`; a rank's part gets the sum of the gradients that all ranks have for it."""
    if world_size() == 1:
        return part
    joined: Tensor = _Gather.apply(part)
    return joined


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return gather(part)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient[own_slice(len(gradient))]


def shuffle(part: Tensor, generator: torch.Generator) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """ShuffleBN (MoCo v1, section 3.3): one random order over all ranks' images, rank 0's on every rank.

    Returns:
        This rank's slice of the shuffled images, and what brings the outputs of that slice back into this rank's own
        order; gradients flow through it.
    """
    everyones = gather(part)
    order = torch.randperm(len(everyones), generator=generator, device=generator.device)
    if world_size() > 1:
        dist.broadcast(order, src=0)
    own = own_slice(len(everyones))

    def unshuffle(outputs: Tensor) -> Tensor:
        return gather_with_gradient(outputs)[order.argsort()][own]

    return everyones[order][own], unshuffle


def mean(values: Tensor) -> Tensor:
    """The mean over the ranks."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()
