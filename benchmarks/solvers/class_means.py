"""Means of classes, the ranks that the nearest mean gives, and nested draws of a few images per class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.solvers.linear_heads import target_ranks
from benchmarks.solvers.logistic import as_tensor
from pretrain.distributed import row_products
from results.errors import InputError

CHUNK_ROWS = 16_384
Track = Callable[[Iterable[int], str], Iterable[int]]  # yields the items, maybe within a progress bar of this label
LOGITS_BYTES = 2**26


def unit_rows(rows: NDArray[np.floating], device: str | torch.device) -> Tensor:
    """(N, dim) float32 rows divided by their L2 norms, on the device.

    Raises:
        InputError: a row is zero or not finite.
    """
    x = as_tensor(rows).to(device, torch.float32)
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    if not bool((torch.isfinite(norms) & (norms > 0)).all()):
        raise InputError("a stored feature is zero or not finite and has no direction: check the encoder's card")
    return x / norms


def class_means(
    features: NDArray[np.floating],
    targets: NDArray[np.int64],
    classes: int,
    *,
    device: str | torch.device = "cpu",
    track: Track = lambda items, _: items,
) -> Tensor:
    """(classes, dim) means of the unit rows of each class, NaN for a class without rows.

    Args:
        features: (N, dim), maybe memory-mapped; read once, in order.
    """
    sums = torch.zeros(classes, features.shape[1], dtype=torch.float64, device=device)
    for start in track(chunk_starts(len(features)), "class means"):
        rows = unit_rows(features[start : start + CHUNK_ROWS], device)
        own = torch.from_numpy(targets[start : start + CHUNK_ROWS]).to(device)
        sums.index_add_(0, own, rows.double())
    counts = torch.from_numpy(np.bincount(targets, minlength=classes)).to(device)
    return (sums / counts[:, None]).float()


def chunk_starts(rows: int) -> range:
    """First rows of the chunks that are read at a time."""
    return range(0, rows, CHUNK_ROWS)


def nearest_mean_ranks(
    means: Tensor,
    features: NDArray[np.floating],
    targets: NDArray[np.int64],
    *,
    track: Track = lambda items, _: items,
) -> Tensor:
    """(sets, N) how many classes have a mean nearer to a unit row than the true class has, on the CPU.

    Args:
        means: (sets, classes, dim): one product serves every set. A class without a mean (NaN) is the furthest.
    """
    sets, classes, dim = means.shape
    means = means.nan_to_num(nan=torch.inf)
    absent = torch.isinf(means).any(dim=2)
    means = means.masked_fill(absent[..., None], 0.0)
    # |x - m|² orders as -x·m + |m|² / 2.
    offset = (-means.square().sum(dim=2) / 2).masked_fill(absent, -torch.inf).flatten()
    size = max(1, LOGITS_BYTES // (sets * classes * 4))
    found = []
    for start in track(chunk_starts(len(features)), "nearest mean"):
        rows = unit_rows(features[start : start + CHUNK_ROWS], means.device)
        own = torch.from_numpy(targets[start : start + CHUNK_ROWS]).to(means.device)
        for part, truth in zip(rows.split(size), own.split(size), strict=True):
            scores = row_products(part, means.reshape(-1, dim)).add_(offset).view(-1, sets, classes)
            found.append(target_ranks(scores, truth).cpu())
    return torch.cat(found, dim=1)


def sample_per_class(
    targets: NDArray[np.int64], classes: int, per_class: int, seeds: Sequence[int]
) -> NDArray[np.int64]:
    """(draws, per_class, classes) row numbers: the first n of the second axis are a draw of n images of each class.

    Raises:
        ValueError: a class has fewer rows.
    """
    by_class = [np.flatnonzero(targets == index) for index in range(classes)]
    if min(map(len, by_class)) < per_class:
        raise ValueError(f"a class has fewer than {per_class} rows")
    drawn = np.empty((len(seeds), per_class, classes), np.int64)
    for number, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        for index, rows in enumerate(by_class):
            drawn[number, :, index] = rng.permutation(rows)[:per_class]
    return drawn
