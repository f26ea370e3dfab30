"""Batches of views from files or tar shards, in an order fixed by the seed, from any step on.

A pass over files permutes them. A pass over shards permutes the shards, and cuts the row of their images into equal
streams, which begin at as many places of the data. Each stream mixes its images in blocks, across the ends of shards,
and every batch takes four images from each. So each image comes once in a pass, and the order is a function of (seed,
pass, batch size) on any number of ranks and loader workers, which share the streams. To resume at a step, whole shards
are skipped by their counts, and the rest of a block without decoding.

An image that cannot be read is replaced by the next one that can, and counted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from torchvision.transforms import functional as TF

from pretrain import distributed
from pretrain.augment import WorkerViews, normalise_pixels, seeded_views, worker_views
from pretrain.augment_tensor import BatchedViews
from pretrain.data import Files, Pixels, Shards, read_members, read_pixels, read_rgb, require_batch, require_cv2
from pretrain.distributed import DataLoader
from pretrain.mechanism import Batch
from pretrain.recipe import Recipe
from results.errors import InputError

log = logging.getLogger(__name__)

# The number of the image that the order asks for, of the one in its place (the same unless the first cannot be read),
# and that one's views or crops.
Item = tuple[int, int, tuple[Tensor, ...]]
MIXED = 8192  # encoded images that all streams together mix at a time: about 0.9 GB of ImageNet
STREAM_IMAGES = 4  # of a stream in each batch, where the batch size allows


READ_AHEAD, READ_AHEAD_BYTES = 4, 4 * 2**30  # batches of each loader worker, and what those of a rank may take


class Loader:
    """Batches for every pass over the data, this rank's share of each. Over files, workers live through all passes.

    The incomplete last batch of a pass is dropped, as in the reference. The tensor engine advances `generator` with
    every batch; with PIL and OpenCV nothing but (seed, pass) decides.

    Args:
        generator: of the tensor engine, on the device of the batches.
        workers: loader processes; with shards at most as many as this rank has streams, and a divisor of their number.
        max_unreadable: share of the images that may be unreadable.

    Attributes:
        unreadable: numbers of the images that could not be read so far.
        arrived: is called when the workers have delivered a batch, before anything is done with it on the device.

    Raises:
        InputError: too few images, a batch that does not split over the ranks, stored_size with shards, or,
            a missing OpenCV for its engine, or, while images are read, too many that cannot be.
    """

    def __init__(
        self,
        recipe: Recipe,
        images: Files | Shards,
        device: torch.device,
        generator: torch.Generator,
        workers: int,
        max_unreadable: float = 0.01,
    ) -> None:
        require_batch(images, recipe.batch_size)
        if recipe.batch_size % distributed.world_size():
            raise InputError(
                f"batch_size {recipe.batch_size} does not split over {distributed.world_size()} ranks; choose a "
                "multiple of their number"
            )
        self.recipe, self.images, self.device, self.workers = recipe, images, device, workers
        self.views, self.max_unreadable, self.engine = recipe.views, max_unreadable, recipe.augmentation.engine
        if self.engine == "cv2":
            require_cv2()
        self.unreadable: set[int] = set()
        self.arrived: Callable[[], None] = _nothing
        self.steps = len(images) // recipe.batch_size  # per pass
        self.batched = BatchedViews(recipe.augmentation, recipe.mean, recipe.std, generator)
        self.stored: Tensor | None = None
        self.streams = recipe.batch_size // math.gcd(recipe.batch_size, STREAM_IMAGES)  # of shards
        if isinstance(images, Shards) and self.streams % distributed.world_size():
            raise InputError(
                f"a batch of {recipe.batch_size} images from shards is made of {self.streams} streams, which do not "
                f"split over {distributed.world_size()} ranks; choose a batch_size that is a multiple of "
                f"{STREAM_IMAGES * distributed.world_size()}"
            )
        if recipe.augmentation.stored_size is not None:
            if isinstance(images, Shards):
                raise InputError("augmentation.stored_size keeps all images in memory; with tar shards set it to None")
            squares = []
            for asked, used, pixels in DataLoader(
                _Stored(images, recipe.augmentation.stored_size), batch_size=64, num_workers=workers
            ):
                self.count_unreadable(set(asked[asked != used].tolist()))
                squares.append(pixels)
            self.stored = torch.cat(squares).to(device)

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of pass `number`, from `first_step` on."""
        return islice(self.batches(number, first_step), self.steps - first_step)

    def batches(self, number: int, first_step: int) -> Iterator[Batch]:
        """The batches from a step of pass `number` on, pass after pass without end."""
        if isinstance(self.images, Shards):
            yield from self._from_shards(self.images, number, first_step)
        elif self.stored is not None:
            yield from self._from_memory(self.stored, number, first_step)
        else:
            items = _Views(self.images, worker_views(self.recipe), self.recipe)
            share = self.recipe.batch_size // distributed.world_size()
            requests = self._requests(number, first_step)
            yield from self._from_workers(self._workers(items, share, self.workers, batch_sampler=requests))

    def _workers(self, items: Dataset[Item], images: int, workers: int, **settings: Any) -> DataLoader[Item]:
        """A loader of batches of so many `images`, which lie in shared memory until it is their turn."""
        settings |= {"num_workers": workers, "pin_memory": self.device.type == "cuda"}
        if workers:
            size = images * self.views * 3 * self.recipe.augmentation.crop**2 * (4 if self.engine == "pil" else 1)
            settings["prefetch_factor"] = max(1, min(READ_AHEAD, READ_AHEAD_BYTES // (workers * size)))
        return DataLoader(items, **settings)

    def _from_shards(self, shards: Shards, number: int, first_step: int) -> Iterator[Batch]:
        ranks = distributed.world_size()
        own = self.streams // ranks
        # Each worker makes the part of a batch that is of its streams, in turn.
        turns = max(n for n in range(1, max(1, self.workers) + 1) if own % n == 0)
        for each in count(number):
            first = first_step if each == number else 0
            work = worker_views(self.recipe)
            stream = _ShardStream(shards, work, self.recipe, self.streams, each, first, self.steps)
            part = self.recipe.batch_size // (ranks * turns)
            loader = self._workers(stream, part, turns if self.workers else 0, batch_size=part)
            yield from self._from_workers(loader, turns)

    def _from_memory(self, stored: Tensor, number: int, first_step: int) -> Iterator[Batch]:
        for each in count(number):
            # All of a pass in one copy: one for every step would make the host wait for the device.
            for indices in self._order(each)[first_step if each == number else 0 :].to(self.device):
                self.arrived()
                images = stored[indices]
                yield Batch(tuple(_laid_out(self.batched(images)) for _ in range(self.views)), indices)

    def _requests(self, number: int, first_step: int) -> Iterator[list[tuple[int, int]]]:
        """(pass, image) of this rank's part of every batch."""
        for each in count(number):
            for batch in self._order(each)[first_step if each == number else 0 :].tolist():
                yield [(each, image) for image in batch]

    def _order(self, number: int) -> Tensor:
        """(steps, this rank's part) images of pass `number`."""
        order_generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + number)
        order = torch.randperm(len(self.images), generator=order_generator)[: self.steps * self.recipe.batch_size]
        return order.view(self.steps, -1)[:, distributed.own_slice(self.recipe.batch_size)]

    def _from_workers(self, loader: DataLoader[Item], parts: int = 1) -> Iterator[Batch]:
        """Batches of this rank, each of so many consecutive `parts` of the loader."""
        for each in zip(*[iter(loader)] * parts, strict=True):
            self.arrived()
            for asked, used, _ in each:
                self.count_unreadable(set(asked[asked != used].tolist()))
            views = (self._on_device([made[view] for _, _, made in each]) for view in range(self.views))
            if self.engine == "tensor":
                views = (self.batched.recoloured(view) for view in views)
            elif self.engine == "cv2":
                views = (normalise_pixels(view, self.batched.mean, self.batched.std) for view in views)
            yield Batch(tuple(map(_laid_out, views)), self._on_device([used for _, used, _ in each]))

    def _on_device(self, parts: list[Tensor]) -> Tensor:
        """The parts as one tensor. They are joined on the device, as they arrive in pinned memory."""
        moved = [part.to(self.device, non_blocking=True) for part in parts]
        return moved[0] if len(moved) == 1 else torch.cat(moved)

    def count_unreadable(self, numbers: set[int]) -> None:
        """Add images that cannot be read, and list the new ones in the log.

        Raises:
            InputError: they are more than `max_unreadable` of all images.
        """
        new = sorted(numbers - self.unreadable)
        self.unreadable |= numbers
        for number in new:
            log.warning("skipped an unreadable image (%d so far): %s", len(self.unreadable), self._fault(number))
        if len(self.unreadable) > self.max_unreadable * len(self.images):
            raise InputError(
                f"{len(self.unreadable)} of {len(self.images)} images cannot be read, more than --max-unreadable "
                f"{self.max_unreadable:g} allows; the last one: {self._fault(max(new or self.unreadable))}"
            )

    def _fault(self, number: int) -> str:
        if isinstance(self.images, Files):
            try:
                self.images.read(self.images.paths[number])
            except InputError as error:
                return str(error)
        return f"{self.images.name_of(number)} is not a readable image; repair or remove it"


def _nothing() -> None:
    pass


def _laid_out(view: Tensor) -> Tensor:
    return view.contiguous(memory_format=torch.channels_last)


Read = TypeVar("Read", Image.Image, Image.Image | Pixels)


def _read_or_next(files: Files, read: Callable[[Path], Read], number: int) -> tuple[int, Read]:
    """The number and the pixels of image `number`, or of the next one that can be read.

    Raises:
        InputError: none of a hundred can be read.
    """
    for tried in range(number, number + 100):
        try:
            return tried % len(files), read(files.paths[tried % len(files)])
        except InputError as error:
            fault = error
    raise fault


class _Stored(Dataset[tuple[int, int, Tensor]]):
    """As `Item`, with (3, size, size) uint8: shorter side to `size`, centre."""

    def __init__(self, files: Files, size: int) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[int, int, Tensor]:
        used, image = _read_or_next(self.files, self.files.read, index)
        square = TF.center_crop(TF.resize(image, self.size), [self.size, self.size])
        return index, used, TF.pil_to_tensor(square)


class _Views(Dataset[Item]):
    """Items by (pass, image)."""

    def __init__(self, files: Files, work: WorkerViews, recipe: Recipe) -> None:
        self.files, self.work, self.seed = files, work, recipe.seed
        self.read: Callable[[Path], Image.Image | Pixels] = files.read
        if recipe.augmentation.engine == "cv2" and files.read is read_rgb:
            self.read = read_pixels

    def __getitem__(self, request: tuple[int, int]) -> Item:
        number, index = request
        used, image = _read_or_next(self.files, self.read, index)
        return index, used, seeded_views(self.work, image, self.seed, number, index)


class _ShardStream(IterableDataset[Item]):
    """The items of this rank's steps of one pass, from `first_step` on: `STREAM_IMAGES` of each of its streams in turn.

    Args:
        streams: over all ranks.
        number: of the pass.
        steps: in a whole pass.
    """

    def __init__(
        self,
        shards: Shards,
        work: WorkerViews,
        recipe: Recipe,
        streams: int,
        number: int,
        first_step: int,
        steps: int,
    ) -> None:
        self.shards, self.work, self.recipe, self.number = shards, work, recipe, number
        self.first_step, self.steps, self.streams = first_step, steps, streams
        self.read = read_pixels if recipe.augmentation.engine == "cv2" else read_rgb
        self.images = recipe.batch_size // streams  # of each stream in a step
        self.own = range(streams)[distributed.own_slice(streams)]  # workers cannot ask
        self.starts = [0, *torch.tensor(shards.counts).cumsum(0).tolist()]
        deal = torch.Generator().manual_seed(recipe.seed * 1_000_003 + number)
        self.order = torch.randperm(len(shards.urls), generator=deal).tolist()

    def __iter__(self) -> Iterator[Item]:
        info = get_worker_info()
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        share = len(self.own) // workers
        items = [self._items(stream) for stream in self.own[worker * share : (worker + 1) * share]]
        for _ in range(self.first_step, self.steps):
            for stream in items:
                yield from islice(stream, self.images)

    def _items(self, stream: int) -> Iterator[Item]:
        done = self.first_step * self.images
        left = self.steps * self.images - done
        images = self._mixed(stream, done)
        waiting: list[int] = []  # images that could not be read, whose places the next one takes too
        while left or waiting:
            number, data, name = next(images)
            if left:
                waiting.append(number)
                left -= 1
            try:
                image = self.read(data, name)
            except InputError:
                if len(waiting) > 100:  # as `_read_or_next`
                    raise
                continue
            for asked in waiting:
                yield asked, number, seeded_views(self.work, image, self.recipe.seed, self.number, asked)
            waiting.clear()

    def _mixed(self, stream: int, skip: int) -> Iterator[tuple[int, bytes, str]]:
        """The stream's images, turn after turn without end, mixed in blocks, without the first `skip`."""
        size, block_size = self.steps * self.images, max(self.images, MIXED // self.streams)
        turn, inside = divmod(skip, size)
        while True:
            block, inside = divmod(inside, block_size)
            images = self._in_order(stream * size + block * block_size, (stream + 1) * size)
            while held := list(islice(images, block_size)):
                mix = torch.Generator().manual_seed(hash((self.recipe.seed, self.number, stream, turn, block)))
                places = torch.randperm(len(held), generator=mix).tolist()
                yield from (held[place] for place in places[inside:])
                block, inside = block + 1, 0
            turn += 1

    def _in_order(self, start: int, stop: int) -> Iterator[tuple[int, bytes, str]]:
        """The images from place `start` to `stop` of the row of all shards in this pass's order."""
        for shard in self.order:
            count = self.shards.counts[shard]
            if start < count and stop > 0:
                whole = start <= 0 and stop >= count
                images = self._shard(shard)
                yield from images if whole else islice(images, max(0, start), min(stop, count))
            start, stop = start - count, stop - count

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
                "encoder-bench index-shards"
            )
