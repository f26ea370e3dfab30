"""Ranks and their collectives. With one process every collective is the identity, so one and many run the same code."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from results.errors import InputError


def own_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU where there is one, and of several GPUs that of torchrun's LOCAL_RANK.

    Raises:
        InputError: this machine has no such device.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def join(name: str) -> torch.device:
    """Join the ranks that torchrun started, if it did, and return this rank's device.

    Raises:
        InputError: see `own_device`.
    """
    device = own_device(name)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


@contextmanager
def process_group(name: str) -> Iterator[torch.device]:
    """`join`, and leave the ranks at the end."""
    device = join(name)
    try:
        yield device
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def world_size() -> int:
    """Number of ranks; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without torchrun."""
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        dist.barrier()


def own_slice(n: int) -> slice:
    """This rank's part of n items. Parts are equal, or one longer on the first ranks."""
    share, rest = divmod(n, world_size())
    start = rank() * share + min(rank(), rest)
    return slice(start, start + share + (rank() < rest))


def sum_(tensor: Tensor) -> Tensor:
    """The sum over ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def mean(values: Tensor) -> Tensor:
    """The mean over ranks."""
    return sum_(values.clone()) / world_size()


def union(own: set[int]) -> set[int]:
    """The numbers that any rank has."""
    if world_size() == 1:
        return own
    everyones: list[set[int]] = [set() for _ in range(world_size())]
    dist.all_gather_object(everyones, own)
    return set().union(*everyones)


def sum_with_gradient(part: Tensor) -> Tensor:
    """The sum over ranks; a rank's part gets the sum of the gradients that all ranks have for it."""
    if world_size() == 1:
        return part
    total: Tensor = _Sum.apply(part)
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return sum_(part.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_(gradients[0].contiguous().clone())


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
        gradient = sum_(gradients[0].contiguous())
        return gradient[own_slice(len(gradient))]


def shuffle(part: Tensor, generator: torch.Generator) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """ShuffleBN (MoCo v1, section 3.3): one random order over all ranks' images, rank 0's on every rank.

    Returns:
        This rank's slice of the shuffled images, and a function that brings the outputs of that slice back into this
        rank's own order; gradients flow through it.
    """
    everyones = gather(part)
    order = torch.randperm(len(everyones), generator=generator, device=generator.device)
    if world_size() > 1:
        dist.broadcast(order, src=0)
    own = own_slice(len(everyones))

    def unshuffle(outputs: Tensor) -> Tensor:
        return gather_with_gradient(outputs)[order.argsort()][own]

    return everyones[order][own], unshuffle
