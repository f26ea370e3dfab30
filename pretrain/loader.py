"""Batches of views from files or tar shards, in an order fixed by the seed, from any step on.

A pass over files permutes them. A pass over shards permutes the shards and deals them to ranks and loader workers; each
reads its shards one after the other and mixes the images in blocks. That order is a function of (seed, pass, ranks,
workers); to resume at a step, whole shards are skipped by their counts, and the rest of a block without decoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from torchvision.transforms import functional as TF

from pretrain import distributed
from pretrain.augment import PilCrops, PilViews, seeded_views, worker_views
from pretrain.augment_tensor import BatchedViews
from pretrain.data import Files, Shards, read_members, read_rgb
from pretrain.mechanism import Batch
from pretrain.recipe import Recipe
from results.errors import InputError

Item = tuple[int, tuple[Tensor, ...]]  # the image's number, and its views or crops
BLOCK = 1024  # encoded images that a worker mixes at a time: about 110 MB of ImageNet


class Loader:
    """Batches for every pass over the data, this rank's share of each.

    The incomplete last batch of a pass is dropped, as in the reference. The tensor engine advances `generator` with
    every batch; with PIL nothing but (seed, pass) decides, and for shards the numbers of ranks and workers.

    Args:
        generator: of the tensor engine, on the device of the batches.
        workers: loader processes; with shards a part of what fixes the order.

    Raises:
        InputError: too few images or shards, a batch that does not split over the ranks, or stored_size with shards.
    """

    def __init__(
        self, recipe: Recipe, images: Files | Shards, device: torch.device, generator: torch.Generator, workers: int
    ) -> None:
        if len(images) < recipe.batch_size:
            raise InputError(
                f"{len(images)} images do not fill one batch of {recipe.batch_size}; add images or lower batch_size"
            )
        if recipe.batch_size % distributed.world_size():
            raise InputError(
                f"batch_size {recipe.batch_size} does not split over {distributed.world_size()} ranks; choose a "
                "multiple of their number"
            )
        self.recipe, self.images, self.device, self.workers = recipe, images, device, workers
        self.views = recipe.views
        self.steps = len(images) // recipe.batch_size  # per pass
        self.batched = BatchedViews(recipe.augmentation, recipe.mean, recipe.std, generator)
        self.stored: Tensor | None = None
        if isinstance(images, Shards):
            streams = max(1, workers) * distributed.world_size()
            if len(images.urls) < streams:
                raise InputError(
                    f"{len(images.urls)} shards cannot be dealt to {distributed.world_size()} ranks of "
                    f"{max(1, workers)} loader workers; lower --workers or cut the data into more shards"
                )
        if recipe.augmentation.stored_size is not None:
            if isinstance(images, Shards):
                raise InputError("augmentation.stored_size keeps all images in memory; with tar shards set it to None")
            stored = _Stored(images, recipe.augmentation.stored_size)
            self.stored = torch.cat(list(DataLoader(stored, batch_size=64, num_workers=workers))).to(device)

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of pass `number`, from `first_step` on."""
        if isinstance(self.images, Shards):
            work = worker_views(self.recipe)
            stream = _ShardStream(self.images, work, self.recipe, number, first_step, self.steps, self.workers)
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
        items = _Views(self.images, worker_views(self.recipe), self.recipe.seed, number)
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
        return index, seeded_views(self.work, image, self.seed, self.number, index)


class _ShardStream(IterableDataset[Item]):
    """(image number, views) for this rank's steps of one pass, from `first_step` on.

    A worker whose shards hold fewer images than its steps need begins with them again; one with more leaves the last
    ones out. So every pass has the same number of steps on every rank.

    Args:
        number: of the pass.
        steps: in a whole pass.
        workers: loader processes that share the work, 0 for none.
    """

    def __init__(
        self,
        shards: Shards,
        work: PilViews | PilCrops,
        recipe: Recipe,
        number: int,
        first_step: int,
        steps: int,
        workers: int,
    ) -> None:
        self.shards, self.work, self.recipe, self.number = shards, work, recipe, number
        self.first_step, self.steps, self.workers = first_step, steps, max(1, workers)
        self.rank, self.ranks = distributed.rank(), distributed.world_size()  # workers cannot ask
        self.starts = [0, *torch.tensor(shards.counts).cumsum(0).tolist()]

    def __iter__(self) -> Iterator[Item]:
        info = get_worker_info()
        # The loader takes batches from its workers in turn, beginning with the first: it gets `first_step`.
        stream = (self.first_step + (info.id if info else 0)) % self.workers
        own_steps = range(stream, self.steps, self.workers)
        done = len(range(stream, self.first_step, self.workers))
        part = self.recipe.batch_size // self.ranks
        images = self._mixed(stream, done * part)
        for number, data, name in islice(images, (len(own_steps) - done) * part):
            yield number, seeded_views(self.work, read_rgb(data, name), self.recipe.seed, self.number, number)

    def _mixed(self, stream: int, skip: int) -> Iterator[tuple[int, bytes, str]]:
        """The stream's images, turn after turn without end, mixed in blocks, without the first `skip`."""
        deal = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.number)
        order = torch.randperm(len(self.shards.urls), generator=deal).tolist()
        own = order[self.rank * self.workers + stream :: self.ranks * self.workers]
        total = sum(self.shards.counts[shard] for shard in own)
        turn, inside = divmod(skip, total)
        while True:
            block, inside = divmod(inside, BLOCK)
            images = self._in_order(own, block * BLOCK)
            while held := list(islice(images, BLOCK)):
                mix = torch.Generator().manual_seed(hash((self.recipe.seed, self.number, own[0], turn, block)))
                places = torch.randperm(len(held), generator=mix).tolist()
                yield from (held[place] for place in places[inside:])
                block, inside = block + 1, 0
            turn += 1

    def _in_order(self, own: list[int], skip: int) -> Iterator[tuple[int, bytes, str]]:
        """The images of the shards `own`, one shard after the other, without the first `skip`."""
        for shard in own:
            if skip < self.shards.counts[shard]:
                yield from islice(self._shard(shard), skip, None)
            skip = max(0, skip - self.shards.counts[shard])

    def _shard(self, shard: int) -> Iterator[tuple[int, bytes, str]]:
        # A second to import, for nothing where there are files.
        from webdataset.gopen import gopen
        from webdataset.tariterators import group_by_keys

        url, expected = self.shards.urls[shard], self.shards.counts[shard]
        read = 0
        # webdataset runs a file whose name begins with pipe: as a shell command; files are opened here.
        with gopen(url) if url in self.shards.remote else Path(url).open("rb") as stream:
            for sample in group_by_keys(read_members(stream, url)):
                for suffix in sorted(key for key in sample if not key.startswith("__")):
                    yield self.starts[shard] + read, sample[suffix], f"{sample['__key__']}.{suffix} in {url}"
                    read += 1
        if read != expected:
            raise InputError(
                f"{url} holds {read} images where its index says {expected}; write the index again with "
                "scripts/index_shards.py"
            )
