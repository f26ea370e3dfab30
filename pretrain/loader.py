"""Batches of views, in an order fixed by the seed, from any step on; one decode serves all views of an image."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as TF

from pretrain import distributed
from pretrain.augment import PilCrops, PilViews, drawn, in_workers
from pretrain.augment_batched import BatchedViews
from pretrain.contrast import Batch
from pretrain.mechanisms import views as views_of
from pretrain.recipe import Recipe
from pretrain.shards import ShardStream, check_split
from pretrain.sources import Files, Shards

Item = tuple[int, tuple[Tensor, ...]]  # the image's number, and its views or crops


class _Stored(Dataset[Tensor]):
    """(3, size, size) uint8: shorter side to `size`, centre."""

    def __init__(self, files: Files, size: int) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        image = TF.resize(self.files.read(self.files.paths[index]), self.size)
        return TF.pil_to_tensor(TF.center_crop(image, [self.size, self.size]))


class _Views(Dataset[Item]):
    """The number and the views of an image in pass `number`."""

    def __init__(self, files: Files, work: PilViews | PilCrops, seed: int, number: int) -> None:
        self.files, self.work, self.seed, self.number = files, work, seed, number

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Item:
        image = self.files.read(self.files.paths[index])
        return index, drawn(self.work, image, self.seed, self.number, index)


class Loader:
    """Batches for every pass over the data, this rank's share of each.

    The incomplete last batch of a pass is dropped, as in the reference. The tensor engine advances `generator` with
    every batch; with PIL nothing but (seed, pass) decides, and for shards the numbers of ranks and workers.

    Args:
        generator: of the tensor engine, on the device of the batches.
        workers: loader processes; with shards a part of what fixes the order.

    Raises:
        ValueError: too few images or shards, or shards where everything is to be stored.
    """

    def __init__(
        self, recipe: Recipe, images: Files | Shards, device: torch.device, generator: torch.Generator, workers: int
    ) -> None:
        if len(images) < recipe.batch_size:
            raise ValueError(
                f"{len(images)} images do not fill one batch of {recipe.batch_size}: add images or lower batch_size"
            )
        if recipe.batch_size % distributed.world_size():
            raise ValueError(
                f"batch_size {recipe.batch_size} does not split over {distributed.world_size()} ranks: choose a "
                "multiple of their number"
            )
        self.recipe, self.images, self.device, self.workers = recipe, images, device, workers
        self.views = views_of(recipe)
        self.steps = len(images) // recipe.batch_size  # per pass
        self.batched = BatchedViews(recipe.augmentation, recipe.mean, recipe.std, generator)
        self.stored: Tensor | None = None
        if isinstance(images, Shards):
            check_split(images, workers)
        if recipe.augmentation.stored_size is not None:
            if isinstance(images, Shards):
                raise ValueError("augmentation.stored_size keeps all images in memory: with tar shards set it to None")
            stored = _Stored(images, recipe.augmentation.stored_size)
            self.stored = torch.cat(list(DataLoader(stored, batch_size=64, num_workers=workers))).to(device)

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of pass `number`, from `first_step` on."""
        if isinstance(self.images, Shards):
            work = in_workers(self.recipe, self.views)
            stream = ShardStream(self.images, work, self.recipe, number, first_step, self.steps, self.workers)
            part = self.recipe.batch_size // distributed.world_size()
            yield from self._from_workers(
                DataLoader(stream, batch_size=part, num_workers=self.workers, pin_memory=self.device.type == "cuda")
            )
            return
        order_generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + number)
        order = torch.randperm(len(self.images), generator=order_generator)[: self.steps * self.recipe.batch_size]
        batches = order.view(self.steps, -1)[first_step:, distributed.own_slice(self.recipe.batch_size)]
        if self.stored is not None:
            for batch in batches:
                indices = batch.to(self.device)
                images = self.stored[indices]
                yield Batch(tuple(_laid_out(self.batched(images)) for _ in range(self.views)), indices)
            return
        items = _Views(self.images, in_workers(self.recipe, self.views), self.recipe.seed, number)
        yield from self._from_workers(
            DataLoader(
                items,
                batch_sampler=batches.tolist(),
                num_workers=self.workers,
                pin_memory=self.device.type == "cuda",
            )
        )

    def _from_workers(self, loader: DataLoader[Item]) -> Iterator[Batch]:
        for indices, made in loader:
            views = (view.to(self.device, non_blocking=True) for view in made)
            if self.recipe.augmentation.engine == "tensor":
                views = (self.batched.recoloured(view) for view in views)
            yield Batch(tuple(map(_laid_out, views)), indices.to(self.device, non_blocking=True))


def _laid_out(view: Tensor) -> Tensor:
    return view.contiguous(memory_format=torch.channels_last)
