"""Batches of views for training and evaluation: small sets are kept decoded, large ones read by worker processes."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.datasets.images import apply_geometry, decode
from benchmarks.datasets.lists import batch_file, path_strings
from benchmarks.training.settings import ViewSettings
from benchmarks.training.views import draw, order, training_view
from pretrain import distributed
from results.schema import Geometry

CACHE_BYTES = 512 * 2**20
VIEW_BYTES = 256 * 2**20
SAMPLED_SIZES = 32

Request = tuple[int, int]  # epoch, index of the image
Batch = tuple[Tensor, Tensor, Tensor]  # images (N, 3, S, S) uint8, lighting (N, 3) float32, targets (N,) int64


class Images:
    """Decoded RGB images, kept in memory where all of them fit in `limit` bytes."""

    def __init__(self, paths: Sequence[Path], limit: int = CACHE_BYTES) -> None:
        self.paths = paths
        self.kept: Kept | None = None
        if self._estimated_bytes() <= limit:
            self.kept = _kept(tuple(paths), tuple(map(_changed, path_strings(paths))))

    @property
    def in_memory(self) -> bool:
        return self.kept is not None

    def __getitem__(self, index: int) -> Image.Image:
        return self.kept.images[index] if self.kept is not None else decode(self.paths[index])

    def _estimated_bytes(self) -> float:
        some = self.paths[:: max(1, len(self.paths) // SAMPLED_SIZES)]
        total = sum(3 * image.width * image.height for image in map(decode, some))
        return total / max(1, len(some)) * len(self.paths)


@dataclass
class Kept:
    """Decoded images, and views of them that were drawn before, for the next encoder that is trained on these.

    Attributes:
        views: how they are drawn, epoch and index -> image and lighting.
        room: bytes that more views may take.
    """

    images: tuple[Image.Image, ...]
    views: dict[Hashable, tuple[Tensor, Tensor]] = field(default_factory=dict)
    room: int = VIEW_BYTES


@lru_cache(maxsize=2)
def _kept(paths: tuple[Path, ...], changed: tuple[int, ...]) -> Kept:
    """The decoded images, once for all encoders; `changed` tells when a file is another one."""
    return Kept(tuple(decode(path) for path in paths))


def _changed(path: str) -> int:
    return os.stat(batch_file(path) or path).st_mtime_ns  # noqa: PTH116 - a million Paths are slow


class Views(Dataset[Any]):
    """Random views under `settings`, or the deterministic one of `geometry` where `settings` is None."""

    def __init__(
        self, images: Images, targets: NDArray[np.int64], geometry: Geometry, settings: ViewSettings | None, seed: int
    ) -> None:
        self.images, self.targets, self.geometry, self.settings, self.seed = images, targets, geometry, settings, seed
        drawn = None if settings is None else tuple(getattr(settings, name) for name in ViewSettings.model_fields)
        self._how: Hashable = (drawn, geometry, seed)

    def __getitem__(self, request: Request) -> tuple[Tensor, Tensor, int]:
        kept, key = self.images.kept, (self._how, request)
        view = kept.views.get(key) if kept is not None else None
        if view is None:
            view = self._drawn(*request)
            size = view[0].numel()
            if kept is not None and size <= kept.room:
                kept.views[key] = view
                kept.room -= size
        return *view, int(self.targets[request[1]])

    def _drawn(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        if self.settings is None:
            pixels, lighting = np.asarray(apply_geometry(image, self.geometry)), np.zeros(3, np.float32)
        else:
            pixels, lighting = training_view(image, self.settings, self.geometry, draw(self.seed, epoch, index))
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), torch.from_numpy(lighting)

    def collate(self, samples: list[tuple[Tensor, Tensor, int]]) -> Batch:
        if not samples:
            crop = self.geometry.crop
            return (
                torch.zeros(0, 3, crop, crop, dtype=torch.uint8),
                torch.zeros(0, 3),
                torch.zeros(0, dtype=torch.int64),
            )
        images, lighting, targets = zip(*samples, strict=True)
        return torch.stack(images), torch.stack(lighting), torch.tensor(targets)


class TrainingBatches:
    """Which images each step sees: a fresh order per epoch, a function of seed and epoch alone, so that a restart needs
    no state. The last batch of an epoch may be smaller (main_lincls.py keeps it too). Iterating gives this rank's part
    of every batch from `first_step` to the end of the run.
    """

    def __init__(self, items: NDArray[np.int64], batch_size: int, seed: int, first_step: int, last_step: int) -> None:
        self.items, self.batch_size, self.seed = items, batch_size, seed
        self.first_step, self.last_step = first_step, last_step
        self.steps_per_epoch = -(-len(items) // batch_size)

    def batch_length(self, step: int) -> int:
        """Images in the whole batch of `step`, over all ranks."""
        start = step % self.steps_per_epoch * self.batch_size
        return min(self.batch_size, len(self.items) - start)

    def __len__(self) -> int:
        return self.last_step - self.first_step

    def __iter__(self) -> Iterator[list[Request]]:
        shuffled_epoch, items = -1, self.items
        for step in range(self.first_step, self.last_step):
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != shuffled_epoch:
                items = order(self.seed, epoch).permutation(self.items)
                shuffled_epoch = epoch
            batch = items[position * self.batch_size : (position + 1) * self.batch_size]
            yield [(epoch, int(index)) for index in batch[distributed.own_slice(len(batch))]]


class FixedBatches:
    """This rank's part of `items`, in order, `batch_size` at a time."""

    def __init__(self, items: NDArray[np.int64], batch_size: int) -> None:
        self.items, self.batch_size = items[distributed.own_slice(len(items))], batch_size

    def __len__(self) -> int:
        return -(-len(self.items) // self.batch_size)

    def __iter__(self) -> Iterator[list[Request]]:
        for start in range(0, len(self.items), self.batch_size):
            yield [(0, int(index)) for index in self.items[start : start + self.batch_size]]


def batches(
    views: Views, which: TrainingBatches | FixedBatches, workers: int, device: torch.device
) -> DataLoader[Batch]:
    """The loader over `which`. Images in memory are cheap enough to augment in this process."""
    loader: DataLoader[Batch] = DataLoader(
        views,
        batch_sampler=which,
        num_workers=0 if views.images.in_memory else workers,
        collate_fn=views.collate,
        pin_memory=device.type == "cuda",
    )
    return loader
