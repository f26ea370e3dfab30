"""Images streamed from tar shards by webdataset, in an order that can be taken up again at any step.

A pass permutes the shards and deals them to ranks and loader workers; each reads its shards one after the other, and
mixes the images in blocks. The order is a function of (seed, pass, ranks, workers): to go on at a step is to skip whole
shards by their counts, and the rest of a block without decoding it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from pretrain import distributed
from pretrain.augment import PilCrops, PilViews, drawn
from pretrain.recipe import Recipe
from pretrain.sources import Shards, is_image, read_rgb

BLOCK = 1024  # encoded images that a worker mixes at a time: about 110 MB of ImageNet


def check_split(shards: Shards, workers: int) -> None:
    """Every loader worker of every rank must have a shard of its own.

    Raises:
        ValueError: there are fewer.
    """
    streams = max(1, workers) * distributed.world_size()
    if len(shards.urls) < streams:
        raise ValueError(
            f"{len(shards.urls)} shards cannot be dealt to {distributed.world_size()} ranks of {max(1, workers)} "
            "loader workers: lower --workers or cut the data into more shards"
        )


class ShardStream(IterableDataset[tuple[int, tuple[Tensor, ...]]]):
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

    def __iter__(self) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        info = get_worker_info()
        # The loader takes batches from its workers in turn, beginning with the first: it gets `first_step`.
        stream = (self.first_step + (info.id if info else 0)) % self.workers
        own_steps = range(stream, self.steps, self.workers)
        done = len(range(stream, self.first_step, self.workers))
        part = self.recipe.batch_size // self.ranks
        images = self._mixed(stream, done * part)
        for number, data, name in islice(images, (len(own_steps) - done) * part):
            yield number, drawn(self.work, read_rgb(data, name), self.recipe.seed, self.number, number)

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
        from webdataset.tariterators import tarfile_samples  # a second to import, for nothing where there are files

        url, expected = self.shards.urls[shard], self.shards.counts[shard]
        read = 0
        for sample in tarfile_samples([{"url": url}], select_files=is_image):
            for suffix in sorted(key for key in sample if not key.startswith("__")):
                yield self.starts[shard] + read, sample[suffix], f"{sample['__key__']}.{suffix} in {url}"
                read += 1
        if read != expected:
            raise ValueError(
                f"{url} holds {read} images where its index says {expected}: write the index again with "
                "scripts/index_shards.py"
            )
